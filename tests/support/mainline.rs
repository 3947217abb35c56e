//! A scripted mainline: the public VoltChat server as its protocol sheet describes it, with its
//! habits and its defects, and with answers that get lost when the seed says so.
//!
//! It serves handshake, ping and the two relay routes (which a published mainline cannot reach:
//! `Access token required`), and it is a client: pings, pushes its own queue twice at the same time
//! under two tokens, fetches ours. What no mainline would have to put up with is a *complaint*, and a
//! test that ends well has none.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::traffic::Rng;
use super::volt_client::{
    Answered, Call, LOST_MESSAGES, Loss, Parts, now_ms, quoted, random_hex, read_token,
};

const BASE: &str = "/api/federation";

/// A mainline remembers so many ids of a host.
const REMEMBERED: usize = 500;

/// Who it is and how it behaves.
#[derive(Clone, Debug)]
pub struct Options {
    pub address: SocketAddr,
    /// `server.name` as JSON text, quotes included: half a surrogate pair is a name too.
    pub name: String,
    /// Time between two rounds (15 s in life); `None`: rounds are asked for.
    pub every: Option<Duration>,
    pub seed: u64,
    /// Of a hundred answers to its pushes, so many get lost.
    pub losses: u64,
    /// Of a hundred answers to its fetches, so many get lost, never two in a row.
    pub fetch_losses: u64,
    /// Of a hundred tokens, so many have their members in another order: who signs what he sends needs
    /// none.
    pub turned: u64,
    /// As published: nobody can push to it or fetch from it.
    pub published: bool,
    /// If it is not: whether it hands its queue out. It forgets what it hands out before it answers.
    pub fetchable: bool,
    /// Whether its rounds fetch.
    pub fetches: bool,
}

impl Options {
    /// A published mainline at an address, with rounds every 100 ms and nothing that goes wrong.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            name: "\"Volt M\"".into(),
            every: Some(Duration::from_millis(100)),
            seed: 1,
            losses: 0,
            fetch_losses: 0,
            turned: 0,
            published: true,
            fetchable: true,
            fetches: true,
        }
    }
}

/// Status of a peer as a mainline names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Pending,
    Connected,
    Error,
    Rejected,
}

/// What it knows of another server.
#[derive(Clone, Debug)]
pub struct Peer {
    pub id: String,
    pub name: String,
    pub host: String,
    pub url: String,
    pub secret: String,
    pub status: Status,
    pub outgoing: bool,
    pub last_error: Option<String>,
    pub remote_id: Option<String>,
}

/// One message that came here, repeats included.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Host of the peer that handed it over.
    pub from: String,
    pub id: String,
    pub kind: String,
    pub payload: Value,
    /// The whole message.
    pub message: Value,
    /// It had been seen before.
    pub repeat: bool,
    pub pushed: bool,
    /// When its token was made, when it came, when it was answered, nanoseconds since 1970.
    pub sent: u64,
    pub at: u64,
    pub answered: Option<u64>,
    pub status: u16,
}

/// A message of its own on the way to a peer: JSON text, since payload and name need not be
/// something that `serde_json` can hold.
#[derive(Clone, Debug)]
struct Queued {
    id: String,
    kind: String,
    payload: String,
    stamp: String,
}

#[derive(Default)]
struct State {
    peers: Vec<Peer>,
    queues: HashMap<String, VecDeque<Queued>>,
    /// Newest last.
    processed: HashMap<String, VecDeque<String>>,
    arrived: Vec<Arrived>,
    /// How often a message with a `flaky` payload was turned away.
    turned_away: HashMap<String, u64>,
    nonces: HashSet<String>,
    complaints: Vec<String>,
    /// Hosts whose last fetch brought nothing home.
    fetch_lost: HashSet<String>,
    counts: Counts,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub pings_in: u64,
    pub pushes_in: u64,
    pub pushes_out: u64,
    pub fetches: u64,
    pub losses: u64,
    /// Answers to fetches that got lost with messages in them.
    pub lost_batches: u64,
    pub largest_batch: usize,
    /// Messages in the last answer that was read.
    pub last_batch: usize,
}

