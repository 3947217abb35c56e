//! One peer's lane: a short head in memory, the tail on disk, order per key.
//!
//! Plain state without I/O; the shard asks it what to do next and tells it what came of it.
//!
//! What is in memory, and what must hold:
//! - A **key** with an attempt in flight is *busy*; one whose first row waits for its time keeps that
//!   row alone. What stands behind a waiting row is on disk from `disk_from` on, and is read back
//!   when the key is free. So a stuck key costs one row's bookkeeping, not a backlog.
//! - `loaded_to` is the highest ledger number this lane has met. With `tail`, rows above it are on
//!   disk and are read in order; an arrival that finds a tail, or no room, is left to be read later.
//!   A page asked for before `loaded_to` went back is thrown away: it would jump over rows.
//! - Every key not busy, not waiting and without rows in memory that has a `disk_from` is in `freed`.
//! - A row is in memory at most once: `held` has the number of every row in memory or in flight.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::schedule;
use crate::clock::UnixMs;
use crate::peers::health::{Facts, Policy, Verdict};
use crate::protocol::Schedule;
use crate::store::QueueRow;

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

/// What the shard should do for a lane.
#[derive(Debug)]
pub enum Step {
    /// Attempt this row.
    Attempt(Item),
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
    tail: bool,
    /// The number after which a page is being read.
    loading: Option<i64>,
    missed: bool,
    /// Rows that reads in progress may bring at most, the page's share of them.
    asked: usize,
    page: usize,
    /// The clock has jumped: nothing dies of its age.
    pub unsteady: bool,
}

/// The peer failed this row and has taken something since: its backlog goes promptly. That no
/// failure is on record is not enough, for a few are forgotten by a restart.
fn is_back_for(facts: &Facts, item: &Item) -> bool {
    let took_since = |failed| facts.last_success_ms > failed;
    item.peer_fault && facts.failures == 0 && item.first_failed_ms.is_some_and(took_since)
}

