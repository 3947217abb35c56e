//! Paracord: servers that send each other signed envelopes in rooms, over signed requests.
//!
//! The bridge is one server among others, with a name and a key of its own. It pushes what its backend
//! publishes, and lets others read it; it takes what is pushed, and polls what is not. Facts and
//! numbers of sections are those of the protocol sheet.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`ids`], [`hexes`], [`envelope`], [`transport`], [`content`] | the pure part: names, canonical bytes, signatures, limits |
//! | [`send`], [`judge`] | from a backend's message to a push, and what its answer means |
//! | [`routes`], [`request`] (`proof`), [`answer`], [`refused`] | what is asked of us: dispatch, the checks in their order, answers, and why not |
//! | [`event`], [`read`] | an envelope in, pushed or polled; rooms and events as others read them |
//! | [`book`], [`shelf`], [`record`] | servers we know: all of them, one of them |
//! | [`discover`], [`description`], [`refetch`] | finding a server, what it says of itself, fetching its keys again |
//! | [`peering`], [`pins`] | an operator's word; what the configuration says |
//! | [`own_keys`], [`rotation`], [`pages`] | our key and its change; what we say of ourselves to anybody |
//! | [`rooms`], [`member`], [`poll`] | rooms, who is in them; invites, joins and leaves both ways; polling |
//! | [`conduct`] | runs of bad events, and the quarantine that follows |
//! | [`signing`] | requests of ours with the four headers |
//! | [`calls`] | what a backend or an operator asks for |
//! | [`explain`], [`probe`] | why a saved request is taken or refused; examining a server |

pub mod answer;
pub mod book;
pub mod calls;
pub mod conduct;
pub mod content;
pub mod description;
pub mod discover;
pub mod envelope;
pub mod event;
pub mod explain;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(test)]
mod gate_tests;
pub mod hexes;
pub mod ids;
pub mod judge;
pub mod member;
pub mod own_keys;
pub mod pages;
pub mod peering;
mod pins;
pub mod poll;
pub mod probe;
mod proof;
pub mod read;
pub mod record;
mod refetch;
pub mod refused;
pub mod request;
pub mod rooms;
pub mod rotation;
pub mod routes;
pub mod send;
mod shelf;
mod signing;
pub mod transport;
#[cfg(test)]
mod world;

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::ParacordConfig;
use crate::identity::KeyFileError;
use crate::inbound::Door;
use crate::ops::Ops;
use crate::peers::Peers;
use crate::protocol::{
    Answer, Beats, Judgement, OutEvent, OwnKey, PeerName, PeerRecord, Protocol, ProtocolId,
    Refusal, Request, Rotation, Schedule, Scope, Sealed, Targets, Tell, TransportError, Try,
};
use crate::store::{Store, StoreError};
use crate::trust::Trust;

use super::net::Net;
use super::room::Room;
use book::{Book, BookError};
use conduct::Conduct;
use member::Desk;
use own_keys::OwnKeys;
use poll::Polls;
use refetch::Fetches;
use rooms::Rooms;

/// Its name in subjects, tables and settings.
pub const ID: ProtocolId = "paracord";
/// Where the protocol's routes are, at every server.
pub const BASE: &str = "/_paracord/federation/v1";
/// The discovery page.
pub const WELL_KNOWN: &str = "/.well-known/paracord/server";
/// Largest request body, bytes (sheet, 5).
pub const MAX_BODY: usize = 2 * 1024 * 1024;
/// Largest `content` of an event, bytes of compact JSON (sheet, 5).
pub const MAX_CONTENT: usize = 1024 * 1024;
/// Bytes of large request bodies held at one time.
const BODIES: usize = 64 * 1024 * 1024;
/// How we name ourselves to servers.
pub const USER_AGENT: &str = concat!("Drawbridge/", env!("CARGO_PKG_VERSION"), " (federation)");

/// What we show other servers; None: Paracord does not run.
pub fn face(config: &ParacordConfig) -> Option<super::Face> {
    let own = config.enabled.then(|| Own::of(config).ok()).flatten()?;
    Some(super::Face {
        protocol: ID,
        page: format!("{}{BASE}/keys", own.url),
        srv: None,
        key: config.key_path.clone(),
        shows: super::Shows::HexKey,
        name: own.name.to_string(),
    })
}

/// What a bridge's Paracord side is made of.
pub struct ParacordParts {
    pub config: ParacordConfig,
    pub store: Store,
    pub peers: Peers,
    pub trust: Trust,
    pub door: Door,
    pub net: Arc<dyn Net>,
    /// For questions to backends; `None` where there is no bus (tests of routes).
    pub bus: Option<Bus>,
    pub ops: Ops,
    pub clock: Clock,
}

/// Why it cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ParacordError {
    /// A setting is wrong or missing; the sentence names it.
    #[error("{0}")]
    Setting(String),
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is kept of the servers cannot be read.
    #[error(transparent)]
    Book(#[from] BookError),
}

/// Who we are on the wire.
#[derive(Clone, Debug)]
pub struct Own {
    /// Our server name.
    pub name: PeerName,
    /// What stands behind the colon in our users', rooms' and events' ids.
    pub domain: String,
    /// Our public base URL, without a slash at its end.
    pub url: String,
}

impl Own {
    /// By the configuration.
    pub fn of(config: &ParacordConfig) -> Result<Self, ParacordError> {
        let setting = |why: &str| ParacordError::Setting(format!("paracord.server_name {why}"));
        let name = config.server_name.as_deref();
        let name = name.ok_or_else(|| setting("is not set: a server needs a name"))?;
        let name = PeerName::parse(name).map_err(|_| setting("is no lower-case host name"))?;
        Ok(Self {
            domain: config.domain.clone().unwrap_or_else(|| name.to_string()),
            url: config
                .url
                .clone()
                .unwrap_or_else(|| format!("https://{name}")),
            name,
        })
    }

