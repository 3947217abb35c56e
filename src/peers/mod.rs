//! Who we know: registry, discovery (cached, single flight, limited), health.
//!
//! [`Peers`] answers "where do I send, and by which key" from memory; only when it knows nothing
//! fresh does a protocol's `discover` run, once for all who wait. What the configuration pins wins
//! over whatever is discovered, read back or put. Records are written behind to the store, never
//! awaited by a delivery.
//!
//! **Pinned peers.** `[[peers]]` gives a *base* URL; only the protocol knows its own path. So a
//! pinned peer too passes through `discover`, which asks [`Peers::pin`] and [`Peers::pinned_key`]:
//! with endpoint and key pinned it needs no I/O, and the record it makes never goes stale.

pub mod beats;
mod discovery;
pub mod health;
mod persist;
mod pins;
mod registry;
mod repin;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;

use crate::clock::Clock;
use crate::config::PeerPin;
use crate::protocol::{
    Learned, PeerName, PeerRecord, Protocol, ProtocolId, TransportError, TransportKind,
};
use crate::store::{Store, StoreError};

pub use repin::Repinned;

use discovery::{Discoveries, Ticket};
use persist::WriteBehind;
use pins::Pins;
use registry::{Found, Registry};

/// A record that cannot be confirmed anew is still used for this long after it went stale: a name
/// server's or well-known's outage is no reason to stop deliveries that would succeed.
const STALE_GRACE_MS: i64 = 24 * 3_600_000;
/// Facts a protocol may keep about one peer.
const MAX_FACTS: usize = 64;

/// The registry; cloning shares it.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    clock: Clock,
    /// Replaced as a whole when the configuration is read again.
    pins: ArcSwap<Pins>,
    registry: Registry,
    discoveries: Discoveries,
    /// `None`: nothing is written (offline commands, tests).
    behind: Option<Arc<WriteBehind>>,
    /// The room that sends.
    lanes: OnceLock<Box<dyn Lanes>>,
}

/// What rooms that know the peers tell, and ask, the room that sends to them, which they do not see.
/// All of it must be cheap and never wait.
pub trait Lanes: Send + Sync + 'static {
    /// A request of this peer was verified: it runs.
    fn heard_from(&self, protocol: ProtocolId, name: &PeerName);
    /// Whether an operator lets nothing go out to this peer.
    fn is_paused(&self, protocol: ProtocolId, name: &PeerName) -> bool;
    /// Rows of this peer were given up, the first of them with this number.
    fn given_up(&self, protocol: ProtocolId, name: &PeerName, first_row: i64);
}

impl Peers {
    /// Loads `known_relays` and the configuration's pinned `[[peers]]` (which win), and starts the
    /// task that writes records behind.
    pub async fn open(
        store: Store,
        pins: &[Arc<PeerPin>],
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let known = store.peers().await?;
        let behind = Arc::new(WriteBehind::new(store));
        let peers = Self::build(pins, clock, Some(behind));
        for record in known {
            peers.0.load(record);
        }
        persist::spawn(&peers.0);
        Ok(peers)
    }

    /// A registry that starts empty and is kept nowhere: for offline commands and tests.
    pub fn in_memory(pins: &[Arc<PeerPin>], clock: Clock) -> Self {
        Self::build(pins, clock, None)
    }

    fn build(pins: &[Arc<PeerPin>], clock: Clock, behind: Option<Arc<WriteBehind>>) -> Self {
        Self(Arc::new(Inner {
            clock,
            pins: ArcSwap::from_pointee(Pins::new(pins)),
            registry: Registry::new(registry::CAPACITY),
            discoveries: Discoveries::new(),
            behind,
            lanes: OnceLock::new(),
        }))
    }

    /// Says which lanes send to the peers; once.
    pub fn follow(&self, lanes: impl Lanes) {
        let _ = self.0.lanes.set(Box::new(lanes)); // the first ones stay
    }

    /// A request of this peer was verified: it runs.
    pub fn heard_from(&self, protocol: ProtocolId, name: &PeerName) {
        if let Some(lanes) = self.0.lanes.get() {
            lanes.heard_from(protocol, name);
        }
    }

    /// Whether an operator lets nothing go out to this peer.
    pub fn is_paused(&self, protocol: ProtocolId, name: &PeerName) -> bool {
        let lanes = self.0.lanes.get();
        lanes.is_some_and(|lanes| lanes.is_paused(protocol, name))
    }

    /// Rows of this peer were given up by another hand, the first of them with this number.
    pub fn given_up(&self, protocol: ProtocolId, name: &PeerName, first_row: i64) {
        if let Some(lanes) = self.0.lanes.get() {
            lanes.given_up(protocol, name, first_row);
        }
    }

