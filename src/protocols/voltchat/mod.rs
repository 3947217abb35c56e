//! VoltChat: mainline servers that push, fetch and ping over HTTPS, each pair of them sharing one
//! secret.
//!
//! The bridge is one peer among others, with a host name of its own. It pushes what its backend
//! publishes, or keeps it for peers that fetch; it takes pushes, and fetches where it can. Facts and
//! numbers of sections are those of the protocol sheet.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`send`], [`judge`] | from a backend's message to a push, and what its answer means |
//! | [`push`], [`fetch`], [`queue`] | a peer's message in; mailboxes, theirs and ours; an operator's message |
//! | [`message`] | relay messages, read without touching the payload |
//! | [`routes`], [`request`] (`body`), [`answer`] | what is asked of us: dispatch, reading and credentials, answers |
//! | [`state`], [`record`], [`book`] | peers: the state machine (pure), one record, all of them (`shelf`: in memory) |
//! | [`handshake`], [`heartbeat`] | peering with a host, and staying in touch, both ways |
//! | [`acts`], [`admin`], [`calls`], [`operator`] | what operators and backends do with peers |
//! | [`token`], [`host`], [`allow`], [`ids`], [`text`] | the pure part: tokens, names, limits |
//! | [`invites`], [`invite_routes`] | what we share and what peers share |
//! | [`servers`], [`member`] | what a local backend knows of its servers, and hears of their members |
//! | [`pages`] | what we say of ourselves to anybody |
//! | [`explain`], [`probe`] | why a saved request is taken or refused; examining a server |

pub mod acts;
pub mod admin;
pub mod allow;
pub mod answer;
mod body;
pub mod book;
pub mod calls;
pub mod explain;
pub mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod handshake;
pub mod heartbeat;
pub mod host;
pub mod ids;
pub mod invite_routes;
pub mod invites;
pub mod judge;
pub mod member;
pub mod message;
pub mod operator;
pub mod pages;
pub mod probe;
pub mod push;
pub mod queue;
pub mod record;
pub mod request;
pub mod routes;
pub mod send;
pub mod servers;
mod shelf;
pub mod state;
pub mod text;
pub mod token;

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::VoltChatConfig;
use crate::identity::KeyFileError;
use crate::identity::vault::Vault;
use crate::inbound::Door;
use crate::ops::Ops;
use crate::outbound::Mailbox;
use crate::peers::Peers;
use crate::protocol::{
    Answer, Beats, Judgement, MailboxBounds, OutEvent, PeerName, PeerRecord, Protocol, ProtocolId,
    Refusal, Request, Schedule, Sealed, Targets, Tell, TransportError, TransportKind, Try, Via,
};
use crate::store::{Store, StoreError};
use crate::trust::Trust;

pub use super::net::Net;
use super::room::Room;

use allow::AllowList;
use book::{Book, BookError};
use invites::Invites;
use record::Peer;

/// Its name in subjects, tables and settings.
pub const ID: ProtocolId = "voltchat";
/// Where the protocol's routes are, at every server.
pub const BASE: &str = "/api/federation";
/// Largest request body, either way, bytes (sheet, 6.1).
pub const MAX_BODY: usize = 10 * 1024 * 1024;
/// Bytes of large request bodies held at one time.
const BODIES: usize = 256 * 1024 * 1024;
/// What id, origin and the like add to a payload in a push, bytes.
const WRAPPING: usize = 4 * 1024;
/// Bytes of an answer that says little.
const SMALL_ANSWER: usize = 64 * 1024;
/// How we name ourselves to peers. A mainline distrusts short names and those of tools (sheet, 6.1).
const USER_AGENT: &str = concat!("Drawbridge/", env!("CARGO_PKG_VERSION"), " (federation)");

/// What we show other servers; None: VoltChat does not run.
pub fn face(config: &VoltChatConfig) -> Option<super::Face> {
    let own = config.enabled.then(|| Own::of(config).ok()).flatten()?;
    Some(super::Face {
        protocol: ID,
        page: format!("{}/.well-known/voltchat", own.url),
        srv: None,
        key: config.key_path.clone(),
        shows: super::Shows::Text(own.host.to_string()),
        name: own.host.to_string(),
    })
}

