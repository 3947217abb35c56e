//! Rooms of ours.

use std::sync::Arc;

use super::super::ids::Room;
use super::record::{Hosted, MEMBER, READER, ROOM, gone, pair, row};
use super::{Edit, Put, Rooms, RoomsError, guild_of, pairs};

/// Rows deleted in one commit at most.
pub(super) const CHUNK: usize = 1_000;

impl Rooms {
    /// A room of ours.
    pub fn hosted(&self, key: &str) -> Option<Arc<Hosted>> {
        self.inner.read(|shelf| shelf.hosted.get(key).cloned())
    }

    /// Whether others may be invited to it, join and leave: it is on the configured list, or its
    /// room says so.
    pub fn is_allowed(&self, room: &Room) -> bool {
        self.is_ours(room)
            && (self.inner.allowed.contains(&room.guild)
                || self.hosted(&self.key(room)).is_some_and(|r| r.allowed))
    }

    /// Puts a room of ours, or changes it.
    pub async fn put(&self, key: &str, put: Put) -> Result<Arc<Hosted>, RoomsError> {
        let (room, now_ms) = (key.to_owned(), self.inner.clock.now_ms());
        self.edit(key, move |shelf| {
            let known = shelf.hosted.get(&room).map(Arc::as_ref);
            let next = Hosted {
                name: put
                    .name
                    .or_else(|| known.map(|known| known.name.clone()))
                    .unwrap_or_else(|| guild_of(&room).to_owned()),
                default_channel_id: put
                    .default_channel_id
                    .unwrap_or_else(|| known.and_then(|known| known.default_channel_id.clone())),
                public: put
                    .public
                    .unwrap_or_else(|| known.is_some_and(|known| known.public)),
                allowed: put
                    .allowed
                    .unwrap_or_else(|| known.is_none_or(|known| known.allowed)),
                since_ms: known.map_or(now_ms, |known| known.since_ms),
            };
            Ok(Edit {
                records: vec![row(ROOM, room, &next)?],
                answer: Arc::new(next),
            })
        })
        .await
    }

    /// Forgets a room of ours with its members and readers; its events stay. False: there was none.
    pub async fn remove(&self, key: &str) -> Result<bool, RoomsError> {
        loop {
            let room = key.to_owned();
            let more = self.edit(key, move |shelf| {
                let users = shelf.users_in(&room).map(|(user, _)| user.as_str());
                let users = users.map(|user| gone(MEMBER, pair(&room, user)));
                let readers = shelf.readers.get(&room).into_iter().flatten();
                let readers = readers.map(|peer| gone(READER, pair(&room, peer.as_str())));
                let mut records: Vec<_> = users.chain(readers).take(CHUNK).collect();
                // Itself goes last, so that what was begun can be finished after a crash.
                let last = records.len() < CHUNK;
                let known = shelf.hosted.contains_key(&room);
                if last && known {
                    records.push(gone(ROOM, room));
                }
                Ok(Edit {
                    records,
                    answer: (!last).then_some(()).ok_or(known),
                })
            });
            if let Err(known) = more.await? {
                return Ok(known);
            }
        }
    }

    /// Rooms of ours, by key.
    pub fn all_hosted(&self) -> Vec<(String, Arc<Hosted>)> {
        self.inner.read(|shelf| pairs(&shelf.hosted))
    }
}
