//! Peers of whom a word would matter.
//!
//! Verified traffic from a peer earns one early attempt when we are failing to reach it. Most peers are
//! well, so the question must cost next to nothing for each request that comes in: one atomic read
//! while no peer is failing, else a look into a small set. What was heard is taken out of the set, so a
//! peer that sends without end tells us once; its shard puts it back when another word would count.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::shard::LaneKey;

/// The set; cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Listening(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    size: AtomicUsize,
    peers: Mutex<HashSet<LaneKey>>,
}

impl Listening {
    /// A word from this peer would matter.
    pub fn note(&self, key: &LaneKey) {
        let mut peers = self.lock();
        peers.insert(key.clone());
        self.0.size.store(peers.len(), Ordering::Relaxed);
    }

    /// No longer.
    pub fn forget(&self, key: &LaneKey) {
        self.take(key);
    }

    /// Takes the peer out; true when it was in.
    pub fn take(&self, key: &LaneKey) -> bool {
        let mut peers = self.lock();
        let was_in = peers.remove(key);
        self.0.size.store(peers.len(), Ordering::Relaxed);
        was_in
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.size.load(Ordering::Relaxed) == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<LaneKey>> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PeerName;

    #[test]
    fn a_peer_that_sends_without_end_tells_us_once() {
        let (listening, key) = (
            Listening::default(),
            ("uam", PeerName::parse("beta.test").unwrap()),
        );
        assert!(listening.is_empty() && !listening.take(&key));
        listening.note(&key);
        assert!(!listening.is_empty());
        assert!(listening.take(&key));
        assert!(!listening.take(&key) && listening.is_empty());
    }
}
