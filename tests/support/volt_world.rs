//! Bridges that speak VoltChat on loopback, each a process with a broker of its own, worked as an
//! operator and a backend would: by the documented HTTP lines and by NATS.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::bridge::{Bridge, PATIENCE, client, free_address};
use super::nats::NatsServer;
use super::traffic::{self, Rng};
use super::volt_client;

/// Bearer of a moderator.
pub const MODERATOR: &str = "moderator-of-these-tests";
/// Bearer of somebody who may only look.
pub const READER: &str = "reader-of-these-tests";

/// Base of the protocol's routes.
pub const BASE: &str = "/api/federation";

/// What a bridge is started with: lines of `[voltchat]` by key (TOML values), and more tables.
#[derive(Clone)]
pub struct Setup {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub lines: BTreeMap<String, String>,
    pub allowed: Vec<String>,
    pub http: String,
    pub tables: String,
}

impl Setup {
    /// At a free address, which is also its name among peers; quick in everything.
    pub fn new(name: &str) -> Self {
        let setup = Self {
            address: free_address(),
            admin: free_address(),
            lines: BTreeMap::new(),
            allowed: Vec::new(),
            http: "allow_cidrs = [\"127.0.0.1/32\"]\nplain_hosts = [\"127.0.0.1\"]\nsrv = false\n"
                .into(),
            tables: "[outbound]\nbreaker_initial = \"100ms\"\nbreaker_max = \"400ms\"\nthrottle_pause = \"300ms\"\n"
                .into(),
        };
        setup
            .line("server_name", &format!("{name:?}"))
            .line("sync_interval", "\"200ms\"")
            .line("handout_gap", "\"150ms\"")
            .line("peer_rate_limit", "10000000")
            .line(
                "retry_delays",
                r#"["50ms", "100ms", "200ms", "400ms", "800ms", "1s", "2s", "4s"]"#,
            )
    }

    /// Sets a line of `[voltchat]`.
    pub fn line(mut self, key: &str, value: &str) -> Self {
        self.lines.insert(key.into(), value.into());
        self
    }

    /// Lets a host be a peer.
    pub fn allow(mut self, host: impl Into<String>) -> Self {
        self.allowed.push(host.into());
        self
    }

    /// Appends whole tables.
    pub fn table(mut self, text: &str) -> Self {
        self.tables += text;
        self
    }

    /// Its name among peers.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `[voltchat]` and its operators.
    pub fn section(&self) -> String {
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|(k, v)| format!("{k} = {v}"))
            .collect();
        format!(
            "[voltchat]\nurl = \"http://{}\"\nallowed_servers = {:?}\n{}\n\
             [[voltchat.operators]]\nname = \"mo\"\nrole = \"moderator\"\ntoken = \"{MODERATOR}\"\n\
             [[voltchat.operators]]\nname = \"rea\"\nrole = \"reader\"\ntoken = \"{READER}\"\n",
            self.address,
            self.allowed,
            lines.join("\n")
        )
    }

    fn write(&self, dir: &std::path::Path, nats: &str) -> Bridge {
        let text = format!(
            "data_dir = {dir:?}\n[nats]\nurl = \"{nats}\"\n[http]\n{}\n\
             [public]\naddress = \"{}\"\n[admin]\naddress = \"{}\"\n[ops]\nsingle = true\n{}\n{}",
            self.http,
            self.address,
            self.admin,
            self.section(),
            self.tables
        );
        let config = dir.join("bridge.toml");
        std::fs::write(&config, text).expect("the configuration");
        Bridge::existing(dir, &self.host(), self.address, self.admin, &config)
    }
}

/// Two setups that let each other in.
pub fn pair() -> (Setup, Setup) {
    let (a, b) = (Setup::new("Volt A"), Setup::new("Volt B"));
    let (to_a, to_b) = (a.host(), b.host());
    (a.allow(to_b), b.allow(to_a))
}

/// An event of `fed.in`.
#[derive(Clone, Debug)]
pub struct Event {
    pub subject: String,
    pub headers: HeaderMap,
    pub payload: Value,
}

impl Event {
    pub fn header(&self, name: &str) -> String {
        self.headers
            .get(name)
            .map_or(String::new(), |v| v.as_str().to_owned())
    }
}

/// A bridge, its broker and what its backend sees.
pub struct Volt {
    pub bridge: Bridge,
    pub nats: NatsServer,
    pub js: jetstream::Context,
    pub client: async_nats::Client,
    pub host: String,
    pub dir: TempDir,
    http: reqwest::Client,
    events: Arc<Mutex<Vec<Event>>>,
    news: watch::Receiver<usize>,
    reader: tokio::task::JoinHandle<()>,
}

