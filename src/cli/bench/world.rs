//! What all processes of a bench derive from its seed without talking: names and keys.

use sha2::{Digest, Sha256};

use crate::identity::SigningKey;

/// Domain of the bridge under test.
pub const OWN: &str = "bench.test";

/// A bench's world.
#[derive(Clone, Debug)]
pub struct World {
    seed: u64,
    /// How many peers there are.
    pub peers: usize,
    /// Messages are exchanged with so many of them ...
    pub active: usize,
    /// ... from this one on.
    pub first: usize,
    /// Bytes of a message, as far as its other fields leave room.
    pub size: usize,
    /// Where every peer listens; 0: not known yet, or nowhere.
    pub port: u16,
}

impl World {
    /// A world of `peers` peers (at least one) whose messages have `size` bytes.
    pub fn new(seed: u64, peers: usize, size: usize, port: u16) -> Self {
        let peers = peers.max(1);
        Self {
            seed,
            peers,
            active: peers,
            first: 0,
            size,
            port,
        }
    }

    /// The same, with messages for `active` peers from `first` on only.
    pub fn among(self, first: usize, active: usize) -> Self {
        Self {
            first,
            active: active.max(1),
            ..self
        }
    }

    /// Host of a peer.
    pub fn host(&self, n: usize) -> String {
        Self::host_of(n % self.peers)
    }

    /// Host of a peer below their number.
    pub fn host_of(n: usize) -> String {
        format!("peer-{n:04}.test")
    }

    /// The number in a peer's host, with or without a port behind it.
    pub fn number(&self, host: &str) -> Option<usize> {
        let digits = host.strip_prefix("peer-")?.split_once('.')?.0;
        digits.parse().ok().filter(|n| *n < self.peers)
    }

    /// Which peer message `index` is exchanged with.
    pub fn peer_of(&self, index: usize) -> usize {
        self.first + index % self.active
    }

    /// How often that peer's turn has come before.
    pub fn turn_of(&self, index: usize) -> usize {
        index / self.active
    }

    /// The key of this name.
    pub fn key(&self, name: &str) -> SigningKey {
        SigningKey::from_seed(self.secret(name))
    }

    /// The seed of that key.
    pub fn secret(&self, name: &str) -> [u8; 32] {
        self.hash(&[b"key", name.as_bytes()])
    }

    /// Bytes that follow from the seed and these parts.
    pub fn hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"drawbridge bench");
        hash.update(self.seed.to_be_bytes());
        for part in parts {
            hash.update(part);
        }
        hash.finalize().into()
    }
}
