//! Readiness: what keeps the bridge from its work, by part; and liveness: whether it moves on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Shared by all parts; cloning shares it.
#[derive(Clone)]
pub struct Health {
    reasons: Arc<RwLock<BTreeMap<String, String>>>,
    started: Instant,
    /// Milliseconds after `started` of the last sign of progress.
    progress: Arc<AtomicU64>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Ready, and just seen moving.
    pub fn new() -> Self {
        Self {
            reasons: Arc::default(),
            started: Instant::now(),
            progress: Arc::default(),
        }
    }

    /// `part` is not ready, for this reason.
    pub fn set(&self, part: &str, reason: &str) {
        let mut reasons = self.reasons.write().unwrap_or_else(PoisonError::into_inner);
        reasons.insert(part.to_owned(), reason.to_owned());
    }

    /// `part` is ready.
    pub fn clear(&self, part: &str) {
        self.reasons
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(part);
    }

    /// Why it is not ready; empty: it is.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        self.reasons
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The intake's loop went round.
    pub fn progress(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress.store(ms, Ordering::Relaxed);
    }

    /// Time since the last sign of progress.
    pub fn idle_for(&self) -> Duration {
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(self.progress.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_stands_until_its_part_clears_it() {
        let health = Health::new();
        health.set("store", "the disk is full");
        assert_eq!(
            health.reasons().get("store").map(String::as_str),
            Some("the disk is full")
        );
        health.clear("store");
        assert!(health.reasons().is_empty());
    }
}
