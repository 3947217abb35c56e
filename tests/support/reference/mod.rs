//! A scripted reference: the public Paracord server as its protocol sheet describes it, with its habits
//! and its defects, and with answers that get lost when the seed says so.
//!
//! It stores every envelope before anything else and therefore never pushes; it polls the rooms that it
//! mirrors, and mirrors a room once one event of it was pushed. It hashes the re-encoded body of what it
//! receives, keeps its replay memory by the signature's text, lists a key of its own that expired long
//! ago, and asks nobody for keys a second time. What no reference would have to put up with is a
//! *complaint*, and a test that ends well has none.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

mod rounds;
mod server;
pub mod typed;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::paracord_client::{BASE, Identity, now_ms};
use super::traffic::Rng;
use super::uam_client::now_ns;
use typed::Envelope;

/// Who it is and how it behaves.
#[derive(Clone)]
pub struct Options {
    pub address: SocketAddr,
    pub identity: Identity,
    /// Time between two rounds of polling (5 s in life); `None`: rounds are asked for.
    pub every: Option<Duration>,
    pub seed: u64,
    /// Of a hundred answers to pushes, so many get lost after the event was stored.
    pub losses: u64,
    /// Events a minute taken from one server; 0: any number.
    pub limit: u32,
    /// `RateLimit-Policy` of its answers; no reference sends one.
    pub policy: Option<String>,
    /// Guilds that live here, by number.
    pub guilds: BTreeMap<i64, String>,
    /// Guilds that may be joined.
    pub allowed: BTreeSet<i64>,
    /// Its database cuts the times of messages to whole seconds.
    pub whole_seconds: bool,
    /// Events in a page that it asks for.
    pub page: usize,
}

impl Options {
    /// A server with this name at an address, with rounds every 100 ms and nothing that goes wrong.
    pub fn at(address: SocketAddr, identity: Identity) -> Self {
        Self {
            address,
            identity,
            every: Some(Duration::from_millis(100)),
            seed: 1,
            losses: 0,
            limit: 0,
            policy: None,
            guilds: BTreeMap::new(),
            allowed: BTreeSet::new(),
            whole_seconds: true,
            page: 128,
        }
    }

    /// A guild that lives here and may be joined.
    pub fn guild(mut self, id: i64, name: &str) -> Self {
        self.guilds.insert(id, name.into());
        self.allowed.insert(id);
        self
    }
}

/// A key of another server as its table holds it.
#[derive(Clone, Debug)]
pub struct Key {
    pub server: String,
    pub id: String,
    pub public: String,
    pub valid_until: i64,
}

/// What it knows of another server.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: String,
    pub domain: String,
    /// Absolute, up to and with the base path.
    pub endpoint: String,
    pub trusted: bool,
}

/// One event that came here, repeats included.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Who handed it over.
    pub from: String,
    pub envelope: Envelope,
    /// It was new.
    pub inserted: bool,
    pub polled: bool,
    /// When it was signed by who handed it over, when it came, when it was answered; nanoseconds.
    pub sent: u64,
    pub at: u64,
    pub answered: Option<u64>,
    pub status: u16,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub polls: u64,
    pub polled: u64,
    pub losses: u64,
    /// Pushes that its own limit turned away.
    pub limited: u64,
    /// GET `/keys` by anybody.
    pub keys_fetched: u64,
    /// GET `/events` by anybody that was answered.
    pub read: u64,
}

/// Everything it keeps: what a restart brings back.
#[derive(Clone, Default)]
pub struct State {
    pub peers: Vec<Peer>,
    pub keys: Vec<Key>,
    /// In the order in which they were stored.
    events: Vec<Envelope>,
    ids: HashMap<String, usize>,
    /// Peer and guild.
    mirrored: BTreeSet<(String, i64)>,
    cursors: BTreeMap<(String, String), i64>,
    replays: HashSet<String>,
    /// Room and user.
    members: BTreeSet<(String, String)>,
    mapped: HashSet<String>,
    rates: HashMap<String, (i64, u32)>,
    arrived: Vec<Arrived>,
    /// How often an event with a `flaky` content was turned away.
    turned_away: HashMap<String, u64>,
    /// What it lists as its keys, if not its own one.
    listed: Option<Value>,
    /// It has stopped: a request still in somebody's hands comes too late.
    closed: bool,
    complaints: Vec<String>,
    counts: Counts,
}

struct Inner {
    options: Options,
    state: Mutex<State>,
    dice: Mutex<Rng>,
    client: reqwest::Client,
    /// Bumped whenever something happened.
    news: watch::Sender<u64>,
    /// Not 0: pushes are answered with it.
    mood: AtomicU16,
    /// The next body that it sends has its members in another order.
    reorder: AtomicBool,
    /// Rounds run one at a time.
    round: tokio::sync::Mutex<()>,
    /// The loop goes on.
    running: watch::Sender<bool>,
}

