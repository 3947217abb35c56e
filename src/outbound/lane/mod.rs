//! One peer's lane: a short head in memory, the tail on disk, order per key.
//!
//! Plain state without I/O; the shard asks it what to do next and tells it what came of it.
//!
//! What is in memory, and what must hold:
//! - A **key** with an attempt in flight is *busy*; one whose first row waits for its time keeps that
//!   row alone. What stands behind a waiting row is on disk from `disk_from` on, and is read back
//!   when the key is free. So a stuck key costs one row's bookkeeping, not a backlog.
//! - `loaded_to` is the ledger number up to which everything was read; it goes back when rows go back
//!   to disk. With `tail`, rows above it are on disk and are read in order; an arrival that finds a
//!   tail, or no room, is left to be read later. `met_to` never goes back: an arrival at or below it
//!   was read from disk before the lane was told of it, and may be settled by now.
//!   A page asked for before `loaded_to` went back is thrown away: it would jump over rows.
//! - Every key not busy, not waiting and without rows in memory that has a `disk_from` is in `freed`.
//! - A row is in memory at most once: `held` has the number of every row in memory or in flight.
//! - A paused lane has nothing in memory but what is in flight; what arrives stays on disk. So has
//!   one whose peer fetches its messages.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `next` | what to do now |
//! | `disk` | what goes to disk, and what is read back |
//! | `health` | what a success, a failure, a pause or a word from the peer changes |

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::UnixMs;
use crate::peers::health::{Facts, Policy};
use crate::store::QueueRow;

mod disk;
mod health;
mod next;
pub use health::{Grant, Outlook};

/// A row on its way.
#[derive(Clone, Debug)]
pub struct Item {
    pub id: i64,
    pub key: Arc<str>,
    pub msg_id: String,
    pub out_seq: u64,
    pub event_id: String,
    pub event_type: String,
    /// `None`: to be read back before the attempt.
    pub body: Option<Bytes>,
    pub attempts: u32,
    pub created_ms: UnixMs,
    pub first_failed_ms: Option<UnixMs>,
    pub next_at_ms: UnixMs,
    pub expires_ms: Option<UnixMs>,
    pub peer_fault: bool,
    pub traceparent: Option<String>,
}

impl From<QueueRow> for Item {
    fn from(row: QueueRow) -> Self {
        Self {
            id: row.id,
            key: row.order_key.into(),
            msg_id: row.msg_id,
            out_seq: row.out_seq,
            event_id: row.event_id,
            event_type: row.event_type,
            body: Some(row.body),
            attempts: row.attempts,
            created_ms: row.created_ms,
            first_failed_ms: row.first_failed_ms,
            next_at_ms: row.next_at_ms.unwrap_or(0),
            expires_ms: row.expires_ms,
            peer_fault: row.peer_fault,
            traceparent: row.traceparent,
        }
    }
}

#[derive(Default)]
struct Key {
    items: VecDeque<Item>,
    /// An attempt is in flight, or a read of this key's rows.
    busy: bool,
    /// The first number of a read of this key's rows that is in progress.
    reading: Option<i64>,
    /// In the queue of runnable keys.
    queued: bool,
    /// The first item's time, while it waits for it.
    waits_until: Option<UnixMs>,
    /// Rows of this key from here on are on disk.
    disk_from: Option<i64>,
    /// The lowest row that came while this key's rows were being read.
    missed: Option<i64>,
}

/// Bounds of one lane.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Attempts in flight at most.
    pub window: usize,
    /// Rows in memory at most.
    pub head: usize,
}

/// Why a row is attempted, and what a failure then counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its time has come. A failure counts for the row and for the peer.
    Due,
    /// The peer is in trouble and the breaker lets one try, but no row's own time has come. A
    /// failure counts for the peer and leaves the row as it was.
    Probe,
    /// The peer was heard of, or an operator asked. A failure counts for nothing.
    Early,
}

/// What the shard should do for a lane.
#[derive(Debug)]
pub enum Step {
    /// Attempt this row.
    Attempt(Item, Cause),
    /// Dead without an attempt: code and sentence.
    Dead(Item, &'static str, String),
    /// Read rows above this number, at most that many.
    Load { after: i64, limit: usize },
    /// Read rows of one key from this number on, at most that many.
    LoadKey {
        key: Arc<str>,
        from: i64,
        limit: usize,
    },
    /// Nothing before this time.
    Sleep(UnixMs),
    /// Nothing until something arrives or ends.
    Rest,
}

/// A lane.
pub struct Lane {
    pub facts: Facts,
    limits: Limits,
    /// Grows by one a success up to the limit, halves with a failure.
    window: usize,
    keys: HashMap<Arc<str>, Key>,
    runnable: VecDeque<Arc<str>>,
    waiting: BTreeSet<(UnixMs, Arc<str>)>,
    freed: Vec<Arc<str>>,
    held: HashSet<i64>,
    in_flight: usize,
    loaded_to: i64,
    /// The highest number ever met; unlike `loaded_to` it never goes back.
    met_to: i64,
    tail: bool,
    /// The number after which a page is being read.
    loading: Option<i64>,
    missed: bool,
    /// Rows that reads in progress may bring at most, the page's share of them.
    asked: usize,
    page: usize,
    /// One attempt that need not wait for the breaker or a row's own time.
    grant: Option<Grant>,
    /// The count of failures for which a word from the peer has earned its probe.
    heard_at: u32,
    /// When no row was due, a probe was made last.
    probed_ms: UnixMs,
    /// The clock has jumped: nothing dies of its age.
    pub unsteady: bool,
    /// The peer fetches its messages: nothing is attempted until then.
    fetched_until: Option<UnixMs>,
}

/// Rows of one key read back at once.
pub const KEY_PAGE: usize = 32;
/// Places a lane without work may keep for the next burst.
const ROOMY: usize = 64;
/// Rows read back to find one to try a peer with.
const PROBE_PAGE: usize = 16;
/// Waiting keys a lane keeps before it stops reading on.
const MAX_WAITING: usize = 1024;
/// How long a row past its time waits for a clock that has jumped, milliseconds.
const UNSTEADY_MS: i64 = 1_000;

impl Lane {
    /// An empty lane.
    pub fn new(limits: Limits, facts: Facts) -> Self {
        Self {
            facts,
            limits,
            window: limits.window,
            keys: HashMap::new(),
            runnable: VecDeque::new(),
            waiting: BTreeSet::new(),
            freed: Vec::new(),
            held: HashSet::new(),
            in_flight: 0,
            loaded_to: 0,
            met_to: 0,
            tail: false,
            loading: None,
            missed: false,
            asked: 0,
            page: 0,
            grant: None,
            heard_at: 0,
            probed_ms: 0,
            unsteady: false,
            fetched_until: None,
        }
    }