struct Inner {
    options: Options,
    state: Mutex<State>,
    dice: Mutex<Rng>,
    /// Bumped whenever something happened.
    news: watch::Sender<u64>,
    /// Not 0: pushes are answered with it.
    mood: AtomicU16,
    /// Rounds run one at a time.
    round: tokio::sync::Mutex<()>,
    /// The loop goes on.
    running: watch::Sender<bool>,
}

/// A running mainline; it ends when dropped.
pub struct Mainline {
    inner: Arc<Inner>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Mainline {
    /// Listens and begins its rounds.
    pub async fn start(options: Options) -> Self {
        let listener = tokio::net::TcpListener::bind(options.address)
            .await
            .expect("the mainline's address");
        let inner = Arc::new(Inner {
            dice: Mutex::new(Rng(options.seed)),
            options,
            state: Mutex::default(),
            news: watch::Sender::new(0),
            mood: AtomicU16::new(0),
            round: tokio::sync::Mutex::default(),
            running: watch::Sender::new(true),
        });
        let router = axum::Router::new()
            .route(&format!("{BASE}/handshake"), axum::routing::post(handshake))
            .route(&format!("{BASE}/ping"), axum::routing::post(ping))
            .route(&format!("{BASE}/relay/push"), axum::routing::post(push))
            .route(&format!("{BASE}/relay/fetch"), axum::routing::post(fetch))
            .route(&format!("{BASE}/info"), axum::routing::get(info))
            .with_state(Arc::clone(&inner));
        let mut tasks = vec![tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        })];
        if let Some(every) = inner.options.every {
            let inner = Arc::clone(&inner);
            tasks.push(tokio::spawn(async move {
                let mut running = inner.running.subscribe();
                loop {
                    if running.wait_for(|on| *on).await.is_err() {
                        return;
                    }
                    inner.rounds().await;
                    tokio::time::sleep(every).await;
                }
            }));
        }
        Self { inner, tasks }
    }

    /// Host part of its URL, by which others know it.
    pub fn host(&self) -> String {
        self.inner.host()
    }

    /// Its `server.url`.
    pub fn url(&self) -> String {
        self.inner.url()
    }

    /// One round now: pings, queue, fetch.
    pub async fn round(&self) {
        self.inner.rounds().await;
    }

    /// The loop's rounds stand still, or go on.
    pub fn run(&self, on: bool) {
        self.inner.running.send_replace(on);
    }

    /// Pushes are answered with this status from now on; 0: as they should be.
    pub fn mood(&self, status: u16) {
        self.inner.mood.store(status, Ordering::Relaxed);
    }

    /// Every way in which an answer gets lost.
    pub fn every_loss(&self) -> Vec<Loss> {
        vec![
            Loss::BeforeReading,
            Loss::Partly(1),
            Loss::Partly(300),
            Loss::Afterwards,
        ]
    }

    /// Fetches until there is something in an answer that gets lost in this way.
    pub async fn until_fetched_and_lost(&self, host: &str, loss: Loss) {
        let _one = self.inner.round.lock().await;
        let peer = self.peer(host).expect("a known peer");
        for _ in 0..200 {
            let body = self.inner.credentials(&peer);
            let lost = self
                .inner
                .call(&peer, "relay/fetch", &[], &body, 10, Some(loss))
                .await;
            if lost.is_err_and(|e| e == LOST_MESSAGES) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nothing to fetch at {host}");
    }

    // ------------------------------------------------------------------------- the moderator

    /// POST /peers: a new outgoing peer with a fresh secret, and the handshake.
    pub async fn request(&self, url: &str) -> Result<(), String> {
        self.inner.request(url, &random_hex(32)).await
    }

    /// The same with a secret that somebody chose.
    pub async fn request_with(&self, url: &str, secret: &str) -> Result<(), String> {
        self.inner.request(url, secret).await
    }

    /// An outgoing peer without handshake, as resolving an invite of another host leaves behind.
    pub fn dangle(&self, url: &str) {
        let host = url.split("://").last().unwrap_or_default().to_owned();
        self.inner.state().peers.push(Peer {
            id: self.inner.fresh_id("peer"),
            name: host.clone(),
            url: url.to_owned(),
            host,
            secret: random_hex(32),
            status: Status::Pending,
            outgoing: true,
            last_error: None,
            remote_id: None,
        });
    }

    /// POST /peers/:id/accept: connected, then one ping, then the queue.
    pub async fn accept(&self, host: &str) {
        self.inner.set(host, Status::Connected, None);
        let Some(peer) = self.peer(host) else {
            panic!("{host} never asked");
        };
        self.inner.ping(&peer).await;
        self.inner.push_queue(&peer).await;
    }

    /// POST /peers/:id/reject.
    pub fn reject(&self, host: &str) {
        self.inner.set(host, Status::Rejected, None);
    }

    /// DELETE /peers/:id: peer and queue are dropped, nobody is told.
    pub fn forget(&self, host: &str) {
        let mut state = self.inner.state();
        state.peers.retain(|p| p.host != host);
        state.queues.remove(host);
    }

    /// Queues a message; `payload` is JSON text. Its id.
    pub fn relay(&self, host: &str, kind: &str, payload: &str) -> String {
        self.queue(host).relay(kind, payload)
    }

    /// Its queue for a host, for whoever fills it from another task.
    pub fn queue(&self, host: &str) -> Queue {
        Queue {
            inner: Arc::clone(&self.inner),
            host: host.to_owned(),
        }
    }

    // ------------------------------------------------------------------------ what can be seen

    /// What it knows of a host.
    pub fn peer(&self, host: &str) -> Option<Peer> {
        self.inner.peer(host)
    }

    /// Status of a host; `None`: unknown.
    pub fn status(&self, host: &str) -> Option<Status> {
        self.peer(host).map(|peer| peer.status)
    }

    /// How many of its own messages wait for a host.
    pub fn waiting(&self, host: &str) -> usize {
        self.inner.state().queues.get(host).map_or(0, VecDeque::len)
    }

    /// Ids of its own messages that wait for a host.
    pub fn waiting_ids(&self, host: &str) -> HashSet<String> {
        let state = self.inner.state();
        let queue = state.queues.get(host).into_iter().flatten();
        queue.map(|m| m.id.clone()).collect()
    }

    /// Everything that came, repeats included, in order.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.inner.state().arrived.clone()
    }

    /// What came and was taken, each once, in order.
    pub fn taken(&self) -> Vec<Arrived> {
        let state = self.inner.state();
        let first = state
            .arrived
            .iter()
            .filter(|a| !a.repeat && a.status == 200);
        first.cloned().collect()
    }

    /// What no server would put up with.
    pub fn complaints(&self) -> Vec<String> {
        self.inner.state().complaints.clone()
    }

    pub fn counts(&self) -> Counts {
        self.inner.state().counts
    }

    /// A token as it would send it to a peer.
    pub fn token(&self, host: &str) -> String {
        let peer = self.peer(host).expect("a known peer");
        self.inner.token(&peer)
    }

    /// Waits until something holds; looks again whenever something happened here.
    pub async fn until(&self, what: &str, patience: Duration, holds: impl Fn(&Self) -> bool) {
        let mut news = self.inner.news.subscribe();
        let wait = async {
            while !holds(self) {
                // Some conditions look at more than this server.
                let _ = tokio::time::timeout(Duration::from_millis(50), news.changed()).await;
            }
        };
        if tokio::time::timeout(patience, wait).await.is_err() {
            let taken = self.taken().len();
            let peers: Vec<_> = self.inner.state().peers.clone();
            let brief: Vec<_> = peers
                .iter()
                .map(|p| format!("{} {:?} {:?}", p.host, p.status, p.last_error))
                .collect();
            panic!(
                "not within {patience:?}: {what}; {taken} taken, {:?}, {brief:?}, {:?}",
                self.counts(),
                self.complaints()
            );
        }
    }
}

