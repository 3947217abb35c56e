//! Whether the way to JetStream is open, shared by the door and its tasks.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::ops::health::Health;

/// The door's name among the parts that readiness speaks of.
const PART: &str = "inbound";

/// Cloning shares it.
#[derive(Clone, Default)]
pub struct State(Arc<Inner>);

#[derive(Default)]
struct Inner {
    down: AtomicBool,
    reason: Mutex<String>,
    repair: Notify,
    /// Several instances: the history of the streams that the last repair found in force.
    series: AtomicI64,
    health: OnceLock<Health>,
}

impl State {
    /// Whether new events are turned away because the bus does not take them.
    pub fn down(&self) -> bool {
        self.0.down.load(Ordering::Acquire)
    }

    /// Shuts, or says a better reason why it is shut.
    pub fn shut(&self, reason: &str) {
        reason.clone_into(&mut self.0.reason.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.down.store(true, Ordering::Release);
        if let Some(health) = self.0.health.get() {
            health.set(PART, reason);
        }
    }

    /// Opens.
    pub fn open(&self) {
        self.0.down.store(false, Ordering::Release);
        if let Some(health) = self.0.health.get() {
            health.clear(PART);
        }
    }

    /// Tells readiness from now on; the first call counts.
    pub fn report_to(&self, health: Health) {
        let health = self.0.health.get_or_init(|| health);
        if self.down() {
            let reason = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
            health.set(PART, &reason);
        }
    }

    /// Wakes the publisher to compare ledger and streams.
    pub fn ask_for_repair(&self) {
        self.0.repair.notify_one();
    }

    /// The repair that begins knows of this history.
    pub fn set_series(&self, series: i64) {
        self.0.series.store(series, Ordering::Release);
    }

    /// A later history than the one we know: another instance mended the streams.
    pub fn note_series(&self, series: i64) {
        if series > self.0.series.load(Ordering::Acquire) {
            self.ask_for_repair();
        }
    }

    /// Resolves when somebody asked.
    pub async fn repair_asked(&self) {
        self.0.repair.notified().await;
    }
}
