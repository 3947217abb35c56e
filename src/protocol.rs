//! The seam: what the core asks of a protocol, and the plain types both sides share.
//!
//! A protocol is one value that implements [`Protocol`]. The core never names one; it holds
//! `Arc<dyn Protocol>` values in a map. Decisions (`targets`, `seal`, `dress`, `judge`, `schedule`)
//! are synchronous functions over plain values with the time passed in; only `discover`, `call` and
//! the routes do I/O.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;
use crate::identity::Proof;

/// The name a protocol has in subjects, tables and settings: `uam`, `paracord`, …
pub type ProtocolId = &'static str;

/// A remote server's name: a lower-case host name or IP literal, optionally with `:port`.
/// At most 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(Arc<str>);

/// Why a text is no peer name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a server name: expected a lower-case host name, optionally with :port")]
pub struct BadPeerName(pub String);

impl PeerName {
    /// Reads a name as it stands; upper case is refused, not converted.
    pub fn parse(text: &str) -> Result<Self, BadPeerName> {
        let bad = || BadPeerName(text.chars().take(300).collect());
        if text.is_empty() || text.len() > 255 {
            return Err(bad());
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((h, p)) if !h.contains(':') || h.ends_with(']') => (h, Some(p)),
            _ => (text, None),
        };
        if let Some(p) = port
            && (p.parse::<u16>().is_err() || !p.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(bad());
        }
        let literal6 = host.starts_with('[')
            && host.ends_with(']')
            && host
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || matches!(b, b'[' | b']' | b':' | b'.'));
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let name = host
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
            && edge(host.bytes().next())
            && edge(host.bytes().last());
        if literal6 || name {
            Ok(Self(text.into()))
        } else {
            Err(bad())
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl TryFrom<String> for PeerName {
    type Error = BadPeerName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> Self {
        name.0.to_string()
    }
}

// ---------------------------------------------------------------------------------- outbound

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

/// What must not run concurrently with itself: sealing within one scope is done and committed one
/// at a time, the previous state given to each. `None` from [`Protocol::scope`]: seal is pure.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope(pub String);

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
}

/// How rows for a peer leave us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Lanes attempt them.
    Post,
    /// Rows wait until the peer fetches them.
    Held,
}

/// What is known of a remote server, in the store's `known_relays`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Which protocol knows it by this name.
    pub protocol: ProtocolId,
    /// Its name.
    pub name: PeerName,
    /// Where deliveries go, an absolute URL.
    pub endpoint: String,
    /// Endpoints to try when the first does not answer, best first (further SRV targets).
    pub alternatives: Vec<String>,
    /// Its Ed25519 key.
    pub public_key: Option<[u8; 32]>,
    /// `config`, `dns-srv`, `well-known`, …
    pub discovered_via: String,
    /// When the endpoint and key were last confirmed.
    pub last_verified_ms: UnixMs,
    /// Fresh for sending until `last_verified_ms + ttl_ms`; `None`: never stale (pinned).
    pub ttl_ms: Option<i64>,
    /// Facts a protocol learned about it, as JSON (`{"dialect":"nonce"}`).
    pub facts: serde_json::Map<String, serde_json::Value>,
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

// ----------------------------------------------------------------------------------- inbound

/// An event whose signature held. Only code that holds a [`Proof`] can make one.
#[derive(Debug)]
pub struct Verified {
    /// Protocol it came by.
    pub protocol: ProtocolId,
    /// The server that proved itself.
    pub peer: PeerName,
    /// Key of deduplication, unique within protocol (a protocol whose ids are per peer puts the
    /// peer in front).
    pub dedupe_key: String,
    /// The event's own id.
    pub event_id: String,
    /// Type, `.` between tokens.
    pub event_type: String,
    /// The event in the protocol's own JSON, as received.
    pub payload: Bytes,
    /// Who made it, for the `Fed-Origin` header.
    pub origin: String,
    /// Which key proved it (fingerprint or key id), for `Fed-Key-Id`.
    pub key_id: String,
    /// Hops so far.
    pub hops: u32,
    /// When it was received.
    pub received_at_ms: UnixMs,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// Replay ids written in the same commit; one already there refuses the whole.
    pub replay: Vec<ReplayId>,
    _proof: Proof,
}

/// A replay id: unique within protocol and scope until it expires.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplayId {
    /// Whose id (usually the peer).
    pub scope: String,
    /// The id, by its decoded bytes.
    pub id: Vec<u8>,
    /// Kept until then.
    pub expires_ms: UnixMs,
}

/// The members of [`Verified`] that a protocol fills in.
#[derive(Debug)]
pub struct VerifiedParts {
    pub protocol: ProtocolId,
    pub peer: PeerName,
    pub dedupe_key: String,
    pub event_id: String,
    pub event_type: String,
    pub payload: Bytes,
    pub origin: String,
    pub key_id: String,
    pub hops: u32,
    pub received_at_ms: UnixMs,
    pub traceparent: Option<String>,
    pub replay: Vec<ReplayId>,
}

impl Verified {
    /// An event with the proof that its signature held.
    pub fn new(proof: Proof, p: VerifiedParts) -> Self {
        Self {
            protocol: p.protocol,
            peer: p.peer,
            dedupe_key: p.dedupe_key,
            event_id: p.event_id,
            event_type: p.event_type,
            payload: p.payload,
            origin: p.origin,
            key_id: p.key_id,
            hops: p.hops,
            received_at_ms: p.received_at_ms,
            traceparent: p.traceparent,
            replay: p.replay,
            _proof: proof,
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

// ------------------------------------------------------------------------------------ our keys

/// One of our own keys; the secret half is the protocol's alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OwnKey {
    /// Which protocol signs with it.
    pub protocol: String,
    /// Whom it speaks for: our name in that protocol.
    pub name: String,
    /// What it is used for now.
    pub state: KeyState,
    /// Hex SHA-256 of the 32 key bytes.
    pub fingerprint: String,
    /// The key as the protocol publishes it.
    pub public_key: String,
    /// Since when it is in this state.
    pub since_ms: UnixMs,
    /// An old one: until when it still serves peers that have not noticed the new one.
    pub until_ms: Option<UnixMs>,
}

/// Where a key stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// Made, to be told to those who need it beforehand; nothing is signed with it yet.
    Next,
    /// What we publish and sign with.
    Active,
    /// Replaced; used for peers that have not noticed, until the overlap ends.
    Old,
}

/// What is asked of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Say what it would mean, change nothing.
    Plan,
    /// Make the next key, so that it can be told to peers' operators; sign with the present one.
    Prepare,
    /// Switch to the next key; the present one serves on for the overlap.
    Switch,
    /// Switch, and never use the present key again: it is no longer ours alone.
    Replace,
}

// ------------------------------------------------------------------------------------- trait

/// One federation protocol.
///
/// Rooms kept for protocols to come, each with a default here so that a protocol states only what
/// it has: `scope` (sealing in order), `via` (mailboxes), `beats` (polling and heartbeats).
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
    fn prepare(&self, event: &OutEvent) -> Result<(Targets, Sealed), Refusal> {
        Ok((self.targets(event)?, self.seal(event, None)?))
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

    /// How often [`Protocol::beat`] wants to run for a peer; `None`: never.
    fn beats(&self) -> Option<Duration> {
        None
    }

    /// Heartbeat, polling, gossip with one peer. Run by the peer's owner, one at a time.
    fn beat<'a>(&'a self, _peer: &'a PeerRecord) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}
