//! From an event of a backend to a judged attempt: what the core hands a protocol on the way out,
//! and what it gets back.

use std::time::Duration;

use ::http::{HeaderMap, Method};
use bytes::Bytes;

use super::{PeerName, Refusal};
use crate::clock::UnixMs;

/// One message of `FED_OUT`, parsed: what a protocol may base targets and seal on.
#[derive(Clone, Debug)]
pub struct OutEvent {
    /// The idempotency key: the backend's `Nats-Msg-Id`, or the hash of design.md promise 3.
    pub msg_id: String,
    /// Sequence in `FED_OUT`.
    pub out_seq: u64,
    /// When the broker stored it. The only time a seal may use.
    pub broker_time_ms: UnixMs,
    /// The subject's peer token, decoded (`_to`, `_all`, `_room` or a host name as text).
    pub peer: String,
    /// The subject's type, tokens joined by `.`.
    pub event_type: String,
    /// The backend's `Fed-Order`, if any.
    pub order: Option<String>,
    /// The backend's `Fed-Expires`.
    pub expires_ms: Option<UnixMs>,
    /// The backend's `Fed-Hops`, if any.
    pub hops: Option<u32>,
    /// The backend's `Fed-Peer`, if any: whom an event it passes on came from.
    pub came_from: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The body as published.
    pub payload: Bytes,
}

/// Whom an event goes to. Frozen by the core: one row a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// These peers.
    Peers(Vec<PeerName>),
    /// Every accepted peer of this protocol at this moment.
    AllAccepted,
}

/// What must not run concurrently with itself: sealing within one scope is done and committed one
/// at a time, the previous state given to each. `None` from [`Protocol::scope`](super::Protocol::scope): seal is pure.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Unique within the protocol (a room, a mailbox).
    pub name: String,
    /// The event that the message itself names, if it does: where it is kept already, this message is
    /// another one and is not sent.
    pub claims: Option<Claimed>,
}

/// Names an event of a room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claimed {
    pub event_id: String,
    /// The server that makes it: we.
    pub origin: String,
}

/// An event of a room, kept so that other servers can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomEvent {
    /// The room, in one fixed spelling.
    pub room: String,
    /// Unique within protocol and origin.
    pub event_id: String,
    /// The server that made it.
    pub origin: String,
    /// Where it stands in its room; readers get events in this order, then by id.
    pub position: i64,
    /// The event as other servers read it.
    pub envelope: Bytes,
}

/// A protocol's own row, written in the same commit as what it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What sort of row, `snake_case`, fixed by the protocol (`agent`, `room`, …).
    pub kind: &'static str,
    /// Unique within protocol and kind.
    pub key: String,
    /// The value; `None` deletes.
    pub value: Option<String>,
}

/// An event made final before its first attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The id every attempt carries.
    pub event_id: String,
    /// Bytes that last over all attempts.
    pub body: Bytes,
    /// First arrivals of one key at one peer keep the order published.
    pub order_key: String,
    /// Not attempted after this time.
    pub expires_ms: Option<UnixMs>,
    /// The protocol's own rows for the same commit.
    pub records: Vec<Record>,
    /// Kept for readers by the same commit.
    pub room_event: Option<RoomEvent>,
    /// The new state of the event's scope, for the next seal in it.
    pub state: Option<String>,
}

/// How rows for a peer leave us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Lanes attempt them.
    Post,
    /// Rows wait until the peer fetches them, or until that time, when the question is asked again.
    Held { until_ms: UnixMs },
}

/// Which attempt this is.
#[derive(Clone, Debug)]
pub struct Try {
    /// 1 for the first attempt of the row.
    pub number: u32,
    /// The attempt's wall-clock time.
    pub now_ms: UnixMs,
    /// How often [`Verdict::Again`] was answered within this attempt (at most 2).
    pub again: u32,
    /// W3C trace context of this attempt's own span: sent as it is.
    pub traceparent: Option<String>,
}

/// A request ready to go, signed for one attempt.
#[derive(Clone, Debug)]
pub struct Request {
    /// HTTP method.
    pub method: Method,
    /// Absolute URL.
    pub url: String,
    /// Headers besides those the client sets itself.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// A remote server's answer, its body cut at the client's limit.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, at most the limit asked for.
    pub body: Bytes,
    /// From sending to the end of the body.
    pub elapsed: Duration,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// The name did not resolve.
    Dns,
    /// No address of it is allowed (SSRF guard).
    Forbidden,
    /// Connection refused, reset while connecting, unreachable.
    Connect,
    /// TLS failed.
    Tls,
    /// Connect or total time ran out.
    Timeout,
    /// The connection broke after the request went out; the peer may have it.
    Broken,
    /// The answer's body was larger than allowed.
    TooLarge,
    /// The URL or request could not be built.
    Invalid,
    /// Discovery found no endpoint.
    Discovery,
}

impl TransportKind {
    /// The code in reasons, logs and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Forbidden => "address_forbidden",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Broken => "connection_broken",
            Self::TooLarge => "answer_too_large",
            Self::Invalid => "invalid_request",
            Self::Discovery => "discovery_failed",
        }
    }
}

/// No answer: the kind to match, the sentence to log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct TransportError {
    /// What to match on.
    pub kind: TransportKind,
    /// What a person reads.
    pub detail: String,
}

/// Whose fault a failed attempt is taken to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer as a whole (unreachable, 5xx, not speaking the protocol): counts for its health.
    Peer,
    /// This message only.
    Message,
}

/// What an answer means for the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The peer has it.
    Delivered,
    /// The peer says it already had it.
    Duplicate,
    /// Try by the schedule; `after`: not before this delay.
    Retry {
        fault: Fault,
        reason: Refusal,
        after: Option<Duration>,
    },
    /// The peer asks for patience: uses up no attempt. `after` None: the core's default pause.
    Throttled {
        reason: Refusal,
        after: Option<Duration>,
    },
    /// Never: the row is dead with this reason.
    Refused(Refusal),
    /// At once in another form (what was learned says which). At most twice an attempt.
    Again,
    /// Look endpoint and key up anew, then as `Retry` if that changed nothing.
    Rediscover { fault: Fault, reason: Refusal },
    /// Wait for an operator.
    Hold(Refusal),
    /// This peer fetches: the row waits for that as it is. [`Protocol::via`](super::Protocol::via)
    /// answers [`Via::Held`] from now on.
    Mailbox(Refusal),
}

/// A fact about the peer to remember with its record.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// Name of the fact.
    pub key: &'static str,
    /// Its value; `Null` forgets it.
    pub value: serde_json::Value,
}

/// A protocol's judgement of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// What it means for the row.
    pub verdict: Verdict,
    /// What to remember about the peer.
    pub learned: Vec<Learned>,
}

/// Delays between attempts, and thereby when to give up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Delay after the 1st, 2nd, … failed attempt; after the last one the row is dead.
    pub delays: Vec<Duration>,
}

/// Bounds of what waits for a peer that fetches; what is beyond them is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxBounds {
    /// Messages of one peer at most: later ones are dead.
    pub messages: u64,
    /// Messages wait no longer than this.
    pub age: Duration,
}

/// The rhythm of a protocol's beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beats {
    /// From one beat of a peer to its next, about.
    pub every: Duration,
    /// Peers at once at most.
    pub at_once: usize,
}
