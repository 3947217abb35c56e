//! What the rest of the bridge tells a shard, and what it does about it.

use tokio::sync::oneshot;

use super::super::control::{ControlError, PeerOutlook, Probed};
use super::super::lane::Item;
use super::done::Done;
use super::{LaneKey, Shard};
use crate::ops::metrics;
use crate::store::RowState;

/// What the rest of the bridge tells a shard.
#[derive(Debug)]
pub enum Work {
    /// New rows, already handed to the store.
    Arrivals(Vec<(LaneKey, Item)>),
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
#[derive(Clone, Debug)]
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
            Work::Arrivals(items) => {
                let mut keys = Vec::new();
                for (key, item) in items {
                    self.arrived_to = self.arrived_to.max(item.id);
                    self.entry(&key).lane.arrive(item);
                    if keys.last() != Some(&key) {
                        keys.push(key);
                    }
                }
                keys.iter().for_each(|key| self.poke(key));
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
