//! Who is in a room: users of others in ours, and ours in others'.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::super::ID;
use super::super::envelope::Envelope;
use super::super::ids::{Room, User};
use super::record::{FOLLOW, Followed, Known, MEMBER, Member, USER, gone, pair, row};
use super::{Edit, Left, Rooms, RoomsError, shelf, user_key};
use crate::clock::UnixMs;
use crate::protocol::PeerName;

impl Rooms {
    /// Who is in a room, by id, with the time of the join.
    pub fn members(&self, key: &str) -> Vec<(String, UnixMs)> {
        self.inner.read(|shelf| {
            let users = shelf.users_in(key);
            users.map(|(user, m)| (user.clone(), m.since_ms)).collect()
        })
    }

    /// How many are.
    pub fn member_count(&self, key: &str) -> usize {
        self.inner.read(|shelf| shelf.users_in(key).count())
    }

    /// Whether this user, spelled by [`user_key`], is.
    pub fn is_member(&self, key: &str, user: &str) -> bool {
        self.inner.read(|shelf| shelf.is_member(key, user))
    }

    /// Servers other than ours with members in a room: the server parts of their ids, lower case.
    pub fn member_servers(&self, key: &str) -> Vec<String> {
        self.inner.read(|shelf| {
            let roll = shelf.rolls.get(key).into_iter();
            let servers = roll.flat_map(shelf::Roll::servers);
            servers
                .filter(|server| !self.inner.own.is(server))
                .map(str::to_owned)
                .collect()
        })
    }

    /// What we call a user of another server that joined here at some time.
    pub fn local_user_id(&self, user: &str) -> Option<String> {
        self.inner.read(|shelf| {
            shelf
                .users
                .get(user)
                .map(|known| known.local_user_id.clone())
        })
    }

    /// Whether one more user of this server may be made: counts it where the user is new.
    pub fn may_make(&self, user: &str, server: &str) -> bool {
        self.local_user_id(user).is_some()
            || self.inner.births.admit(server, self.inner.clock.now_ms())
    }

    /// A user of another server is in a room of ours from now on; answers the id it has here, and
    /// whether it was not in it before. `local`: a backend's id for it.
    pub async fn join(
        &self,
        key: &str,
        user: &str,
        local: Option<String>,
    ) -> Result<(String, bool), RoomsError> {
        let (room, user) = (key.to_owned(), user.to_owned());
        let now_ms = self.inner.clock.now_ms();
        self.edit(key, move |shelf| {
            let known = shelf.users.get(&user);
            let id = local
                .or_else(|| known.map(|known| known.local_user_id.clone()))
                .unwrap_or_else(|| made_up(&user));
            let mut records = Vec::new();
            if known.is_none_or(|known| known.local_user_id != id) {
                let next = Known {
                    local_user_id: id.clone(),
                    since_ms: known.map_or(now_ms, |known| known.since_ms),
                };
                records.push(row(USER, user.clone(), &next)?);
            }
            let new = !shelf.is_member(&room, &user);
            if new {
                let member = Member { since_ms: now_ms };
                records.push(row(MEMBER, pair(&room, &user), &member)?);
            }
            Ok(Edit {
                records,
                answer: (id, new),
            })
        })
        .await
    }

    /// A user of ours is in a room of another server from now on, and we follow that room.
    pub async fn joined_there(
        &self,
        key: &str,
        user: &str,
        peer: Option<PeerName>,
    ) -> Result<(), RoomsError> {
        let (room, user) = (key.to_owned(), user.to_owned());
        let now_ms = self.inner.clock.now_ms();
        self.edit(key, move |shelf| {
            let mut records = Vec::new();
            if !shelf.is_member(&room, &user) {
                let member = Member { since_ms: now_ms };
                records.push(row(MEMBER, pair(&room, &user), &member)?);
            }
            if !shelf.followed.contains_key(&room) {
                let follow = Followed {
                    peer,
                    joined: true,
                    since_ms: now_ms,
                };
                records.push(row(FOLLOW, room, &follow)?);
            }
            Ok(Edit {
                records,
                answer: (),
            })
        })
        .await
    }

    /// A user is in a room no more. A room that was followed for its members is not followed any
    /// longer once the last one of ours has left.
    pub async fn leave(&self, key: &str, user: &str) -> Result<Left, RoomsError> {
        let (room, user) = (key.to_owned(), user.to_owned());
        let own = self.inner.own.clone();
        self.edit(key, move |shelf| {
            let was_in = shelf.is_member(&room, &user);
            let mut records = Vec::new();
            if was_in {
                records.push(gone(MEMBER, pair(&room, &user)));
            }
            let ours = |id: &str| User::parse(id).is_some_and(|id| own.is(id.server));
            let others = shelf.users_in(&room).map(|(id, _)| id.as_str());
            let last = !others.filter(|id| *id != user).any(ours);
            let unfollowed = last && shelf.followed.get(&room).is_some_and(|f| f.joined);
            if unfollowed {
                records.push(gone(FOLLOW, room));
            }
            Ok(Edit {
                records,
                answer: Left { was_in, unfollowed },
            })
        })
        .await
    }

    /// An event `m.member.join` or `m.member.leave` was taken in: in a room of ours that allows others,
    /// its sender comes or goes. Nothing becomes of one who is ours, or of one new user too many.
    pub async fn member_event(&self, kind: &str, envelope: &Envelope) {
        let Some(room) = Room::parse(&envelope.room_id).filter(|room| self.is_allowed(room)) else {
            return;
        };
        let key = self.key(&room);
        let sender = User::parse(&envelope.sender).filter(|user| !self.inner.own.is(user.server));
        let (Some(sender), Some(user)) = (sender, user_key(&envelope.sender)) else {
            return;
        };
        if self.hosted(&key).is_none() {
            return;
        }
        let done = match kind {
            "m.member.join" if !self.may_make(&user, sender.server) => {
                tracing::warn!(
                    room = key,
                    user,
                    "a join is passed over: its server brought too many new users this hour (paracord.max_user_creates_per_peer_per_hour)"
                );
                return;
            }
            "m.member.join" => {
                let joined = self.join(&key, &user, None).await;
                joined.map(|(_, new)| new.then_some("joined"))
            }
            "m.member.leave" => {
                let left = self.leave(&key, &user).await;
                left.map(|left| left.was_in.then_some("left"))
            }
            _ => return,
        };
        match done {
            Ok(Some(what)) => {
                let peer = envelope.origin_server.as_str();
                tracing::info!(peer, what, room = key, user, "a room of ours");
                let body = json!({"room_id": key, "user_id": user, "direction": "in"});
                self.inner.ops.event("room", what, ID, peer, body);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(room = key, user, %error, "who is in a room is not what an event said");
            }
        }
    }
}

/// An id for a user that no backend has named: a positive number, always the same one.
fn made_up(user: &str) -> String {
    let hash = Sha256::digest(user.as_bytes());
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(hash.get(..8).unwrap_or(&[0; 8]));
    // 63 bits: it is read as a signed number elsewhere.
    (u64::from_be_bytes(bytes) >> 1).to_string()
}
