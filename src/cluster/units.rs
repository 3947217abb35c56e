//! Which unit a peer belongs to, and which messages are a unit's.
//!
//! A protocol whose sealing is pure and that keeps nothing in memory is divided in eight parts: the
//! partitions under which the broker stores its messages (`streams/fed_out.json`), so a part's
//! messages are one consumer's. Any other protocol is one unit. Messages whose subject the broker
//! could not divide are a unit of their own.

use std::collections::HashMap;
use std::sync::Arc;

use crate::bus::subject::token;
use crate::protocol::{PeerName, Protocol, ProtocolId};
use crate::store::Unit;

/// Partitions of the outbound stream.
pub const PARTS: u8 = 8;

/// Messages with a subject of too few tokens: nobody's, and dead for that reason.
pub const STRAYS: Unit = Unit {
    protocol: "strays",
    part: None,
};

/// How the outbound work is divided.
#[derive(Clone, Debug, Default)]
pub struct Units {
    /// By protocol: whether it is divided.
    divided: HashMap<ProtocolId, bool>,
}

impl Units {
    /// The division for these protocols; those switched off have no unit.
    pub fn of(protocols: &HashMap<ProtocolId, Arc<dyn Protocol>>) -> Self {
        let on = protocols.values().filter(|p| p.enabled());
        Self {
            divided: on.map(|p| (p.id(), p.divisible())).collect(),
        }
    }

    /// Every unit, in the order of their names.
    pub fn all(&self) -> Vec<Unit> {
        let mut all = vec![STRAYS];
        for (protocol, divided) in &self.divided {
            let protocol = *protocol;
            if *divided {
                all.extend((0..PARTS).map(|part| Unit {
                    protocol,
                    part: Some(part),
                }));
            } else {
                all.push(Unit {
                    protocol,
                    part: None,
                });
            }
        }
        all.sort_unstable();
        all
    }

    /// Whether the protocol's messages are divided among instances by their peer.
    pub fn divides(&self, protocol: &str) -> bool {
        self.divided.get(protocol).copied().unwrap_or(false)
    }

    /// The unit that a peer's lane is in.
    pub fn of_peer(&self, protocol: ProtocolId, peer: &PeerName) -> Unit {
        let part = self
            .divides(protocol)
            .then(|| part(protocol, peer.as_str()));
        Unit { protocol, part }
    }

    /// The unit of that name.
    pub fn named(&self, name: &str) -> Option<Unit> {
        self.all().into_iter().find(|unit| unit.to_string() == name)
    }
}

/// The subjects under which the broker stores a unit's messages.
pub fn subjects(prefix: &str, unit: Unit) -> Vec<String> {
    if unit == STRAYS {
        return crate::bus::subject::strays(prefix).into();
    }
    let protocol = token(unit.protocol);
    vec![match unit.part {
        Some(part) => format!("{prefix}.outp.{part}.{protocol}.>"),
        None => format!("{prefix}.outp.*.{protocol}.>"),
    }]
}

/// The partition under which the broker stores messages to this peer: FNV-1a over the tokens of
/// protocol and peer, one after the other.
pub fn part(protocol: &str, peer: &str) -> u8 {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in token(protocol).bytes().chain(token(peer).bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    u8::try_from(hash % u32::from(PARTS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_read_by_its_partition_and_a_whole_protocol_by_all() {
        let part = Unit {
            protocol: "uam",
            part: Some(3),
        };
        assert_eq!(part.to_string(), "uam/3");
        assert_eq!(subjects("fed", part), ["fed.outp.3.uam.>"]);
        let whole = Unit {
            protocol: "voltchat",
            part: None,
        };
        assert_eq!(whole.to_string(), "voltchat");
        assert_eq!(subjects("fed", whole), ["fed.outp.*.voltchat.>"]);
        assert_eq!(subjects("a.b", STRAYS), ["a.b.out.*", "a.b.out.*.*"]);
    }

    #[test]
    fn a_divided_protocol_has_eight_units_and_another_one() {
        let units = Units {
            divided: [("uam", true), ("voltchat", false)].into(),
        };
        assert_eq!(units.all().len(), 8 + 1 + 1);
        let peer = PeerName::parse("beta.test").unwrap();
        assert_eq!(units.of_peer("voltchat", &peer).part, None);
        let unit = units.of_peer("uam", &peer);
        assert_eq!(unit.part, Some(part("uam", "beta.test")));
        assert_eq!(units.named(&unit.to_string()), Some(unit));
    }

    #[test]
    fn peers_are_spread_over_the_parts() {
        let met: std::collections::HashSet<u8> = (0..200)
            .map(|n| part("uam", &format!("p{n}.test")))
            .collect();
        assert_eq!(met.len(), usize::from(PARTS));
    }
}