/// A running reference; it ends when dropped.
pub struct Reference {
    inner: Arc<Inner>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Reference {
    /// Listens and begins its rounds, with nothing in its tables.
    pub async fn start(options: Options) -> Self {
        Self::resume(options, State::default()).await
    }

    /// The same with what an earlier one kept.
    pub async fn resume(options: Options, state: State) -> Self {
        let listener = server::bind(options.address).await;
        let inner = Arc::new(Inner {
            dice: Mutex::new(Rng(options.seed)),
            options,
            state: Mutex::new(state),
            client: super::bridge::client(),
            news: watch::Sender::new(0),
            mood: AtomicU16::new(0),
            reorder: AtomicBool::new(false),
            round: tokio::sync::Mutex::default(),
            running: watch::Sender::new(true),
        });
        let mut tasks = vec![tokio::spawn(server::serve(listener, Arc::clone(&inner)))];
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

    /// Ends it and gives what its tables hold.
    pub async fn stop(mut self) -> State {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
        let mut state = self.inner.state();
        let kept = state.clone();
        // Under the same lock: nothing is answered that is not in what was kept.
        state.closed = true;
        kept
    }

    /// How it was started.
    pub fn options(&self) -> Options {
        self.inner.options.clone()
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.inner.options.identity
    }

    /// `http://127.0.0.1:1234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.options.address)
    }

    /// One round of polling now.
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

    /// The next body that it sends has its members in another order, under the same signature.
    pub fn reorder_once(&self) {
        self.inner.reorder.store(true, Ordering::Relaxed);
    }

    // -------------------------------------------------------------------------- the administrator

    /// A peer with its endpoint (`http://host:port`), trusted, its keys fetched this once. Whether any
    /// key was there.
    pub async fn add(&self, name: &str, domain: &str, url: &str) -> bool {
        let peer = Peer {
            name: name.into(),
            domain: domain.into(),
            endpoint: format!("{url}{BASE}"),
            trusted: true,
        };
        let found = self.inner.fetch_key(&peer).await;
        let mut state = self.inner.state();
        state.peers.retain(|p| p.name != peer.name);
        state.peers.push(peer);
        found
    }

    /// Lists these as its keys from now on.
    pub fn list_keys(&self, keys: Value) {
        self.inner.state().listed = Some(keys);
    }

    /// Keys of a peer do not expire: the administrator's edit in the database.
    pub fn trust_key_of(&self, peer: &str) {
        let mut state = self.inner.state();
        for key in state.keys.iter_mut().filter(|k| k.server == peer) {
            key.valid_until = i64::MAX;
        }
    }

    /// A guild of a peer is mirrored without an event: a row put by hand.
    pub fn mirror(&self, peer: &str, guild: i64) {
        self.inner.state().mirrored.insert((peer.into(), guild));
    }

    // --------------------------------------------------------------------------------- its users

    /// A local user writes something; nothing is pushed. The event.
    pub fn write(&self, room: &str, localpart: &str, kind: &str, content: Value) -> Envelope {
        self.inner.write(room, localpart, kind, content)
    }

    /// A message in a room that lives here or that it mirrors.
    pub fn say(&self, room: &str, body: &str) -> Envelope {
        let content = json!({
            "body": body,
            "msgtype": "m.text",
            "guild_id": super::paracord_client::guild_of(room),
            "channel_id": "20",
            "message_id": super::paracord_client::fresh(),
        });
        self.write(room, "rita", "m.message", content)
    }

    /// POST `/invite` of a peer: status and answer.
    pub async fn invite(&self, peer: &str, room: &str) -> (u16, Value) {
        let body = typed::Invite {
            origin_server: self.identity().name.clone(),
            room_id: room.into(),
            sender: self.identity().user("rita"),
            max_age_seconds: None,
        };
        self.inner.post(peer, "/invite", &body).await
    }

    /// POST `/join` of a peer.
    pub async fn join(&self, peer: &str, room: &str, user: &str) -> (u16, Value) {
        self.inner.member(peer, "/join", room, user).await
    }

    /// POST `/leave` of a peer.
    pub async fn leave(&self, peer: &str, room: &str, user: &str) -> (u16, Value) {
        self.inner.member(peer, "/leave", room, user).await
    }

    /// POST `/event` of a peer: a queue row made by other means.
    pub async fn push(&self, peer: &str, envelope: &Envelope) -> (u16, Value) {
        self.inner.post(peer, "/event", envelope).await
    }

    // ------------------------------------------------------------------------ what can be seen

    /// Everything that came, repeats included, in order.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.inner.state().arrived.clone()
    }

