//! Bridges that speak Paracord on loopback, each with a broker of its own, worked as a backend would:
//! by NATS. A bridge runs as a process, which can be killed, or in this process, by a clock that a test
//! can make jump.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, jetstream};
use drawbridge::app::{self, Running};
use drawbridge::clock::Clock;
use drawbridge::config::Config;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::bridge::{self, Bridge, PATIENCE, client, free_address};
use super::nats::NatsServer;
use super::paracord_client::{Answer, BASE, Identity, Request};
use super::traffic;

/// What a bridge is started with: lines of `[paracord]` by key (TOML values), peers, more tables.
#[derive(Clone)]
pub struct Setup {
    pub name: String,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub lines: BTreeMap<String, String>,
    pub peers: String,
    pub tables: String,
}

impl Setup {
    /// At a free address, with this server name; quick in everything, limits as shipped.
    pub fn new(name: &str) -> Self {
        let setup = Self {
            name: name.into(),
            address: free_address(),
            admin: free_address(),
            lines: BTreeMap::new(),
            peers: String::new(),
            tables: "[outbound]\nbreaker_initial = \"100ms\"\nbreaker_max = \"400ms\"\nthrottle_pause = \"300ms\"\n".into(),
        };
        setup
            .line("poll_interval", "\"100ms\"")
            .line("keys_refresh", "\"1s\"")
            .line("unproven_per_minute", "1000000")
            .line(
                "retry_delays",
                r#"["50ms", "100ms", "200ms", "400ms", "800ms", "1s", "2s", "4s", "4s", "4s"]"#,
            )
    }

    /// Pacing and rate limits lifted.
    pub fn lifted(self) -> Self {
        self.line("max_events_per_peer_per_minute", "0")
            .line("max_user_creates_per_peer_per_hour", "0")
            .line("push_per_minute", "0")
            .line("quarantine_after", "0")
    }

    /// Sets a line of `[paracord]`.
    pub fn line(mut self, key: &str, value: &str) -> Self {
        self.lines.insert(key.into(), value.into());
        self
    }

    /// Appends whole tables.
    pub fn table(mut self, text: &str) -> Self {
        self.tables += text;
        self
    }

    /// A server at an address, trusted, its keys to be fetched.
    pub fn peer(mut self, name: &str, address: SocketAddr) -> Self {
        self.peers += &format!(
            "[[peers]]\nprotocol = \"paracord\"\nname = \"{name}\"\nendpoint = \"http://{address}\"\n"
        );
        self
    }

    /// The domain of the server named last.
    pub fn domain(mut self, domain: &str) -> Self {
        self.peers += &format!("domain = \"{domain}\"\n");
        self
    }

    /// A server of which only name and key are known: it makes requests and is never asked.
    pub fn pinned(mut self, who: &Identity) -> Self {
        self = self.peer(&who.name, free_address());
        self.peers += &format!("public_key = \"{}\"\n", who.public());
        self
    }

    /// The configuration.
    pub fn text(&self, dir: &Path, nats: &str) -> String {
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|(k, v)| format!("{k} = {v}"))
            .collect();
        format!(
            "data_dir = {dir:?}\n[nats]\nurl = \"{nats}\"\n\
             [http]\nallow_cidrs = [\"127.0.0.1/32\"]\nplain_hosts = [\"127.0.0.1\"]\nsrv = false\n\
             [public]\naddress = \"{}\"\n[admin]\naddress = \"{}\"\n[ops]\nsingle = true\n\
             [paracord]\nserver_name = \"{}\"\nurl = \"http://{}\"\n{}\n{}{}",
            self.address,
            self.admin,
            self.name,
            self.address,
            lines.join("\n"),
            self.tables,
            self.peers,
        )
    }
}

/// An event of `fed.in`.
#[derive(Clone, Debug)]
pub struct Event {
    pub subject: String,
    pub headers: HeaderMap,
    pub payload: Value,
    /// As it stands there.
    pub text: String,
}

impl Event {
    pub fn header(&self, name: &str) -> String {
        self.headers
            .get(name)
            .map_or(String::new(), |v| v.as_str().to_owned())
    }

