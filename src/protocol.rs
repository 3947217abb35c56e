//! The seam: what the core asks of a protocol, and the plain types both sides share.
//!
//! A protocol is one value that implements [`Protocol`]. The core never names one; it holds
//! `Arc<dyn Protocol>` values in a map. Decisions (`targets`, `seal`, `dress`, `judge`, `schedule`)
//! are synchronous functions over plain values with the time passed in; only `discover`, `call` and
//! the routes do I/O.

mod inbound;
mod keys;
mod outbound;
mod peer;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use std::sync::Arc;

pub use inbound::{ReplayId, Verified, VerifiedParts};
pub use keys::{KeyState, OwnKey, Rotation};
pub use outbound::{
    Answer, Beats, Claimed, Fault, Judgement, Learned, MailboxBounds, OutEvent, Record, Request,
    RoomEvent, Schedule, Scope, Sealed, Targets, TransportError, TransportKind, Try, Verdict, Via,
};
pub use peer::{BadPeerName, PeerName, PeerRecord};

/// The name a protocol has in subjects, tables and settings: `uam`, `paracord`, …
pub type ProtocolId = &'static str;

/// Why an event cannot be sent at all, or a request is not answered: a code that machines match
/// (`snake_case`) and a sentence a person can act on. Neither holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Refusal {
    /// Machine-readable reason, for example `bad_envelope`.
    pub code: &'static str,
    /// The sentence.
    pub detail: String,
}

impl Refusal {
    /// A refusal with this code and sentence.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }
}

/// One step of a diagnosis (`verify`, `probe`).
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What was looked at.
    pub name: String,
    /// Whether it held; `None`: for information.
    pub ok: Option<bool>,
    /// What was seen.
    pub detail: String,
}

/// Takes the steps of a diagnosis as they are done.
pub type Tell<'a> = &'a mut (dyn FnMut(Step) + Send);

/// One federation protocol.
///
/// Rooms kept for protocols to come, each with a default here so that a protocol states only what
/// it has: `scope` (sealing in order), `via` and `mailbox` (peers that fetch), `beats` (polling and
/// heartbeats).
pub trait Protocol: Send + Sync + 'static {
    /// Its name in subjects, tables and settings.
    fn id(&self) -> ProtocolId;

    /// Whether it is switched on. Off: its messages stay in the stream.
    fn enabled(&self) -> bool;

    /// Largest body a backend may publish, bytes.
    fn max_body(&self) -> usize;

    /// Who gets this event.
    fn targets(&self, event: &OutEvent) -> Result<Targets, Refusal>;

    /// In which scope it must be sealed one at a time.
    fn scope(&self, _event: &OutEvent) -> Option<Scope> {
        None
    }

    /// Makes it final: id, lasting bytes, order key. No clock, no dice. `previous` is the scope's
    /// state, `None` where [`Protocol::scope`] is.
    fn seal(&self, event: &OutEvent, previous: Option<&str>) -> Result<Sealed, Refusal>;

    /// Both at once, for a protocol whose events are worth reading only once.
    fn prepare(
        &self,
        event: &OutEvent,
        previous: Option<&str>,
    ) -> Result<(Targets, Sealed), Refusal> {
        Ok((self.targets(event)?, self.seal(event, previous)?))
    }

    /// Pushed or fetched.
    fn via(&self, _peer: &PeerName) -> Via {
        Via::Post
    }

    /// Signs one attempt.
    fn dress(&self, sealed: &Sealed, peer: &PeerRecord, attempt: &Try) -> Result<Request, Refusal>;

    /// What an answer, or its absence, means.
    fn judge(
        &self,
        answer: Result<&Answer, &TransportError>,
        peer: &PeerRecord,
        attempt: &Try,
    ) -> Judgement;

    /// Delays and when to give up.
    fn schedule(&self) -> &Schedule;

    /// Finds a peer's endpoint and key. The core caches, limits and shares the answer.
    fn discover<'a>(
        &'a self,
        name: &'a PeerName,
    ) -> BoxFuture<'a, Result<PeerRecord, TransportError>>;

    /// Its routes on the public listener. Each ends in the door, an answer or a refusal.
    fn routes(self: Arc<Self>) -> axum::Router;

    /// A local backend's request (`fed.do.<protocol>.<method>`).
    fn call<'a>(
        &'a self,
        method: &'a str,
        body: Bytes,
    ) -> BoxFuture<'a, Result<serde_json::Value, Refusal>>;

    /// Examines a remote server as a delivery would meet it and tells each step as it is done. Nothing
    /// is delivered. `Err`: the fault, in one sentence.
    fn probe<'a>(
        &'a self,
        _name: &'a PeerName,
        _tell: Tell<'a>,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        let refusal = Refusal::new("no_probe", format!("{} has no probe", self.id()));
        Box::pin(std::future::ready(Err(refusal)))
    }

    /// Our own keys: the active one first, then the next, then old ones.
    fn keys(&self) -> Vec<OwnKey> {
        Vec::new()
    }

    /// Changes our key, or says what that would mean; the answer is the protocol's own JSON, with
    /// `keys` and, per peer, who notices how and when.
    fn rotate(&self, _wanted: Rotation) -> BoxFuture<'_, Result<serde_json::Value, Refusal>> {
        let refusal = Refusal::new("no_keys", format!("{} has no key to rotate", self.id()));
        Box::pin(std::future::ready(Err(refusal)))
    }

    /// Reads its files anew (SIGHUP): what cannot be read leaves everything as it was.
    fn reload(&self) -> Result<(), Refusal> {
        Ok(())
    }

    /// Writes down what it keeps in memory only; for an orderly stop.
    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Whether several instances may each serve some of its peers: sealing needs nothing that another
    /// seal left behind, and nothing about its peers is kept in memory that the store does not know.
    /// Otherwise one instance serves all of it at a time.
    fn divisible(&self) -> bool {
        false
    }

    /// Reads anew what it keeps in memory of the store: another instance may have changed it. Comes
    /// before this instance serves a protocol that another one served.
    fn refresh(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Events a minute that a peer takes at most; `None`: any number.
    fn pace(&self, _peer: &PeerName) -> Option<u32> {
        None
    }

    /// Whether the ids of events it accepted are kept for ever.
    fn keeps_ids(&self) -> bool {
        false
    }

    /// How long [`RoomEvent`]s keep their envelopes; `None`: for ever.
    fn room_events_kept(&self) -> Option<std::time::Duration> {
        None
    }

    /// How long rows of [`Via::Held`] peers are kept; `None`: the protocol knows no mailboxes.
    fn mailbox(&self) -> Option<MailboxBounds> {
        None
    }

    /// How often [`Protocol::beat`] wants to run for each of [`Protocol::beating`]; `None`: never.
    fn beats(&self) -> Option<Beats> {
        None
    }

    /// Whom to beat for at this moment.
    fn beating(&self) -> Vec<PeerName> {
        Vec::new()
    }

    /// Heartbeat, polling, gossip with one peer. One at a time for each peer.
    fn beat<'a>(&'a self, _peer: &'a PeerName) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}
