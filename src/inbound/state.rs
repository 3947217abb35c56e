//! Whether the way to JetStream is open, shared by the door and its tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Cloning shares it.
#[derive(Clone, Default)]
pub struct State(Arc<Inner>);

#[derive(Default)]
struct Inner {
    down: AtomicBool,
    repair: Notify,
}

impl State {
    /// Whether new events are turned away because the bus does not take them.
    pub fn down(&self) -> bool {
        self.0.down.load(Ordering::Acquire)
    }

    /// Opens or shuts.
    pub fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::Release);
    }

    /// Wakes the publisher to look for rows nobody acknowledged.
    pub fn ask_for_repair(&self) {
        self.0.repair.notify_one();
    }

    /// Resolves when somebody asked.
    pub async fn repair_asked(&self) {
        self.0.repair.notified().await;
    }
}
