//! A bridge's public listener with everything behind it real but the broker, and the relay it hears from.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use drawbridge::bus::{BusError, BusMessage, ScanFrom, StreamFacts};
use drawbridge::clock::{Clock, UnixMs};
use drawbridge::config::Config;
use drawbridge::http::client::Client;
use drawbridge::http::server::Server;
use drawbridge::identity::{SigningKey, b64};
use drawbridge::inbound::{Door, Held, Outlet, PubAck};
use drawbridge::ops::Ops;
use drawbridge::peers::Peers;
use drawbridge::protocol::Protocol;
use drawbridge::protocols::uam::address::Address;
use drawbridge::protocols::uam::envelope::{self, Draft, Envelope};
use drawbridge::protocols::uam::relay_request::{Attempt, SignedRequest, sign_relay_request};
use drawbridge::protocols::uam::{Uam, UamParts, time};
use drawbridge::store::{Store, Way};
use drawbridge::trust::Trust;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const NOW: UnixMs = 1_777_636_800_000;
pub const DELIVER: &str = "/api/v1/federation/deliver";

/// A broker that takes everything.
#[derive(Default)]
pub struct Taken(pub Mutex<Vec<BusMessage>>);

impl Outlet for Taken {
    fn prefix(&self) -> &str {
        "fed"
    }
    fn connected(&self) -> bool {
        true
    }
    fn max_body(&self) -> usize {
        16 * 1024 * 1024
    }
    fn publish(&self, message: BusMessage) -> BoxFuture<'_, Result<PubAck, BusError>> {
        let sequence = {
            let mut all = self.0.lock().unwrap();
            all.push(message);
            all.len() as u64
        };
        Box::pin(async move {
            let ack: PubAck = Box::pin(async move { Ok((sequence, false)) });
            Ok(ack)
        })
    }
    fn connection(&self) -> Option<watch::Receiver<bool>> {
        None
    }

    fn losses(&self) -> u64 {
        0
    }

    fn facts(&self, way: Way) -> BoxFuture<'_, Result<Option<StreamFacts>, BusError>> {
        let last_seq = self.on(way).last().map_or(0, |(seq, _)| *seq);
        let facts = StreamFacts {
            created_ns: 1,
            messages: last_seq,
            bytes: 0,
            first_seq: 1,
            last_seq,
            max_age_ms: None,
        };
        Box::pin(std::future::ready(Ok(Some(facts))))
    }

    fn id_at(&self, way: Way, seq: u64) -> BoxFuture<'_, Result<Option<String>, BusError>> {
        let found = self.on(way).into_iter().find(|(at, _)| *at == seq);
        Box::pin(std::future::ready(Ok(found.map(|(_, id)| id))))
    }

    fn holds(&self, way: Way, _from: ScanFrom) -> BoxFuture<'_, Result<Held, BusError>> {
        let mut held = Held::default();
        for (seq, id) in self.on(way) {
            held.add(seq, &id);
        }
        Box::pin(std::future::ready(Ok(held)))
    }

    fn ensure(&self) -> BoxFuture<'_, Result<(), BusError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Taken {
    /// Sequence and id of what a stream has.
    fn on(&self, way: Way) -> Vec<(u64, String)> {
        let seen = self.0.lock().unwrap();
        (1..)
            .zip(seen.iter())
            .filter(|(_, m)| m.stream == way.stream())
            .map(|(seq, m)| {
                let id = m.headers.iter().find(|(name, _)| name == "Nats-Msg-Id");
                (seq, id.map(|(_, id)| id.clone()).unwrap_or_default())
            })
            .collect()
    }
}

/// The bridge `beta.test`, and the home relay `alpha.test` of the agent `alice`.
pub struct Bridge {
    pub addr: SocketAddr,
    pub taken: Arc<Taken>,
    pub trust: Trust,
    pub uam: Arc<Uam>,
    pub client: Client,
    pub home: Home,
    stop: CancellationToken,
    _dir: TempDir,
}

/// What `alpha.test` shows: its key and its agents'.
#[derive(Clone)]
pub struct Home {
    pub addr: SocketAddr,
    shown: Arc<Mutex<Shown>>,
}