    /// A text member of the envelope.
    pub fn text_of(&self, member: &str) -> &str {
        self.payload[member].as_str().unwrap_or_default()
    }

    /// `body` of its content.
    pub fn body(&self) -> &str {
        self.payload["content"]["body"].as_str().unwrap_or_default()
    }
}

enum At {
    Off,
    Here(Box<Running>),
    Process(Box<Bridge>),
}

/// A bridge, its broker and what its backend sees.
pub struct Para {
    pub setup: Setup,
    pub nats: NatsServer,
    pub js: jetstream::Context,
    pub client: async_nats::Client,
    pub dir: TempDir,
    /// Of a bridge in this process.
    pub clock: Clock,
    http: reqwest::Client,
    at: At,
    events: Arc<Mutex<Vec<Event>>>,
    ops: Arc<Mutex<Vec<(String, Value)>>>,
    news: watch::Receiver<usize>,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

impl Para {
    /// Broker and bridge, in this process, by a clock that can jump.
    pub async fn here(setup: Setup) -> Self {
        Self::by_clock(setup, Clock::shifted()).await
    }

    /// The same by this clock.
    pub async fn by_clock(setup: Setup, clock: Clock) -> Self {
        let mut para = Self::broker(setup).await;
        para.clock = clock;
        para.open().await;
        para
    }

    /// Broker and bridge, the bridge as a process of its own.
    pub async fn process(setup: Setup) -> Self {
        let mut para = Self::broker(setup).await;
        let config = para.write();
        let mut bridge = Bridge::existing(
            para.dir.path(),
            &para.setup.name,
            para.setup.address,
            para.setup.admin,
            &config,
        );
        bridge.start().await;
        para.at = At::Process(Box::new(bridge));
        para
    }

    async fn broker(setup: Setup) -> Self {
        let nats = NatsServer::start().await;
        let client_ = nats.client().await;
        let js = jetstream::new(client_.clone());
        let (events, ops) = (Arc::default(), Arc::default());
        let (tell, news) = watch::channel(0);
        let said = client_
            .subscribe("fed.ops.>")
            .await
            .expect("a subscription");
        let readers = vec![
            tokio::spawn(read(js.clone(), Arc::clone(&events), tell)),
            tokio::spawn(listen(said, Arc::clone(&ops))),
        ];
        super::nats::round_trip(&client_).await;
        Self {
            setup,
            nats,
            js,
            client: client_,
            dir: tempfile::tempdir().expect("a temporary folder"),
            clock: Clock::shifted(),
            http: client(),
            at: At::Off,
            events,
            ops,
            news,
            readers,
        }
    }

    /// Writes the configuration, for a process or a command, and answers where it is.
    pub fn write(&self) -> std::path::PathBuf {
        let config = self.dir.path().join("bridge.toml");
        let text = self.setup.text(self.dir.path(), &self.nats.url());
        std::fs::write(&config, text).expect("the configuration");
        config
    }

