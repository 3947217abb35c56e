//! A broker, a bridge `alpha.test` on it, and what a backend sees and does.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use drawbridge::app::{self, Running};
use drawbridge::config::Config;
use drawbridge::outbound::{Control, PeerOutlook};
use drawbridge::protocol::PeerName;
use futures_util::StreamExt as _;
use serde_json::Value;
use tempfile::TempDir;

use super::nats::{NatsServer, round_trip};
use super::peer::{PATIENCE, Peer};
use super::uam_client::{envelope, key_file_of, message_id, public_of};

/// Delays between attempts that a test can wait for.
pub const DELAYS: &str = r#"["200ms", "400ms"]"#;

/// Settings that differ, by `section.key` (TOML values), and the pinned peers.
pub struct Setup {
    settings: BTreeMap<String, String>,
    peers: String,
    tables: String,
}

impl Setup {
    pub fn new() -> Self {
        let setup = Self {
            settings: BTreeMap::new(),
            peers: String::new(),
            tables: String::new(),
        };
        setup
            .set("http.allow_cidrs", r#"["127.0.0.0/8"]"#)
            .set("http.srv", "false")
            .set("http.connect_timeout", r#""500ms""#)
            .set("http.timeout", r#""1s""#)
            .set("public.address", r#""127.0.0.1:0""#)
            .set("public.drain_timeout", r#""1s""#)
            .set("admin.address", r#""127.0.0.1:0""#)
            .set("outbound.jitter", "0.0")
            .set("outbound.shards", "1")
            .set("outbound.breaker_threshold", "1000")
            .set("outbound.breaker_initial", r#""200ms""#)
            .set("outbound.breaker_max", r#""200ms""#)
            .set("ops.single", "true")
            .set("uam.domain", r#""alpha.test""#)
            .set("uam.http_url", r#""https://alpha.test""#)
            .set("uam.retry_delays", DELAYS)
    }

    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Pins a peer to its address, with a key.
    pub fn peer(self, peer: &Peer) -> Self {
        let endpoint = format!("http://{}", peer.address);
        self.pin(peer.name, &endpoint, Some(&public_of(peer.name)))
    }

    pub fn pin(mut self, name: &str, endpoint: &str, key: Option<&str>) -> Self {
        self.peers += &format!(
            "[[peers]]\nprotocol = \"uam\"\nname = \"{name}\"\nendpoint = \"{endpoint}\"\n"
        );
        if let Some(key) = key {
            self.peers += &format!("public_key = \"{key}\"\n");
        }
        self
    }

    /// Appends a whole table.
    pub fn table(mut self, text: &str) -> Self {
        self.tables += text;
        self
    }

    /// Starts broker and bridge.
    pub async fn start(self) -> World {
        let mut world = self.broker().await;
        world.open().await;
        world
    }

    /// Starts the broker only.
    pub async fn broker(self) -> World {
        let nats = NatsServer::start().await;
        let client = nats.client().await;
        let dead = client.subscribe("fed.dead.>").await.unwrap();
        let ops = client.subscribe("fed.ops.>").await.unwrap();
        round_trip(&client).await;
        let dir = tempfile::tempdir().unwrap();
        World {
            js: jetstream::new(client.clone()),
            client,
            dead,
            ops,
            nats,
            setup: self,
            bridge: None,
            dir,
        }
    }
}

pub struct World {
    pub client: async_nats::Client,
    pub js: jetstream::Context,
    pub nats: NatsServer,
    pub setup: Setup,
    pub bridge: Option<Running>,
    dead: async_nats::Subscriber,
    ops: async_nats::Subscriber,
    dir: TempDir,
}

/// A dead letter.
#[derive(Debug)]
pub struct Dead {
    pub subject: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Dead {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.as_str())
    }

    pub fn code(&self) -> &str {
        self.header("Fed-Reason-Code")
    }
}

impl World {
    fn config(&self) -> Config {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = self.dir.path().join("bridge");
        std::fs::create_dir_all(&dir).unwrap();
        let key = dir.join("relay_key.pem");
        if !key.exists() {
            std::fs::write(&key, key_file_of("alpha.test")).unwrap();
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let mut sections: BTreeMap<&str, String> = BTreeMap::new();
        for (key, value) in &self.setup.settings {
            let (section, key) = key.split_once('.').unwrap();
            *sections.entry(section).or_default() += &format!("{key} = {value}\n");
        }
        let mut text = format!(
            "data_dir = {dir:?}\n[nats]\nurl = \"{}\"\n",
            self.nats.url()
        );
        for (section, keys) in sections {
            text += &format!("[{section}]\n{keys}");
        }
        text += &self.setup.tables;
        text += &self.setup.peers;
        Config::from_text(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    /// Starts the bridge.
    pub async fn open(&mut self) {
        self.bridge = Some(app::start(self.config()).await.unwrap());
    }

    /// Stops the bridge.
    pub async fn close(&mut self) {
        if let Some(bridge) = self.bridge.take() {
            bridge.stop().await;
        }
    }

    /// An envelope of `alice` to `bob` at a domain.
    pub fn envelope(to: &str, text: &str) -> Value {
        Self::envelope_of("alice", to, text)
    }

    pub fn envelope_of(agent: &str, to: &str, text: &str) -> Value {
        let from = format!("{agent}::alpha.test");
        envelope(&message_id(), &from, &format!("bob::{to}"), text)
    }

    /// Publishes as a backend does and waits for the broker's word; true: it was new to the broker.
    pub async fn publish(&self, subject: &str, headers: &[(&str, &str)], body: Vec<u8>) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let sent = self
            .js
            .publish_with_headers(subject.to_owned(), map, body.into())
            .await
            .unwrap();
        !sent.await.unwrap().duplicate
    }

    /// Publishes a message of `alice` to `bob` at that domain; gives the envelope.
    pub async fn send(&self, to: &str, text: &str) -> Value {
        self.send_as("alice", to, text).await
    }

    pub async fn send_as(&self, agent: &str, to: &str, text: &str) -> Value {
        let envelope = Self::envelope_of(agent, to, text);
        let id = envelope["message_id"].as_str().unwrap();
        let new = self
            .publish(
                "fed.out.uam._to.message",
                &[("Nats-Msg-Id", id)],
                envelope.to_string().into_bytes(),
            )
            .await;
        assert!(new);
        envelope
    }

    /// The next dead letter.
    pub async fn dead(&mut self) -> Dead {
        let message = tokio::time::timeout(PATIENCE, self.dead.next())
            .await
            .expect("a dead letter in time")
            .unwrap();
        Dead {
            subject: message.subject.to_string(),
            headers: message.headers.unwrap_or_default(),
            body: message.payload.to_vec(),
        }
    }

    /// The next operator event of this sort (`delivery.retrying`), those before it are dropped.
    pub async fn event(&mut self, what: &str) -> Value {
        let start = format!("fed.ops.{what}.");
        let find = async {
            loop {
                let message = self.ops.next().await.expect("the broker is there");
                if message.subject.starts_with(&start) {
                    return serde_json::from_slice(&message.payload).unwrap();
                }
            }
        };
        tokio::time::timeout(PATIENCE, find)
            .await
            .unwrap_or_else(|_| panic!("no {what} in time"))
    }

    /// Orders to the lanes of the running bridge.
    pub fn lanes(&self) -> Control {
        self.bridge.as_ref().unwrap().lanes()
    }

    /// How a peer is doing.
    pub async fn look(&self, peer: &str) -> PeerOutlook {
        self.lanes().look("uam", &name(peer)).await.unwrap()
    }

    /// Dead letters that came so far, none awaited: the broker has said everything it had.
    pub async fn no_dead(&mut self) {
        round_trip(&self.client).await;
        let next = tokio::time::timeout(Duration::from_millis(1), self.dead.next()).await;
        assert!(next.is_err(), "{next:?}");
    }

    /// `GET` of the admin listener.
    pub async fn admin(&self, path: &str) -> String {
        let bridge = self.bridge.as_ref().unwrap();
        let token = bridge.admin_token.0.as_str();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        exchange(bridge.admin, &request).await.1
    }

    /// Rows of the queue in this state.
    pub async fn rows(&self, state: &str) -> Vec<Value> {
        let text = self
            .admin(&format!("/api/v1/queue?limit=1000&state={state}"))
            .await;
        let body: Value = serde_json::from_str(&text).unwrap();
        body["rows"]
            .as_array()
            .unwrap_or_else(|| panic!("{text}"))
            .clone()
    }

    /// Waits until `FED_OUT` is empty: everything was acknowledged.
    pub async fn acknowledged(&self) {
        let wait = async {
            loop {
                let mut stream = self.js.get_stream("FED_OUT").await.unwrap();
                if stream.info().await.unwrap().state.messages == 0 {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("all acknowledged");
    }
}

/// A peer's name.
pub fn name(peer: &str) -> PeerName {
    PeerName::parse(peer).unwrap()
}

/// One exchange over a connection that the server closes.
pub async fn exchange(at: std::net::SocketAddr, request: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(at).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        body.split("\r\n").skip(1).step_by(2).collect()
    } else {
        body.to_owned()
    };
    (status.unwrap_or(0), body)
}
