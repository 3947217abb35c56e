//! When a row is tried again, and when it is given up: pure arithmetic over times.
//!
//! A schedule is a list of delays; after the attempt that follows the last delay the row is dead.
//! It also ends at a time, the first failure plus the sum of the delays, whatever attempts a breaker
//! skipped. Jitter only ever adds. A peer that asks for patience moves the next attempt and uses up
//! none, but never past the schedule's end and never by more than [`MAX_PATIENCE`].

use std::time::Duration;

use crate::clock::UnixMs;
use crate::protocol::Schedule;

/// The longest a `Retry-After` moves an attempt.
pub const MAX_PATIENCE: Duration = Duration::from_secs(3600);

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not before this time.
    At(UnixMs),
    /// Never.
    GiveUp,
}

/// A duration in whole milliseconds.
pub fn ms(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

/// When the schedule of a row whose clock started at `start` ends.
pub fn ends_at(schedule: &Schedule, start: UnixMs) -> UnixMs {
    schedule
        .delays
        .iter()
        .fold(start, |t, d| t.saturating_add(ms(*d)))
}

/// What follows the failure, at `now`, of attempt number `attempt` (1 for the first) of a row whose
/// first failure was at `first_failed`. `jitter` is the share of the delay to add, 0 and up.
pub fn after_failure(
    schedule: &Schedule,
    attempt: u32,
    first_failed: UnixMs,
    now: UnixMs,
    jitter: f64,
) -> Next {
    let index = usize::try_from(attempt.max(1)).unwrap_or(usize::MAX) - 1;
    let Some(delay) = schedule.delays.get(index) else {
        return Next::GiveUp;
    };
    // The end counts only what was due: jitter of earlier delays must not cost the last attempt.
    let late = ends_at(schedule, first_failed);
    if now > late && index + 1 < schedule.delays.len() {
        return Next::GiveUp;
    }
    Next::At(now.saturating_add(ms(delay.mul_f64(1.0 + jitter.clamp(0.0, 1.0)))))
}

/// The peer asked for `patience` at `now`: when to try again, or that the row's lifetime is over.
pub fn after_patience(
    schedule: &Schedule,
    first_failed: UnixMs,
    now: UnixMs,
    patience: Duration,
) -> Next {
    let end = ends_at(schedule, first_failed);
    if now >= end && !schedule.delays.is_empty() {
        return Next::GiveUp;
    }
    let at = now.saturating_add(ms(patience.min(MAX_PATIENCE)));
    Next::At(if schedule.delays.is_empty() {
        at
    } else {
        at.min(end.max(now.saturating_add(1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uam() -> Schedule {
        Schedule {
            delays: [30, 300, 1_800, 7_200].map(Duration::from_secs).to_vec(),
        }
    }

    #[test]
    fn five_attempts_at_the_documents_times_then_never() {
        let (s, mut now, mut times) = (uam(), 0, vec![0]);
        for attempt in 1.. {
            match after_failure(&s, attempt, 0, now, 0.0) {
                Next::At(t) => {
                    now = t;
                    times.push(t / 1000);
                }
                Next::GiveUp => break,
            }
        }
        assert_eq!(times, [0, 30, 330, 2_130, 9_330]);
    }

    #[test]
    fn jitter_never_makes_an_attempt_earlier_nor_costs_the_last_one() {
        let (s, mut now, mut attempts) = (uam(), 0, 1);
        while let Next::At(t) = after_failure(&s, attempts, 0, now, 0.1) {
            assert!(t - now >= ms(s.delays[attempts as usize - 1]));
            now = t;
            attempts += 1;
        }
        assert_eq!(attempts, 5);
    }

    #[test]
    fn attempts_that_a_breaker_skipped_do_not_stretch_the_schedule() {
        assert_eq!(after_failure(&uam(), 2, 0, 9_331_000, 0.0), Next::GiveUp);
    }

    #[test]
    fn patience_is_bounded_by_an_hour_and_by_the_end() {
        let s = uam();
        let day = Duration::from_secs(86_400);
        assert_eq!(after_patience(&s, 0, 0, day), Next::At(3_600_000));
        assert_eq!(after_patience(&s, 0, 9_000_000, day), Next::At(9_330_000));
        assert_eq!(after_patience(&s, 0, 9_330_000, day), Next::GiveUp);
    }
}
