//! The size of a process, looked at again and again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::usage;

/// Looks at a process until it is dropped.
pub struct Watch {
    sizes: Arc<Mutex<Vec<u64>>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// From now on, each so often.
    pub fn start(pid: u32, each: Duration) -> Self {
        let sizes: Arc<Mutex<Vec<u64>>> = Arc::default();
        let kept = sizes.clone();
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(each);
            loop {
                tick.tick().await;
                let Some(size) = usage::rss(pid) else { return };
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(size);
            }
        });
        Self { sizes, task }
    }

    /// Largest resident size seen, bytes.
    pub fn max(&self) -> Option<u64> {
        self.all().into_iter().max()
    }

    /// All sizes seen, bytes, oldest first.
    pub fn all(&self) -> Vec<u64> {
        self.sizes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
