//! Lanes that come and go with leases, where several instances share the work.
//!
//! A unit gained is armed anew from the store; one that is lost takes its lanes with it, and what their
//! tasks bring after that meets no lane. Numbers of arrivals ascend within a unit only: each has a
//! reader of its own.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::{Entry, Known, LaneKey, Shard};
use crate::cluster::Hold;
use crate::ops::metrics;
use crate::store::{Lease, Unit};

/// What is kept of the units served.
#[derive(Default)]
pub(super) struct Serving {
    /// Highest number whose arrival was taken.
    arrived: HashMap<Unit, i64>,
    /// Attempts in flight, and outcomes on their way to the store.
    in_hand: HashMap<Lease, usize>,
    /// Dropped when nothing of the unit is in hand any more.
    drains: HashMap<Lease, oneshot::Sender<()>>,
}

impl Serving {
    /// One more task works under this lease.
    pub fn begins(&mut self, lease: Option<Lease>) {
        if let Some(lease) = lease {
            *self.in_hand.entry(lease).or_default() += 1;
        }
    }

    /// One ended.
    pub fn ends(&mut self, lease: Option<Lease>) {
        let Some(lease) = lease else { return };
        let Some(left) = self.in_hand.get_mut(&lease) else {
            return;
        };
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.in_hand.remove(&lease);
            self.drains.remove(&lease);
        }
    }

    fn drain(&mut self, lease: Lease, done: oneshot::Sender<()>) {
        if self.in_hand.contains_key(&lease) {
            self.drains.insert(lease, done);
        }
    }
}

impl Shard {
    /// Whether this peer's lane is ours to work.
    pub(super) fn is_ours(&self, key: &LaneKey) -> bool {
        let tenure = &self.shared.tenure;
        tenure.is_alone() || !matches!(tenure.of_peer(key.0, &key.1), Hold::NotOurs)
    }

    /// Whether this peer's lane is ours under this very lease.
    pub(super) fn is_under(&self, key: &LaneKey, lease: Option<Lease>) -> bool {
        match self.lanes.get(key) {
            Some(entry) => entry.hold.lease() == lease,
            None => self.shared.tenure.of_peer(key.0, &key.1).lease() == lease,
        }
    }

    /// The lane that a task under this lease was begun for, if it still is.
    pub(super) fn same(&mut self, key: &LaneKey, lease: Option<Lease>) -> Option<&mut Entry> {
        let entry = self.lanes.get_mut(key)?;
        (entry.hold.lease() == lease).then_some(entry)
    }

    /// Highest number whose arrival was taken where this lane's rows come from.
    pub(super) fn arrived_for(&self, entry: &Entry) -> i64 {
        match entry.hold.lease() {
            None => self.arrived_to,
            Some(lease) => self.units.arrived.get(&lease.unit).copied().unwrap_or(0),
        }
    }

    /// Arrivals up to this number were taken.
    pub(super) fn arrived(&mut self, lease: Option<Lease>, number: i64) {
        let to = match lease {
            None => &mut self.arrived_to,
            Some(lease) => self.units.arrived.entry(lease.unit).or_default(),
        };
        *to = number.max(*to);
    }

    /// A unit is ours: `known` is how its peers were when their last owner wrote it down.
    pub(super) fn gained(&mut self, lease: Lease, known: Vec<(LaneKey, Known)>) {
        let next = self.shared.store.reserve_rows(0).start;
        self.units.arrived.insert(lease.unit, next - 1);
        for (key, known) in known {
            if known.facts.pause.is_some() {
                self.shared.paused.note(&key);
            } else {
                self.shared.paused.forget(&key);
            }
            if !self.lanes.contains_key(&key) {
                self.known.insert(key, known);
            }
        }
    }

    /// A unit is another's: its lanes go.
    pub(super) fn lost(&mut self, lease: Lease) {
        let gone = self.lanes.iter();
        let gone = gone.filter(|(_, entry)| entry.hold.lease() == Some(lease));
        let gone: Vec<LaneKey> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.retire(&key);
        }
        self.units.in_hand.remove(&lease);
        self.units.drains.remove(&lease);
        metrics::lanes(self.lanes.len());
    }

    /// Drops `done` once nothing of the unit is in hand.
    pub(super) fn drain(&mut self, lease: Lease, done: oneshot::Sender<()>) {
        self.units.drain(lease, done);
    }
}
