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
//! **Pause.** An operator may pause a peer, for a time or until told otherwise. The clock of its
//! messages' schedules stands still meanwhile: past pauses are kept as intervals, and what counts of
//! a message's age is the rest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;

/// The longest pause believed, milliseconds: a `Retry-After` counts for an hour at most.
const MAX_PAUSE_MS: i64 = 3_605_000;
/// Past pauses kept; beyond it the two with the least time between them become one.
const MAX_PAUSES: usize = 64;
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
    /// The last failure in a sentence.
    pub last_detail: String,
    /// An operator's pause that was not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// Pauses that ended, (from, to), ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<(UnixMs, UnixMs)>,
}

/// An operator's pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When it began.
    pub since_ms: UnixMs,
    /// When it ends by itself.
    pub until_ms: Option<UnixMs>,
    /// The operator's words.
    pub reason: Option<String>,
}

/// What news did to the facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that matters.
    None,
    /// A failure was counted, or the failures of a peer that was not open are forgotten.
    Noted,
    /// The peer is open now.
    Opened,
    /// An outage is over.
    Recovered,
}

/// May we try now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An operator said no.
    Paused {
        /// When the pause ends by itself.
        until_ms: Option<UnixMs>,
    },
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

    /// The longest open time, milliseconds.
    pub fn longest_ms(&self) -> i64 {
        i64::try_from(self.max.as_millis()).unwrap_or(i64::MAX)
    }
}

impl Facts {
    /// The verdict at `now`.
    pub fn verdict(&self, policy: &Policy, now: UnixMs) -> Verdict {
        if let Some(pause) = &self.pause
            && pause.until_ms.is_none_or(|t| t > now)
        {
            return Verdict::Paused {
                until_ms: pause.until_ms,
            };
        }
        if self.throttled_at(now) {
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

    /// Whether the peer has asked for patience that is not over.
    pub fn throttled_at(&self, now: UnixMs) -> bool {
        // A time further ahead than any we set is left from before the clock went back.
        let latest = now.saturating_add(MAX_PAUSE_MS);
        self.paused_until_ms > now && self.paused_until_ms <= latest
    }

    /// A failure of the peer as a whole, of an attempt begun at `started`.
    pub fn failed(
        &mut self,
        policy: &Policy,
        started: UnixMs,
        now: UnixMs,
        code: &str,
        detail: &str,
    ) -> Change {
        if self.failures > 0 && started < self.last_failure_ms {
            return Change::None;
        }
        let before = self.tripped(policy);
        self.failures = self.failures.saturating_add(1);
        self.last_failure_ms = now;
        code.clone_into(&mut self.last_code);
        detail.clone_into(&mut self.last_detail);
        if self.tripped(policy) && !before {
            Change::Opened
        } else {
            Change::Noted
        }
    }

    /// A success.
    pub fn succeeded(&mut self, policy: &Policy, now: UnixMs) -> Change {
        let change = match self.failures {
            0 => Change::None,
            _ if self.tripped(policy) => Change::Recovered,
            _ => Change::Noted,
        };
        self.failures = 0;
        self.last_success_ms = now;
        change
    }

    /// Forgets failures and throttling; an operator's pause stays.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.paused_until_ms = 0;
    }

    /// An operator pauses the peer; an earlier pause ends with it.
    pub fn begin_pause(&mut self, pause: Pause) {
        self.end_pause(pause.since_ms);
        self.pause = Some(pause);
    }

    /// Ends the pause at `now`, or when its own time was over; false when there was none.
    pub fn end_pause(&mut self, now: UnixMs) -> bool {
        let Some(pause) = self.pause.take() else {
            return false;
        };
        let end = pause.until_ms.map_or(now, |t| t.min(now));
        if end > pause.since_ms {
            match self.pauses.last_mut() {
                Some(last) if last.1 >= pause.since_ms => last.1 = last.1.max(end),
                _ => self.pauses.push((pause.since_ms, end)),
            }
        }
        if self.pauses.len() > MAX_PAUSES {
            // The two that are nearest to each other become one.
            let pairs = self.pauses.array_windows().enumerate();
            let nearest = pairs.min_by_key(|(_, [one, next])| next.0.saturating_sub(one.1));
            if let Some((at, [(from, _), (_, to)])) = nearest {
                let both = (*from, *to);
                self.pauses.splice(at..at.saturating_add(2), [both]);
            }
        }
        true
    }

    /// How much of the time from `start` to `now` the peer was paused by an operator, milliseconds.
    pub fn paused_ms(&self, start: UnixMs, now: UnixMs) -> i64 {
        let running = self
            .pause
            .as_ref()
            .map(|p| (p.since_ms, p.until_ms.unwrap_or(now)));
        let both = self.pauses.iter().copied().chain(running);
        both.map(|(from, to)| to.min(now).saturating_sub(from.max(start)).max(0))
            .sum()
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
            facts.failed(&POLICY, 1_000, 1_500, "connect", "");
        }
        assert_eq!(facts.failures, 1);
        facts.failed(&POLICY, 1_500, 1_600, "connect", "");
        assert_eq!(facts.failures, 2);
    }