impl Volt {
    /// Broker and bridge, ready.
    pub async fn start(setup: &Setup) -> Self {
        let nats = NatsServer::start().await;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut bridge = setup.write(dir.path(), &nats.url());
        bridge.start().await;
        let client_ = nats.client().await;
        let js = jetstream::new(client_.clone());
        let events = Arc::new(Mutex::new(Vec::new()));
        let (tell, news) = watch::channel(0);
        let reader = tokio::spawn(read(js.clone(), Arc::clone(&events), tell));
        Self {
            bridge,
            nats,
            js,
            client: client_,
            host: setup.host(),
            dir,
            http: client(),
            events,
            news,
            reader,
        }
    }

    /// Its url among peers.
    pub fn url(&self) -> String {
        format!("http://{}", self.host)
    }

    /// Another configuration at the next start.
    pub fn rewrite(&mut self, setup: &Setup) {
        setup.write(self.dir.path(), &self.nats.url());
    }

    // ---------------------------------------------------------------------------------- HTTP

    /// A request below [`BASE`] with a bearer; status and JSON.
    pub async fn api(
        &self,
        method: &str,
        path: &str,
        bearer: Option<&str>,
        body: Option<Value>,
    ) -> (u16, Value) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let url = format!("{}{BASE}{path}", self.url());
        let mut request = self.http.request(method, url);
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        let answer = request.send().await.expect("the bridge answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap_or_default();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// The same as the moderator, expecting 200.
    pub async fn moderate(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.api(method, path, Some(MODERATOR), body).await;
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer
    }

    /// All peers as a reader sees them.
    pub async fn peers(&self) -> Vec<Value> {
        let (status, answer) = self.api("GET", "/peers", Some(READER), None).await;
        assert_eq!(status, 200, "{answer}");
        answer.as_array().cloned().unwrap_or_default()
    }

    /// A peer by its host.
    pub async fn peer(&self, host: &str) -> Option<Value> {
        let peers = self.peers().await;
        peers.into_iter().find(|p| p["host"] == host)
    }

    /// Id of a peer that is there.
    pub async fn id_of(&self, host: &str) -> String {
        let peer = self.peer(host).await.expect("a known peer");
        peer["id"].as_str().expect("an id").to_owned()
    }

    /// Waits until a peer has a status.
    pub async fn until_status(&self, host: &str, status: &str) -> Value {
        let end = std::time::Instant::now() + Duration::from_secs(15);
        loop {
            let seen = self.peer(host).await;
            if let Some(peer) = &seen
                && peer["status"] == status
            {
                return peer.clone();
            }
            assert!(
                std::time::Instant::now() < end,
                "{host} is not {status} at {}: {seen:?}\n{}",
                self.host,
                super::bridge::tail(&self.bridge.log())
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Step 1 of the document: `{"name", "url"}` to `/peers`.
    pub async fn request(&self, name: &str, url: &str) -> Value {
        let body = json!({"name": name, "url": url});
        self.moderate("POST", "/peers", Some(body)).await
    }

    /// Step 3: accept, without body.
    pub async fn accept(&self, host: &str) -> Value {
        let path = format!("/peers/{}/accept", self.id_of(host).await);
        self.moderate("POST", &path, None).await
    }

    /// DELETE.
    pub async fn remove(&self, host: &str) -> Value {
        let path = format!("/peers/{}", self.id_of(host).await);
        self.moderate("DELETE", &path, None).await
    }

    // ---------------------------------------------------------------------------------- NATS

    /// Publishes one message for a peer (`_all`: every accepted one) and waits for the broker's
    /// acknowledgement.
    pub async fn publish(&self, peer: &str, kind: &str, payload: Value, headers: &[(&str, &str)]) {
        self.publish_all(vec![Message::new(peer, kind, payload).with(headers)])
            .await;
    }

    /// Publishes messages in order, then waits for all acknowledgements.
    pub async fn publish_all(&self, messages: Vec<Message>) {
        let mut acks = Vec::new();
        for message in messages {
            let subject = message.subject();
            let mut headers = HeaderMap::new();
            for (name, value) in &message.headers {
                headers.insert(name.as_str(), value.as_str());
            }
            let ack = self
                .js
                .publish_with_headers(subject, headers, message.body.into())
                .await
                .expect("published");
            acks.push(ack);
        }
        for ack in acks {
            ack.await.expect("acknowledged");
        }
    }

    /// What `fed.in` holds so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().expect("no reader panics").clone()
    }

    /// Waits until `fed.in` holds so many.
    pub async fn until_events(&self, count: usize, patience: Duration) -> Vec<Event> {
        let mut news = self.news.clone();
        let waited = tokio::time::timeout(patience, news.wait_for(|n| *n >= count)).await;
        let events = self.events();
        assert!(
            waited.is_ok(),
            "{} events of {count} at {} within {patience:?}\n{}",
            events.len(),
            self.host,
            super::bridge::tail(&self.bridge.log())
        );
        events
    }

    /// Message ids and reason codes of `fed.dead`.
    pub async fn dead(&self) -> Vec<(String, String)> {
        let dead = traffic::dead(&self.js).await;
        dead.into_iter().map(|d| (d.id, d.code)).collect()
    }

    /// Waits until `fed.dead` holds so many.
    pub async fn until_dead(&self, count: usize) -> Vec<(String, String)> {
        let end = std::time::Instant::now() + PATIENCE / 3;
        loop {
            let dead = self.dead().await;
            if dead.len() >= count {
                return dead;
            }
            assert!(
                std::time::Instant::now() < end,
                "{dead:?} are not {count} dead letters\n{}",
                super::bridge::tail(&self.bridge.log())
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks the bridge as a backend does: `fed.do.voltchat.<method>`.
    pub async fn call(&self, method: &str, body: Value) -> Value {
        let subject = format!("fed.do.voltchat.{method}");
        let answer = self
            .client
            .request(subject, body.to_string().into())
            .await
            .expect("an answer of the bridge");
        serde_json::from_slice(&answer.payload).unwrap_or_default()
    }

    /// Every file below its folder in which one of these bytes is found.
    pub fn files_with(&self, needle: &str) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(bytes) = std::fs::read(&path)
                    && bytes
                        .windows(needle.len())
                        .any(|window| window == needle.as_bytes())
                {
                    found.push(path);
                }
            }
        }
        found
    }
}

impl Drop for Volt {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// One message that a backend publishes.
pub struct Message {
    pub peer: String,
    pub kind: String,
    pub body: String,
    pub headers: Vec<(String, String)>,
}

impl Message {
    /// `{"payload": …}` of a type; `peer` is a host or `_all`.
    pub fn new(peer: &str, kind: &str, payload: Value) -> Self {
        Self {
            peer: peer.to_owned(),
            kind: kind.to_owned(),
            body: json!({ "payload": payload }).to_string(),
            headers: Vec::new(),
        }
    }

    /// More headers.
    pub fn with(mut self, headers: &[(&str, &str)]) -> Self {
        let more = headers.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        self.headers.extend(more);
        self
    }

    /// `fed.out.voltchat.<peer>.<type>`.
    pub fn subject(&self) -> String {
        let peer = match self.peer.as_str() {
            "_all" => "_all".to_owned(),
            host => drawbridge::bus::subject::token(host),
        };
        let kind = drawbridge::bus::subject::token(&self.kind);
        format!("fed.out.voltchat.{peer}.{kind}")
    }
}

/// Reads `FED_IN` from its beginning, in order, as long as it lasts.
async fn read(js: jetstream::Context, events: Arc<Mutex<Vec<Event>>>, tell: watch::Sender<usize>) {
    loop {
        let seen = events.lock().expect("no reader panics").len() as u64;
        let config = jetstream::consumer::pull::OrderedConfig {
            deliver_policy: jetstream::consumer::DeliverPolicy::ByStartSequence {
                start_sequence: seen + 1,
            },
            ..Default::default()
        };
        if let Ok(stream) = js.get_stream("FED_IN").await
            && let Ok(consumer) = stream.create_consumer(config).await
            && let Ok(mut messages) = consumer.messages().await
        {
            while let Some(Ok(message)) = messages.next().await {
                let event = Event {
                    subject: message.subject.to_string(),
                    headers: message.headers.clone().unwrap_or_default(),
                    payload: volt_client::lenient(&message.payload),
                };
                let count = {
                    let mut events = events.lock().expect("no reader panics");
                    events.push(event);
                    events.len()
                };
                tell.send_replace(count);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `asker` asks `other`, an operator there accepts, and both are connected.
pub async fn connect(asker: &Volt, other: &Volt) {
    asker.request("the other", &other.url()).await;
    other.until_status(&asker.host, "pending").await;
    other.accept(&asker.host).await;
    asker.until_status(&other.host, "connected").await;
    other.until_status(&asker.host, "connected").await;
}

/// A number that a test may fix by the environment, else of the clock.
pub fn seed() -> u64 {
    std::env::var("DRAWBRIDGE_VOLTCHAT_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(super::uam_client::now_ns)
}

/// Dice for a test, and the line that says how to throw the same again.
pub fn dice(test: &str) -> (u64, Rng) {
    let seed = seed();
    eprintln!("{test}: DRAWBRIDGE_VOLTCHAT_SEED={seed} asks for the same again");
    (seed, Rng(seed))
}