    /// A record fresh enough to send to: pinned, cached, else discovered (5 s in all, single flight,
    /// failures cached for 30 s, at most 64 discoveries at once). When discovery fails, a record
    /// gone stale less than a day ago is used, with a warning.
    pub async fn resolve(
        &self,
        protocol: &Arc<dyn Protocol>,
        name: &PeerName,
    ) -> Result<Arc<PeerRecord>, TransportError> {
        let now = self.0.clock.now_ms();
        if let Found::Fresh(record) = self.0.registry.find(protocol.id(), name, now) {
            return Ok(record);
        }
        let failed = match Inner::begin(&self.0, protocol, name, Begin::IfStale)? {
            Ticket::Here(record) => return Ok(record),
            Ticket::FailedLately(error) => error,
            Ticket::Limited => return Err(discovery::crowded(name)),
            Ticket::Flying(flight) => match flight.outcome(name).await {
                Ok(record) => return Ok(record),
                Err(error) => error,
            },
        };
        match self.0.usable_though_stale(protocol.id(), name) {
            Some(record) => {
                tracing::warn!(
                    protocol = protocol.id(), peer = %name, error = %failed,
                    "peer could not be looked up; its last known endpoint is used"
                );
                Ok(record)
            }
            None => Err(failed),
        }
    }

    /// What is known, however old; no I/O.
    pub fn known(&self, protocol: ProtocolId, name: &PeerName) -> Option<Arc<PeerRecord>> {
        match self.0.registry.find(protocol, name, self.0.clock.now_ms()) {
            Found::Fresh(record) | Found::Stale(record) => Some(record),
            Found::Unknown => None,
        }
    }

    /// Looks the peer up anew: single flight, at most once per 60 s and peer. `Ok(None)`: rate-limited,
    /// or endpoint and key are pinned, so that there is nothing to learn. A caller that held an
    /// older record should look at [`Peers::known`] then: another's refresh may just have ended.
    /// A pinned endpoint or key is never overwritten.
    pub async fn refresh(
        &self,
        protocol: &Arc<dyn Protocol>,
        name: &PeerName,
    ) -> Result<Option<Arc<PeerRecord>>, TransportError> {
        if self.0.pins.load().is_whole(protocol.id(), name) {
            return Ok(None);
        }
        match Inner::begin(&self.0, protocol, name, Begin::Anew)? {
            Ticket::Here(record) => Ok(Some(record)),
            Ticket::FailedLately(error) => Err(error),
            Ticket::Limited => Ok(None),
            Ticket::Flying(flight) => flight.outcome(name).await.map(Some),
        }
    }

    /// Stores a record that a protocol obtained itself.
    pub fn put(&self, record: PeerRecord) {
        self.0.keep(record);
    }

    /// Remembers facts about a known peer; `Null` forgets one. Unknown peers are not made known by it.
    pub fn learn(&self, protocol: ProtocolId, name: &PeerName, facts: &[Learned]) {
        if facts.is_empty() {
            return;
        }
        let Some(known) = self.known(protocol, name) else {
            return;
        };
        if !facts.iter().any(|fact| is_news(&known, fact)) {
            return;
        }
        let changed = self.0.registry.change(protocol, name, |record| {
            for fact in facts {
                apply(record, fact);
            }
        });
        if changed {
            self.0.mark(protocol, name);
        }
    }

    /// Every peer of a protocol that `_all` reaches: the pinned ones marked `accepted`, by name.
    pub fn accepted(&self, protocol: ProtocolId) -> Vec<PeerName> {
        self.0.pins.load().accepted(protocol).to_vec()
    }

    /// All records, for lists, by protocol and name.
    pub fn all(&self) -> Vec<Arc<PeerRecord>> {
        let mut all = self.0.registry.all();
        all.sort_by(|a, b| (a.protocol, &a.name).cmp(&(b.protocol, &b.name)));
        all
    }

    /// Every pinned peer, known yet or not, by protocol and name.
    pub fn pinned(&self) -> Vec<(String, PeerName)> {
        self.0.pins.load().names()
    }

    /// What the configuration pins for this peer. A protocol's `discover` begins here.
    pub fn pin(&self, protocol: &str, name: &PeerName) -> Option<Arc<PeerPin>> {
        let pins = self.0.pins.load();
        pins.get(protocol, name).map(|pin| pin.config.clone())
    }

    /// The pinned key, decoded.
    pub fn pinned_key(&self, protocol: ProtocolId, name: &PeerName) -> Option<[u8; 32]> {
        self.0.pins.load().get(protocol, name)?.public_key
    }

    /// Writes what waits to the store; resolves when it is durable. For shutdown.
    pub async fn flush(&self) {
        if let Some(behind) = &self.0.behind {
            behind.flush(&self.0.registry).await;
        }
    }
}

/// When a discovery is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// Nothing fresh is known, and no failure is fresh either.
    IfStale,
    /// What is known is doubted.
    Anew,
}

impl Inner {
    /// A record of the store, at start. What was never stale then was pinned; if it is no longer
    /// pinned it must be confirmed. What is pinned now is confirmed by the protocol on first use.
    fn load(&self, mut record: PeerRecord) {
        let pins = self.pins.load();
        let pin = pins.get(record.protocol, &record.name);
        let pinned_endpoint = pin.is_some_and(|pin| pin.config.endpoint.is_some());
        if pinned_endpoint || record.ttl_ms.is_none() {
            record.ttl_ms = Some(0);
        }
        if let Some(key) = pin.and_then(|pin| pin.public_key) {
            record.public_key = Some(key);
        }
        self.registry
            .insert(record, pin.is_some(), self.clock.now_ms());
    }

