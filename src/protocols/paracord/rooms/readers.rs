//! Who may read a room, and whom to ask for one.

use std::collections::{BTreeSet, HashSet};

use super::record::{READER, pair};
use super::{Polled, Rooms, guild_of, server_of, shelf};
use crate::protocol::{PeerName, Record};

impl Rooms {
    /// Whether this server was sent an event of the room.
    pub fn is_reader(&self, key: &str, peer: &PeerName) -> bool {
        self.inner.read(|shelf| {
            let readers = shelf.readers.get(key);
            readers.is_some_and(|readers| readers.contains(peer))
        })
    }

    /// The row that says so, for the commit of that event.
    pub fn reader_record(key: &str, peer: &PeerName) -> Record {
        Record {
            kind: READER,
            key: pair(key, peer.as_str()),
            value: Some("{}".to_owned()),
        }
    }

    /// The same in memory, beside that commit.
    pub fn note_reader(&self, key: &str, peer: &PeerName) {
        if !self.is_reader(key, peer) {
            self.inner.write(|shelf| {
                let readers = shelf.readers.entry(key.to_owned()).or_default();
                readers.insert(peer.clone());
            });
        }
    }

    /// Servers that were sent an event of the room.
    pub fn readers(&self, key: &str) -> Vec<PeerName> {
        self.inner.read(|shelf| {
            let readers = shelf.readers.get(key).into_iter().flatten();
            readers.cloned().collect()
        })
    }

    /// Whether a server may read a room: it has a member there, was sent an event of it, is its
    /// host, or the room is public. `is`: whether a server part names it.
    pub fn may_be_read(&self, key: &str, peer: &PeerName, is: impl Fn(&str) -> bool) -> bool {
        self.hosted(key).is_some_and(|room| room.public)
            || self.is_reader(key, peer)
            || is(server_of(key))
            || self.has_member_of(key, is)
    }

    fn has_member_of(&self, key: &str, is: impl Fn(&str) -> bool) -> bool {
        self.inner.read(|shelf| {
            let roll = shelf.rolls.get(key);
            roll.is_some_and(|roll| roll.servers().any(is))
        })
    }

    /// Servers, by name or domain in lower case, that there is something to ask for: hosts of rooms
    /// we follow, members and readers of rooms of ours.
    pub fn wanted(&self) -> HashSet<String> {
        self.inner.read(|shelf| {
            let mut wanted = HashSet::new();
            for (key, follow) in &shelf.followed {
                let server = follow.peer.as_ref().map(PeerName::as_str);
                wanted.insert(server.unwrap_or_else(|| server_of(key)).to_owned());
            }
            for key in shelf.hosted.keys() {
                let roll = shelf.rolls.get(key).into_iter();
                wanted.extend(roll.flat_map(shelf::Roll::servers).map(str::to_owned));
                let readers = shelf.readers.get(key).into_iter().flatten();
                wanted.extend(readers.map(|peer| peer.as_str().to_owned()));
            }
            wanted
        })
    }

    /// Rooms to ask this server for, by key. `is`: whether a server part names it; `domain`: what
    /// its rooms' ids end in.
    pub fn polled(&self, peer: &PeerName, domain: &str, is: impl Fn(&str) -> bool) -> Vec<Polled> {
        self.inner.read(|shelf| {
            let mut rooms = BTreeSet::new();
            for (key, follow) in &shelf.followed {
                let its_own = is(server_of(key));
                if follow.peer.as_ref().map_or(its_own, |asked| asked == peer) {
                    let room_id = match its_own {
                        true => format!("!{}:{domain}", guild_of(key)),
                        false => key.clone(),
                    };
                    rooms.insert(Polled {
                        key: key.clone(),
                        room_id,
                    });
                }
            }
            for key in shelf.hosted.keys() {
                let reads = shelf.readers.get(key).is_some_and(|all| all.contains(peer));
                let roll = shelf.rolls.get(key);
                if reads || roll.is_some_and(|roll| roll.servers().any(&is)) {
                    rooms.insert(Polled {
                        key: key.clone(),
                        room_id: key.clone(),
                    });
                }
            }
            rooms.into_iter().collect()
        })
    }
}
