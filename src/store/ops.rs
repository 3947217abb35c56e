//! What can be asked of the writer, and what it answers.
//!
//! An operation is plain data: it can be planned into a batch, run again alone when its batch
//! failed, and counted against the writer's room before it is queued.

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::checkpoint::{Acked, Rebase, Tip, Way};
use super::held::{HeldBatch, Released};
use super::leases::Lease;
use super::told::Told;
use super::types::{Accepted, Keeping, Late, Lead, MendTurn, NewInbound, NewRow, Outcome, Settle};
use super::value::Value;
use crate::clock::UnixMs;
use crate::config::Retention;
use crate::protocol::{PeerRecord, ProtocolId, Record, RoomEvent};

/// Room one row takes beside its body: columns, bookkeeping, the caller's waker.
const ROW_COST: usize = 512;

/// One operation. Constraint violations are designed out: every insert says what a conflict means.
#[derive(Debug)]
pub(super) enum Work {
    Insert(Arc<[NewRow]>, Late),
    Settle(Settle),
    Noticed(Vec<i64>),
    Accept(Box<Arrival>),
    Published(Acked),
    Records(ProtocolId, Vec<Record>),
    Single(Single),
    /// Nothing to write: answers when everything before it is committed.
    Barrier,
    /// The last one.
    Close,
}

/// Rare operations, one statement (or a few) each.
#[derive(Debug)]
pub(super) enum Single {
    PutPeer(PeerRecord),
    NextEpoch,
    /// Row numbers for this instance alone, so many, none of them below `floor`; answers the first.
    RowBlock {
        floor: i64,
        size: i64,
    },
    /// The turn to mend the streams; answers the series, 0: it is another's.
    Mend(Box<MendTurn>),
    /// A part that one instance plays for all; answers 0: another one plays it.
    Lead(Lead),
    Rebase(Box<Rebase>),
    ForgetCheckpoints(Way, Vec<Tip>),
    Stuck(Vec<i64>),
    ReleaseHeld(HeldBatch),
    DropHeld(HeldBatch),
    Redrive(BTreeSet<i64>),
    Drop(BTreeSet<i64>),
    /// Waiting rows of one lane become due, at most that many.
    MakeDue {
        protocol: ProtocolId,
        peer: String,
        now_ms: UnixMs,
        limit: i64,
    },
    /// An answer with these rows has left for a peer that fetches.
    HandedOut(BTreeSet<i64>, UnixMs),
    /// Pending rows are due at once.
    DueNow(BTreeSet<i64>),
    /// Pending and held rows are dead: code and sentence.
    GiveUp {
        ids: BTreeSet<i64>,
        now_ms: UnixMs,
        code: &'static str,
        reason: String,
    },
    Prune {
        now_ms: UnixMs,
        keep: Box<Retention>,
        wishes: Arc<Vec<Keeping>>,
    },
    LimitSize(Option<u64>),
    /// Fixed statements in one transaction; answers the rows the last of them changed.
    Execute(Vec<Statement>),
}

/// A fixed statement with its values, the same text for both databases.
#[derive(Debug)]
pub(super) struct Statement {
    pub sql: &'static str,
    pub values: Vec<Value>,
}

impl Statement {
    pub fn new(sql: &'static str) -> Self {
        Self {
            sql,
            values: Vec::new(),
        }
    }

    /// The next value.
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }
}

/// An inbound event with the hash of its payload, taken on the caller's thread.
#[derive(Debug)]
pub(super) struct Arrival {
    pub event: Arc<NewInbound>,
    pub hash: [u8; 32],
}

impl Arrival {
    pub fn new(event: Arc<NewInbound>) -> Self {
        let hash = Sha256::digest(&event.payload).into();
        Self { event, hash }
    }
}

/// What an operation answers; each caller knows which it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Accepted(Accepted),
    Number(i64),
    Released(Released),
}

/// An operation on its way, with who waits for it and the room it takes until it is answered.
#[derive(Debug)]
pub(super) struct Job {
    pub work: Work,
    /// Written only while this is ours.
    pub lease: Option<Lease>,
    pub done: Told,
    pub _room: Option<OwnedSemaphorePermit>,
}

impl Work {
    /// Whether it must be written sooner or later, and in its place: the ledger of outbound
    /// messages, and what became of inbound ones. Whoever hands in anything else can be told to
    /// come again, or asks for an answer now.
    pub fn is_kept(&self) -> bool {
        matches!(
            self,
            Self::Insert(..) | Self::Settle(_) | Self::Noticed(_) | Self::Published(_)
        )
    }

    /// Whether it may end the very state that keeps others waiting.
    pub fn makes_room(&self) -> bool {
        matches!(self, Self::Single(Single::LimitSize(_)))
    }

    /// Bytes of room it takes, an estimate of what it holds in memory.
    pub fn cost(&self) -> usize {
        let strings = |r: &Record| r.key.len() + r.value.as_ref().map_or(0, String::len) + 64;
        let kept = |event: &Option<RoomEvent>| {
            let event = event.as_ref();
            event.map_or(0, |e| ROW_COST + e.envelope.len() + e.event_id.len())
        };
        match self {
            Self::Insert(rows, _) => rows
                .iter()
                .map(|r| {
                    let records = r.records.iter().map(strings).sum::<usize>();
                    ROW_COST + r.body.len() + records + kept(&r.room_event)
                })
                .sum::<usize>()
                .max(ROW_COST),
            Self::Accept(a) => {
                let headers: usize = a.event.headers.iter().map(|(k, v)| k.len() + v.len()).sum();
                ROW_COST + a.event.payload.len() + headers + kept(&a.event.room_event)
            }
            Self::Settle(s) => {
                let text = match &s.outcome {
                    Outcome::Delivered { .. } => 0,
                    Outcome::Retry { reason, .. }
                    | Outcome::Dead { reason, .. }
                    | Outcome::Held { reason, .. } => reason.len(),
                };
                ROW_COST + text + s.attempt.as_ref().map_or(0, |a| a.detail.len())
            }
            Self::Noticed(ids) => ROW_COST + 8 * ids.len(),
            Self::Published(acked) => ROW_COST + 8 * acked.ids.len(),
            Self::Records(_, records) => ROW_COST + records.iter().map(strings).sum::<usize>(),
            Self::Single(Single::Execute(statements)) => {
                let size = |v: &Value| match v {
                    Value::Text(Some(text)) => text.len(),
                    Value::Bytes(Some(bytes)) => bytes.len(),
                    _ => 8,
                };
                let values = statements.iter().flat_map(|s| &s.values);
                ROW_COST * statements.len().max(1) + values.map(size).sum::<usize>()
            }
            Self::Single(_) | Self::Barrier | Self::Close => ROW_COST,
        }
    }

    /// How much of a batch's width it takes.
    pub fn width(&self) -> usize {
        match self {
            Self::Insert(rows, _) => rows.len().max(1),
            Self::Noticed(ids) => ids.len().div_ceil(16).max(1),
            Self::Published(acked) => acked.ids.len().div_ceil(16).max(1),
            Self::Records(_, records) => records.len().max(1),
            Self::Single(Single::Execute(statements)) => statements.len().max(1),
            _ => 1,
        }
    }
}
