//! Wall-clock time as a value that can be injected, so that every decision about time is testable
//! without touching the machine's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMs = i64;

/// A source of wall-clock time. Cloning shares the source.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    fixed: Option<Arc<AtomicI64>>,
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
        }
    }

    /// Now, in milliseconds since the epoch; a machine clock before 1970 reads as 0.
    pub fn now_ms(&self) -> UnixMs {
        match &self.fixed {
            Some(at) => at.load(Ordering::Relaxed),
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
        }
    }

    /// Moves a fixed clock; a system clock is left alone.
    pub fn set(&self, now: UnixMs) {
        if let Some(at) = &self.fixed {
            at.store(now, Ordering::Relaxed);
        }
    }
}
