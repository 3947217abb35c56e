//! The ledger: commits and how large they are.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::METRICS;
use super::labels::{Registry, added};

pub(super) struct Store {
    batch_rows: Histogram,
    commit_seconds: Histogram,
}

impl Store {
    pub fn new(r: &mut Registry) -> Self {
        Self {
            batch_rows: added(
                r,
                "store_batch_rows",
                "Rows written by one commit",
                Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            ),
            commit_seconds: added(
                r,
                "store_commit_seconds",
                "Time of one commit, fsync included",
                Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            ),
        }
    }
}

/// The store committed `rows` rows in `seconds`.
pub fn store_commit(rows: usize, seconds: f64) {
    let mine = &METRICS.store;
    mine.batch_rows
        .observe(u32::try_from(rows).map_or(f64::MAX, f64::from));
    mine.commit_seconds.observe(seconds);
}
