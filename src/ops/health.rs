//! Readiness: what keeps the bridge from its work, by part; and liveness: whether it moves on.
//!
//! Liveness means progress: the intake's loop goes round, and messages that wait do arrive. A bridge
//! without work is alive. One that waits for a broker or a disk is alive too, since a restart would
//! not mend those.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Shared by all parts; cloning shares it.
#[derive(Clone)]
pub struct Health {
    reasons: Arc<RwLock<BTreeMap<String, String>>>,
    started: Instant,
    /// Milliseconds after `started` of the last sign of progress.
    progress: Arc<AtomicU64>,
    /// Since when messages wait and none arrives, and what is known about it.
    stall: Arc<RwLock<Option<(Instant, String)>>>,
    /// What else `/readyz` tells, by part.
    facts: Arc<RwLock<BTreeMap<String, Value>>>,
    stuck_after: Duration,
}

/// Parts whose trouble a restart of the bridge would not mend.
const OUTSIDE: [&str; 2] = ["bus", "store"];

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
            stall: Arc::default(),
            facts: Arc::default(),
            stuck_after: Duration::from_secs(60),
        }
    }

    /// With another time after which standing still is death.
    #[must_use]
    pub fn stuck_after(self, stuck_after: Duration) -> Self {
        Self {
            stuck_after,
            ..self
        }
    }

    /// How often the intake should look whether it stands still.
    pub fn look_every(&self) -> Duration {
        (self.stuck_after / 4).min(Duration::from_secs(5))
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

    /// Messages wait and none arrives; the first call starts the clock.
    pub fn stalled(&self, what: &str) {
        let mut stall = self.stall.write().unwrap_or_else(PoisonError::into_inner);
        let since = stall
            .as_ref()
            .map_or_else(Instant::now, |(since, _)| *since);
        *stall = Some((since, what.to_owned()));
    }

    /// Messages arrive, or none waits.
    pub fn moving(&self) {
        *self.stall.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// For how long messages have waited without one arriving, and what is known about it.
    pub fn stall(&self) -> Option<(Duration, String)> {
        let stall = self.stall.read().unwrap_or_else(PoisonError::into_inner);
        stall
            .as_ref()
            .map(|(since, what)| (since.elapsed(), what.clone()))
    }

    /// Why the process should be restarted; `None`: it is alive.
    pub fn dead(&self) -> Option<String> {
        let reasons: Vec<String> = self.reasons().into_keys().collect();
        verdict(self.stuck_after, self.idle_for(), self.stall(), &reasons)
    }

    /// `/readyz` tells this of `part`, whether ready or not.
    pub fn tell(&self, part: &str, fact: Value) {
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        facts.insert(part.to_owned(), fact);
    }

    /// What was told.
    pub fn facts(&self) -> BTreeMap<String, Value> {
        self.facts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Time since the last sign of progress.
    pub fn idle_for(&self) -> Duration {
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(self.progress.load(Ordering::Relaxed)))
    }
}

/// Stuck is alive no more; waiting for a part that is named as down is alive.
fn verdict(
    stuck_after: Duration,
    idle_for: Duration,
    stall: Option<(Duration, String)>,
    reasons: &[String],
) -> Option<String> {
    let outside = reasons.iter().any(|part| OUTSIDE.contains(&part.as_str()));
    if idle_for >= stuck_after && reasons.is_empty() {
        return Some(format!("nothing moved for {} s", idle_for.as_secs()));
    }
    match stall {
        Some((lasted, what)) if lasted >= stuck_after && !outside => {
            Some(format!("{what}, for {} s", lasted.as_secs()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(60);

    fn dead(idle_s: u64, stall_s: Option<u64>, reasons: &[&str]) -> bool {
        let reasons: Vec<String> = reasons.iter().map(|&r| r.to_owned()).collect();
        let stall = stall_s.map(|s| (Duration::from_secs(s), "5 messages wait".to_owned()));
        verdict(BOUND, Duration::from_secs(idle_s), stall, &reasons).is_some()
    }

    #[test]
    fn standing_still_is_death_only_without_a_named_reason() {
        assert!(!dead(5, None, &[]));
        assert!(dead(61, None, &[]));
        assert!(!dead(3600, None, &["bus"]));
    }

    #[test]
    fn messages_that_wait_in_vain_are_death_unless_broker_or_store_are_down() {
        assert!(!dead(0, Some(30), &[]));
        assert!(dead(0, Some(61), &[]));
        assert!(dead(0, Some(61), &["intake"]));
        assert!(!dead(0, Some(61), &["store"]));
    }

    #[test]
    fn a_stall_is_measured_from_its_beginning_and_ends_with_the_first_arrival() {
        let health = Health::new().stuck_after(Duration::ZERO);
        health.progress();
        health.set("intake", "opened anew");
        assert!(health.dead().is_none());
        health.stalled("5 messages wait");
        health.stalled("6 messages wait");
        assert!(health.dead().is_some_and(|why| why.contains("6 messages")));
        health.moving();
        assert!(health.dead().is_none());
    }

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
