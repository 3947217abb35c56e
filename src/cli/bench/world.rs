//! What all processes of a bench derive from its seed without talking: names, keys, envelopes.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::clock::UnixMs;
use crate::identity::{SigningKey, b64};
use crate::protocols::uam::address::Address;
use crate::protocols::uam::envelope::{self, Draft};
use crate::protocols::uam::time;

/// Domain of the bridge under test.
pub const OWN: &str = "bench.test";
/// Agents a relay has; so many ordering keys a peer.
pub const AGENTS: usize = 32;

/// A bench's world.
#[derive(Clone, Debug)]
pub struct World {
    seed: u64,
    /// How many relays there are besides ours.
    pub peers: usize,
    /// Bytes of an envelope, as far as its other fields leave room.
    size: usize,
}

/// Whose envelopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From our agents to those of the peers.
    Out,
    /// From the peers' agents to ours.
    In,
}

impl World {
    /// A world of `peers` relays (at least one) whose envelopes have `size` bytes.
    pub fn new(seed: u64, peers: usize, size: usize) -> Self {
        Self {
            seed,
            peers: peers.max(1),
            size,
        }
    }

    /// Domain of a relay.
    pub fn peer(&self, n: usize) -> String {
        format!("peer-{:04}.test", n % self.peers)
    }

    /// Which relay message `index` is exchanged with.
    pub fn peer_of(&self, index: usize) -> usize {
        index % self.peers
    }

    /// The key of a relay (a domain) or an agent (an address).
    pub fn key(&self, name: &str) -> SigningKey {
        SigningKey::from_seed(self.secret(name))
    }

    /// The seed of that key.
    pub fn secret(&self, name: &str) -> [u8; 32] {
        self.hash(&[b"key", name.as_bytes()])
    }

    fn hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"drawbridge bench");
        hash.update(self.seed.to_be_bytes());
        for part in parts {
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Addresses of the agents of a domain.
    pub fn agents(&self, domain: &str) -> Result<Vec<Address>, String> {
        let agents = (0..AGENTS).map(|n| Address::parse(&format!("agent-{n}::{domain}")));
        agents.collect::<Result<_, _>>().map_err(|e| e.to_string())
    }

    /// Makes envelopes of one way; keys are derived once.
    pub fn writer(&self, way: Way) -> Result<Writer, String> {
        let ours = self.agents(OWN)?;
        let theirs = (0..self.peers)
            .map(|n| self.agents(&self.peer(n)))
            .collect::<Result<Vec<_>, _>>()?;
        let keys = match way {
            Way::Out => vec![self.keys(&ours)],
            Way::In => theirs.iter().map(|list| self.keys(list)).collect(),
        };
        let mut writer = Writer {
            world: self.clone(),
            way,
            ours,
            theirs,
            keys,
            filler: String::new(),
        };
        let bare = writer.envelope(0, 0)?.len();
        writer.filler = "QmVuY2g"
            .chars()
            .cycle()
            .take(self.size.saturating_sub(bare) & !3)
            .collect();
        Ok(writer)
    }

    fn keys(&self, list: &[Address]) -> Vec<SigningKey> {
        list.iter().map(|a| self.key(a.as_str())).collect()
    }
}

/// Writes envelopes.
pub struct Writer {
    world: World,
    way: Way,
    ours: Vec<Address>,
    theirs: Vec<Vec<Address>>,
    keys: Vec<Vec<SigningKey>>,
    filler: String,
}

impl Writer {
    /// Message `index`, signed by its agent. The index can be read back from its id ([`index_of`]).
    pub fn envelope(&self, index: usize, now_ms: UnixMs) -> Result<Bytes, String> {
        let peer = self.world.peer_of(index);
        let agent = (index / self.world.peers) % AGENTS;
        let missing = || "an agent of the bench is missing".to_owned();
        let our = self.ours.get(agent).ok_or_else(missing)?;
        let their = self
            .theirs
            .get(peer)
            .and_then(|l| l.get(agent))
            .ok_or_else(missing)?;
        let (from, to, keys) = match self.way {
            Way::Out => (our, their, self.keys.first()),
            Way::In => (their, our, self.keys.get(peer)),
        };
        let key = keys.and_then(|l| l.get(agent)).ok_or_else(missing)?;
        let hash = self.world.hash(&[b"message", &index.to_be_bytes()]);
        let (mut nonce, mut random) = ([0u8; 24], [0u8; 10]);
        nonce.copy_from_slice(&hash[..24]);
        random[..4].copy_from_slice(&hash[24..28]);
        random[4..].copy_from_slice(&index.to_be_bytes()[2..]);
        let payload = format!("{}{}", b64::encode(&hash[28..31]), self.filler);
        let draft = Draft {
            from,
            to,
            kind: "message",
            payload: &payload,
            message_id: &envelope::message_id(now_ms, &random),
            timestamp: &time::format_ms(now_ms),
            nonce: &nonce,
            thread_id: None,
            reply_to: None,
            expires: None,
            media_type: None,
        };
        Ok(envelope::build(&draft, key).into())
    }
}

/// The index in a message id: its last twelve hex digits.
pub fn index_of(message_id: &str) -> Option<usize> {
    let digits = message_id.get(message_id.len().checked_sub(12)?..)?;
    usize::from_str_radix(digits, 16).ok()
}

/// `message_id` of an envelope somewhere in this text, without reading it as JSON: for the process
/// that only counts arrivals. Our texts are compact.
pub fn message_id_in(text: &[u8]) -> Option<&str> {
    const FIELD: &[u8] = b"\"message_id\":\"";
    let at = text.windows(FIELD.len()).position(|w| w == FIELD)? + FIELD.len();
    std::str::from_utf8(text.get(at..at + 36)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_has_the_size_asked_for_and_shows_its_index() {
        let world = World::new(7, 3, 1024);
        for way in [Way::Out, Way::In] {
            let writer = world.writer(way).unwrap();
            let text = writer.envelope(70_001, 1_700_000_000_000).unwrap();
            assert!((1020..=1028).contains(&text.len()), "{}", text.len());
            assert_eq!(message_id_in(&text).and_then(index_of), Some(70_001));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_envelopes_and_another_seed_others() {
        let text = |seed| {
            World::new(seed, 2, 600)
                .writer(Way::Out)
                .unwrap()
                .envelope(5, 9)
                .unwrap()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