/// What a bridge's VoltChat side is made of.
pub struct VoltChatParts {
    pub config: VoltChatConfig,
    pub store: Store,
    pub peers: Peers,
    pub trust: Trust,
    pub door: Door,
    pub net: Arc<dyn Net>,
    /// For questions to backends and for messages an operator queues; `None` where there is no bus
    /// (tests of routes).
    pub bus: Option<Bus>,
    pub ops: Ops,
    pub clock: Clock,
}

/// Why it cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum VoltChatError {
    /// A setting is wrong or missing; the sentence names it.
    #[error("{0}")]
    Setting(String),
    /// The file with the sealing key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is kept of the peers cannot be read.
    #[error(transparent)]
    Book(#[from] BookError),
}

/// Who we are on the wire.
#[derive(Clone, Debug)]
pub struct Own {
    /// Host of our URL, with its port unless that is the default one.
    pub host: PeerName,
    /// Our origin, without a slash at its end.
    pub url: String,
    /// Our display name.
    pub name: String,
}

impl Own {
    /// By the configuration.
    pub fn of(config: &VoltChatConfig) -> Result<Self, VoltChatError> {
        let setting = |why: &str| VoltChatError::Setting(format!("voltchat.url: {why}"));
        let url = config.url.as_deref();
        let url = url.ok_or_else(|| setting("is not set: other servers need our address"))?;
        let host = host::strict(url).and_then(|host| PeerName::parse(&host).ok());
        let host = host.ok_or_else(|| setting("has no host that can be a peer's name"))?;
        Ok(Self {
            host,
            url: url.trim_end_matches('/').to_owned(),
            name: config.name.clone(),
        })
    }
}

/// The VoltChat side of the bridge.
pub struct VoltChat {
    pub(super) config: VoltChatConfig,
    pub(super) own: Own,
    pub(super) allow: AllowList,
    pub(super) book: Book,
    pub(super) store: Store,
    pub(super) peers: Peers,
    pub(super) trust: Trust,
    pub(super) door: Door,
    pub(super) net: Arc<dyn Net>,
    pub(super) bus: Option<Bus>,
    pub(super) mailbox: Mailbox,
    pub(super) invites: Invites,
    pub(super) room: Room,
    pub(super) ops: Ops,
    pub(super) clock: Clock,
    schedule: Schedule,
}

impl VoltChat {
    /// Over these parts: reads or makes the sealing key, loads peers and invites.
    pub async fn new(parts: VoltChatParts) -> Result<Arc<Self>, VoltChatError> {
        let config = parts.config;
        let own = Own::of(&config)?;
        let allow = AllowList::new(&config.allowed_servers);
        let schedule = Schedule {
            delays: config.retry_delays.clone(),
        };
        let book = Book::open(
            parts.store.clone(),
            Vault::open_file(&config.key_path)?,
            parts.ops.clone(),
            parts.clock.clone(),
            config.max_pending,
        )
        .await?;
        let mailbox = Mailbox::new(parts.store.clone(), parts.ops.clone(), parts.clock.clone());
        let (store, ops, clock) = (parts.store.clone(), parts.ops.clone(), parts.clock.clone());
        let invites = Invites::open(store, ops, clock, own.host.as_str(), &own.name).await?;
        Ok(Arc::new(Self {
            config,
            own,
            allow,
            book,
            store: parts.store,
            peers: parts.peers,
            trust: parts.trust,
            door: parts.door,
            net: parts.net,
            bus: parts.bus,
            mailbox,
            invites,
            room: Room::new(BODIES, MAX_BODY),
            ops: parts.ops,
            clock: parts.clock,
            schedule,
        }))
    }

