//! UAM: relays that pass on signed envelopes of agents.
//!
//! The bridge is one relay among others: it signs what its backend publishes and delivers it to the
//! recipient's relay, and takes what other relays deliver for its own domain. The facts are those of
//! the protocol sheet; names like "check 13" are numbers of its tables.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`deliver`] | the delivery route: the checks in their order (`received`: what arrives, `proof`: who signed) |
//! | [`send`] | from a backend's envelope to a signed request |
//! | [`judge`] | what a relay's answer means |
//! | [`discover`] | finding a relay |
//! | [`agents`] | agents' keys, ours and strangers' |
//! | [`verify`], [`relay_request`], [`envelope`], [`canonical`], [`json`] | the pure part: what is read, signed, checked |
//! | [`admin`], [`routes`], [`answer`] | the other routes, and refusals in the protocol's words |
//! | [`explain`] | what is checked, step by step, for a person |
//! | [`probe`] | examining a relay from outside |
//! | [`keys`], [`rotation`] | our key while it changes |

pub mod address;
pub mod admin;
pub mod agents;
pub mod answer;
mod calls;
pub mod canonical;
pub mod deliver;
pub mod discover;
pub mod envelope;
pub mod explain;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod json;
mod json_reader;
pub mod judge;
pub mod keys;
mod number;
pub mod payload;
pub mod probe;
mod proof;
pub mod python;
mod received;
mod rejection;
pub mod relay_request;
pub mod rotation;
pub mod routes;
pub mod send;
pub mod time;
pub mod verify;

/// What we show other relays; None: UAM does not run.
pub fn face(config: &crate::config::UamConfig) -> Option<super::Face> {
    let domain = config.running()?;
    let base = config
        .http_url
        .clone()
        .unwrap_or_else(|| format!("https://{domain}"));
    Some(super::Face {
        protocol: ID,
        name: domain.to_owned(),
        page: format!(
            "{}{}",
            base.trim_end_matches('/'),
            discover::WELL_KNOWN_PATH
        ),
        srv: Some(format!("_uam._tcp.{domain}")),
        key: config.key_path.clone(),
        shows: super::Shows::Key,
    })
}

#[cfg(test)]
mod discover_tests;

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::json;

use crate::clock::Clock;
use crate::config::UamConfig;
use crate::identity::{self, KeyFileError, KeyOrigin};
use crate::inbound::Door;
use crate::ops::Ops;
use crate::peers::Peers;
use crate::protocol::{
    Answer, Judgement, Learned, OutEvent, OwnKey, PeerName, PeerRecord, Protocol, ProtocolId,
    Refusal, Request, Rotation, Schedule, Sealed, Targets, Tell, TransportError, TransportKind,
    Try,
};
use crate::store::{Store, StoreError};
use crate::trust::Trust;

use agents::Agents;
use discover::{DELIVER_PATH, Net, Pin};
use keys::Keys;
use probe::{Own, Probe};
use proof::RelayKeys;

/// Its name in subjects, tables and settings.
pub const ID: ProtocolId = "uam";
/// Largest request body, either way, bytes (sheet, section 4: 1.0 refuses more).
pub const MAX_BODY: usize = 1024 * 1024;
/// What via, timestamps and the like add to an envelope in a request, bytes.
const WRAPPING: usize = 4 * 1024;

/// What a relay is made of.
pub struct UamParts {
    pub config: UamConfig,
    pub store: Store,
    pub peers: Peers,
    pub trust: Trust,
    pub door: Door,
    /// Usually the outgoing HTTP client.
    pub net: Arc<dyn Net>,
    pub ops: Ops,
    pub clock: Clock,
}

/// Why the relay cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum UamError {
    /// A setting is wrong or missing; the sentence names it.
    #[error("{0}")]
    Setting(String),
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A UAM relay.
pub struct Uam {
    config: UamConfig,
    domain: PeerName,
    endpoint: String,
    keys: Keys,
    store: Store,
    peers: Peers,
    trust: Trust,
    door: Door,
    net: Arc<dyn Net>,
    agents: Arc<Agents>,
    relay_keys: RelayKeys,
    ops: Ops,
    clock: Clock,
    schedule: Schedule,
    me: Weak<Self>,
}

