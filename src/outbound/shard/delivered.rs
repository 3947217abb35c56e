//! Deliveries on their way to the store: handed in together, as many as came about at once.
//!
//! A hand-over wakes the store's thread, and its answer ours; for single ones that is a good part of
//! what a delivery costs. Only first deliveries wait for each other: nothing that is read of such a row
//! counts any more (see [`super::super::ended`]). Every other outcome is handed in by its own attempt,
//! for what is read of a row that is tried again must tell of it.

use std::time::Duration;

use super::Shard;
use super::done::Done;
use crate::faults;
use crate::store::{Lease, Outcome, Settle, StoreErrorKind};

/// Handed in together at most.
const TOGETHER: usize = 64;
/// Deliveries that may be without a record; beyond that nothing more is attempted.
const UNRECORDED: usize = 8_192;

/// Deliveries that are not on record yet.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    waiting: Vec<(Option<Lease>, Settle)>,
    handed_in: usize,
}

impl Deliveries {
    /// Some wait to be handed in.
    pub fn any(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// No more may come about for now.
    pub fn too_many(&self) -> bool {
        self.waiting.len() + self.handed_in >= UNRECORDED
    }

    /// So many are on record.
    pub fn recorded(&mut self, count: usize) {
        self.handed_in = self.handed_in.saturating_sub(count);
    }
}

/// Whether an outcome is the delivery of a row that nothing else is written of.
pub(super) fn is_plain(settle: &Settle) -> bool {
    settle.attempt.is_none() && matches!(settle.outcome, Outcome::Delivered { .. })
}

impl Shard {
    /// A row is delivered; its outcome goes with the next hand-over. It is in hand until then: a unit
    /// given away before would have it delivered again.
    pub(super) fn delivered(&mut self, settle: Settle, lease: Option<Lease>) {
        self.units.begins(lease);
        self.deliveries.waiting.push((lease, settle));
        if self.deliveries.waiting.len() >= TOGETHER {
            self.hand_in();
        }
    }

    /// Hands in what waits, a task for each lease; it tries again each second what fails. Rows under a
    /// lease that was lost are another's.
    pub(super) fn hand_in(&mut self) {
        let mut waiting = std::mem::take(&mut self.deliveries.waiting);
        self.deliveries.handed_in += waiting.len();
        while let Some((lease, _)) = waiting.first() {
            let lease = *lease;
            let mine = waiting.extract_if(.., |(of, _)| *of == lease);
            let mut settles: Vec<Settle> = mine.map(|(_, settle)| settle).collect();
            self.units.begins(lease);
            for _ in &settles {
                self.units.ends(lease);
            }
            let store = self.shared.store.clone();
            self.tasks.spawn(async move {
                let rows = settles.iter().map(|settle| settle.row).collect();
                loop {
                    let failed = match store.settle_all(lease, &settles).await {
                        Ok(failed) => failed,
                        Err(error) => settles.iter().map(|s| (s.clone(), error.clone())).collect(),
                    };
                    settles.clear();
                    for (settle, error) in failed {
                        if matches!(error.kind, StoreErrorKind::Closed | StoreErrorKind::Fenced) {
                            tracing::debug!(%error, queue_id = settle.row, "a delivery is not written");
                        } else {
                            tracing::warn!(%error, queue_id = settle.row, "a delivery waits for the store");
                            settles.push(settle);
                        }
                    }
                    if settles.is_empty() {
                        faults::crash_point("out_settled");
                        return Done::Delivered(rows, lease);
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
        }
    }
}