/// A mainline's queue for one host.
pub struct Queue {
    inner: Arc<Inner>,
    host: String,
}

impl Queue {
    /// Queues a message; `payload` is JSON text. Its id.
    pub fn relay(&self, kind: &str, payload: &str) -> String {
        let id = self.inner.fresh_id("relay");
        let message = Queued {
            id: id.clone(),
            kind: kind.to_owned(),
            payload: payload.to_owned(),
            stamp: super::uam_client::now_text(),
        };
        let mut state = self.inner.state();
        let queue = state.queues.entry(self.host.clone()).or_default();
        queue.push_back(message);
        id
    }
}

impl Drop for Mainline {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    fn host(&self) -> String {
        self.options.address.to_string()
    }

    fn url(&self) -> String {
        format!("http://{}", self.options.address)
    }

    fn fresh_id(&self, prefix: &str) -> String {
        format!("{prefix}_{}_{}", now_ms(), random_hex(4))
    }

    fn peer(&self, host: &str) -> Option<Peer> {
        let state = self.state();
        state.peers.iter().find(|p| p.host == host).cloned()
    }

    fn complain(&self, text: String) {
        self.state().complaints.push(text);
    }

    fn happened(&self) {
        self.news.send_modify(|n| *n += 1);
    }

    fn set(&self, host: &str, status: Status, error: Option<String>) {
        if let Some(peer) = self.state().peers.iter_mut().find(|p| p.host == host) {
            peer.status = status;
            peer.last_error = error;
        }
        self.happened();
    }

