//! Peers of whom something holds that few peers are in, and that every request asks about.
//!
//! - *PeerSet*: verified traffic from a peer earns one early attempt when we are failing to reach it.
//!   What was heard is taken out of the set, so a peer that sends without end tells us once; its shard
//!   puts it back when another word would count.
//! - *Paused*: an operator wants nothing to go out, so what a peer fetches does not either.
//! - *Late*: the outcome of a new message would be long in coming: the peer takes its time, fails, or
//!   is behind.
//!
//! Asking costs one atomic read while the set is empty, else a look into it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::shard::LaneKey;

/// The set; cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct PeerSet(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    size: AtomicUsize,
    peers: Mutex<HashSet<LaneKey>>,
}

impl PeerSet {
    /// It holds of this peer.
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

    /// Whether it holds of this peer.
    pub fn has(&self, key: &LaneKey) -> bool {
        !self.is_empty() && self.lock().contains(key)
    }

    /// Whether it holds of none.
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
            PeerSet::default(),
            ("uam", PeerName::parse("beta.test").unwrap()),
        );
        assert!(listening.is_empty() && !listening.take(&key));
        listening.note(&key);
        assert!(!listening.is_empty());
        assert!(listening.take(&key));
        assert!(!listening.take(&key) && listening.is_empty());
    }
}
