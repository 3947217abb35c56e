//! Envelopes of the bench's agents.

use bytes::Bytes;

use crate::cli::bench::speech::Way;
use crate::cli::bench::world::{OWN, World};
use crate::clock::UnixMs;
use crate::identity::{SigningKey, b64};
use crate::protocols::uam::address::Address;
use crate::protocols::uam::envelope::{self, Draft};
use crate::protocols::uam::time;

/// Agents a relay has, and we have.
pub const AGENTS: usize = 32;
/// Every agent of ours speaks with every agent of a relay: so many ordering keys a peer.
pub const PAIRS: usize = AGENTS * AGENTS;

/// Addresses of the agents of a domain.
pub fn agents(domain: &str) -> Result<Vec<Address>, String> {
    let agents = (0..AGENTS).map(|n| Address::parse(&format!("agent-{n}::{domain}")));
    agents.collect::<Result<_, _>>().map_err(|e| e.to_string())
}

/// Writes envelopes of one way; keys are derived once.
pub struct Writer {
    world: World,
    way: Way,
    ours: Vec<Address>,
    theirs: Vec<Vec<Address>>,
    keys: Vec<Vec<SigningKey>>,
    filler: String,
}

impl Writer {
    /// For one way.
    pub fn new(world: &World, way: Way) -> Result<Self, String> {
        let ours = agents(OWN)?;
        let theirs = (0..world.active)
            .map(|n| agents(&world.host(world.first + n)))
            .collect::<Result<Vec<_>, _>>()?;
        let keys = |list: &[Address]| list.iter().map(|a| world.key(a.as_str())).collect();
        let keys = match way {
            Way::Out => vec![keys(&ours)],
            Way::In => theirs.iter().map(|list| keys(list)).collect(),
        };
        let mut writer = Self {
            world: world.clone(),
            way,
            ours,
            theirs,
            keys,
            filler: String::new(),
        };
        let bare = writer.envelope(0, 0)?.len();
        writer.filler = super::super::filler(world.size.saturating_sub(bare) & !3);
        Ok(writer)
    }

    /// Message `index`, signed by its agent. The index can be read back from its id ([`index_of`]).
    pub fn envelope(&self, index: usize, now_ms: UnixMs) -> Result<Bytes, String> {
        let peer = self.world.peer_of(index) - self.world.first;
        let (ours, theirs) = pair(self.world.turn_of(index));
        let missing = || "an agent of the bench is missing".to_owned();
        let our = self.ours.get(ours).ok_or_else(missing)?;
        let their = self
            .theirs
            .get(peer)
            .and_then(|l| l.get(theirs))
            .ok_or_else(missing)?;
        let (from, to, key) = match self.way {
            Way::Out => (our, their, self.keys.first().and_then(|l| l.get(ours))),
            Way::In => (their, our, self.keys.get(peer).and_then(|l| l.get(theirs))),
        };
        let key = key.ok_or_else(missing)?;
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

/// Which agents, ours and theirs, a peer's message number `turn` is between: neighbours share none,
/// and [`PAIRS`] turns meet every pair once.
fn pair(turn: usize) -> (usize, usize) {
    let turn = turn % PAIRS;
    (turn % AGENTS, (turn + turn / AGENTS) % AGENTS)
}

/// The index in a message id: its last twelve hex digits.
pub fn index_of(message_id: &str) -> Option<usize> {
    let digits = message_id.get(message_id.len().checked_sub(12)?..)?;
    usize::from_str_radix(digits, 16).ok()
}

/// `message_id` of an envelope somewhere in this text.
pub fn message_id_in(text: &[u8]) -> Option<&str> {
    super::super::between(text, b"\"message_id\":\"", b'"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_has_the_size_asked_for_and_shows_its_index() {
        let world = World::new(7, 3, 1024, 0);
        for way in [Way::Out, Way::In] {
            let writer = Writer::new(&world, way).unwrap();
            let text = writer.envelope(70_001, 1_700_000_000_000).unwrap();
            assert!((1020..=1028).contains(&text.len()), "{}", text.len());
            assert_eq!(message_id_in(&text).and_then(index_of), Some(70_001));
        }
    }

    #[test]
    fn every_pair_of_agents_has_its_turn_before_one_has_a_second() {
        let met: std::collections::HashSet<_> = (0..PAIRS).map(pair).collect();
        assert_eq!(met.len(), PAIRS);
        assert_eq!(pair(PAIRS), pair(0));
    }

    #[test]
    fn messages_go_to_the_active_peers_only() {
        let world = World::new(7, 5, 600, 0).among(3, 2);
        let writer = Writer::new(&world, Way::Out).unwrap();
        for (index, host) in [
            (0, "peer-0003.test"),
            (1, "peer-0004.test"),
            (2, "peer-0003.test"),
        ] {
            let text = writer.envelope(index, 9).unwrap();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(text.contains(&format!("::{host}\"")), "{index}: {text}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_envelopes_and_another_seed_others() {
        let text = |seed| {
            Writer::new(&World::new(seed, 2, 600, 0), Way::Out)
                .unwrap()
                .envelope(5, 9)
                .unwrap()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