    fn chance(&self, percent: u64) -> bool {
        self.dice.lock().expect("no panic").chance(percent)
    }

    fn loss(&self, percent: u64) -> Option<Loss> {
        let mut dice = self.dice.lock().expect("no panic");
        if !dice.chance(percent) {
            return None;
        }
        let bytes = usize::try_from(dice.within(1, 4_000)).unwrap_or(1);
        let losses = [Loss::BeforeReading, Loss::Partly(bytes), Loss::Afterwards];
        Some(losses[usize::try_from(dice.within(0, 3)).unwrap_or(0)])
    }

    fn token(&self, peer: &Peer) -> String {
        let parts = Parts::fresh(&peer.id, &self.host(), &self.options.name);
        let parts = if self.chance(self.options.turned) {
            parts.turned()
        } else {
            parts
        };
        parts.sign(&peer.secret)
    }

    // ------------------------------------------------------------------------------ as a client

    async fn call(
        &self,
        peer: &Peer,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
        seconds: u64,
        loss: Option<Loss>,
    ) -> Result<Answered, String> {
        let to = peer.url.split("://").last().unwrap_or_default();
        let to: SocketAddr = to.parse().map_err(|_| format!("ENOTFOUND {to}"))?;
        if loss.is_some() {
            self.state().counts.losses += 1;
        }
        let answered = Call {
            to,
            method: "POST",
            path: &format!("{BASE}/{path}"),
            headers,
            body,
            loss,
            patience: Duration::from_secs(seconds),
        }
        .send()
        .await?;
        if answered.status / 100 == 2 {
            return Ok(answered);
        }
        // Told apart by nobody, so printed for whoever looks into a failed test.
        eprintln!("{path}: {}", answered.text());
        Err(format!(
            "Request failed with status code {}",
            answered.status
        ))
    }