    /// Whether this is our server name or domain; case is ignored, as in room ids (sheet, 1).
    pub fn is(&self, server: &str) -> bool {
        server.eq_ignore_ascii_case(self.name.as_str()) || server.eq_ignore_ascii_case(&self.domain)
    }
}

/// The Paracord side of the bridge.
pub struct Paracord {
    pub(super) config: ParacordConfig,
    pub(super) own: Own,
    pub(super) keys: OwnKeys,
    pub(super) book: Book,
    pub(super) rooms: Rooms,
    pub(super) polls: Polls,
    pub(super) desk: Desk,
    pub(super) conduct: Conduct,
    /// Of other servers' keys.
    pub(super) fetches: Fetches,
    /// For large bodies of requests.
    pub(super) bodies: Room,
    pub(super) store: Store,
    pub(super) peers: Peers,
    pub(super) trust: Trust,
    pub(super) door: Door,
    pub(super) net: Arc<dyn Net>,
    pub(super) bus: Option<Bus>,
    pub(super) ops: Ops,
    pub(super) clock: Clock,
    schedule: Schedule,
    pub(super) me: Weak<Self>,
}

impl Paracord {
    /// Over these parts: reads or makes our key, loads servers and rooms.
    pub async fn new(parts: ParacordParts) -> Result<Arc<Self>, ParacordError> {
        let config = parts.config;
        let own = Own::of(&config)?;
        let keys = OwnKeys::open(&config, &parts.store, parts.clock.now_ms()).await?;
        let (store, ops, clock) = (&parts.store, &parts.ops, &parts.clock);
        let book = Book::open(store.clone(), ops.clone(), own.clone()).await?;
        let rooms = Rooms::open(
            store.clone(),
            clock.clone(),
            own.clone(),
            ops.clone(),
            &config,
        )
        .await?;
        let polls = Polls::open(store.clone()).await?;
        let conduct = Conduct::new(&config);
        let schedule = Schedule {
            delays: config.retry_delays.clone(),
        };
        let p = Arc::new_cyclic(|me| Self {
            config,
            own,
            keys,
            book,
            rooms,
            polls,
            desk: Desk::default(),
            conduct,
            fetches: Fetches::new(),
            bodies: Room::new(BODIES, MAX_BODY),
            store: parts.store,
            peers: parts.peers,
            trust: parts.trust,
            door: parts.door,
            net: parts.net,
            bus: parts.bus,
            ops: parts.ops,
            clock: parts.clock,
            schedule,
            me: me.clone(),
        });
        pins::follow(&p).await;
        rotation::spawn_retirement(&p);
        Ok(p)
    }
}

impl Protocol for Paracord {
    fn id(&self) -> ProtocolId {
        ID
    }

    fn enabled(&self) -> bool {
        self.config.enabled
    }

    fn max_body(&self) -> usize {
        MAX_BODY
    }

    fn targets(&self, event: &OutEvent) -> Result<Targets, Refusal> {
        Ok(self.prepare(event, None)?.0)
    }

    fn scope(&self, event: &OutEvent) -> Option<Scope> {
        send::scope(self, event)
    }

    fn seal(&self, event: &OutEvent, previous: Option<&str>) -> Result<Sealed, Refusal> {
        Ok(self.prepare(event, previous)?.1)
    }

    fn prepare(
        &self,
        event: &OutEvent,
        previous: Option<&str>,
    ) -> Result<(Targets, Sealed), Refusal> {
        send::prepare(self, event, previous)
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
        let judged = judge::judge(answer, peer, attempt);
        rotation::after_switch(self, judged, &peer.name, attempt)
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn discover<'a>(
        &'a self,
        name: &'a PeerName,
    ) -> BoxFuture<'a, Result<PeerRecord, TransportError>> {
        Box::pin(discover::record(self, name))
    }

    fn routes(self: Arc<Self>) -> axum::Router {
        routes::router(self)
    }

    fn pace(&self, peer: &PeerName) -> Option<u32> {
        let known = self.peers.known(ID, peer);
        let said = judge::per_minute(known.as_deref());
        let ours = self.config.push_per_minute;
        (ours > 0).then(|| said.unwrap_or(ours))
    }

    fn keeps_ids(&self) -> bool {
        true
    }

    fn room_events_kept(&self) -> Option<std::time::Duration> {
        self.config.keep_bodies
    }

    fn beats(&self) -> Option<Beats> {
        Some(Beats {
            every: self.config.poll_interval,
            at_once: self.config.poll_at_once,
        })
    }

    fn beating(&self) -> Vec<PeerName> {
        poll::beating(self)
    }

    fn beat<'a>(&'a self, peer: &'a PeerName) -> BoxFuture<'a, ()> {
        Box::pin(poll::beat(self, peer))
    }

    fn keys(&self) -> Vec<OwnKey> {
        self.keys.list(&self.own)
    }

    fn rotate(&self, wanted: Rotation) -> BoxFuture<'_, Result<serde_json::Value, Refusal>> {
        Box::pin(rotation::rotate(self, wanted))
    }

    fn reload(&self) -> Result<(), Refusal> {
        rotation::reload(self)
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.book.flush().await;
            self.polls.save().await;
        })
    }

    fn call<'a>(
        &'a self,
        method: &'a str,
        body: Bytes,
    ) -> BoxFuture<'a, Result<serde_json::Value, Refusal>> {
        Box::pin(calls::call(self, method, body))
    }

    fn probe<'a>(
        &'a self,
        name: &'a PeerName,
        tell: Tell<'a>,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(probe::of(self, name, tell))
    }
}

#[cfg(test)]
mod peering_tests;
