//! What came of a task.

use std::sync::Arc;

use super::super::attempt::Finished;
use super::super::lane::{Cause, Item};
use super::super::outcome::{Fate, HealthNews};
use super::delivered::is_plain;
use super::flights::Flight;
use super::{LaneKey, Shard};
use crate::ops::metrics;
use crate::peers::health::Change;
use crate::store::{Commit, Lease, QueueRow, StoreError};

/// A row whose lease was not surely ours is looked at again after so long, milliseconds.
const UNSURE_MS: i64 = 500;

/// What came of a task.
pub(super) enum Done {
    Attempted {
        lane: LaneKey,
        lease: Option<Lease>,
        item: Item,
        flight: Flight,
        cause: Cause,
        finished: Finished,
        fate: Box<Fate>,
        /// `None`: there was nothing to write.
        commit: Option<Result<Commit, StoreError>>,
    },
    /// The row could not be read back or is no longer pending.
    Gone {
        lane: LaneKey,
        lease: Option<Lease>,
        item: Item,
        flight: Flight,
    },
    /// Nothing was attempted: the lease was not surely ours any more.
    Unsure {
        lane: LaneKey,
        lease: Option<Lease>,
        item: Item,
        flight: Flight,
    },
    Page {
        read: u64,
        lane: LaneKey,
        lease: Option<Lease>,
        rows: Vec<QueueRow>,
        asked: usize,
    },
    KeyPage {
        read: u64,
        lane: LaneKey,
        lease: Option<Lease>,
        key: Arc<str>,
        rows: Vec<QueueRow>,
        asked: usize,
    },
    /// Rows that were past their time and pending when they were read.
    Expired {
        read: u64,
        rows: Vec<(LaneKey, Item)>,
    },
    Settled(i64, Option<Lease>),
    /// Many deliveries are on record, or never will be.
    Delivered(Vec<i64>, Option<Lease>),
    Saved(LaneKey),
}

impl Shard {
    pub(super) fn done(&mut self, done: Option<Done>) {
        match done {
            Some(Done::Attempted {
                lane,
                lease,
                item,
                flight,
                cause,
                finished,
                fate,
                commit,
            }) => {
                self.left_flight(&lane, flight);
                self.attempted((&lane, lease), item, cause, &finished, *fate, commit);
                self.units.ends(lease);
            }
            Some(Done::Gone {
                lane,
                lease,
                item,
                flight,
            }) => {
                self.left_flight(&lane, flight);
                self.units.ends(lease);
                if let Some(entry) = self.same(&lane, lease) {
                    entry.lane.finished(&item);
                }
                self.poke(&lane);
            }
            Some(Done::Unsure {
                lane,
                lease,
                mut item,
                flight,
            }) => {
                self.left_flight(&lane, flight);
                self.units.ends(lease);
                let (policy, now) = (self.shared.policy, self.tools.clock.now_ms());
                if let Some(entry) = self.same(&lane, lease) {
                    item.next_at_ms = item.next_at_ms.max(now.saturating_add(UNSURE_MS));
                    entry.lane.waits(item, &policy);
                }
                self.poke(&lane);
            }
            Some(Done::Page {
                read,
                lane,
                lease,
                mut rows,
                asked,
            }) => {
                let full = rows.len() >= asked;
                let last = rows.last().map(|r| r.id);
                rows.retain(|r| !self.ended.has(r.id));
                self.ended.read_ends(read);
                if let Some(entry) = self.same(&lane, lease) {
                    entry.lane.loaded(rows, full, last);
                }
                self.poke(&lane);
            }
            Some(Done::KeyPage {
                read,
                lane,
                lease,
                key,
                mut rows,
                asked,
            }) => {
                let full = rows.len() >= asked;
                let last = rows.last().map(|r| r.id);
                rows.retain(|r| !self.ended.has(r.id));
                self.ended.read_ends(read);
                if let Some(entry) = self.same(&lane, lease) {
                    entry.lane.loaded_key(&key, rows, asked, full, last);
                }
                self.poke(&lane);
            }
            Some(Done::Expired { read, rows }) => self.expired(read, rows),
            Some(Done::Delivered(rows, lease)) => {
                self.units.ends(lease);
                self.deliveries.recorded(rows.len());
                for row in rows {
                    self.ended.committed(row);
                }
            }
            Some(Done::Settled(id, lease)) => {
                self.units.ends(lease);
                self.ended.committed(id);
            }
            Some(Done::Saved(key)) => self.saved(&key),
            None => tracing::error!("a delivery task ended abnormally"),
        }
        self.feed();
    }

    fn left_flight(&mut self, lane: &LaneKey, flight: Flight) {
        self.flights.ends(lane, flight);
        metrics::in_flight_add(-1);
    }

    fn expired(&mut self, read: u64, mut rows: Vec<(LaneKey, Item)>) {
        rows.retain(|(_, item)| !self.ended.has(item.id));
        self.ended.read_ends(read);
        if !self.tools.clock.steady() {
            return; // they may not be old at all; the next sweep finds them again
        }
        for (key, item) in rows {
            if !self.is_ours(&key) {
                continue; // its owner finds them
            }
            if !self.entry(&key).lane.forget(item.id) {
                let why = "the time given in Fed-Expires is over".to_owned();
                self.bury(key.clone(), item, "expired", why, false);
            }
            self.poke(&key); // its key may be free now
        }
    }

    fn attempted(
        &mut self,
        (lane, lease): (&LaneKey, Option<Lease>),
        item: Item,
        cause: Cause,
        finished: &Finished,
        fate: Fate,
        commit: Option<Result<Commit, StoreError>>,
    ) {
        let now = self.tools.clock.now_ms();
        if fate.waits.is_none() {
            self.ended.add(item.id);
        }
        self.report(lane, &item, finished, &fate);
        match fate.settle {
            Some(settle) if is_plain(&settle) => self.delivered(settle, lease),
            Some(settle) => self.settled(settle, lease, commit),
            None => {}
        }
        let policy = self.shared.policy;
        let (mut change, mut throttled) = (Change::None, false);
        if let Some(entry) = self.same(lane, lease) {
            let average = entry.average_ms.unwrap_or(0.0);
            entry.average_ms = Some(average * 0.8 + finished.elapsed.as_secs_f64() * 200.0);
            match fate.health {
                HealthNews::Good => change = entry.lane.succeeded(&policy, cause, now),
                HealthNews::Bad => {
                    let why = fate.reason.as_ref();
                    let why = why.map_or(("", ""), |r| (r.code, r.detail.as_str()));
                    let began = finished.started_ms;
                    change = entry.lane.failed(&policy, cause, began, now, why);
                }
                HealthNews::Patience(until) => {
                    entry.lane.facts.throttled(until);
                    throttled = true;
                }
                HealthNews::None => {}
            }
            match fate.waits {
                Some(next) => entry.lane.waits(next, &policy),
                None => entry.lane.finished(&item),
            }
        }
        match change {
            Change::None => {}
            Change::Noted => self.save(lane),
            Change::Opened => self.health_changed(lane, "open"),
            Change::Recovered => self.health_changed(lane, "recovered"),
        }
        if throttled {
            self.health_changed(lane, "throttled");
        }
        self.poke(lane);
    }
}