    async fn request(&self, url: &str, secret: &str) -> Result<(), String> {
        let host = url.split("://").last().unwrap_or_default().to_owned();
        assert!(self.peer(&host).is_none(), "409 Peer already exists");
        let peer = Peer {
            id: self.fresh_id("peer"),
            name: host.clone(),
            url: url.to_owned(),
            host: host.clone(),
            secret: secret.to_owned(),
            status: Status::Pending,
            outgoing: true,
            last_error: None,
            remote_id: None,
        };
        self.state().peers.push(peer.clone());
        let body = format!(
            "{{\"name\":{},\"host\":{},\"url\":{},\"sharedSecret\":{},\"features\":{{\"federation\":true,\"discovery\":true}},\"autoAccept\":false}}",
            self.options.name,
            quoted(&self.host()),
            quoted(&self.url()),
            quoted(secret)
        );
        let outcome = match self.call(&peer, "handshake", &[], &body, 8, None).await {
            Ok(answered) => {
                let answer = answered.json();
                if answered.text().contains(secret) {
                    self.complain("the handshake answer holds the secret".into());
                }
                if answer["accepted"] == true {
                    let mut state = self.state();
                    if let Some(peer) = state.peers.iter_mut().find(|p| p.host == host) {
                        peer.status = Status::Connected;
                        peer.remote_id = answer["peerId"].as_str().map(str::to_owned);
                    }
                    Ok(())
                } else {
                    Err(format!("not accepted: {answer}"))
                }
            }
            Err(e) => Err(e),
        };
        if let Err(e) = &outcome {
            self.set(&host, Status::Pending, Some(e.clone()));
        }
        self.happened();
        outcome
    }

    /// One round over all peers, one after the other.
    async fn rounds(&self) {
        let _one = self.round.lock().await;
        let peers = self.state().peers.clone();
        let spoken = |p: &&Peer| matches!(p.status, Status::Connected | Status::Error);
        for peer in peers.iter().filter(spoken) {
            if self.ping(peer).await {
                self.push_queue(peer).await;
                if self.options.fetches {
                    self.fetch(peer).await;
                }
            }
        }
        self.happened();
    }

    async fn ping(&self, peer: &Peer) -> bool {
        let body = self.credentials(peer);
        match self.call(peer, "ping", &[], &body, 8, None).await {
            Ok(answered) => {
                let answer = answered.json();
                if answer["host"] != peer.host.as_str() || !answer["timestamp"].is_string() {
                    self.complain(format!("the ping was answered {answer}"));
                }
                self.set(&peer.host, Status::Connected, None);
                true
            }
            Err(e) => {
                self.set(&peer.host, Status::Error, Some(e));
                false
            }
        }
    }

    fn credentials(&self, peer: &Peer) -> String {
        format!(
            "{{\"host\":{},\"token\":{}}}",
            quoted(&self.host()),
            quoted(&self.token(peer))
        )
    }

    /// Two deliveries of the same queue at the same time; what either got through is gone.
    async fn push_queue(&self, peer: &Peer) {
        let queue: Vec<Queued> = {
            let state = self.state();
            let queue = state.queues.get(&peer.host);
            queue.map_or_else(Vec::new, |q| q.iter().cloned().collect())
        };
        if queue.is_empty() {
            return;
        }
        let (one, other) = tokio::join!(self.deliver(peer, &queue), self.deliver(peer, &queue));
        let mut state = self.state();
        if let Some(queue) = state.queues.get_mut(&peer.host) {
            queue.retain(|m| !one.contains(&m.id) && !other.contains(&m.id));
        }
    }

    /// In order, each message its own request, until the first that fails.
    async fn deliver(&self, peer: &Peer, queue: &[Queued]) -> HashSet<String> {
        let mut delivered = HashSet::new();
        for message in queue {
            let token = self.token(peer);
            let host = self.host();
            let headers = [
                ("x-federation-token", token.as_str()),
                ("x-federation-host", host.as_str()),
            ];
            let body = format!(
                "{{\"id\":{},\"schemaVersion\":1,\"type\":{},\"payload\":{},\"timestamp\":{},\"fromHost\":{},\"fromMainline\":{}}}",
                quoted(&message.id),
                quoted(&message.kind),
                message.payload,
                quoted(&message.stamp),
                quoted(&host),
                self.options.name
            );
            let loss = self.loss(self.options.losses);
            self.state().counts.pushes_out += 1;
            match self
                .call(peer, "relay/push", &headers, &body, 10, loss)
                .await
            {
                Ok(answered) => {
                    if answered.json()["success"] != true {
                        self.complain(format!("a push was answered {}", answered.text()));
                    }
                    delivered.insert(message.id.clone());
                }
                Err(e) => {
                    if e.ends_with("status code 400") {
                        self.complain(format!("{} was refused: {e}", message.id));
                    }
                    self.set(&peer.host, Status::Error, Some(e));
                    break;
                }
            }
        }
        delivered
    }

