//! Plain rows and operations of the store.

use std::collections::HashSet;

use bytes::Bytes;
use serde::Serialize;

use crate::clock::UnixMs;
use crate::protocol::{PeerName, ProtocolId, Record, ReplayId, RoomEvent};

/// What to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// Another process holds it.
    InUse,
    /// Written by a newer drawbridge.
    Newer,
    /// No space, read-only, gone: may heal.
    Unavailable,
    /// Closed by us.
    Closed,
    /// Not a database of ours, or broken.
    Corrupt,
    /// Written under a lease that another instance has now: it is no longer ours to write.
    Fenced,
}

/// A failed store operation.
#[derive(Clone, Debug, thiserror::Error)]
#[error("store: {detail}")]
pub struct StoreError {
    pub kind: StoreErrorKind,
    pub detail: String,
}

/// State of a row of `federation_queue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RowState {
    /// To be attempted.
    Pending,
    /// The peer has it.
    Delivered,
    /// Given up (`failed` in the UAM document's words).
    Failed,
    /// Waits for an operator.
    Held,
}

/// A row to insert.
#[derive(Clone, Debug)]
pub struct NewRow {
    /// From [`super::Store::reserve_rows`].
    pub id: i64,
    pub protocol: ProtocolId,
    /// Peer name; for a message that never got a peer, the subject's token as text.
    pub peer: String,
    pub msg_id: String,
    pub out_seq: u64,
    pub event_id: String,
    pub event_type: String,
    pub order_key: String,
    pub body: Bytes,
    pub created_ms: UnixMs,
    pub expires_ms: Option<UnixMs>,
    pub traceparent: Option<String>,
    /// Usually `Pending`; `Failed` with a reason for what cannot be delivered at all.
    pub state: RowState,
    pub reason: Option<(String, String)>,
    /// The protocol's own rows for the same commit.
    pub records: Vec<Record>,
    /// Kept for readers by the same commit.
    pub room_event: Option<RoomEvent>,
}

/// Numbers of rows whose outcomes are not expected for a while: their peers are away, or behind.
pub type Late = Vec<i64>;

#[cfg(test)]
impl NewRow {
    /// A pending row of that number with nothing in it.
    pub fn example(id: i64) -> Self {
        Self {
            id,
            protocol: "uam",
            peer: String::new(),
            msg_id: String::new(),
            out_seq: 0,
            event_id: String::new(),
            event_type: String::new(),
            order_key: String::new(),
            body: Bytes::new(),
            created_ms: 0,
            expires_ms: None,
            traceparent: None,
            state: RowState::Pending,
            reason: None,
            records: Vec::new(),
            room_event: None,
        }
    }
}

/// A row read back.
#[derive(Clone, Debug, Serialize)]
pub struct QueueRow {
    pub id: i64,
    pub protocol: String,
    pub peer: String,
    pub msg_id: String,
    pub out_seq: u64,
    pub event_id: String,
    pub event_type: String,
    pub order_key: String,
    #[serde(skip)]
    pub body: Bytes,
    pub state: RowState,
    pub attempts: u32,
    pub created_ms: UnixMs,
    /// When the schedule's clock started.
    pub first_failed_ms: Option<UnixMs>,
    /// Not before this time.
    pub next_at_ms: Option<UnixMs>,
    pub expires_ms: Option<UnixMs>,
    /// The last failure was the peer's as a whole.
    pub peer_fault: bool,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    pub traceparent: Option<String>,
    pub settled_ms: Option<UnixMs>,
}

/// The outcome of an attempt, or of a decision without one.
#[derive(Clone, Debug)]
pub struct Settle {
    pub row: i64,
    pub outcome: Outcome,
    /// Attempts made so far, this one included.
    pub attempts: u32,
    /// A row for `delivery_attempts` (failed attempts and final outcomes after more than one).
    pub attempt: Option<AttemptRow>,
}

/// What becomes of the row.
#[derive(Clone, Debug)]
pub enum Outcome {
    Delivered {
        at_ms: UnixMs,
    },
    Retry {
        first_failed_ms: UnixMs,
        next_at_ms: UnixMs,
        peer_fault: bool,
        code: String,
        reason: String,
    },
    Dead {
        at_ms: UnixMs,
        code: String,
        reason: String,
    },
    Held {
        code: String,
        reason: String,
    },
}

/// A row of `delivery_attempts`.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptRow {
    pub queue_id: i64,
    pub number: u32,
    pub at_ms: UnixMs,
    pub duration_ms: u64,
    pub status: Option<u16>,
    pub code: String,
    pub detail: String,
}

