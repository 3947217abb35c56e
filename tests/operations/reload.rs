//! SIGHUP: what is taken up, what is named as waiting for a restart, what a fault leaves in force.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::world::{Peer, World};
use crate::support::uam_client::{self, Posted};

/// A root of its own and leaf certificates for 127.0.0.1.
struct Pki {
    dir: PathBuf,
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    fn new(dir: &Path) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self {
            dir: dir.to_owned(),
            issuer: rcgen::CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    fn certificate(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.dir.join("key.pem")
    }

    /// Writes a new leaf and its key over the old ones.
    fn issue(&self) {
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".into()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        std::fs::write(self.certificate(), leaf.pem()).unwrap();
        std::fs::write(self.key(), key.serialize_pem()).unwrap();
    }

    /// A connection to a listener that shows a certificate of this root.
    async fn connect(&self, address: std::net::SocketAddr) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().unwrap()[0].to_vec()
}

/// One request on a connection that stays open.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        .await
        .unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"}") {
        let mut chunk = [0; 1024];
        let n = stream.read(&mut chunk).await.unwrap();
        assert!(n > 0, "the connection was dropped");
        seen.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(seen).unwrap()
}

/// A rule as another process would have put it into the store.
async fn block_behind_its_back(database: &Path, domain: &str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(database);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(
        "INSERT INTO federation_trust (protocol, pattern, rule, reason, created_ms, ends_ms) \
         VALUES ('uam', $1, 'block', 'test', 0, NULL)",
    )
    .bind(domain)
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_takes_up_peers_trust_certificate_and_log_level_without_dropping_connections() {
    let mut world = World::new(
        "discovery = false\nretry_delays = [\"1s\", \"1s\", \"2s\"]",
        "",
    )
    .await;
    let pki = Pki::new(world.dir.path());
    pki.issue();
    let file = |path: PathBuf| path.display().to_string();
    let (certificate, key) = (file(pki.certificate()), file(pki.key()));
    world
        .bridge
        .env("DRAWBRIDGE_PUBLIC__TLS_CERTIFICATE", &certificate);
    world.bridge.env("DRAWBRIDGE_PUBLIC__TLS_KEY", &key);
    world.bridge.start().await;
    let beta = Peer::start(world.dir.path(), "beta.test", "ok").await;

    let id = world.publish("beta.test", &[]).await;
    world.logs("beta.test is not among [[peers]]").await;
    let mut old = pki.connect(world.bridge.public).await;
    let first = shown(&old);
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 200"));
    assert!(!world.bridge.log().contains("DEBUG"));

    pki.issue();
    block_behind_its_back(&world.bridge.dir.join("drawbridge.db"), "evil.test").await;
    world.rewrite(|text| {
        let text = text.replace(
            "[nats]",
            "[log]\nlevel = \"debug\"\n[nats]\nrequest_timeout = \"7s\"",
        );
        format!("{text}\n{}", beta.pin)
    });
    world.bridge.signal("HUP");
    world.logs("the configuration was read again").await;

    beta.gets(&id).await;
    let restart = world.logs("restart to put it in force").await;
    assert!(
        restart.contains("nats.request_timeout changed: restart"),
        "{restart}"
    );
    assert!(
        ask(&mut old).await.starts_with("HTTP/1.1 200"),
        "an open connection stays"
    );
    assert_ne!(
        shown(&pki.connect(world.bridge.public).await),
        first,
        "the certificate is the new one"
    );

    let envelope = uam_client::envelope(
        &uam_client::message_id(),
        "eve::evil.test",
        "alice::alpha.test",
        "hello",
    );
    let delivery = uam_client::delivery("evil.test", &envelope, true);
    let head = format!(
        "POST /api/v1/federation/deliver HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         X-UAM-Relay-Signature: {}\r\nContent-Length: {}\r\n\r\n{}",
        delivery.signature,
        delivery.body.len(),
        delivery.body
    );
    old.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let n = old.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    world.logs("DEBUG").await;

    // Taken away again, the pin holds no longer.
    world.rewrite(|text| text.replace(&beta.pin, ""));
    world.bridge.signal("HUP");
    world.logs("peers_removed=\"uam/beta.test\"").await;
    let before = world.bridge.log().matches("is not among [[peers]]").count();
    let late = world.publish("beta.test", &[]).await;
    super::world::within("the peer is unknown again", async || {
        let now = world.bridge.log().matches("is not among [[peers]]").count();
        (now > before).then_some(())
    })
    .await;
    assert!(beta.arrivals(&late).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_configuration_leaves_the_old_one_in_force_and_says_so() {
    let mut world = World::new("discovery = false", "").await;
    let beta = Peer::start(world.dir.path(), "beta.test", "ok").await;
    let gamma = Peer::start(world.dir.path(), "gamma.test", "ok").await;
    world.rewrite(|text| format!("{text}\n{}", beta.pin));
    let mut events = world.nats.subscribe("fed.ops.config.>").await.unwrap();
    world.nats.flush().await.unwrap();
    world.bridge.start().await;

    // A fault behind a good change: neither comes into force.
    world.rewrite(|text| {
        let text = text.replace(&beta.pin, &gamma.pin);
        text.replace("[public]", "[public]\ndrain_time = \"5s\"")
    });
    world.bridge.signal("HUP");
    let line = world.logs("the old one stays in force").await;
    assert!(
        line.contains("public.drain_time") && line.contains("drain_timeout"),
        "{line}"
    );
    let event = tokio::time::timeout(super::world::PATIENCE, events.next())
        .await
        .expect("an event in time")
        .expect("an event");
    assert_eq!(
        event.subject.as_str(),
        "fed.ops.config.rejected.bridge.self"
    );
    let body: serde_json::Value = serde_json::from_slice(&event.payload).unwrap();
    assert_eq!(body["code"], "config_rejected");
    assert!(
        body["detail"]
            .as_str()
            .unwrap()
            .contains("public.drain_time"),
        "{body}"
    );
    let id = world.publish("beta.test", &[]).await;
    beta.gets(&id).await;

    // Put right, it is taken up.
    world.rewrite(|text| text.replace("drain_time = \"5s\"", ""));
    world.bridge.signal("HUP");
    world.logs("the configuration was read again").await;
    let id = world.publish("gamma.test", &[]).await;
    gamma.gets(&id).await;
    let envelope = uam_client::envelope(
        &uam_client::message_id(),
        "carol::gamma.test",
        "alice::alpha.test",
        "hello",
    );
    let delivery = uam_client::delivery("gamma.test", &envelope, false);
    let client = crate::support::bridge::client();
    let posted = uam_client::post(&client, &world.bridge.public_url(), &delivery).await;
    assert_eq!(posted, Posted::Ok { duplicate: false });
}