    async fn fetch(&self, peer: &Peer) {
        let loss = if self.state().fetch_lost.contains(&peer.host) {
            None
        } else {
            self.loss(self.options.fetch_losses)
        };
        let body = self.credentials(peer);
        self.state().counts.fetches += 1;
        match self.call(peer, "relay/fetch", &[], &body, 10, loss).await {
            Ok(answered) => {
                self.state().fetch_lost.remove(&peer.host);
                self.set(&peer.host, Status::Connected, None);
                match answered.json() {
                    Value::Array(messages) => self.take(peer, &messages),
                    other => self.complain(format!("a fetch was answered {other}")),
                }
            }
            Err(e) => {
                let mut state = self.state();
                state.counts.lost_batches += u64::from(e == LOST_MESSAGES);
                state.fetch_lost.insert(peer.host.clone());
                drop(state);
                self.set(&peer.host, Status::Error, Some(e));
            }
        }
    }

    fn take(&self, peer: &Peer, messages: &[Value]) {
        let mut state = self.state();
        state.counts.largest_batch = state.counts.largest_batch.max(messages.len());
        state.counts.last_batch = messages.len();
        let now = super::uam_client::now_ns();
        for message in messages {
            if message["fromHost"] != peer.host.as_str() {
                let text = format!("a fetched message says it is from {}", message["fromHost"]);
                state.complaints.push(text);
            }
            state.process(&peer.host, message, false, (now, now), 200);
        }
    }
}

impl State {
    /// Drops what was seen, remembers what was not. Place in `arrived`.
    fn process(
        &mut self,
        from: &str,
        message: &Value,
        pushed: bool,
        (sent, at): (u64, u64),
        status: u16,
    ) -> usize {
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        let (id, kind) = (text("id"), text("type"));
        let shape = [
            ("id", !id.is_empty() && id.len() <= 160),
            ("type", !kind.is_empty() && !kind.contains('.')),
            ("payload", message.get("payload").is_some()),
            ("schemaVersion", message["schemaVersion"] == 1),
            ("timestamp", message["timestamp"].is_string()),
            ("fromMainline", message["fromMainline"].is_string()),
        ];
        for (member, _) in shape.iter().filter(|(_, ok)| !ok) {
            self.complaints
                .push(format!("{member} of a message is not right: {message}"));
        }
        let known = self.processed.entry(from.to_owned()).or_default();
        let repeat = known.contains(&id);
        if !repeat && status == 200 {
            known.push_back(id.clone());
            if known.len() > REMEMBERED {
                known.pop_front();
            }
        }
        // Forgotten by the mainline, not by us.
        if !repeat
            && self
                .arrived
                .iter()
                .any(|a| a.id == id && a.from == from && a.status == 200)
        {
            self.complaints
                .push(format!("{id} came again when it was long forgotten"));
        }
        self.arrived.push(Arrived {
            from: from.to_owned(),
            id,
            kind,
            payload: message["payload"].clone(),
            message: message.clone(),
            repeat,
            pushed,
            sent,
            at,
            answered: None,
            status,
        });
        self.arrived.len() - 1
    }
}

// ----------------------------------------------------------------------------------- as a server

fn error(status: u16, text: &str) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    let headers = [("content-type", "application/json; charset=utf-8")];
    (status, headers, json!({ "error": text }).to_string()).into_response()
}