struct Shown {
    relay: String,
    alice: Option<String>,
}

impl Home {
    async fn start(stop: &CancellationToken) -> Self {
        let shown = Arc::new(Mutex::new(Shown {
            relay: relay_key().public().to_base64(),
            alice: Some(alice_key().public().to_base64()),
        }));
        let keys = Arc::clone(&shown);
        let agents = Arc::clone(&shown);
        let router = Router::new()
            .route(
                "/.well-known/uam-relay.json",
                axum::routing::get(move || async move {
                    let key = keys.lock().unwrap().relay.clone();
                    format!(
                        r#"{{"federation_endpoint":"http://ignored.test/","public_key":"{key}"}}"#
                    )
                }),
            )
            .route(
                "/api/v1/agents/{address}/public-key",
                axum::routing::get(
                    move |axum::extract::Path(address): axum::extract::Path<String>| async move {
                        let key = agents.lock().unwrap().alice.clone();
                        match key.filter(|_| address == "alice::alpha.test") {
                            Some(key) => Ok(format!(r#"{{"public_key":"{key}"}}"#)),
                            None => Err(axum::http::StatusCode::NOT_FOUND),
                        }
                    },
                ),
            );
        let addr = serve(router, stop, |_| {}).await;
        Self { addr, shown }
    }

    pub fn show_relay(&self, key: impl Into<String>) {
        self.shown.lock().unwrap().relay = key.into();
    }

    pub fn show_alice(&self, key: Option<String>) {
        self.shown.lock().unwrap().alice = key;
    }
}

pub fn relay_key() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

pub fn alice_key() -> SigningKey {
    SigningKey::from_seed([2; 32])
}

async fn serve(
    router: Router,
    stop: &CancellationToken,
    change: impl FnOnce(&mut drawbridge::config::ListenConfig),
) -> SocketAddr {
    let mut listen = Config::from_text("").unwrap().public;
    listen.address = "127.0.0.1:0".parse().unwrap();
    change(&mut listen);
    let server = Server::bind(&listen, false).unwrap();
    let addr = server.local_addr();
    tokio::spawn(server.serve(router, stop.clone()));
    addr
}

/// A client that may dial loopback, without TLS.
pub fn loopback_client(extra: &str) -> Client {
    let text = format!(
        "[http]\nsrv = false\nallow_cidrs = [\"127.0.0.0/8\"]\nplain_hosts = [\"127.0.0.1\", \"alpha.test\"]\n{extra}"
    );
    Client::new(&Config::from_text(&text).unwrap().http).unwrap()
}

impl Bridge {
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// With further settings of `[uam]`.
    pub async fn with(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let home = Home::start(&stop).await;
        let text = format!(
            "[uam]\ndomain = \"beta.test\"\nkey_path = {:?}\n{settings}\n\
             [[peers]]\nprotocol = \"uam\"\nname = \"alpha.test\"\nendpoint = \"http://{}\"\n",
            dir.path().join("relay_key.pem"),
            home.addr
        );
        let config = Config::from_text(&text).unwrap();
        let clock = Clock::fixed(NOW);
        let store = Store::open(&dir.path().join("bridge.db"), clock.clone())
            .await
            .unwrap();
        let peers = Peers::open(store.clone(), &config.peers, clock.clone())
            .await
            .unwrap();
        let trust = Trust::open(store.clone(), clock.clone()).await.unwrap();
        let taken = Arc::new(Taken::default());
        let door = Door::over(store.clone(), taken.clone(), Ops::silent(), clock.clone())
            .await
            .unwrap();
        let client = loopback_client("");
        let uam = Uam::new(UamParts {
            config: config.uam.clone(),
            store,
            peers,
            trust: trust.clone(),
            door,
            net: Arc::new(client.clone()),
            ops: Ops::silent(),
            clock,
        })
        .await
        .unwrap();
        let addr = serve(
            drawbridge::http::unrouted::answered(uam.clone().routes()),
            &stop,
            |listen| {
                listen.header_timeout = Duration::from_millis(400);
                listen.request_timeout = Duration::from_millis(1500);
            },
        )
        .await;
        Self {
            addr,
            taken,
            trust,
            uam,
            client,
            home,
            stop,
            _dir: dir,
        }
    }

    /// How many events reached the bus.
    pub fn published(&self) -> usize {
        self.taken.0.lock().unwrap().len()
    }

    /// Posts a body to the delivery route with these headers besides the usual ones.
    pub async fn post(&self, body: &[u8], headers: &[(&str, &str)]) -> Reply {
        let mut head = format!(
            "POST {DELIVER} HTTP/1.1\r\nHost: beta.test\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
        {
            head.push_str("Content-Type: application/json\r\n");
        }
        for (name, value) in headers.iter().filter(|(_, value)| *value != "<none>") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.raw(&bytes).await
    }

    /// Posts a signed request.
    pub async fn deliver(&self, request: &SignedRequest) -> Reply {
        self.post(
            &request.body,
            &[("X-UAM-Relay-Signature", &request.signature)],
        )
        .await
    }

    /// Sends bytes as they are and reads the answer to its end.
    pub async fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut read, mut write) = stream.split();
        let mut text = Vec::new();
        // The server may answer and close before it has read everything.
        let _ = tokio::join!(write.write_all(bytes), async {
            let _ =
                tokio::time::timeout(Duration::from_secs(10), read.read_to_end(&mut text)).await;
        });
        Reply::parse(&text)
    }

    /// After whatever came before, an honest request is still taken.
    pub async fn still_works(&self) {
        let before = self.published();
        let good = Request::new("after").sign();
        let reply = self.deliver(&good).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(self.published(), before + 1);
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// 0: the connection was closed without an answer.
    pub status: u16,
    pub body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let status = text
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Self {
            status,
            body: body.to_owned(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    pub fn detail(&self) -> String {
        self.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// An honest request, to be spoilt in one respect.
pub struct Request {
    pub id: String,
    pub from: &'static str,
    pub to: &'static str,
    pub via: Vec<String>,
    pub hops: u64,
    pub timestamp: String,
    pub nonce: Option<String>,
    pub relay: SigningKey,
    pub agent: SigningKey,
}

impl Request {
    /// In the form with nonce, each with a nonce of its own.
    pub fn new(id: &str) -> Self {
        let mut nonce = [0u8; 16];
        getrandom::fill(&mut nonce).unwrap();
        Self {
            id: id.to_owned(),
            from: "alice::alpha.test",
            to: "bob::beta.test",
            via: vec!["alpha.test".into()],
            hops: 1,
            timestamp: time::format_ms(NOW),
            nonce: Some(b64::encode(nonce)),
            relay: relay_key(),
            agent: alice_key(),
        }
    }

    pub fn envelope(&self) -> String {
        let (from, to) = (
            Address::parse(self.from).unwrap(),
            Address::parse(self.to).unwrap(),
        );
        let draft = Draft {
            from: &from,
            to: &to,
            kind: "message",
            payload: "AAAA",
            message_id: &self.id,
            timestamp: &time::format_ms(NOW),
            nonce: &[7; 24],
            thread_id: None,
            reply_to: None,
            expires: None,
            media_type: None,
        };
        envelope::build(&draft, &self.agent)
    }

    pub fn sign(&self) -> SignedRequest {
        self.sign_over(&self.envelope())
    }

    /// The same around another envelope text.
    pub fn sign_over(&self, envelope: &str) -> SignedRequest {
        let envelope = Envelope::parse(Bytes::copy_from_slice(envelope.as_bytes())).unwrap();
        sign_relay_request(
            &envelope,
            &Attempt {
                via: &self.via,
                hop_count: self.hops,
                timestamp: &self.timestamp,
                from_relay: "alpha.test",
                nonce: self.nonce.as_deref(),
            },
            &self.relay,
        )
    }

    /// The body as text, and its signature.
    pub fn text(&self) -> (String, String) {
        let signed = self.sign();
        (
            String::from_utf8(signed.body.to_vec()).unwrap(),
            signed.signature,
        )
    }
}
