//! Several instances on one database and one broker, the peers they deliver to, and what those saw.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use axum::extract::State;
use bytes::Bytes;
use serde_json::json;

use crate::support::bridge::{self, Bridge, Broker};
use crate::support::postgres;
use crate::support::uam_client::{envelope, message_id, payload_text};

/// Peers, enough that every unit has some.
pub const PEERS: usize = 24;

/// An instance may die this long after an answer and still not have committed it.
const GRACE: Duration = Duration::from_secs(2);

/// A message as it was published.
#[derive(Clone, Debug)]
pub struct Sent {
    pub id: String,
    pub peer: usize,
    pub key: String,
    pub index: u64,
}

/// One delivery as a peer saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub id: String,
    pub at: Instant,
}

/// What the peers saw.
#[derive(Default)]
pub struct Peers {
    seen: Mutex<Vec<Seen>>,
    /// How long they take to answer, milliseconds.
    pub slow_ms: AtomicU64,
}

impl Peers {
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no handler panics").clone()
    }
}

/// All that runs.
pub struct World {
    pub instances: Vec<Bridge>,
    _broker: Broker,
    _dir: tempfile::TempDir,
    pub url: String,
    pub peers: Arc<Peers>,
    pub js: jetstream::Context,
    pub sent: Arc<Mutex<Vec<Sent>>>,
    /// Kills and freezes: what went out just before may come again.
    pub faults: Vec<Instant>,
}

/// The name of a peer.
pub fn peer(n: usize) -> String {
    format!("p{n}.test")
}

impl World {
    /// So many instances, started one after the other and ready. `None`: no PostgreSQL here.
    pub async fn new(instances: usize, tables: &str) -> Option<Self> {
        let url = postgres::fresh().await?;
        let dir = tempfile::Builder::new()
            .prefix("drawbridge-instances-")
            .tempdir()
            .expect("a temporary folder");
        let binary =
            drawbridge::bus::find::server_binary(None, &drawbridge::bus::find::default_cache_dir())
                .await
                .expect("a nats-server");
        let mut broker = Broker::new(binary, &dir.path().join("broker"));
        broker.start().await;
        let peers = Arc::new(Peers::default());
        let address = serve(peers.clone()).await;
        let pins: String = (0..PEERS).map(|n| bridge::pin(&peer(n), address)).collect();
        let tables = format!(
            "[store]\nurl = \"{url}\"\nshared = true\n[outbound]\nbreaker_initial = \"100ms\"\n\
             breaker_max = \"500ms\"\n{tables}\n{pins}"
        );
        let uam = "discovery = false\nadmin_api_key = \"a key of this test alone\"\n\
                   relay_rate_limit = 10000000\nunproven_per_minute = 1000000\n\
                   retry_delays = [\"100ms\", \"200ms\", \"400ms\", \"800ms\", \"1500ms\", \"3s\"]";
        let instances = (0..instances).map(|n| {
            let dir = dir.path().join(format!("bridge-{n}"));
            Bridge::new(&dir, "alpha.test", Some(&broker.url()), uam, &tables)
        });
        let instances: Vec<Bridge> = instances.collect();
        let client = bridge::connect(&broker.url()).await;
        let mut world = Self {
            instances,
            _broker: broker,
            _dir: dir,
            url,
            peers,
            js: jetstream::new(client),
            sent: Arc::default(),
            faults: Vec::new(),
        };
        for instance in &mut world.instances {
            instance.spawn();
        }
        for instance in &mut world.instances {
            instance.ready().await;
        }
        Some(world)
    }