/// A lane with pending rows.
#[derive(Clone, Debug)]
pub struct LaneSummary {
    pub protocol: String,
    pub peer: String,
    pub first_id: i64,
    pub rows: u64,
    /// Earliest `next_at_ms`; rows never attempted count as 0.
    pub next_at_ms: UnixMs,
}

/// Filter of `queue list` and `dead list`.
#[derive(Clone, Debug, Default)]
pub struct RowFilter {
    pub protocol: Option<String>,
    pub peer: Option<String>,
    pub event_type: Option<String>,
    /// Empty: every state.
    pub states: HashSet<RowState>,
    pub reason_code: Option<String>,
    pub msg_id: Option<String>,
    /// Made at this time or later.
    pub created_from_ms: Option<UnixMs>,
    /// Made at this time or earlier.
    pub created_to_ms: Option<UnixMs>,
    /// Not empty: these rows only.
    pub ids: Vec<i64>,
    /// Rows with `id > after`.
    pub after: i64,
    /// 0 means 100.
    pub limit: usize,
}

impl std::hash::Hash for RowState {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        core::mem::discriminant(self).hash(h);
    }
}

/// Gauges of one protocol's queue.
#[derive(Clone, Debug, Serialize)]
pub struct QueueCounts {
    pub protocol: String,
    pub pending: u64,
    pub oldest_pending_ms: Option<UnixMs>,
    pub failed: u64,
    pub held: u64,
}

/// An inbound event to make durable.
#[derive(Clone, Debug)]
pub struct NewInbound {
    pub protocol: ProtocolId,
    pub peer: PeerName,
    pub dedupe_key: String,
    pub event_id: String,
    pub event_type: String,
    /// Subject on the bus.
    pub subject: String,
    /// Headers for the bus, in order.
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
    pub received_ms: UnixMs,
    pub replay: Vec<ReplayId>,
    /// The peer is quarantined: keep it from `fed.in` until it is released.
    pub hold: bool,
    /// Kept for readers by the same commit.
    pub room_event: Option<RoomEvent>,
}

/// What [`super::Store::accept`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// New; its ledger number.
    New(i64),
    /// New, and held back from `fed.in`: its peer is quarantined, or earlier events of it are held.
    Held(i64),
    /// Its peer has as much held as may be; nothing was written.
    HeldFull,
    /// The dedupe key was there. `published`: JetStream acknowledged it. `same`: same payload hash.
    Duplicate {
        id: i64,
        published: bool,
        same: bool,
    },
    /// A replay id was there; nothing was written.
    Replayed,
    /// Another instance publishes again what the broker lost; nothing was written.
    Shut,
}

/// Counts by which an instance finds out what others did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// Changes of what all instances know, by topic (see [`super::Store::changed`]).
    pub changes: std::collections::BTreeMap<String, i64>,
    /// Histories of the streams (see [`super::Store::mend_turn`]).
    pub series: i64,
}

/// A part that one instance plays for all, for so long unless it takes it again.
#[derive(Clone, Debug)]
pub struct Lead {
    pub what: &'static str,
    pub by: String,
    pub lasts: std::time::Duration,
}

/// What an instance wants of the turn to mend the streams (see `store.shared`).
#[derive(Clone, Debug)]
pub struct MendTurn {
    /// [`super::Store::instance`].
    pub by: String,
    /// Take or keep it for so long; `None`: it is over.
    pub lasts: Option<std::time::Duration>,
    /// The streams' history is another from now on, and the doors of all others are shut.
    pub new_series: bool,
}

/// What a protocol wants kept longer, or less long, than retention says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeping {
    pub protocol: ProtocolId,
    /// The ids of its inbound events stay for ever.
    pub ids: bool,
    /// How long envelopes of room events stay; `None`: for ever.
    pub room_events: Option<std::time::Duration>,
}

/// An inbound event read back.
#[derive(Clone, Debug)]
pub struct InboundRow {
    pub id: i64,
    pub protocol: String,
    pub peer: String,
    pub event_id: String,
    pub subject: String,
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
}

/// Facts about a peer's health, see `peers::health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthRow {
    pub protocol: String,
    pub peer: String,
    /// The facts as JSON.
    pub facts: String,
}

/// A trust rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrustRow {
    /// 0 when new.
    pub id: i64,
    pub protocol: String,
    /// Exact name, or `*.suffix`.
    pub pattern: String,
    /// `block`, `allow`, `quarantine`.
    pub rule: String,
    pub reason: Option<String>,
    pub created_ms: UnixMs,
    pub ends_ms: Option<UnixMs>,
}

/// Rows of one peer's queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerCounts {
    pub protocol: String,
    pub peer: String,
    pub pending: u64,
    /// The oldest pending row's number.
    #[serde(skip)]
    pub first_pending: Option<i64>,
    pub failed: u64,
    pub held: u64,
}