impl Uam {
    /// A relay over these parts: reads or makes its key, loads its agents.
    pub async fn new(parts: UamParts) -> Result<Arc<Self>, UamError> {
        let config = parts.config;
        let domain = config.domain.clone().ok_or_else(|| {
            UamError::Setting(
                "uam.domain (UAM_RELAY_DOMAIN) is not set: a relay needs the domain of its agents"
                    .into(),
            )
        })?;
        let domain = PeerName::parse(&domain)
            .map_err(|error| UamError::Setting(format!("uam.domain: {error}")))?;
        let base = config
            .http_url
            .clone()
            .unwrap_or_else(|| format!("https://{domain}"));
        let endpoint = format!("{}{DELIVER_PATH}", base.trim_end_matches('/'));
        let (keys, origin) = Keys::open(
            config.key_path.clone(),
            config.key_overlap,
            parts.clock.now_ms(),
        )?;
        remember_key(&parts.store, &config, &keys, origin).await?;
        let agents = Agents::open(
            domain.as_str(),
            parts.store.clone(),
            parts.peers.clone(),
            Arc::clone(&parts.net),
        )
        .await?;
        let schedule = Schedule {
            delays: config.retry_delays.clone(),
        };
        if !config.enabled {
            tracing::info!("Federation is disabled");
        }
        let uam = Arc::new_cyclic(|me| Self {
            config,
            domain,
            endpoint,
            keys,
            store: parts.store,
            peers: parts.peers,
            trust: parts.trust,
            door: parts.door,
            net: parts.net,
            agents: Arc::new(agents),
            relay_keys: RelayKeys::default(),
            ops: parts.ops,
            clock: parts.clock,
            schedule,
            me: me.clone(),
        });
        uam.spawn_retirement();
        Ok(uam)
    }

    /// The domain of our agents.
    pub fn domain(&self) -> &str {
        self.domain.as_str()
    }

    /// Where others deliver to us.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Our public key.
    pub fn public_key(&self) -> identity::PublicKey {
        self.keys.current().ring.active.public()
    }

    /// Our public key as the protocol writes it.
    pub fn public_key_text(&self) -> String {
        self.public_key().to_base64()
    }

    /// Key of a relay's window in [`Trust::admit`].
    pub fn rate_key(from_relay: &str) -> String {
        format!("uam/relay/{from_relay}")
    }

    /// Says when a peer refuses our new key, and when it has taken it.
    fn tell_of_keys(&self, peer: &PeerRecord, learned: &[Learned]) {
        let Some(fact) = learned.iter().find(|fact| fact.key == keys::KNOWS) else {
            return;
        };
        let known = peer.facts.contains_key(keys::KNOWS);
        let what = match (known, fact.value.is_null()) {
            (false, false) => "unnoticed",
            (true, true) => "noticed",
            _ => return,
        };
        let name = peer.name.as_str();
        tracing::info!(peer = name, what, "our new key at a peer");
        let body = json!({"key_id": self.public_key().fingerprint()});
        self.ops.event("key", what, ID, name, body);
    }

    /// What the configuration pins for a relay.
    fn pin(&self, name: &PeerName) -> Pin {
        Pin {
            base: self
                .peers
                .pin(ID, name)
                .and_then(|pin| pin.endpoint.clone())
                .map(|url| url.trim_end_matches('/').to_owned()),
            public_key: self.peers.pinned_key(ID, name),
        }
    }

    /// This value as the core holds it; `None` only while it is being dropped.
    fn shared(&self) -> Option<Arc<dyn Protocol>> {
        self.me.upgrade().map(|me| me as Arc<dyn Protocol>)
    }
}

/// Remembers our key, and says what follows when it is not the one of earlier starts.
async fn remember_key(
    store: &Store,
    config: &UamConfig,
    keys: &Keys,
    origin: KeyOrigin,
) -> Result<(), StoreError> {
    let current = keys.current();
    let key = &current.ring.active;
    let path = config.key_path.display();
    match origin {
        KeyOrigin::Loaded => tracing::info!("Relay keypair loaded from {path}"),
        KeyOrigin::Created => tracing::info!("Relay keypair generated and saved to {path}"),
    }
    let id = key.public().fingerprint();
    let hex = identity::hex(&key.public().to_bytes());
    let known = store.server_keys(ID).await?;
    if known.iter().any(|(old, _, _)| *old == id) {
        return Ok(());
    }
    let rotated = current.ring.old.as_ref();
    if let Some((old, _, _)) = known
        .last()
        .filter(|(id, _, _)| rotated.is_none_or(|old| old.key.public().fingerprint() != *id))
    {
        tracing::warn!(
            old_key = %old,
            new_key = %id,
            "this relay has a new identity: {path} holds another key than before. Peers that know \
             the old key see a signature mismatch until they fetch our well-known file again, which \
             they do at the first request signed with the new key; if the old file was lost by \
             mistake, stop and restore it from a backup"
        );
    }
    store.put_server_key(ID, &id, &hex).await?.await
}