impl Inner {
    /// What stands before any route: content type, JSON, and the look at the client's name.
    #[allow(clippy::result_large_err, reason = "the error is the answer")]
    fn read(&self, headers: &HeaderMap, body: &Bytes) -> Result<Value, Response> {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let agent = header("user-agent").unwrap_or_default().to_lowercase();
        if agent.len() < 10
            || ["curl", "wget", "python", "bot"]
                .iter()
                .any(|b| agent.contains(b))
        {
            self.complain(format!("User-Agent {agent:?} costs 30 points"));
        }
        if !header("content-type").is_some_and(|t| t.starts_with("application/json")) {
            self.complain("a POST without the content type of JSON".into());
            return Err(error(415, "Content-Type header required"));
        }
        serde_json::from_slice(body).map_err(|e| {
            self.complain(format!("a body that is no JSON: {e}"));
            error(400, "Bad Request")
        })
    }

    /// Section 4.4, and what the bridge promises beyond it. The time the token was made, ns.
    #[allow(clippy::result_large_err, reason = "the error is the answer")]
    fn authenticate(&self, headers: &HeaderMap, body: &Value) -> Result<(Peer, u64), Response> {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let refused = || error(401, "Missing or invalid federation credentials");
        let token = header("x-federation-token").or_else(|| body["token"].as_str());
        let host = header("x-federation-host")
            .or_else(|| body["host"].as_str())
            .or_else(|| body["fromHost"].as_str());
        let (Some(token), Some(host)) = (token, host) else {
            self.complain("a request without credentials".into());
            return Err(refused());
        };
        let Some(peer) = self.peer(host) else {
            return Err(refused());
        };
        let read = match read_token(&peer.secret, token) {
            Ok(read) => read,
            Err(why) => {
                self.complain(format!("a token of {host}: {why}"));
                return Err(refused());
            }
        };
        if read["host"] != host {
            self.complain(format!("{host} sent the token of {}", read["host"]));
        }
        let nonce = read["nonce"].as_str().unwrap_or_default().to_owned();
        if !self.state().nonces.insert(nonce) {
            self.complain(format!("{host} used a token twice"));
        }
        if matches!(peer.status, Status::Pending | Status::Rejected) {
            return Err(refused());
        }
        let stamp = read["timestamp"].as_u64().unwrap_or_default();
        Ok((peer, stamp * 1_000_000))
    }
}

