//! The door over a real broker and a real ledger, each to be stopped and started by itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use drawbridge::bus::Bus;
use drawbridge::clock::Clock;
use drawbridge::config::{NatsConfig, StoreConfig, StreamPolicy};
use drawbridge::identity::SigningKey;
use drawbridge::inbound::{Door, Entry};
use drawbridge::ops::Ops;
use drawbridge::protocol::{PeerName, Verified, VerifiedParts};
use drawbridge::store::{Store, StoreErrorKind};
use drawbridge::trust::Trust;
use tempfile::TempDir;

use super::nats::NatsServer;
use super::postgres;

/// A broker, and a bridge's inbound half that may be away.
pub struct World {
    pub nats: NatsServer,
    /// What the bridge may do about missing streams, from its next start on.
    pub policy: StreamPolicy,
    bridge: Option<Bridge>,
    ledger: StoreConfig,
    dir: TempDir,
}

/// The parts that stop and start together.
pub struct Bridge {
    pub bus: Bus,
    pub store: Store,
    pub trust: Trust,
    pub door: Door,
    pub ops: Ops,
}

impl Bridge {
    /// Starts one over this ledger.
    pub async fn over(store: Store, nats: &NatsConfig) -> Self {
        let clock = Clock::system();
        let bus = Bus::connect(nats).await.expect("connected");
        bus.apply_streams().await.expect("streams");
        let ops = Ops::start(bus.clone(), true);
        let trust = Trust::open(store.clone(), clock.clone())
            .await
            .expect("trust");
        let door = within("the door opens", async || {
            let (store, bus, ops) = (store.clone(), bus.clone(), ops.clone());
            match Door::open(store, bus, ops, clock.clone()).await {
                Ok(door) => Some(door),
                Err(e) if e.to_string().contains("another instance") => None,
                Err(e) => panic!("the door opens: {e}"),
            }
        })
        .await;
        Self {
            bus,
            store,
            trust,
            door,
            ops,
        }
    }

    /// Stops it.
    pub async fn close(self) {
        self.door.close().await;
        self.store.close().await;
        self.bus.close().await;
    }
}

/// A message as it is on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub subject: String,
    pub payload: String,
    pub msg_id: String,
    pub republished: bool,
}

impl World {
    /// With its ledger in a file.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let ledger = StoreConfig::from(&dir.path().join("bridge.db"));
        Self::over(ledger, dir).await
    }

    /// With its ledger in PostgreSQL; `None` where there is none.
    pub async fn on_postgres() -> Option<Self> {
        let url = postgres::fresh().await?;
        let ledger = StoreConfig::parse(&url, Path::new("")).expect("an address");
        Some(Self::over(ledger, tempfile::tempdir().expect("a folder")).await)
    }

    async fn over(ledger: StoreConfig, dir: TempDir) -> Self {
        let mut world = Self {
            nats: NatsServer::start().await,
            policy: StreamPolicy::Ensure,
            bridge: None,
            ledger,
            dir,
        };
        world.open().await;
        world
    }

    /// A folder for copies.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the bridge; what it opens with is done when this returns.
    pub async fn open(&mut self) {
        let mut config = self.nats.config();
        config.streams = self.policy;
        self.bridge = Some(Bridge::over(self.store().await, &config).await);
    }

    /// The ledger alone, while the bridge is away.
    pub async fn store(&self) -> Store {
        // A broker that another test starts just now holds a copy of every open file, the lock
        // among them, until it is its own program.
        within("the store opens", async || {
            match Store::open(&self.ledger, Clock::system()).await {
                Ok(store) => Some(store),
                Err(e) if e.kind == StoreErrorKind::InUse => None,
                Err(e) => panic!("the store opens: {e}"),
            }
        })
        .await
    }

    /// Stops the bridge.
    pub async fn close(&mut self) {
        self.bridge.take().expect("it runs").close().await;
    }

    pub fn bridge(&self) -> &Bridge {
        self.bridge.as_ref().expect("it runs")
    }

    pub fn door(&self) -> &Door {
        &self.bridge().door
    }

    /// These events of `alpha.test`, one after the other; each is answered with success.
    pub async fn take(&self, ids: std::ops::Range<u32>) {
        for n in ids {
            let entry = self.door().enter(event("alpha.test", &text(n))).await;
            assert_eq!(entry, Entry::New, "event {n}");
        }
    }

    /// The same, many at once, in any order.
    pub async fn take_together(&self, ids: std::ops::Range<u32>) {
        let all = ids.map(|n| self.door().enter(event("alpha.test", &text(n))));
        for entry in futures_util::future::join_all(all).await {
            assert_eq!(entry, Entry::New);
        }
    }

    /// What a stream holds, in order.
    pub async fn on(&self, stream: &str) -> Vec<Stored> {
        on(&self.nats, stream).await
    }

    /// The payloads on a stream, in order.
    pub async fn payloads(&self, stream: &str) -> Vec<String> {
        let found = self.on(stream).await;
        found.into_iter().map(|m| m.payload).collect()
    }

    /// Waits until `fed.in` holds these events, each once, in any order.
    pub async fn holds_once(&self, ids: std::ops::Range<u32>) -> Vec<Stored> {
        holds_once(&self.nats, ids).await
    }

    /// Waits until the door lets events in.
    pub async fn is_open(&self) {
        within("the door is open", async || {
            self.door().is_open().then_some(())
        })
        .await;
    }
}