impl Protocol for Uam {
    fn id(&self) -> ProtocolId {
        ID
    }

    fn enabled(&self) -> bool {
        self.config.enabled
    }

    fn max_body(&self) -> usize {
        MAX_BODY - WRAPPING
    }

    fn targets(&self, event: &OutEvent) -> Result<Targets, Refusal> {
        send::targets(self, event)
    }

    fn seal(&self, event: &OutEvent, _previous: Option<&str>) -> Result<Sealed, Refusal> {
        send::seal(self, event)
    }

    fn prepare(
        &self,
        event: &OutEvent,
        _previous: Option<&str>,
    ) -> Result<(Targets, Sealed), Refusal> {
        send::prepare(self, event)
    }

    fn dress(&self, sealed: &Sealed, peer: &PeerRecord, attempt: &Try) -> Result<Request, Refusal> {
        send::dress(self, sealed, peer, attempt)
    }

    fn judge(
        &self,
        answer: Result<&Answer, &TransportError>,
        peer: &PeerRecord,
        attempt: &Try,
    ) -> Judgement {
        let judged = judge::judge(answer, peer, attempt, &self.keys.current());
        self.tell_of_keys(peer, &judged.learned);
        judged
    }

    /// An envelope is sealed by itself; keys and agents stand in files and the store.
    fn divisible(&self) -> bool {
        true
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn discover<'a>(
        &'a self,
        name: &'a PeerName,
    ) -> BoxFuture<'a, Result<PeerRecord, TransportError>> {
        Box::pin(async move {
            let pin = self.pin(name);
            if !self.config.discovery && self.peers.pin(ID, name).is_none() {
                return Err(TransportError {
                    kind: TransportKind::Discovery,
                    detail: format!(
                        "{name} is not among [[peers]] and uam.discovery is off, so it is not looked up"
                    ),
                });
            }
            let found = discover::discover(&*self.net, name, &pin).await?;
            let mut facts = serde_json::Map::new();
            if let Some(dialect) = found.dialect {
                facts.insert(judge::DIALECT.into(), dialect.name().into());
            }
            let ttl = i64::try_from(self.config.discovery_ttl.as_millis()).unwrap_or(i64::MAX);
            Ok(PeerRecord {
                protocol: ID,
                name: name.clone(),
                endpoint: found.endpoint,
                alternatives: found.alternatives,
                public_key: Some(found.public_key),
                discovered_via: found.via.to_owned(),
                last_verified_ms: self.clock.now_ms(),
                ttl_ms: Some(ttl),
                facts,
            })
        })
    }

    fn routes(self: Arc<Self>) -> axum::Router {
        routes::router(self)
    }

    fn keys(&self) -> Vec<OwnKey> {
        self.keys.current().list(self.domain())
    }

    fn rotate(&self, wanted: Rotation) -> BoxFuture<'_, Result<serde_json::Value, Refusal>> {
        Box::pin(self.turn_key(wanted))
    }

    fn reload(&self) -> Result<(), Refusal> {
        self.reread_keys()
    }

    fn refresh(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let agents = self.agents.reload().await;
            agents.map_err(|e| Refusal::new("store_unavailable", e.to_string()))?;
            self.reread_keys()
        })
    }

    fn probe<'a>(
        &'a self,
        name: &'a PeerName,
        tell: Tell<'a>,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            let client = self.net.client().cloned().ok_or_else(|| {
                Refusal::new("no_probe", "this relay has no network to probe through")
            })?;
            let known = self.peers.known(ID, name);
            let probe = Probe {
                client,
                clock: self.clock.clone(),
                own: Some(Own {
                    domain: self.domain.clone(),
                    key: self.keys.current().ring.active.clone(),
                }),
                pin: self.pin(name),
                known_key: known.and_then(|record| record.public_key),
                max_skew_s: i64::try_from(self.config.timestamp_max_age.as_secs())
                    .unwrap_or(i64::MAX),
                spend: false,
            };
            probe.run(name, tell).await
        })
    }

    fn call<'a>(
        &'a self,
        method: &'a str,
        body: Bytes,
    ) -> BoxFuture<'a, Result<serde_json::Value, Refusal>> {
        Box::pin(calls::call(self, method, body))
    }
}
