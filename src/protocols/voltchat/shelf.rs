//! The peers as memory has them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::UnixMs;
use crate::protocol::PeerName;

use super::record::{Peer, Status};

/// Within this time a peer's last contact is not moved on.
const SEEN_GRAIN_MS: i64 = 1_000;

/// By host and by our id, with the number of strangers that wait.
#[derive(Default)]
pub(super) struct Shelf {
    by_host: HashMap<PeerName, Arc<Peer>>,
    by_id: HashMap<String, PeerName>,
    pending: usize,
    /// Strangers about to wait.
    entering: usize,
}

impl Shelf {
    /// One by its host.
    pub fn get(&self, host: &PeerName) -> Option<Arc<Peer>> {
        self.by_host.get(host).cloned()
    }

    /// One by our id for it.
    pub fn by_id(&self, id: &str) -> Option<Arc<Peer>> {
        self.get(self.by_id.get(id)?)
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_host.values()
    }

    /// Puts one in its place.
    pub fn put(&mut self, peer: Arc<Peer>) {
        self.remove(&peer.host);
        self.pending += usize::from(peer.status == Status::Pending);
        self.by_id.insert(peer.id.clone(), peer.host.clone());
        self.by_host.insert(peer.host.clone(), peer);
    }

    /// Puts a written record in its place; contacts that came meanwhile are kept.
    pub fn renew(&mut self, mut next: Peer) -> Arc<Peer> {
        if let Some(now) = self.by_host.get(&next.host)
            && now.id == next.id
        {
            next.last_seen_ms = next.last_seen_ms.max(now.last_seen_ms);
            next.last_synced_ms = next.last_synced_ms.max(now.last_synced_ms);
        }
        let next = Arc::new(next);
        self.put(Arc::clone(&next));
        next
    }

    /// Takes one away.
    pub fn remove(&mut self, host: &PeerName) {
        if let Some(old) = self.by_host.remove(host) {
            self.by_id.remove(&old.id);
            self.pending -= usize::from(old.status == Status::Pending);
        }
    }

    /// Moves the times of just this record on, once that is worth writing down; false: nothing moved.
    pub fn touch(&mut self, peer: &Peer, seen_ms: UnixMs, synced_ms: Option<UnixMs>) -> bool {
        let known = self.by_host.get_mut(&peer.host);
        let Some(known) = known.filter(|known| known.id == peer.id) else {
            return false;
        };
        let seen = latest(known.last_seen_ms, seen_ms);
        let synced = match synced_ms {
            Some(now_ms) => latest(known.last_synced_ms, now_ms),
            None => known.last_synced_ms,
        };
        if (seen, synced) == (known.last_seen_ms, known.last_synced_ms) {
            return false;
        }
        *known = Arc::new(Peer {
            last_seen_ms: seen,
            last_synced_ms: synced,
            ..Peer::clone(known)
        });
        true
    }

    /// Takes a place for one more stranger; false: too many wait.
    pub fn enter(&mut self, most: usize) -> bool {
        let room = self.pending + self.entering < most;
        self.entering += usize::from(room);
        room
    }

    /// Gives such a place back: the stranger waits by now, or went.
    pub fn leave(&mut self) {
        self.entering = self.entering.saturating_sub(1);
    }
}

/// The later of the two, once it is worth writing down.
fn latest(known: Option<UnixMs>, now_ms: UnixMs) -> Option<UnixMs> {
    match known {
        Some(known) if now_ms < known.saturating_add(SEEN_GRAIN_MS) => Some(known),
        _ => Some(now_ms),
    }
}