    /// Starts the bridge in this process (again).
    pub async fn open(&mut self) {
        let text = self.setup.text(self.dir.path(), &self.nats.url());
        let config = Config::from_text(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match app::start_with(config.clone(), self.clock.clone()).await {
                Ok(running) => {
                    self.at = At::Here(Box::new(running));
                    return;
                }
                Err(e) => assert!(Instant::now() < end, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops it in an orderly way and starts it again.
    pub async fn restart(&mut self) {
        match std::mem::replace(&mut self.at, At::Off) {
            At::Off => panic!("it does not run"),
            At::Here(running) => {
                running.stop().await;
                self.open().await;
            }
            At::Process(mut bridge) => {
                self.write();
                bridge.stop().await;
                bridge.start().await;
                self.at = At::Process(bridge);
            }
        }
    }

    /// SIGKILL, a while, and up again. Only a process can be killed.
    pub async fn killed(&mut self, down: Duration) {
        let At::Process(bridge) = &mut self.at else {
            panic!("only a process can be killed");
        };
        bridge.kill9();
        tokio::time::sleep(down).await;
        bridge.start().await;
    }

    /// Its log, if it is a process.
    pub fn log(&self) -> String {
        match &self.at {
            At::Process(bridge) => bridge::tail(&bridge.log()),
            _ => String::new(),
        }
    }

    /// `http://127.0.0.1:1234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.setup.address)
    }

    /// Its server name.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    // ---------------------------------------------------------------------------------- HTTP

    /// Sends a request to it.
    pub async fn ask(&self, request: &Request) -> Answer {
        request.send(&self.http, &self.url()).await
    }

    /// An unsigned GET; status and JSON.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.http.get(format!("{}{path}", self.url())).send().await;
        let answer = answer.expect("the bridge answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap_or_default();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// What it lists as its keys.
    pub async fn keys(&self) -> Vec<Value> {
        let (status, answer) = self.get(&format!("{BASE}/keys")).await;
        assert_eq!(status, 200, "{answer}");
        answer["keys"].as_array().cloned().unwrap_or_default()
    }

    /// A request of the admin listener, with its token.
    pub async fn admin(&self, method: &str, path: &str) -> (u16, Value) {
        self.admin_with(method, path, &Value::Null).await
    }

    /// The same with a body.
    pub async fn admin_with(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let token = std::fs::read_to_string(self.dir.path().join("admin.token"));
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let url = format!("http://{}{path}", self.setup.admin);
        let request = self.http.request(method, url);
        let mut request = request.bearer_auth(token.unwrap_or_default().trim());
        if !body.is_null() {
            let kind = ("content-type", "application/json");
            request = request.header(kind.0, kind.1).body(body.to_string());
        }
        let answer = request.send().await.expect("the admin listener answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap_or_default();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    // ---------------------------------------------------------------------------------- NATS

    /// Publishes one message and waits for the broker's word.
    pub async fn send(&self, message: Message) {
        self.send_all(vec![message]).await;
    }

    /// Publishes messages in order, then waits for all acknowledgements.
    pub async fn send_all(&self, messages: Vec<Message>) {
        let mut acks = Vec::new();
        for message in messages {
            let mut headers = HeaderMap::new();
            for (name, value) in &message.headers {
                headers.insert(name.as_str(), value.as_str());
            }
            let body = message.body.to_string();
            let ack = self
                .js
                .publish_with_headers(message.subject, headers, body.into());
            acks.push(ack.await.expect("published"));
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
            self.name(),
            self.log()
        );
        events
    }

    /// Reason codes and sentences of `fed.dead`.
    pub async fn dead(&self) -> Vec<(String, String)> {
        let dead = traffic::dead(&self.js).await.into_iter();
        dead.map(|d| (d.code, d.reason.unwrap_or_default()))
            .collect()
    }

    /// Waits until `fed.dead` holds so many.
    pub async fn until_dead(&self, count: usize) -> Vec<(String, String)> {
        let end = Instant::now() + PATIENCE / 4;
        loop {
            let dead = self.dead().await;
            if dead.len() >= count {
                return dead;
            }
            assert!(
                Instant::now() < end,
                "{dead:?} are not {count} dead letters"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Operator events of this sort (`ingest.rejected`) so far.
    pub fn said(&self, what: &str) -> Vec<Value> {
        let start = format!("fed.ops.{what}.");
        let exact = format!("fed.ops.{what}");
        let ops = self.ops.lock().expect("no reader panics");
        let found = ops
            .iter()
            .filter(|(subject, _)| subject.starts_with(&start) || *subject == exact);
        found.map(|(_, value)| value.clone()).collect()
    }

    /// Waits for an operator event of this sort that fits.
    pub async fn until_said(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(found) = self.said(what).into_iter().find(&fits) {
                return found;
            }
            if Instant::now() > end {
                let all: Vec<_> = self.ops.lock().expect("no reader panics").clone();
                panic!("no {what} that fits: {all:#?}\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks the bridge as a backend does, `fed.do.paracord.<method>`: its result or the sentence of its
    /// refusal.
    pub async fn try_call(&self, method: &str, body: Value) -> Result<Value, String> {
        let subject = format!("fed.do.paracord.{method}");
        let request = async_nats::Request::new()
            .payload(body.to_string().into())
            .timeout(Some(Duration::from_secs(20)));
        let answer = self.client.send_request(subject, request).await;
        let answer = answer.unwrap_or_else(|e| panic!("{method}: {e}"));
        let mut answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        if answer["ok"] == true {
            return Ok(answer["result"].take());
        }
        Err(answer["error"].to_string())
    }

    /// The same, refused by nobody.
    pub async fn call(&self, method: &str, body: Value) -> Value {
        let answer = self.try_call(method, body.clone()).await;
        answer.unwrap_or_else(|e| panic!("{method} {body}: {e}\n{}", self.log()))
    }

    /// Waits until it has the keys of a server.
    pub async fn until_known(&self, peer: &str) {
        self.until_listed(peer, 1).await;
    }

    /// Waits until it has so many keys of a server.
    pub async fn until_listed(&self, peer: &str, count: usize) {
        let known = |shown: &Value| shown["keys"].as_array().is_some_and(|k| k.len() >= count);
        self.until_peer(peer, known).await;
    }

    /// Waits until it has found out that a server cannot be reached.
    pub async fn until_said_of(&self, peer: &str) {
        let said = |shown: &Value| shown.to_string().to_lowercase().contains("error\":\"");
        self.until_peer(peer, said).await;
    }

    async fn until_peer(&self, peer: &str, fits: impl Fn(&Value) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let shown = self.try_call("peer.get", json!({ "peer": peer })).await;
            if shown.as_ref().is_ok_and(&fits) {
                return;
            }
            assert!(Instant::now() < end, "{peer}: {shown:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Hosts a room.
    pub async fn host(&self, room: &str, name: &str) {
        self.call("room.put", json!({"room_id": room, "name": name}))
            .await;
    }

    /// The identity that this bridge has on the wire, its key aside.
    pub fn user(&self, localpart: &str) -> String {
        format!("@{localpart}:{}", self.name())
    }
}

impl Drop for Para {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
        // A bridge in this process ends with its runtime; its listeners' threads end by this.
        if let At::Here(running) = std::mem::replace(&mut self.at, At::Off)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(running.stop());
        }
    }
}

/// One message that a backend publishes.
#[derive(Clone, Debug)]
pub struct Message {
    pub subject: String,
    pub body: Value,
    pub headers: Vec<(String, String)>,
}

impl Message {
    /// To a server, `_all` or `_room`; of a type such as `m.message`.
    pub fn new(to: &str, kind: &str, room: &str, sender: &str, content: Value) -> Self {
        let token = |text: &str| {
            if text.starts_with('_') {
                text.to_owned()
            } else {
                drawbridge::bus::subject::token(text)
            }
        };
        Self {
            subject: format!("fed.out.paracord.{}.{kind}", token(to)),
            body: json!({"room_id": room, "sender": sender, "content": content}),
            headers: Vec::new(),
        }
    }

    /// A text message with an id that no other has.
    pub fn text(to: &str, room: &str, sender: &str, body: &str) -> Self {
        let content = json!({
            "body": body,
            "msgtype": "m.text",
            "guild_id": super::paracord_client::guild_of(room),
            "channel_id": "20",
            "message_id": super::paracord_client::fresh(),
        });
        Self::new(to, "m.message", room, sender, content)
    }

    /// Another member of its content.
    pub fn content(mut self, key: &str, value: Value) -> Self {
        self.body["content"][key] = value;
        self
    }

    /// Its message id in the content.
    pub fn message_id(&self) -> String {
        let id = self.body["content"]["message_id"].as_str();
        id.unwrap_or_default().to_owned()
    }

    /// With an id of the publisher's own (`Nats-Msg-Id`).
    pub fn id(self, id: &str) -> Self {
        self.header("Nats-Msg-Id", id)
    }

    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
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
                    payload: serde_json::from_slice(&message.payload).unwrap_or_default(),
                    text: String::from_utf8_lossy(&message.payload).into_owned(),
                };
                let count = {
                    let mut events = events.lock().expect("no reader panics");
                    events.push(event);
                    events.len()
                };
                tell.send_replace(count);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn listen(mut said: async_nats::Subscriber, ops: Arc<Mutex<Vec<(String, Value)>>>) {
    while let Some(message) = said.next().await {
        let value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let entry = (message.subject.to_string(), value);
        ops.lock().expect("no reader panics").push(entry);
    }
}
