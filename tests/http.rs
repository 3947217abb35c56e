//! The HTTP skin over real sockets: the guarded client and the limited server.

#[path = "http/client.rs"]
mod client;
#[path = "support/dns.rs"]
mod dns;
#[path = "http/server.rs"]
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use drawbridge::config::{HttpConfig, ListenConfig};
use drawbridge::http::client::Client;
use drawbridge::protocol::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

/// Nothing is allowed, no name server answers (discard port).
fn strict() -> HttpConfig {
    HttpConfig {
        connect_timeout: SECOND,
        timeout: LONG,
        max_answer_bytes: 1 << 20,
        extra_roots: Vec::new(),
        allow_cidrs: Vec::new(),
        allow_hosts: Vec::new(),
        plain_hosts: Vec::new(),
        dns_servers: vec!["127.0.0.1:9".parse().unwrap()],
        hosts: Vec::new(),
        srv: true,
        idle_per_host: 16,
    }
}

/// Loopback is allowed, by plain http too.
fn local() -> HttpConfig {
    HttpConfig {
        allow_cidrs: vec!["127.0.0.0/8".parse().unwrap()],
        plain_hosts: vec!["127.0.0.1".into()],
        ..strict()
    }
}

fn listen() -> ListenConfig {
    ListenConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        tls_certificate: None,
        tls_key: None,
        max_body_bytes: 4 << 20,
        max_header_bytes: 16 * 1024,
        max_connections: 64,
        header_timeout: LONG,
        request_timeout: LONG,
        idle_timeout: LONG,
        drain_timeout: LONG,
        trusted_proxies: Vec::new(),
    }
}

fn client(config: &HttpConfig) -> Client {
    Client::new(config).unwrap()
}

fn get(url: impl Into<String>) -> Request {
    Request {
        method: http::Method::GET,
        url: url.into(),
        headers: http::HeaderMap::new(),
        body: Bytes::new(),
    }
}

fn post(url: impl Into<String>, body: impl Into<Bytes>) -> Request {
    Request {
        method: http::Method::POST,
        body: body.into(),
        ..get(url)
    }
}

/// A server that reads one request head, writes `answer`, and then closes or (`hold`) stays.
struct Scripted {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    async fn start(answer: impl Into<Vec<u8>>, hold: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let answer: Arc<[u8]> = answer.into().into();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    read_head(&mut stream).await;
                    let _ = stream.write_all(&answer).await;
                    if hold {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self {
            address,
            connections,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// A certificate for `127.0.0.1` and `beta.test` signed by a root of its own, as PEM files.
struct Pki {
    dir: tempfile::TempDir,
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        let pki = Self {
            dir: tempfile::tempdir().unwrap(),
            issuer,
        };
        std::fs::write(pki.root(), pki.issuer.pem()).unwrap();
        pki.issue();
        pki
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root.pem")
    }

    fn certificate(&self) -> std::path::PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn key(&self) -> std::path::PathBuf {
        self.dir.path().join("key.pem")
    }

    /// Writes a new leaf certificate and key over the old ones.
    fn issue(&self) {
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "beta.test".into()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        std::fs::write(self.certificate(), leaf.pem()).unwrap();
        std::fs::write(self.key(), key.serialize_pem()).unwrap();
    }
}
