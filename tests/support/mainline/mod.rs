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

mod rounds;
mod server;

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
use super::uam_client;
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
            .route(
                &format!("{BASE}/handshake"),
                axum::routing::post(server::handshake),
            )
            .route(&format!("{BASE}/ping"), axum::routing::post(server::ping))
            .route(
                &format!("{BASE}/relay/push"),
                axum::routing::post(server::push),
            )
            .route(
                &format!("{BASE}/relay/fetch"),
                axum::routing::post(server::fetch),
            )
            .route(&format!("{BASE}/info"), axum::routing::get(server::info))
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

    /// Waits, this long at most, until no peer's last fetch was lost.
    pub async fn brought_home(&self, patience: Duration) {
        let mut news = self.inner.news.subscribe();
        let all_came = async {
            while !self.inner.state().fetch_lost.is_empty() && news.changed().await.is_ok() {}
        };
        let _ = tokio::time::timeout(patience, all_came).await;
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
    /// How many messages wait in it.
    pub fn waiting(&self) -> usize {
        let state = self.inner.state();
        state.queues.get(&self.host).map_or(0, VecDeque::len)
    }

    /// Queues a message; `payload` is JSON text. Its id.
    pub fn relay(&self, kind: &str, payload: &str) -> String {
        let id = self.inner.fresh_id("relay");
        let message = Queued {
            id: id.clone(),
            kind: kind.to_owned(),
            payload: payload.to_owned(),
            stamp: uam_client::now_text(),
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