    /// How many units each owner holds at the moment, by the database.
    pub async fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for (_, owner) in self.owners().await {
            *shares.entry(owner).or_default() += 1;
        }
        shares
    }

    /// Owners of units, by unit; those that are free are left out.
    pub async fn owners(&self) -> BTreeMap<String, String> {
        use sqlx::Connection as _;
        let mut conn = sqlx::PgConnection::connect(&self.url)
            .await
            .expect("connected");
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT unit, owner FROM federation_leases WHERE owner <> '' \
             AND until_ms > (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        )
        .fetch_all(&mut conn)
        .await
        .expect("rows");
        rows.into_iter().collect()
    }

    /// Waits until so many owners hold everything, none more than a fair share.
    pub async fn settled(&self, owners: usize) {
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            let shares = self.shares().await;
            let all: usize = shares.values().sum();
            let fair = UNITS.div_ceil(owners);
            if all == UNITS && shares.len() == owners && shares.values().all(|n| *n <= fair) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{owners} owners never shared fairly: {shares:?}\n{}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the metrics of all instances tell of all of them, and of each unit once.
    pub async fn counted(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        let live = format!("drawbridge_instances {}", self.instances.len());
        loop {
            let (mut held, mut agreed) = (0, 0);
            for instance in &self.instances {
                let text = instance.metrics().await;
                let has = |line: &str| text.lines().any(|l| l == line);
                agreed += usize::from(has(&live) && has("drawbridge_units_free 0"));
                let own = text
                    .lines()
                    .find_map(|l| l.strip_prefix("drawbridge_units_held "));
                held += own.and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
            }
            if agreed == self.instances.len() && held == UNITS {
                return;
            }
            assert!(
                Instant::now() < end,
                "{agreed} say {live:?} and nothing free, {held} of {UNITS} units held"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let logs = self.instances.iter();
        // Of deliveries there are thousands.
        let told = |log: &str| {
            let lines = log.lines().filter(|l| !l.contains("federation delivered"));
            bridge::tail(&lines.collect::<Vec<_>>().join("\n"))
        };
        logs.map(|i| format!("--- {}\n{}\n", i.dir.display(), told(&i.log())))
            .collect()
    }

    /// Publishes to every peer without end until told to stop; each publisher is one key a peer.
    pub fn traffic(&self, publishers: usize, pause: Duration) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..publishers)
            .map(|n| {
                let (js, sent, stop) = (self.js.clone(), self.sent.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut index = 0;
                    while !stop.load(Ordering::Relaxed) {
                        index += 1;
                        for to in 0..PEERS {
                            publish(&js, &sent, n, to, index).await;
                        }
                        tokio::time::sleep(pause).await;
                    }
                })
            })
            .collect();
        Traffic { stop, tasks }
    }

    /// Publishes so many rounds of one message to every peer.
    pub async fn publish(&self, rounds: u64) {
        for index in 1..=rounds {
            for to in 0..PEERS {
                publish(&self.js, &self.sent, 99, to, index).await;
            }
        }
    }

    /// Messages published so far.
    pub fn sent(&self) -> Vec<Sent> {
        self.sent.lock().expect("no publisher panics").clone()
    }

    /// Waits until everything published has arrived.
    pub async fn arrived(&self, patience: Duration) {
        let end = Instant::now() + patience;
        loop {
            let seen: std::collections::HashSet<String> =
                self.peers.seen().into_iter().map(|s| s.id).collect();
            let missing: Vec<Sent> = self
                .sent()
                .into_iter()
                .filter(|s| !seen.contains(&s.id))
                .collect();
            if missing.is_empty() {
                return;
            }
            assert!(
                Instant::now() < end,
                "{} of {} messages never arrived, the first: {:?}\n{}",
                missing.len(),
                self.sent().len(),
                missing.first(),
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the broker has nothing left of what was acknowledged to it.
    pub async fn emptied(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let mut stream = self.js.get_stream("FED_OUT").await.expect("the stream");
            let left = stream.info().await.expect("its state").state.messages;
            if left == 0 {
                return;
            }
            assert!(
                Instant::now() < end,
                "{left} messages stay in FED_OUT\n{}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Order of each key, and repeats only of what went out just before a fault. Answers how many
    /// repeats there were.
    pub fn judge(&self) -> usize {
        let mut first: HashMap<String, Instant> = HashMap::new();
        let mut repeats: HashMap<String, Vec<Instant>> = HashMap::new();
        for seen in self.peers.seen() {
            if let Some(before) = first.get(&seen.id) {
                repeats
                    .entry(seen.id)
                    .or_insert_with(|| vec![*before])
                    .push(seen.at);
            } else {
                first.insert(seen.id, seen.at);
            }
        }
        let mut keys: BTreeMap<(usize, String), Vec<(u64, Instant)>> = BTreeMap::new();
        for sent in self.sent() {
            let at = first[&sent.id];
            let key = keys.entry((sent.peer, sent.key)).or_default();
            key.push((sent.index, at));
        }
        for (key, mut arrivals) in keys {
            arrivals.sort_by_key(|(index, _)| *index);
            for pair in arrivals.windows(2) {
                assert!(
                    pair[0].1 <= pair[1].1,
                    "{key:?}: number {} came before number {}\n{}",
                    pair[1].0,
                    pair[0].0,
                    self.logs()
                );
            }
        }
        for (id, times) in &repeats {
            let excused = times.iter().any(|at| {
                let near = |fault: &Instant| *at + GRACE >= *fault && *at <= *fault + GRACE;
                self.faults.iter().any(near)
            });
            let ago = |at: &Instant| format!("{:?} ago", at.elapsed());
            assert!(
                excused,
                "{id} came {} times without an excuse: {:?}; faults {:?}\n{}",
                times.len(),
                times.iter().map(ago).collect::<Vec<_>>(),
                self.faults.iter().map(ago).collect::<Vec<_>>(),
                self.logs()
            );
        }
        repeats.values().map(|times| times.len() - 1).sum()
    }

    /// How long after `from` each peer was served again: the longest.
    pub fn served_after(&self, from: Instant) -> Duration {
        let sent = self.sent();
        let to: HashMap<&str, usize> = sent.iter().map(|s| (s.id.as_str(), s.peer)).collect();
        let mut first: BTreeMap<usize, Duration> = BTreeMap::new();
        for seen in self.peers.seen() {
            if seen.at > from
                && let Some(peer) = to.get(seen.id.as_str())
            {
                first.entry(*peer).or_insert(seen.at - from);
            }
        }
        let missing: Vec<_> = (0..PEERS).filter(|n| !first.contains_key(n)).collect();
        assert!(
            missing.is_empty(),
            "peers {missing:?} were never served again\n{}",
            self.logs()
        );
        first.values().max().copied().unwrap_or_default()
    }
}

/// Eight parts of UAM, and the messages of nobody.
pub const UNITS: usize = 9;

/// Publishers at work.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Traffic {
    pub async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a publisher");
        }
    }
}

/// One message; a key in five goes by `_to`, and so through another unit first.
async fn publish(
    js: &jetstream::Context,
    all: &Mutex<Vec<Sent>>,
    publisher: usize,
    to: usize,
    index: u64,
) {
    let id = message_id();
    let key = format!("k{publisher}");
    let text = envelope(
        &id,
        &format!("s{publisher}::alpha.test"),
        &format!("r::{}", peer(to)),
        &format!("{key} {index}"),
    );
    let word = match publisher % 5 == 4 {
        true => "_to".to_owned(),
        false => drawbridge::bus::subject::token(&peer(to)),
    };
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", id.as_str());
    headers.insert("Fed-Order", key.as_str());
    let subject = format!("fed.out.uam.{word}.message");
    let stored = js
        .publish_with_headers(subject, headers, text.to_string().into())
        .await
        .expect("sent");
    stored.await.expect("stored");
    all.lock().expect("no publisher panics").push(Sent {
        id,
        peer: to,
        key,
        index,
    });
}

/// Every peer at one address.
async fn serve(peers: Arc<Peers>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("its address");
    let routes = axum::Router::new()
        .route("/api/v1/federation/deliver", axum::routing::post(take))
        .route("/", axum::routing::post(take))
        .with_state(peers);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

async fn take(State(peers): State<Arc<Peers>>, body: Bytes) -> String {
    let request: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let envelope = &request["envelope"];
    let id = envelope["message_id"].as_str().expect("an id").to_owned();
    assert!(!payload_text(envelope).is_empty());
    peers.seen.lock().expect("no handler panics").push(Seen {
        id,
        at: Instant::now(),
    });
    let slow = peers.slow_ms.load(Ordering::Relaxed);
    if slow > 0 {
        tokio::time::sleep(Duration::from_millis(slow)).await;
    }
    json!({"status": "delivered", "detail": null}).to_string()
}
