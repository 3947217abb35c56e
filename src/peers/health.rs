//! A peer's health as a pure function of facts and the time.
//!
//! Failures are stored as facts; "may I try now?" is computed, never stored, so a restart, a paused
//! process or a moved clock cannot leave a timer behind.
//!
//! **Trip.** A failure counts only when its attempt *started* after the last counted failure, so
//! eight concurrent attempts that die together count once. From `threshold` counted failures on, the
//! peer is open.
//! **Recovery.** After a delay that doubles from `initial` to `max` one probe may go. Its success
//! closes; its failure opens for longer.
//! **Throttling.** A peer that asks for patience (429) is paused, which is no failure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;

/// The longest pause believed, milliseconds: a `Retry-After` counts for an hour at most.
const MAX_PAUSE_MS: i64 = 3_605_000;
/// A failure this far ahead of the clock shows that the clock went back, milliseconds.
const CLOCK_STEP_MS: i64 = 5_000;

/// When to open, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Counted failures that open.
    pub threshold: u32,
    /// First open time.
    pub initial: Duration,
    /// Longest open time.
    pub max: Duration,
}

/// What happened, with its time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Counted failures since the last success.
    pub failures: u32,
    /// When the last counted failure was seen.
    pub last_failure_ms: UnixMs,
    /// When the peer last took something; 0: never.
    pub last_success_ms: UnixMs,
    /// The peer asked for patience until then.
    pub paused_until_ms: UnixMs,
    /// The last failure's code.
    pub last_code: String,
}

/// May we try now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Closed,
    /// Not before this time.
    Wait {
        /// When to look again.
        until_ms: UnixMs,
    },
    /// One attempt, to find out.
    Probe,
}

impl Policy {
    fn open_for_ms(&self, failures: u32) -> i64 {
        let doublings = failures.saturating_sub(self.threshold).min(30);
        let ms = self.initial.as_millis().saturating_mul(1u128 << doublings);
        i64::try_from(ms.min(self.max.as_millis())).unwrap_or(i64::MAX)
    }
}

impl Facts {
    /// The verdict at `now`.
    pub fn verdict(&self, policy: &Policy, now: UnixMs) -> Verdict {
        // A time further ahead than any we set is left from before the clock went back.
        let pause_ends = now.saturating_add(MAX_PAUSE_MS);
        if self.paused_until_ms > now && self.paused_until_ms <= pause_ends {
            return Verdict::Wait {
                until_ms: self.paused_until_ms,
            };
        }
        if !self.tripped(policy) {
            return Verdict::Closed;
        }
        let until_ms = self
            .last_failure_ms
            .saturating_add(policy.open_for_ms(self.failures));
        if until_ms > now && self.last_failure_ms <= now.saturating_add(CLOCK_STEP_MS) {
            Verdict::Wait { until_ms }
        } else {
            Verdict::Probe
        }
    }

    /// Whether enough failures were counted to open.
    pub fn tripped(&self, policy: &Policy) -> bool {
        self.failures >= policy.threshold
    }

    /// A failure of the peer as a whole, of an attempt begun at `started`.
    pub fn failed(&mut self, started: UnixMs, now: UnixMs, code: &str) {
        if self.failures == 0 || started >= self.last_failure_ms {
            self.failures = self.failures.saturating_add(1);
            self.last_failure_ms = now;
            self.last_code = code.to_owned();
        }
    }

    /// A success; true when it ends an outage.
    pub fn succeeded(&mut self, policy: &Policy, now: UnixMs) -> bool {
        let recovered = self.tripped(policy);
        self.failures = 0;
        self.last_success_ms = now;
        recovered
    }

    /// The peer asked for patience.
    pub fn throttled(&mut self, until: UnixMs) {
        self.paused_until_ms = self.paused_until_ms.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        threshold: 3,
        initial: Duration::from_secs(5),
        max: Duration::from_secs(60),
    };

    #[test]
    fn concurrent_failures_count_once() {
        let mut facts = Facts::default();
        for _ in 0..8 {
            facts.failed(1_000, 1_500, "connect");
        }
        assert_eq!(facts.failures, 1);
        facts.failed(1_500, 1_600, "connect");
        assert_eq!(facts.failures, 2);
    }

    #[test]
    fn three_failures_open_then_one_probe_then_longer() {
        let mut facts = Facts::default();
        for i in 0..3 {
            assert_eq!(facts.verdict(&POLICY, i * 10), Verdict::Closed);
            facts.failed(i * 10, i * 10 + 1, "connect");
        }
        assert_eq!(
            facts.verdict(&POLICY, 100),
            Verdict::Wait {
                until_ms: 21 + 5_000
            }
        );
        assert_eq!(facts.verdict(&POLICY, 21 + 5_000), Verdict::Probe);
        facts.failed(6_000, 6_001, "connect");
        assert_eq!(
            facts.verdict(&POLICY, 6_002),
            Verdict::Wait {
                until_ms: 6_001 + 10_000
            }
        );
    }

    #[test]
    fn the_open_time_is_bounded() {
        let facts = Facts {
            failures: u32::MAX,
            last_failure_ms: 0,
            ..Facts::default()
        };
        assert_eq!(
            facts.verdict(&POLICY, 1),
            Verdict::Wait { until_ms: 60_000 }
        );
    }

    #[test]
    fn success_closes_and_says_whether_an_outage_ended() {
        let mut facts = Facts {
            failures: 2,
            ..Facts::default()
        };
        assert!(!facts.succeeded(&POLICY, 5));
        let mut facts = Facts {
            failures: 3,
            ..Facts::default()
        };
        assert!(facts.succeeded(&POLICY, 5));
        assert_eq!(facts.verdict(&POLICY, 6), Verdict::Closed);
    }

    #[test]
    fn a_clock_gone_back_does_not_shut_a_peer_off() {
        let facts = Facts {
            failures: 3,
            last_failure_ms: 86_400_000,
            ..Facts::default()
        };
        assert_eq!(facts.verdict(&POLICY, 1_000), Verdict::Probe);
        let mut facts = Facts::default();
        facts.throttled(86_400_000);
        assert_eq!(facts.verdict(&POLICY, 1_000), Verdict::Closed);
    }

    #[test]
    fn patience_is_no_failure() {
        let mut facts = Facts::default();
        facts.throttled(9_000);
        assert_eq!(facts.verdict(&POLICY, 1), Verdict::Wait { until_ms: 9_000 });
        assert_eq!(facts.verdict(&POLICY, 9_000), Verdict::Closed);
        assert_eq!(facts.failures, 0);
    }
}