    /// One request to a server at `base` (its URL without a slash at the end): JSON where there is a
    /// body, and our name. `headers`: what proves us, where it goes there.
    pub(super) async fn ask(
        &self,
        method: Method,
        base: &str,
        path: &str,
        headers: HeaderMap,
        body: Option<&serde_json::Value>,
        limits: Limits,
    ) -> Result<Answer, TransportError> {
        let request = Request {
            method,
            url: format!("{base}{BASE}{path}"),
            headers: dressed(headers),
            body: body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string())),
        };
        self.net.send(request, limits.time, limits.answer).await
    }

    /// A small POST to a peer at its stored url.
    pub(super) async fn tell(
        &self,
        peer: &Peer,
        path: &str,
        body: &serde_json::Value,
        time: Duration,
    ) -> Result<Answer, TransportError> {
        let limits = Limits {
            time,
            answer: SMALL_ANSWER,
        };
        let headers = HeaderMap::new();
        self.ask(Method::POST, &peer.url, path, headers, Some(body), limits)
            .await
    }

    /// Whether a peer's url may be `http://`.
    pub(super) fn takes_plain(&self, host: &PeerName) -> bool {
        self.net.speaks_plain(host)
    }

    /// A peer is there and exchanges with us: what waits for it goes out.
    pub(super) fn opened(&self, host: &PeerName) {
        self.peers.heard_from(ID, host);
    }
}

impl Protocol for VoltChat {
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
        Ok(self.prepare(event, None)?.0)
    }

    fn seal(&self, event: &OutEvent, _previous: Option<&str>) -> Result<Sealed, Refusal> {
        Ok(self.prepare(event, None)?.1)
    }

    fn prepare(
        &self,
        event: &OutEvent,
        _previous: Option<&str>,
    ) -> Result<(Targets, Sealed), Refusal> {
        send::prepare(self, event)
    }

    fn via(&self, peer: &PeerName) -> Via {
        // What waits for somebody who is no peer any more is attempted, and refused there.
        if !self.book.get(peer).is_some_and(|p| p.status.is_accepted()) {
            return Via::Post;
        }
        judge::via(self.peers.known(ID, peer).as_deref(), self.clock.now_ms())
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
        judge::judge(answer, peer, attempt)
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn discover<'a>(
        &'a self,
        name: &'a PeerName,
    ) -> BoxFuture<'a, Result<PeerRecord, TransportError>> {
        let found = send::record(self, name).map_err(|refusal| TransportError {
            kind: TransportKind::Discovery,
            detail: refusal.detail,
        });
        Box::pin(std::future::ready(found))
    }

    fn routes(self: Arc<Self>) -> axum::Router {
        routes::router(self)
    }

    fn mailbox(&self) -> Option<MailboxBounds> {
        Some(MailboxBounds {
            messages: self.config.mailbox_max_messages,
            age: self.config.mailbox_max_age,
        })
    }

    fn beats(&self) -> Option<Beats> {
        Some(Beats {
            every: self.config.sync_interval,
            at_once: self.config.sync_at_once,
        })
    }

    fn beating(&self) -> Vec<PeerName> {
        self.book.beating()
    }

    fn beat<'a>(&'a self, peer: &'a PeerName) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(peer) = heartbeat::beat(self, peer).await {
                fetch::pull(self, &peer).await;
            }
        })
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.book.flush())
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
        Box::pin(async move {
            let client = self.net.client().cloned().ok_or_else(|| {
                Refusal::new("no_probe", "this bridge has no network to probe through")
            })?;
            let probe = probe::Probe {
                client,
                clock: self.clock.clone(),
                own: Some(self.own.clone()),
                allow: self.allow.clone(),
                peer: self.book.get(name).map(|peer| (*peer).clone()),
            };
            probe.run(name, tell).await
        })
    }
}

/// What a request may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub time: Duration,
    /// Bytes of the answer.
    pub answer: usize,
}

/// The headers every request of ours has.
fn dressed(mut headers: HeaderMap) -> HeaderMap {
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json.clone());
    headers.insert(header::ACCEPT, json);
    headers
}

#[cfg(test)]
mod peering_tests;