/// What a stream holds, in order.
pub async fn on(nats: &NatsServer, stream: &str) -> Vec<Stored> {
    let bus = nats.bus().await;
    let mut found = Vec::new();
    if let Some(facts) = bus.stream_facts(stream).await.expect("the stream's state") {
        for seq in facts.first_seq.max(1)..=facts.last_seq {
            let Some(m) = bus.read_message(stream, seq).await.expect("a message") else {
                continue;
            };
            found.push(Stored {
                payload: String::from_utf8_lossy(&m.payload).into_owned(),
                msg_id: m.header("Nats-Msg-Id").unwrap_or_default().to_owned(),
                republished: m.header("Fed-Republished").is_some(),
                subject: m.subject,
            });
        }
    }
    bus.close().await;
    found
}

/// Waits until `fed.in` holds these events, each once, in any order.
pub async fn holds_once(nats: &NatsServer, ids: std::ops::Range<u32>) -> Vec<Stored> {
    let mut wanted: Vec<_> = ids.map(text).collect();
    wanted.sort();
    let found = within("every event is on fed.in", async || {
        let found = on(nats, "FED_IN").await;
        (found.len() >= wanted.len()).then_some(found)
    })
    .await;
    let mut there: Vec<_> = found.iter().map(|m| m.payload.clone()).collect();
    there.sort();
    assert_eq!(there, wanted);
    let ids: std::collections::HashSet<_> = found.iter().map(|m| &m.msg_id).collect();
    assert_eq!(ids.len(), found.len(), "a message id is there twice");
    found
}

/// The text of the event of this number: its id and its payload.
pub fn text(n: u32) -> String {
    format!("e{n:04}")
}

/// A verified event.
pub fn event(peer: &str, id: &str) -> Verified {
    let key = SigningKey::from_seed([7; 32]);
    let proof = key.public().verify(b"x", &key.sign(b"x")).expect("a proof");
    Verified::new(
        proof,
        VerifiedParts {
            protocol: "uam",
            peer: PeerName::parse(peer).expect("a name"),
            dedupe_key: id.to_owned(),
            event_id: id.to_owned(),
            event_type: "message".to_owned(),
            payload: Bytes::copy_from_slice(id.as_bytes()),
            origin: format!("alice::{peer}"),
            key_id: "k".to_owned(),
            hops: 1,
            received_at_ms: Clock::system().now_ms(),
            traceparent: None,
            replay: Vec::new(),
            room_event: None,
        },
    )
}

/// Asks again and again until there is an answer.
pub async fn within<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The tests named run on both databases; each is a function of a [`World`].
#[macro_export]
macro_rules! on_both_databases {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::start().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                if let Some(world) = super::World::on_postgres().await {
                    super::$name(world).await;
                }
            })*
        }
    };
}