    #[test]
    fn three_failures_open_then_one_probe_then_longer() {
        let mut facts = Facts::default();
        for i in 0..3 {
            assert_eq!(facts.verdict(&POLICY, i * 10), Verdict::Closed);
            facts.failed(&POLICY, i * 10, i * 10 + 1, "connect", "");
        }
        assert_eq!(
            facts.verdict(&POLICY, 100),
            Verdict::Wait {
                until_ms: 21 + 5_000
            }
        );
        assert_eq!(facts.verdict(&POLICY, 21 + 5_000), Verdict::Probe);
        facts.failed(&POLICY, 6_000, 6_001, "connect", "");
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
        assert_eq!(facts.succeeded(&POLICY, 5), Change::Noted);
        let mut facts = Facts {
            failures: 3,
            ..Facts::default()
        };
        assert_eq!(facts.succeeded(&POLICY, 5), Change::Recovered);
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

    #[test]
    fn a_pause_holds_until_its_end_and_its_time_does_not_count() {
        let mut facts = Facts::default();
        let pause = |since_ms, until_ms| Pause {
            since_ms,
            until_ms,
            reason: None,
        };
        facts.begin_pause(pause(1_000, None));
        assert_eq!(
            facts.verdict(&POLICY, 5_000),
            Verdict::Paused { until_ms: None }
        );
        assert_eq!(facts.paused_ms(0, 5_000), 4_000);
        assert_eq!(facts.paused_ms(3_000, 5_000), 2_000);
        assert!(facts.end_pause(6_000));
        assert!(!facts.end_pause(6_000));
        assert_eq!(facts.verdict(&POLICY, 6_000), Verdict::Closed);
        assert_eq!(facts.paused_ms(0, 9_000), 5_000);
        facts.begin_pause(pause(10_000, Some(12_000)));
        assert_eq!(facts.verdict(&POLICY, 12_000), Verdict::Closed);
        assert_eq!(facts.paused_ms(0, 20_000), 7_000);
        assert!(facts.end_pause(20_000));
        assert_eq!(facts.pauses, [(1_000, 6_000), (10_000, 12_000)]);
    }

    #[test]
    fn many_pauses_take_bounded_room_and_never_less_time() {
        let mut facts = Facts::default();
        for n in 0..1_000 {
            facts.begin_pause(Pause {
                since_ms: n * 100,
                ..Pause::default()
            });
            facts.end_pause(n * 100 + 60);
        }
        assert!(facts.pauses.len() <= MAX_PAUSES);
        assert!(facts.paused_ms(0, 1_000_000) >= 60_000);
    }

    #[test]
    fn facts_outlive_a_restart_and_old_ones_are_read() {
        let mut facts = Facts::default();
        facts.begin_pause(Pause {
            since_ms: 5,
            until_ms: Some(9),
            reason: Some("maintenance".into()),
        });
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
        let old = r#"{"failures":2,"last_failure_ms":1,"last_success_ms":0,"paused_until_ms":0,"last_code":"x"}"#;
        assert_eq!(serde_json::from_str::<Facts>(old).unwrap().failures, 2);
    }
}