async fn handshake(Shared(me): Shared<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match me.read(&headers, &body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let text = |key: &str| body[key].as_str().unwrap_or_default().trim().to_owned();
    let (name, host, url, secret) = (
        text("name"),
        text("host"),
        text("url"),
        text("sharedSecret"),
    );
    if [&name, &host, &url, &secret].iter().any(|t| t.is_empty()) {
        return error(400, "Missing required fields");
    }
    if secret.len() < 16 {
        return error(400, "Invalid sharedSecret");
    }
    if secret.len() != 64 || body["autoAccept"] == true {
        me.complain(format!("not the handshake of a careful peer: {host}"));
    }
    let mut state = me.state();
    let id = if let Some(peer) = state.peers.iter_mut().find(|p| p.host == host) {
        if peer.secret != secret {
            return error(401, "Handshake credentials rejected");
        }
        peer.name = name;
        peer.url = url;
        if peer.status != Status::Connected {
            peer.status = Status::Pending;
        }
        peer.id.clone()
    } else {
        let id = me.fresh_id("peer");
        state.peers.push(Peer {
            id: id.clone(),
            name,
            host,
            url,
            secret,
            status: Status::Pending,
            outgoing: false,
            last_error: None,
            remote_id: None,
        });
        id
    };
    drop(state);
    me.happened();
    let answer = format!(
        "{{\"accepted\":true,\"peerId\":{},\"host\":{},\"name\":{},\"features\":{{}}}}",
        quoted(&id),
        quoted(&me.host()),
        me.options.name
    );
    json_text(answer)
}

fn json_text(text: String) -> Response {
    let headers = [("content-type", "application/json; charset=utf-8")];
    (headers, text).into_response()
}

async fn ping(Shared(me): Shared<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match me.read(&headers, &body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let peer = match me.authenticate(&headers, &body) {
        Ok((peer, _)) => peer,
        Err(answer) => return answer,
    };
    me.state().counts.pings_in += 1;
    me.set(&peer.host, Status::Connected, None);
    json_text(format!(
        "{{\"host\":{},\"name\":{},\"version\":\"1.0.0\",\"features\":{{}},\"timestamp\":{}}}",
        quoted(&me.host()),
        me.options.name,
        quoted(&super::uam_client::now_text())
    ))
}

async fn push(Shared(me): Shared<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let at = super::uam_client::now_ns();
    me.state().counts.pushes_in += 1;
    me.happened();
    let body = match me.read(&headers, &body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    if me.options.published {
        return error(401, "Access token required");
    }
    let (peer, sent) = match me.authenticate(&headers, &body) {
        Ok(known) => known,
        Err(answer) => return answer,
    };
    let (answer, place) = {
        let mut state = me.state();
        let status = match (
            me.mood.load(Ordering::Relaxed),
            body["payload"]["answer"].as_u64(),
        ) {
            (0, None) => state.flaky(&body),
            (0, Some(status)) => u16::try_from(status).unwrap_or(500),
            (mood, _) => mood,
        };
        let place = state.process(&peer.host, &body, true, (sent, at), status);
        let answer = match status {
            200 => json_text("{\"success\":true}".into()),
            400 => error(400, "Invalid payload keys"),
            other => error(other, "Not now"),
        };
        (answer, place)
    };
    me.set(&peer.host, Status::Connected, None);
    me.state().arrived[place].answered = Some(super::uam_client::now_ns());
    answer
}

impl State {
    /// A payload `{"flaky": n}` is answered 503 the first n times.
    fn flaky(&mut self, body: &Value) -> u16 {
        let times = body["payload"]["flaky"].as_u64().unwrap_or(0);
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        let count = self.turned_away.entry(id).or_default();
        if *count < times {
            *count += 1;
            return 503;
        }
        200
    }
}

async fn fetch(Shared(me): Shared<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match me.read(&headers, &body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    if me.options.published {
        return error(401, "Access token required");
    }
    let peer = match me.authenticate(&headers, &body) {
        Ok((peer, _)) => peer,
        Err(answer) => return answer,
    };
    let mut state = me.state();
    let queue = state.queues.entry(peer.host.clone()).or_default();
    let most = if me.options.fetchable { 50 } else { 0 };
    let batch: Vec<Queued> = queue.drain(..queue.len().min(most)).collect();
    drop(state);
    let texts: Vec<String> = batch.iter().map(|m| me.fetched(m)).collect();
    json_text(format!("[{}]", texts.join(",")))
}

impl Inner {
    fn fetched(&self, message: &Queued) -> String {
        format!(
            "{{\"id\":{},\"schemaVersion\":1,\"fromHost\":{},\"fromMainline\":{},\"type\":{},\"payload\":{},\"timestamp\":{}}}",
            quoted(&message.id),
            quoted(&self.host()),
            self.options.name,
            quoted(&message.kind),
            message.payload,
            quoted(&message.stamp)
        )
    }
}

async fn info(Shared(me): Shared<Arc<Inner>>) -> Response {
    json_text(format!(
        "{{\"host\":{},\"name\":{},\"instanceType\":\"voltchat-mainnet\",\"software\":{{\"name\":\"voltchat\",\"protocol\":\"voltchat-federation\"}},\"discoveryVersion\":1,\"federationEnabled\":true,\"apiUrl\":{},\"imageServerUrl\":{},\"cdnEnabled\":false,\"cdnUrl\":null}}",
        quoted(&me.host()),
        me.options.name,
        quoted(&me.url()),
        quoted(&me.url())
    ))
}