/// Rows of one key read back at once.
pub const KEY_PAGE: usize = 32;
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
            tail: false,
            loading: None,
            missed: false,
            asked: 0,
            page: 0,
            unsteady: false,
        }
    }

    /// There are rows on disk from `first` on (start-up, or a row that came back).
    pub fn has_tail(&mut self, first: i64) {
        self.loaded_to = self.loaded_to.min(first - 1);
        self.tail = true;
        self.missed |= self.loading.is_some();
    }

    /// The highest ledger number met.
    pub fn loaded_to(&self) -> i64 {
        self.loaded_to
    }

    /// Nothing in memory, on disk or in flight, and nothing to remember.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
            && !self.tail
            && self.loading.is_none()
            && self.keys.is_empty()
            && self.facts.failures == 0
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
        if item.id <= self.loaded_to {
            return; // met on disk before it came here: in hand, or settled already
        }
        if self.tail
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

    /// A page asked for by [`Step::Load`]: the rows to take, whether the page was full, and the last
    /// number read (rows whose outcome is on its way are left out of `rows`).
    pub fn loaded(&mut self, rows: Vec<QueueRow>, full: bool, last: Option<i64>) {
        self.asked = self.asked.saturating_sub(self.page);
        self.page = 0;
        if self.loading.take().is_some_and(|a| self.loaded_to < a) {
            self.missed = false;
            return; // the reading starts again further back; `tail` stands
        }
        for row in rows {
            self.loaded_to = self.loaded_to.max(row.id);
            self.admit(row.into());
        }
        self.loaded_to = self.loaded_to.max(last.unwrap_or(0));
        self.tail = full || self.missed;
        self.missed = false;
    }

    /// Rows asked for by [`Step::LoadKey`]: the rows to take, the limit asked for, and how many and
    /// up to which number were read (rows whose outcome is on its way are left out of `rows`).
    pub fn loaded_key(
        &mut self,
        name: &Arc<str>,
        rows: Vec<QueueRow>,
        limit: usize,
        full: bool,
        last: Option<i64>,
    ) {
        self.asked = self.asked.saturating_sub(limit);
        let met = self.loaded_to;
        let Some(key) = self.keys.get_mut(name) else {
            return;
        };
        key.busy = false;
        let from = key.reading.take().unwrap_or(0);
        // `None` when everything went back to disk meanwhile: the lane's own reading meets it all.
        let stands = key.disk_from.take().is_some();
        let missed = key.missed.take();
        if !stands || missed.is_some_and(|m| m < from) {
            let first = if stands { Some(from) } else { None };
            key.disk_from = match (first, missed) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            return self.after(name);
        }
        let next = last.map_or(from, |l| l + 1);
        for row in rows {
            // Above `loaded_to` the lane's own reading meets them, or their arrival does.
            if row.id <= met {
                self.admit(row.into());
            }
        }
        if let Some(key) = self.keys.get_mut(name) {
            key.disk_from = if full && next <= met {
                Some(next)
            } else {
                missed.filter(|m| *m >= next)
            };
        }
        self.after(name);
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
        if self.facts.tripped(policy) {
            key.items.push_front(item);
            return self.spill_all();
        }
        self.park(item);
    }

    /// Keeps a row that is not due yet; what stands behind it goes to disk.
    fn park(&mut self, mut item: Item) {
        item.body = None;
        let (name, at) = (item.key.clone(), item.next_at_ms);
        self.spill(&name);
        self.held.insert(item.id);
        if let Some(key) = self.keys.get_mut(&name) {
            key.waits_until = Some(at);
            key.items.push_front(item);
            self.waiting.insert((at, name));
        }
    }

    /// Rows in memory that do not merely wait for their time.
    fn active(&self) -> usize {
        self.held.len().saturating_sub(self.waiting.len())
    }

    /// Forgets a key's rows in memory: they are on disk.
    fn spill(&mut self, name: &Arc<str>) {
        if let Some(key) = self.keys.get_mut(name) {
            for item in std::mem::take(&mut key.items) {
                self.held.remove(&item.id);
                key.disk_from = Some(key.disk_from.map_or(item.id, |d| d.min(item.id)));
            }
        }
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

    /// A success: the window widens; after an outage what waited for the peer is due.
    pub fn succeeded(&mut self, policy: &Policy, now: UnixMs) -> bool {
        let recovered = self.facts.succeeded(policy, now);
        if recovered {
            self.window = 1;
            for (_, name) in std::mem::take(&mut self.waiting) {
                let Some(key) = self.keys.get_mut(&name) else {
                    continue;
                };
                if key.items.front().is_some_and(|i| i.peer_fault) {
                    key.waits_until = None;
                    if let Some(first) = key.items.front_mut() {
                        first.next_at_ms = 0;
                    }
                    key.queued = true;
                    self.runnable.push_back(name);
                } else if let Some(at) = key.waits_until {
                    self.waiting.insert((at, name));
                }
            }
        } else {
            self.window = (self.window + 1).min(self.limits.window);
        }
        recovered
    }

    /// A failure of the peer: the window narrows; when that opens it, the head goes back to disk.
    pub fn failed(&mut self, policy: &Policy, started: UnixMs, now: UnixMs, code: &str) -> bool {
        let before = self.facts.tripped(policy);
        self.facts.failed(started, now, code);
        self.window = (self.window / 2).max(1);
        let open = self.facts.tripped(policy);
        if open {
            self.spill_all();
        }
        open && !before
    }

    /// Everything that is not in flight goes back to disk.
    fn spill_all(&mut self) {
        let mut first = i64::MAX;
        let held = &mut self.held;
        self.keys.retain(|_, key| {
            for item in std::mem::take(&mut key.items) {
                held.remove(&item.id);
                first = first.min(item.id);
            }
            if let Some(from) = key.disk_from.take() {
                first = first.min(from);
            }
            key.waits_until = None;
            key.queued = false;
            if let Some(missed) = key.missed.take() {
                first = first.min(missed);
            }
            key.busy
        });
        self.runnable.clear();
        self.waiting.clear();
        self.freed.clear();
        if first != i64::MAX {
            self.loaded_to = self.loaded_to.min(first - 1);
            self.tail = true;
        }
    }

    /// The next thing to do at `now`. Called until it answers `Sleep` or `Rest`.
    /// `room`: whether the shard can take another attempt of this lane.
    pub fn next(&mut self, policy: &Policy, schedule: &Schedule, now: UnixMs, room: bool) -> Step {
        let verdict = self.facts.verdict(policy, now);
        let window = match verdict {
            Verdict::Wait { until_ms } => {
                return if self.tail || !self.held.is_empty() || !self.keys.is_empty() {
                    Step::Sleep(until_ms)
                } else {
                    Step::Rest
                };
            }
            Verdict::Probe => 1,
            Verdict::Closed => self.window,
        };
        while let Some((at, _)) = self.waiting.first() {
            if *at > now {
                break;
            }
            if let Some((_, name)) = self.waiting.pop_first()
                && let Some(key) = self.keys.get_mut(&name)
            {
                key.waits_until = None;
                key.queued = true;
                self.runnable.push_back(name);
            }
        }
        if let Some(name) = self.freed.pop() {
            if let Some(key) = self.keys.get_mut(&name)
                && !key.busy
                && key.items.is_empty()
                && let Some(from) = key.disk_from
            {
                key.busy = true;
                key.reading = Some(from);
                // At least one: the key had a row in memory until just now.
                let room = self.limits.head.saturating_sub(self.active() + self.asked);
                let limit = room.clamp(1, KEY_PAGE);
                self.asked += limit;
                return Step::LoadKey {
                    key: name,
                    from,
                    limit,
                };
            }
            return self.next(policy, schedule, now, room);
        }
        let room_on_disk = (self.active() + self.asked) * 2 < self.limits.head.max(2)
            && self.waiting.len() < MAX_WAITING;
        if self.tail && self.loading.is_none() && room_on_disk {
            self.loading = Some(self.loaded_to);
            let room = self.limits.head.saturating_sub(self.active() + self.asked);
            self.page = room.max(1);
            self.asked += self.page;
            return Step::Load {
                after: self.loaded_to,
                limit: self.page,
            };
        }
        let dead_only = !room || self.in_flight >= window;
        while !dead_only && let Some(name) = self.runnable.pop_front() {
            let Some(key) = self.keys.get_mut(&name) else {
                continue;
            };
            key.queued = false;
            let Some(item) = key.items.pop_front() else {
                self.after(&name);
                continue;
            };
            if item.next_at_ms > now && !is_back_for(&self.facts, &item) {
                self.park(item);
                continue;
            }
            let expired = item.expires_ms.is_some_and(|t| t <= now);
            if self.unsteady && expired {
                self.park(Item {
                    next_at_ms: now.saturating_add(UNSTEADY_MS),
                    ..item
                });
                continue;
            }
            key.busy = true;
            self.in_flight += 1;
            if expired {
                return Step::Dead(
                    item,
                    "expired",
                    "the time given in Fed-Expires is over".into(),
                );
            }
            let start = item.first_failed_ms.unwrap_or(item.created_ms);
            if verdict == Verdict::Probe
                && !self.unsteady
                && now > schedule::ends_at(schedule, start)
                && !schedule.delays.is_empty()
            {
                let why = format!(
                    "the peer did not take anything until the schedule ended (last: {})",
                    self.facts.last_code
                );
                return Step::Dead(item, "peer_unreachable", why);
            }
            return Step::Attempt(item);
        }
        match self.waiting.first() {
            Some((at, _)) => Step::Sleep(*at),
            None => Step::Rest,
        }
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "lane_props.rs"]
mod props;
