//! Rooms of other servers whose events we fetch.

use std::sync::Arc;

use super::record::{FOLLOW, Followed, gone, row};
use super::{Edit, Rooms, RoomsError, pairs};
use crate::protocol::PeerName;

impl Rooms {
    /// How a room is followed.
    pub fn followed(&self, key: &str) -> Option<Arc<Followed>> {
        self.inner.read(|shelf| shelf.followed.get(key).cloned())
    }

    /// Rooms we follow, by key.
    pub fn all_followed(&self) -> Vec<(String, Arc<Followed>)> {
        self.inner.read(|shelf| pairs(&shelf.followed))
    }

    /// Follows a room until it is unfollowed.
    pub async fn follow(
        &self,
        key: &str,
        peer: Option<PeerName>,
    ) -> Result<Arc<Followed>, RoomsError> {
        let (room, now_ms) = (key.to_owned(), self.inner.clock.now_ms());
        self.edit(key, move |shelf| {
            let known = shelf.followed.get(&room);
            let next = Followed {
                peer,
                joined: false,
                since_ms: known.map_or(now_ms, |known| known.since_ms),
            };
            Ok(Edit {
                records: vec![row(FOLLOW, room, &next)?],
                answer: Arc::new(next),
            })
        })
        .await
    }

    /// Follows it no more. False: it was not followed.
    pub async fn unfollow(&self, key: &str) -> Result<bool, RoomsError> {
        let room = key.to_owned();
        self.edit(key, move |shelf| {
            let known = shelf.followed.contains_key(&room);
            let records = known.then(|| gone(FOLLOW, room));
            Ok(Edit {
                records: records.into_iter().collect(),
                answer: known,
            })
        })
        .await
    }
}
