//! The servers as memory has them, and whom each name and domain belongs to.

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::UnixMs;
use crate::protocol::PeerName;

use super::record::Peer;

/// Within this time a moment noted of a server is not moved on.
const GRAIN_MS: i64 = 1_000;

/// By name, and the trusted ones by name and domain, lower case.
#[derive(Default)]
pub(super) struct Shelf {
    by_name: HashMap<PeerName, Arc<Peer>>,
    claims: HashMap<String, PeerName>,
}

/// A moment of a server that is noted in memory and written down later.
#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    /// It proved itself.
    Seen,
    /// It fetched our keys.
    FetchedOurs,
}

impl Shelf {
    /// One by its name.
    pub fn get(&self, name: &PeerName) -> Option<Arc<Peer>> {
        self.by_name.get(name).cloned()
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_name.values()
    }

    /// A trusted one by name or domain.
    pub fn of_server(&self, server: &str) -> Option<Arc<Peer>> {
        self.get(self.claims.get(&server.to_ascii_lowercase())?)
    }

    /// Gives a trusted server its name and domain; `Err`: the one of them that another has, and which.
    pub fn claim(&mut self, peer: &Peer) -> Result<(), (String, PeerName)> {
        if !peer.is_trusted() {
            return Ok(());
        }
        let claimed = claims(peer);
        for server in &claimed {
            if let Some(other) = self.claims.get(server).filter(|other| **other != peer.name) {
                return Err((server.clone(), other.clone()));
            }
        }
        for server in claimed {
            self.claims.insert(server, peer.name.clone());
        }
        Ok(())
    }

    /// Takes from a server what one of these records claimed and the one in place does not.
    pub fn settle(&mut self, name: &PeerName, over: [Option<&Peer>; 2]) {
        let kept = match self.by_name.get(name) {
            Some(peer) if peer.is_trusted() => claims(peer).to_vec(),
            _ => Vec::new(),
        };
        for server in over.into_iter().flatten().flat_map(claims) {
            if self.claims.get(&server) == Some(name) && !kept.contains(&server) {
                self.claims.remove(&server);
            }
        }
    }

    /// Puts a written record in its place; moments that came meanwhile are kept.
    pub fn renew(&mut self, mut next: Peer) -> Arc<Peer> {
        if let Some(now) = self.by_name.get(&next.name)
            && now.added_ms == next.added_ms
        {
            next.last_seen_ms = next.last_seen_ms.max(now.last_seen_ms);
            next.fetched_ours_ms = next.fetched_ours_ms.max(now.fetched_ours_ms);
        }
        let next = Arc::new(next);
        self.by_name.insert(next.name.clone(), Arc::clone(&next));
        next
    }

    /// Takes one away.
    pub fn remove(&mut self, name: &PeerName) {
        self.by_name.remove(name);
    }

    /// Notes a moment, once that is worth writing down; false: nothing moved.
    pub fn touch(&mut self, name: &PeerName, moment: Moment, now: UnixMs) -> bool {
        let Some(known) = self.by_name.get_mut(name) else {
            return false;
        };
        if !is_news(known, moment, now) {
            return false;
        }
        let mut next = Peer::clone(known);
        match moment {
            Moment::Seen => next.last_seen_ms = Some(now),
            Moment::FetchedOurs => next.fetched_ours_ms = Some(now),
        }
        *known = Arc::new(next);
        true
    }
}

/// Whether a moment is worth noting.
pub(super) fn is_news(peer: &Peer, moment: Moment, now: UnixMs) -> bool {
    let known = match moment {
        Moment::Seen => peer.last_seen_ms,
        Moment::FetchedOurs => peer.fetched_ours_ms,
    };
    known.is_none_or(|known| now >= known.saturating_add(GRAIN_MS))
}

fn claims(peer: &Peer) -> [String; 2] {
    [
        peer.name.as_str().to_ascii_lowercase(),
        peer.domain.to_ascii_lowercase(),
    ]
}
