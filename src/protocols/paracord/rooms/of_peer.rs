//! Rooms as a server we know sees them: whether it may read one, what one is called there, and what
//! to ask it for.

use super::super::ids::Room;
use super::super::record::Peer;
use super::{Polled, Rooms};

impl Rooms {
    /// Whether a server may read a room.
    pub fn may_read(&self, key: &str, peer: &Peer) -> bool {
        self.may_be_read(key, &peer.name, |server| peer.speaks_for(server))
    }

    /// A room's key and the id that this server uses. One of its own ends in its domain, whichever of
    /// its names was used, because its events do.
    pub fn at(&self, peer: &Peer, room: &Room) -> (String, String) {
        if self.is_ours(room) || !peer.speaks_for(&room.server) {
            let key = self.key(room);
            return (key.clone(), key);
        }
        let domain = &peer.domain;
        let room_id = format!("!{}:{domain}", room.guild);
        (room_id.to_ascii_lowercase(), room_id)
    }

    /// Rooms to ask a server for, by key: those it hosts or was named for that we follow, and ours that
    /// it was sent something of or has a member in.
    pub fn asked_of(&self, peer: &Peer) -> Vec<Polled> {
        self.polled(&peer.name, &peer.domain, |server| peer.speaks_for(server))
    }
}
