//! Records written behind: a delivery marks, one task writes.
//!
//! Only names are queued, each once; what is written is the record as it is when its turn comes. So
//! a peer that changes often costs one write, and the queue cannot outgrow the registry.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use super::Inner;
use super::registry::Registry;
use crate::protocol::{PeerName, ProtocolId};
use crate::store::{Store, StoreErrorKind};

/// Names waiting to be written; further ones are left to their next change. The table is a cache of
/// what can be discovered again.
const MAX_WAITING: usize = 10_000;
/// After a failed write.
const PAUSE: Duration = Duration::from_secs(1);

type Key = (ProtocolId, PeerName);

pub(super) struct WriteBehind {
    store: Store,
    waiting: Mutex<HashSet<Key>>,
    news: Arc<Notify>,
    /// One writer at a time, so that `flush` also waits for what the task has in hand.
    writer: Semaphore,
}

/// How a round of writing ended.
#[derive(PartialEq, Eq)]
enum Round {
    Done,
    /// Try again after a pause.
    Failed,
    /// The store is closed.
    Over,
}

impl WriteBehind {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            waiting: Mutex::default(),
            news: Arc::default(),
            writer: Semaphore::new(1),
        }
    }

    /// This record changed.
    pub(super) fn mark(&self, protocol: ProtocolId, name: &PeerName) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_WAITING {
            waiting.insert((protocol, name.clone()));
            self.news.notify_one();
        }
    }

    /// Writes all that waits.
    pub(super) async fn flush(&self, registry: &Registry) {
        self.round(registry).await;
    }

    async fn round(&self, registry: &Registry) -> Round {
        let Ok(_turn) = self.writer.acquire().await else {
            return Round::Over;
        };
        while let Some((protocol, name)) = self.next() {
            let Some(record) = registry.peek(protocol, &name) else {
                continue;
            };
            let written = match self.store.put_peer((*record).clone()).await {
                Ok(commit) => commit.await,
                Err(error) => Err(error),
            };
            match written {
                Ok(()) => {}
                Err(error) if error.kind == StoreErrorKind::Closed => return Round::Over,
                Err(error) => {
                    tracing::warn!(peer = %name, %error, "peer record not written yet");
                    self.mark(protocol, &name);
                    return Round::Failed;
                }
            }
        }
        Round::Done
    }

    fn next(&self) -> Option<Key> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let key = waiting.iter().next().cloned()?;
        waiting.take(&key)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(behind) = &self.behind {
            behind.news.notify_one();
        }
    }
}

/// Starts the writing task; it ends with the registry or the store.
pub(super) fn spawn(inner: &Arc<Inner>) {
    let Some(behind) = &inner.behind else {
        return;
    };
    tokio::spawn(write(Arc::downgrade(inner), Arc::clone(&behind.news)));
}

async fn write(inner: Weak<Inner>, news: Arc<Notify>) {
    loop {
        news.notified().await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let Some(behind) = &inner.behind else {
            return;
        };
        match behind.round(&inner.registry).await {
            Round::Done => {}
            Round::Over => return,
            Round::Failed => tokio::time::sleep(PAUSE).await,
        }
    }
}
