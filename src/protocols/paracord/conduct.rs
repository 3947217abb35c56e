//! Runs of bad events in proven requests, and the quarantine that follows.
//!
//! A server whose request held answers for what is in it. One bad event may be a mistake; so many
//! within a time put the server under quarantine for a while: its events are held back for an operator
//! to look at, and nothing else is taken from it. A server under an allow rule is never touched.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::refused::Refused;
use super::{ID, Paracord};
use crate::clock::UnixMs;
use crate::config::ParacordConfig;
use crate::protocol::PeerName;
use crate::trust::lru::Lru;
use crate::trust::{Rule, Standing};

/// Servers remembered at most; the one whose last fault is the oldest is forgotten first.
const MAX_SERVERS: usize = 4_096;

/// When a run is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// Faults; 0: never.
    after: usize,
    within_ms: i64,
}

/// The faults of one server that count still.
#[derive(Debug, Default)]
struct Run(VecDeque<UnixMs>);

impl Run {
    /// Counts a fault; true when it makes the run full, which starts a new one.
    fn note(&mut self, limits: Limits, now: UnixMs) -> bool {
        // A clock set back makes an old fault look like one to come: it counts as one of now.
        let over = |at: &UnixMs| now.saturating_sub(*at) > limits.within_ms;
        while self.0.front().is_some_and(over) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        let full = self.0.len() >= limits.after;
        if full {
            self.0.clear();
        }
        full
    }
}

/// What each server did wrong lately.
pub struct Conduct {
    limits: Limits,
    lasting: Duration,
    runs: Mutex<Lru<PeerName, Run>>,
}

impl Conduct {
    /// By the configuration; nobody did anything yet.
    pub fn new(config: &ParacordConfig) -> Self {
        Self {
            limits: Limits {
                after: usize::try_from(config.quarantine_after).unwrap_or(usize::MAX),
                within_ms: millis(config.quarantine_within),
            },
            lasting: config.quarantine_for,
            runs: Mutex::new(Lru::new(MAX_SERVERS)),
        }
    }

    /// Counts a fault of a server; true when it is one too many.
    fn note(&self, peer: &PeerName, now: UnixMs) -> bool {
        if self.limits.after == 0 {
            return false;
        }
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run = runs.get_or_insert_with(peer.clone(), Run::default);
        run.is_some_and(|run| run.note(self.limits, now))
    }
}

/// A proven request of this server brought an event that had to be refused.
pub async fn offended(p: &Paracord, peer: &PeerName, why: &Refused) {
    let now = p.clock.now_ms();
    let ordinary = p.trust.standing(ID, peer.as_str()) == Standing::Ordinary;
    if !ordinary || !p.conduct.note(peer, now) {
        return;
    }
    let ends_ms = now.saturating_add(millis(p.conduct.lasting));
    let reason = format!(
        "{} bad events within {} s; the last one: {}",
        p.conduct.limits.after,
        p.conduct.limits.within_ms / 1000,
        why.detail,
    );
    let added = p.trust.add_until(
        ID,
        Rule::Quarantine,
        peer.as_str(),
        Some(&reason),
        Some(ends_ms),
    );
    if let Err(error) = added.await {
        tracing::error!(%peer, %error, "a server that sends bad events could not be put under quarantine");
        return;
    }
    tracing::warn!(%peer, reason, "a server is under quarantine");
    let body = json!({
        "peer": peer.as_str(),
        "list": Rule::Quarantine.as_str(),
        "domain": peer.as_str(),
        "reason": reason,
        "code": why.code,
        "ends_ms": ends_ms,
    });
    p.ops.event("trust", "quarantined", ID, peer.as_str(), body);
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        after: 3,
        within_ms: 1_000,
    };

    fn noted(times: &[UnixMs]) -> Vec<bool> {
        let mut run = Run::default();
        times.iter().map(|at| run.note(LIMITS, *at)).collect()
    }

    #[test]
    fn so_many_within_the_time_are_a_run_and_the_next_begins_anew() {
        assert_eq!(
            noted(&[0, 500, 1_000, 1_001, 1_002, 1_003]),
            [false, false, true, false, false, true]
        );
    }

    #[test]
    fn faults_far_apart_are_no_run() {
        assert_eq!(noted(&[0, 900, 1_001, 1_900]), [false, false, false, true]);
        assert_eq!(noted(&[0, 1_001, 2_002, 3_003]), [false; 4]);
    }

    #[test]
    fn extreme_times_are_counted_without_overflow() {
        assert_eq!(
            noted(&[i64::MIN, i64::MAX, i64::MIN]),
            [false, false, false]
        );
        assert_eq!(noted(&[i64::MAX; 3]), [false, false, true]);
    }

    fn conduct(after: u32) -> Conduct {
        Conduct {
            limits: Limits {
                after: after as usize,
                ..LIMITS
            },
            lasting: Duration::from_secs(1),
            runs: Mutex::new(Lru::new(2)),
        }
    }

    fn peer(name: &str) -> PeerName {
        PeerName::parse(name).unwrap()
    }

    #[test]
    fn zero_means_never_and_servers_do_not_share_a_run() {
        let never = conduct(0);
        assert!((0..100).all(|at| !never.note(&peer("a.example"), at)));
        let two = conduct(2);
        assert!(!two.note(&peer("a.example"), 0));
        assert!(!two.note(&peer("b.example"), 0));
        assert!(two.note(&peer("a.example"), 1));
    }

    #[test]
    fn the_number_of_servers_remembered_is_bounded() {
        let two = conduct(2);
        for n in 0..10 {
            assert!(!two.note(&peer(&format!("s{n}.example")), 0));
        }
        assert_eq!(two.runs.lock().unwrap().len(), 2);
    }
}