    /// Envelopes of other servers, each once, in the order stored.
    pub fn taken(&self) -> Vec<Envelope> {
        let state = self.inner.state();
        let own = &self.identity().name;
        let of_others = state.events.iter().filter(|e| e.origin_server != *own);
        of_others.cloned().collect()
    }

    /// An event by its id.
    pub fn event(&self, id: &str) -> Option<Envelope> {
        let state = self.inner.state();
        state.ids.get(id).map(|at| state.events[*at].clone())
    }

    /// Users that joined rooms here: room and user.
    pub fn members(&self) -> BTreeSet<(String, String)> {
        self.inner.state().members.clone()
    }

    /// Whether it mirrors a guild of a peer.
    pub fn mirrors(&self, peer: &str, guild: i64) -> bool {
        let row = (peer.to_owned(), guild);
        self.inner.state().mirrored.contains(&row)
    }

    /// What no server would put up with.
    pub fn complaints(&self) -> Vec<String> {
        self.inner.state().complaints.clone()
    }

    pub fn counts(&self) -> Counts {
        self.inner.state().counts
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
            panic!(
                "not within {patience:?}: {what}; {} taken, {:?}, {:?}",
                self.taken().len(),
                self.counts(),
                self.complaints()
            );
        }
    }
}

impl Drop for Reference {
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

    fn happened(&self) {
        self.news.send_modify(|n| *n += 1);
    }

    fn complain(&self, text: String) {
        self.state().complaints.push(text);
        self.happened();
    }

    /// Whether a server name is ours, as in room ids: case is ignored.
    fn is_me(&self, server: &str) -> bool {
        let me = &self.options.identity;
        server.eq_ignore_ascii_case(&me.name) || server.eq_ignore_ascii_case(&me.domain)
    }

    fn write(&self, room: &str, localpart: &str, kind: &str, content: Value) -> Envelope {
        let me = &self.options.identity;
        let (_, server) = room_parts(room).expect("a room id");
        let now = now_ms();
        let cut = self.options.whole_seconds && kind == "m.message";
        let ts = if cut { now / 1000 * 1000 } else { now };
        let message = content["message_id"].as_str().unwrap_or_default();
        let event_id = if kind == "m.message" && self.is_me(&server) {
            format!("${message}:{}", me.domain)
        } else {
            let stable = match content["emoji"].as_str() {
                Some(emoji) => format!("{message}:{emoji}"),
                None => message.to_owned(),
            };
            format!("${}:{stable}:{now}:{}", kind.replace('.', "_"), me.domain)
        };
        let mut value = json!({
            "event_id": event_id,
            "room_id": room,
            "event_type": kind,
            "sender": me.user(localpart),
            "origin_server": me.name,
            "origin_ts": ts,
            "content": content,
            "depth": ts,
            "state_key": null,
        });
        me.sign(&mut value);
        let envelope: Envelope = serde_json::from_value(value).expect("an envelope");
        self.state().store(envelope.clone());
        self.happened();
        envelope
    }
}

impl State {
    /// Stores an envelope; false: its id is there already.
    fn store(&mut self, envelope: Envelope) -> bool {
        if self.ids.contains_key(&envelope.event_id) {
            return false;
        }
        self.ids
            .insert(envelope.event_id.clone(), self.events.len());
        self.events.push(envelope);
        true
    }

    fn trusted(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|p| p.name == name && p.trusted)
    }

    /// The key of a server under an id, unless it has expired.
    fn key(&self, server: &str, id: &str) -> Option<&Key> {
        let mut keys = self.keys.iter();
        keys.find(|k| k.server == server && k.id == id && k.valid_until >= now_ms())
    }

    /// Notes what came; its place in the list.
    fn note(&mut self, from: &str, envelope: &Envelope, inserted: bool, sent: u64) -> usize {
        self.arrived.push(Arrived {
            from: from.to_owned(),
            envelope: envelope.clone(),
            inserted,
            polled: false,
            sent,
            at: now_ns(),
            answered: None,
            status: 202,
        });
        self.arrived.len() - 1
    }

    /// An event of a guild that lives elsewhere makes a mirror of it.
    fn mirror(&mut self, envelope: &Envelope) {
        let Some((guild, server)) = room_parts(&envelope.room_id) else {
            return;
        };
        let speaks = |p: &&Peer| {
            server.eq_ignore_ascii_case(&p.name) || server.eq_ignore_ascii_case(&p.domain)
        };
        if let Some(home) = self.peers.iter().find(speaks) {
            self.mirrored.insert((home.name.clone(), guild));
        }
    }
}

/// Guild and server of a room id.
fn room_parts(room: &str) -> Option<(i64, String)> {
    let (guild, server) = room.strip_prefix('!')?.split_once(':')?;
    let server = server.trim();
    (!server.is_empty()).then_some(())?;
    Some((guild.parse().ok()?, server.to_owned()))
}