    /// The highest ledger number met.
    pub fn met_to(&self) -> i64 {
        self.met_to
    }

    /// Whether what arrives now waits for others, or for the peer.
    pub fn is_behind(&self) -> bool {
        self.tail || self.facts.pause.is_some()
    }

    /// Nothing in memory, on disk or in flight.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && !self.tail && self.loading.is_none() && self.keys.is_empty()
    }

    /// Gives back what a burst has left behind.
    pub fn shrink(&mut self) {
        if self.keys.capacity() > ROOMY || self.held.capacity() > ROOMY {
            self.keys.shrink_to(0);
            self.held.shrink_to(0);
            self.runnable.shrink_to(0);
            self.freed.shrink_to(0);
        }
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Current window.
    pub fn window(&self) -> usize {
        self.window
    }

    /// A new row, already handed to the store.
    pub fn arrive(&mut self, item: Item) {
        if item.id <= self.met_to {
            return; // met on disk before it came here: in hand, settled, or to be read again
        }
        self.met_to = item.id;
        if self.tail
            || self.keeps_nothing()
            || self.active() + self.asked >= self.limits.head
            || self.waiting.len() >= MAX_WAITING
        {
            self.missed |= self.loading.is_some();
            self.tail = true;
            return;
        }
        self.loaded_to = self.loaded_to.max(item.id);
        self.admit(item);
    }

    fn admit(&mut self, item: Item) {
        if self.held.contains(&item.id) {
            return;
        }
        let key = self.keys.entry(item.key.clone()).or_default();
        if key.reading.is_some() {
            key.missed = Some(key.missed.map_or(item.id, |m| m.min(item.id)));
            return;
        }
        if key.disk_from.is_some() || key.waits_until.is_some() {
            key.disk_from = Some(key.disk_from.map_or(item.id, |d| d.min(item.id)));
            return;
        }
        self.held.insert(item.id);
        let name = item.key.clone();
        let at = key.items.partition_point(|i| i.id < item.id);
        key.items.insert(at, item);
        if !key.busy && !key.queued {
            key.queued = true;
            self.runnable.push_back(name);
        }
    }

    /// Whether a key could run now.
    pub fn has_runnable(&self) -> bool {
        !self.runnable.is_empty()
    }

    /// Drops a row that is dead by decree; true when it is in flight and must be left alone.
    pub fn forget(&mut self, id: i64) -> bool {
        if !self.held.contains(&id) {
            return false;
        }
        let found = self.keys.iter_mut().find_map(|(name, key)| {
            let at = key.items.iter().position(|i| i.id == id)?;
            key.items.remove(at);
            if at == 0
                && let Some(until) = key.waits_until.take()
            {
                self.waiting.remove(&(until, name.clone()));
            }
            Some(name.clone())
        });
        let Some(name) = found else { return true };
        self.held.remove(&id);
        self.after(&name);
        false
    }

    /// The row left: delivered, dead or held. Its key goes on.
    pub fn finished(&mut self, item: &Item) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.held.remove(&item.id);
        if let Some(key) = self.keys.get_mut(&item.key) {
            key.busy = false;
        }
        self.after(&item.key);
    }

    /// The row waits until `item.next_at_ms`; what stands behind it goes to disk, and while the peer
    /// is open the row too.
    pub fn waits(&mut self, item: Item, policy: &Policy) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let name = item.key.clone();
        let Some(key) = self.keys.get_mut(&name) else {
            return;
        };
        key.busy = false;
        if self.facts.tripped(policy) || self.facts.pause.is_some() || self.fetched_until.is_some()
        {
            key.items.push_front(item);
            return self.spill_all();
        }
        self.park(item);
    }

    /// Whether what arrives stays on disk because nothing is attempted.
    fn keeps_nothing(&self) -> bool {
        self.facts.pause.is_some() || self.fetched_until.is_some()
    }

    /// Rows in memory that do not merely wait for their time.
    fn active(&self) -> usize {
        self.held.len().saturating_sub(self.waiting.len())
    }

    /// What a key does after its row left.
    fn after(&mut self, name: &Arc<str>) {
        let Some(key) = self.keys.get_mut(name) else {
            return;
        };
        if key.busy || key.waits_until.is_some() {
            return;
        }
        if !key.items.is_empty() {
            if !key.queued {
                key.queued = true;
                self.runnable.push_back(name.clone());
            }
        } else if key.disk_from.is_some() {
            self.freed.push(name.clone());
        } else {
            self.keys.remove(name);
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod props;
