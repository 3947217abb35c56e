//! What the rest of the bridge tells a shard, and what it does about it.

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::super::control::{ControlError, PeerOutlook, Probed};
use super::super::lane::Item;
use super::done::Done;
use super::{Known, LaneKey, Shard};
use crate::ops::metrics;
use crate::store::{Lease, RowState};

/// What the rest of the bridge tells a shard.
#[derive(Debug)]
pub enum Work {
    /// New rows, already handed to the store, under this lease.
    Arrivals(Option<Lease>, Vec<(LaneKey, Item)>),
    /// A unit is ours, and how its peers were when that was last written down.
    Gained(Lease, Vec<(LaneKey, Known)>),
    /// A unit is another's.
    Lost(Lease),
    /// A unit is to be another's: the sender is dropped once nothing of it is in hand.
    Drain(Lease, oneshot::Sender<()>),
    /// A lane has rows on disk from this number on.
    Tail(LaneKey, i64),
    /// Rows of this lane were changed on disk, the first of them with this number: what is in memory
    /// may be out of date.
    Changed(LaneKey, i64),
    /// These rows looked past their time; whether they still are is for the shard to find out.
    Expired(Vec<(LaneKey, i64)>),
    /// The peer was heard of.
    Heard(LaneKey),
    /// An operator's question or order.
    Ask(LaneKey, Ask, oneshot::Sender<Reply>),
}

/// An operator's question or order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    Pause {
        reason: Option<String>,
        until_ms: Option<i64>,
    },
    Resume,
    Probe,
    Reset,
    /// The waiting rows of this peer are due by what is on disk.
    Flushed,
    Look,
}

/// What comes back.
#[derive(Debug)]
pub enum Replied {
    Done,
    Probe(Probed),
    Outlook(Box<PeerOutlook>),
}

/// The answer to an [`Ask`].
pub type Reply = Result<Replied, ControlError>;

impl Shard {
    pub(super) fn take(&mut self, work: Work) {
        match work {
            Work::Arrivals(lease, items) => {
                let mut keys = Vec::new();
                let last = items.last().map_or(0, |(_, item)| item.id);
                for (key, item) in items {
                    // Under a lease that was lost: the rows are refused, and another's to make.
                    if lease.is_some() && !self.is_under(&key, lease) {
                        continue;
                    }
                    self.entry(&key).lane.arrive(item);
                    if keys.last() != Some(&key) {
                        keys.push(key);
                    }
                }
                self.arrived(lease, last);
                keys.iter().for_each(|key| self.poke(key));
            }
            Work::Gained(lease, known) => self.gained(lease, known),
            Work::Lost(lease) => self.lost(lease),
            Work::Drain(lease, done) => self.drain(lease, done),
            Work::Tail(key, _) | Work::Changed(key, _) if !self.is_ours(&key) => {
                tracing::debug!(peer = %key.1, "rows of a peer that another instance serves");
            }
            Work::Ask(key, _, reply) if !self.is_ours(&key) => {
                let _ = reply.send(Err(ControlError::Elsewhere)); // who asked may have gone
            }
            Work::Tail(key, first) => {
                self.entry(&key).lane.has_tail(first);
                self.poke(&key);
            }
            Work::Changed(key, first) => {
                self.entry(&key).lane.reread(first);
                self.poke(&key);
            }
            Work::Expired(rows) => self.read_expired(rows),
            Work::Heard(key) => {
                let now = self.tools.clock.now_ms();
                if let Some(entry) = self.lanes.get_mut(&key) {
                    entry.listening = false;
                    if entry.lane.heard(now) {
                        tracing::debug!(protocol = key.0, peer = %key.1, "heard of a failing peer: one early attempt");
                    }
                    self.poke(&key);
                }
            }
            Work::Ask(key, ask, reply) => self.asked(&key, ask, reply),
        }
        metrics::lanes(self.lanes.len());
    }

    /// Reads the rows again, under the eyes of `ended`: since they were found one may have been
    /// delivered.
    fn read_expired(&mut self, rows: Vec<(LaneKey, i64)>) {
        let (store, read) = (self.shared.store.clone(), self.ended.read_begins());
        self.tasks.spawn(async move {
            let mut found = Vec::new();
            for (key, id) in rows {
                // One that cannot be read now is found again by the next sweep.
                if let Ok(Some(row)) = store.row(id).await
                    && row.state == RowState::Pending
                {
                    found.push((key, Item::from(row)));
                }
            }
            Done::Expired { read, rows: found }
        });
    }
}
