//! Wall-clock time as a value that can be injected, so that every decision about time is testable
//! without touching the machine's clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMs = i64;

/// A source of wall-clock time. Cloning shares the source.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    fixed: Option<Arc<AtomicI64>>,
    /// Milliseconds by which it is ahead of the machine's; for rehearsing jumps.
    ahead: Option<Arc<AtomicI64>>,
    guard: Arc<Mutex<JumpGuard>>,
}

/// Wall and monotonic clock further apart than this, since they were last compared: a jump.
const JUMP_MS: i64 = 5_000;
/// How long after a jump the wall clock is not trusted to say that something is old.
const SETTLE: Duration = Duration::from_secs(15);
/// How often the comparison starts anew, so that slow drift and slewing never add up to a jump.
const REBASE: Duration = Duration::from_secs(60);

/// Tells jumps of the wall clock (set by hand, a machine that slept, a restored snapshot) by the
/// monotonic clock. While it is unsteady nothing may expire or be pruned.
#[derive(Clone, Copy, Debug, Default)]
pub struct JumpGuard {
    /// Wall and monotonic time of the last comparison's start.
    base: Option<(UnixMs, Instant)>,
    unsteady_until: Option<Instant>,
}

impl JumpGuard {
    /// Compares both clocks; false while a jump has not settled.
    pub fn steady(&mut self, wall: UnixMs, mono: Instant) -> bool {
        match self.base {
            None => self.base = Some((wall, mono)),
            Some((then, at)) => {
                let elapsed = mono.saturating_duration_since(at);
                let due = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
                let apart = wall.saturating_sub(then).saturating_sub(due);
                if apart.saturating_abs() > JUMP_MS {
                    self.base = Some((wall, mono));
                    self.unsteady_until = Some(mono + SETTLE);
                } else if elapsed > REBASE {
                    self.base = Some((wall, mono));
                }
            }
        }
        if self.unsteady_until.is_some_and(|t| mono >= t) {
            self.unsteady_until = None;
        }
        self.unsteady_until.is_none()
    }
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still at `now` until [`Clock::set`] moves it.
    pub fn fixed(now: UnixMs) -> Self {
        Self {
            fixed: Some(Arc::new(AtomicI64::new(now))),
            ahead: None,
            guard: Arc::default(),
        }
    }

    /// The machine's clock until [`Clock::shift`] makes it jump: for rehearsals.
    pub fn shifted() -> Self {
        Self {
            fixed: None,
            ahead: Some(Arc::default()),
            guard: Arc::default(),
        }
    }

    /// Now, in milliseconds since the epoch; a machine clock before 1970 reads as 0.
    pub fn now_ms(&self) -> UnixMs {
        match &self.fixed {
            Some(at) => at.load(Ordering::Relaxed),
            None => {
                let ahead = self
                    .ahead
                    .as_ref()
                    .map_or(0, |ms| ms.load(Ordering::Relaxed));
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
                    .saturating_add(ahead)
            }
        }
    }

    /// False for some seconds after the machine's clock jumped: what looks old may not be, so
    /// nothing expires or is pruned. Ask *after* reading the time to be judged. A fixed clock is
    /// always steady.
    pub fn steady(&self) -> bool {
        if self.fixed.is_some() {
            return true;
        }
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard.steady(self.now_ms(), Instant::now())
    }

    /// Makes a clock of [`Clock::shifted`] jump by that many milliseconds; any other is left alone.
    pub fn shift(&self, by_ms: i64) {
        if let Some(ahead) = &self.ahead {
            ahead.fetch_add(by_ms, Ordering::Relaxed);
        }
    }

    /// Moves a fixed clock; a system clock is left alone.
    pub fn set(&self, now: UnixMs) {
        if let Some(at) = &self.fixed {
            at.store(now, Ordering::Relaxed);
        }
    }
}

/// A random share from 0 to 1, to spread what would happen at one time.
pub(crate) fn random_share() -> f64 {
    let mut bytes = [0u8; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_either_way_is_unsteady_until_it_has_settled() {
        for jump in [3_600_000, -3_600_000] {
            let (mut guard, start) = (JumpGuard::default(), Instant::now());
            let at = |s: u64| start + Duration::from_secs(s);
            assert!(guard.steady(0, start));
            assert!(guard.steady(10_000, at(10)));
            assert!(!guard.steady(20_000 + jump, at(20)));
            assert!(!guard.steady(30_000 + jump, at(30)));
            assert!(guard.steady(35_000 + jump, at(35)));
        }
    }

    #[test]
    fn a_second_jump_starts_the_wait_anew() {
        let (mut guard, start) = (JumpGuard::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        assert!(guard.steady(0, start));
        assert!(!guard.steady(60_000, at(1)));
        assert!(!guard.steady(10_000, at(10)));
        assert!(!guard.steady(24_000, at(24)));
        assert!(guard.steady(25_000, at(25)));
    }

    #[test]
    fn slow_drift_is_no_jump() {
        let (mut guard, start) = (JumpGuard::default(), Instant::now());
        for minute in 0..600_i64 {
            let mono = start + Duration::from_secs(61 * u64::try_from(minute).unwrap());
            assert!(guard.steady(minute * 61_500, mono));
        }
    }
}
