//! The wires between the bridge and everything that it talks to, each of which may be unwell.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::bridge;
use crate::support::toxic::{Mood, Toxic};
use crate::support::traffic::Rng;

/// What a wire leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// From the bridge to its nats-server.
    Broker,
    /// From everybody else to the bridge's public listener.
    Door,
    /// From the bridge to the UAM relay.
    Relay,
    /// From the bridge to the Paracord server.
    Node,
}

/// All of them.
pub struct Wires {
    pub broker: Toxic,
    pub door: Toxic,
    pub relay: Toxic,
    pub node: Toxic,
}

impl Wires {
    /// Laid to these addresses, where nobody need listen yet; the door's is known later.
    pub async fn lay(
        broker: SocketAddr,
        door: (SocketAddr, SocketAddr),
        relay: SocketAddr,
        node: SocketAddr,
    ) -> Self {
        Self {
            broker: Toxic::to(broker).await,
            door: Toxic::at(door.0, door.1).await,
            relay: Toxic::to(relay).await,
            node: Toxic::to(node).await,
        }
    }

    /// Where the bridge is reached.
    pub fn door_url(&self) -> String {
        format!("http://{}", self.door.address)
    }

    /// The wire that leads there.
    pub fn one(&self, to: To) -> &Toxic {
        match to {
            To::Broker => &self.broker,
            To::Door => &self.door,
            To::Relay => &self.relay,
            To::Node => &self.node,
        }
    }

    /// All carry what they are given.
    pub fn heal(&self) {
        for wire in [&self.broker, &self.door, &self.relay, &self.node] {
            wire.mood(Mood::Well);
        }
    }
}

/// An address that is free and stays so.
pub fn address() -> SocketAddr {
    bridge::free_address()
}

/// Some way of being unwell, and how long.
pub fn illness(rng: &mut Rng) -> (To, Mood, Duration) {
    let to = [To::Broker, To::Door, To::Relay, To::Node];
    let moods = [
        Mood::Late(rng.pause(20, 300)),
        Mood::Reset,
        Mood::Silent,
        Mood::Slow(Duration::from_millis(3)),
        Mood::Dropped,
    ];
    let mut pick = |n: usize| usize::try_from(rng.within(0, n as u64)).unwrap_or(0);
    let (to, mood) = (to[pick(to.len())], moods[pick(moods.len())]);
    (to, mood, rng.pause(200, 2_500))
}