    /// Takes in a record: pins win, facts already learned stay unless the record sets them.
    fn keep(&self, mut record: PeerRecord) -> Arc<PeerRecord> {
        let pins = self.pins.load();
        let pin = pins.get(record.protocol, &record.name);
        if let Some(pin) = pin {
            if let Some(key) = pin.public_key {
                record.public_key = Some(key);
            }
            let known = self.registry.peek(record.protocol, &record.name);
            if pin.config.endpoint.is_some() {
                record.discovered_via = "config".into();
                // A record obtained elsewhere cannot move a pinned endpoint.
                if let Some(base) = pin.base()
                    && !pins::is_below(base, &record.endpoint)
                    && let Some(known) = known
                {
                    record.endpoint.clone_from(&known.endpoint);
                    record.alternatives.clone_from(&known.alternatives);
                }
            }
            if pin.is_whole() {
                record.ttl_ms = None;
            }
        }
        let (protocol, name) = (record.protocol, record.name.clone());
        let kept = self
            .registry
            .insert(record, pin.is_some(), self.clock.now_ms());
        self.mark(protocol, &name);
        kept
    }

    fn mark(&self, protocol: ProtocolId, name: &PeerName) {
        if let Some(behind) = &self.behind {
            behind.mark(protocol, name);
        }
    }

    /// A stale record that is still better than none.
    fn usable_though_stale(
        &self,
        protocol: ProtocolId,
        name: &PeerName,
    ) -> Option<Arc<PeerRecord>> {
        let now = self.clock.now_ms();
        let record = self.registry.peek(protocol, name)?;
        let until = record
            .last_verified_ms
            .saturating_add(record.ttl_ms.unwrap_or(0))
            .saturating_add(STALE_GRACE_MS);
        let pins = self.pins.load();
        let pinned_base = pins.get(protocol, name).and_then(pins::Pin::base);
        let still_pinned = pinned_base.is_none_or(|base| pins::is_below(base, &record.endpoint));
        (now < until && still_pinned && !record.endpoint.is_empty()).then_some(record)
    }

    /// Joins or starts a discovery.
    fn begin(
        self: &Arc<Self>,
        protocol: &Arc<dyn Protocol>,
        name: &PeerName,
        when: Begin,
    ) -> Result<Ticket, TransportError> {
        let now = self.clock.now_ms();
        let fresh = || match self.registry.find(protocol.id(), name, now) {
            Found::Fresh(record) if when == Begin::IfStale => Some(record),
            _ => None,
        };
        let (ticket, takeoff) =
            self.discoveries
                .ticket(protocol.id(), name, when == Begin::Anew, now, fresh)?;
        if let Some(takeoff) = takeoff {
            let inner = Arc::clone(self);
            let protocol = Arc::clone(protocol);
            tokio::spawn(async move { inner.discover(protocol, takeoff).await });
        }
        Ok(ticket)
    }

    /// One discovery: a place, the protocol's own search, the outcome to all who wait.
    async fn discover(self: Arc<Self>, protocol: Arc<dyn Protocol>, takeoff: discovery::Takeoff) {
        let name = takeoff.name().clone();
        let (outcome, remember) = match self.discoveries.place().await {
            None => (Err(discovery::crowded(&name)), false),
            Some(_place) => {
                let search = protocol.discover(&name);
                let found = tokio::time::timeout(discovery::LIMIT, search).await;
                match found {
                    Ok(Ok(record)) if !record.endpoint.is_empty() => {
                        let record = PeerRecord {
                            protocol: protocol.id(),
                            name: name.clone(),
                            ..record
                        };
                        (Ok(self.keep(record)), true)
                    }
                    Ok(Ok(_)) => (Err(discovery::no_endpoint(&name)), true),
                    Ok(Err(error)) => (Err(error), true),
                    Err(_) => (Err(discovery::too_slow(&name)), true),
                }
            }
        };
        crate::ops::metrics::discovery(protocol.id(), outcome.is_ok());
        if let Err(error) = &outcome {
            tracing::info!(
                protocol = protocol.id(), peer = %name, code = error.kind.code(), %error,
                "peer not discovered"
            );
        }
        self.discoveries
            .land(takeoff, outcome, remember, self.clock.now_ms());
    }
}

fn is_news(record: &PeerRecord, fact: &Learned) -> bool {
    match record.facts.get(fact.key) {
        Some(known) => *known != fact.value,
        None => !fact.value.is_null() && record.facts.len() < MAX_FACTS,
    }
}

fn apply(record: &mut PeerRecord, fact: &Learned) {
    if fact.value.is_null() {
        record.facts.remove(fact.key);
    } else if record.facts.contains_key(fact.key) || record.facts.len() < MAX_FACTS {
        record.facts.insert(fact.key.to_owned(), fact.value.clone());
    }
}

/// A discovery that found nothing, in this sentence.
fn undiscovered(detail: String) -> TransportError {
    TransportError {
        kind: TransportKind::Discovery,
        detail,
    }
}
