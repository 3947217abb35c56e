//! Rooms: those we host, those we follow, who is in them and who may read them.
//!
//! Questions are answered from memory. A change is decided on what is known, one at a time for each
//! room, and is durable before it is seen; it runs to its end even when who asked for it has gone.
//!
//! A room has one spelling here, its *key*: `!<guild>:<server>`, the server in lower case, and our
//! domain where the room is ours, whichever of our names was used.

mod births;
pub mod calls;
mod followed;
mod hosted;
mod members;
mod of_peer;
mod readers;
pub mod record;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

pub use record::{Followed, Hosted};

use super::ids::{Room, User};
use super::{ID, Own};
use crate::clock::Clock;
use crate::config::ParacordConfig;
use crate::ops::Ops;
use crate::protocol::Record;
use crate::protocols::turns::Turns;
use crate::store::{Store, StoreError};
use births::Births;
use record::{FOLLOW, MEMBER, READER, ROOM, USER};
use shelf::Shelf;

/// Longest id of a user, bytes.
pub const MAX_USER_ID: usize = 1_024;

/// Every room we know; cloning shares them.
#[derive(Clone)]
pub struct Rooms {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    own: Own,
    ops: Ops,
    allowed: HashSet<i64>,
    births: Births,
    shelf: RwLock<Shelf>,
    turns: Turns,
}

/// Why a change of rooms was not done.
#[derive(Debug, thiserror::Error)]
pub enum RoomsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a room's row cannot be written: {0}")]
    Row(#[from] serde_json::Error),
    #[error("the bridge is stopping")]
    Stopping,
}

/// What an operator or a backend says of a room of ours; `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
pub struct Put {
    pub name: Option<String>,
    /// `Some(None)`: there is none.
    pub default_channel_id: Option<Option<String>>,
    pub public: Option<bool>,
    pub allowed: Option<bool>,
}

/// A room to ask a server for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Polled {
    /// Our spelling.
    pub key: String,
    /// The one that server uses.
    pub room_id: String,
}

/// What came of a leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The user was in the room until now.
    pub was_in: bool,
    /// The room was followed for its members, and this was the last.
    pub unfollowed: bool,
}

/// What a change writes, and what it answers.
struct Edit<T> {
    records: Vec<Record>,
    answer: T,
}

impl Rooms {
    /// Reads every room. A row of another form is left where it is and said.
    pub async fn open(
        store: Store,
        clock: Clock,
        own: Own,
        ops: Ops,
        config: &ParacordConfig,
    ) -> Result<Self, StoreError> {
        let mut shelf = Shelf::default();
        for kind in [ROOM, FOLLOW, USER, MEMBER, READER] {
            for (key, value) in store.records(ID, kind).await? {
                if let Err(error) = shelf.take(kind, &key, Some(&value)) {
                    tracing::error!(kind, key, %error, "a row about rooms is left out");
                }
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                clock,
                own,
                ops,
                allowed: config.allowed_guild_ids.iter().copied().collect(),
                births: Births::new(config.max_user_creates_per_peer_per_hour),
                shelf: RwLock::new(shelf),
                turns: Turns::default(),
            }),
        })
    }

    /// Whether a room lives here: its server is our name or domain.
    pub fn is_ours(&self, room: &Room) -> bool {
        self.inner.own.is(&room.server)
    }

    /// The room's one spelling.
    pub fn key(&self, room: &Room) -> String {
        if self.is_ours(room) {
            let domain = self.inner.own.domain.to_ascii_lowercase();
            return format!("!{}:{domain}", room.guild);
        }
        format!("!{}:{}", room.guild, room.server.to_ascii_lowercase())
    }

    /// The same of a room id; `None`: it is none.
    pub fn key_of(&self, room_id: &str) -> Option<String> {
        Room::parse(room_id).map(|room| self.key(&room))
    }

    /// Decides on what is known, one at a time for a room, and does it: written, then seen.
    async fn edit<T, D>(&self, key: &str, decide: D) -> Result<T, RoomsError>
    where
        T: Send + 'static,
        D: FnOnce(&Shelf) -> Result<Edit<T>, RoomsError> + Send + 'static,
    {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        tokio::spawn(async move { inner.edit(&key, decide).await })
            .await
            .map_err(|_| RoomsError::Stopping)?
    }
}

impl Inner {
    fn read<T>(&self, look: impl FnOnce(&Shelf) -> T) -> T {
        look(&self.shelf.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Shelf) -> T) -> T {
        change(&mut self.shelf.write().unwrap_or_else(PoisonError::into_inner))
    }

    async fn edit<T>(
        &self,
        key: &str,
        decide: impl FnOnce(&Shelf) -> Result<Edit<T>, RoomsError>,
    ) -> Result<T, RoomsError> {
        let _one_at_a_time = self.turns.take(key).await;
        let Edit { records, answer } = self.read(decide)?;
        if records.is_empty() {
            return Ok(answer);
        }
        let commit = self.store.put_records(ID, records.clone()).await?;
        commit.await?;
        self.write(|shelf| {
            for record in &records {
                let taken = shelf.take(record.kind, &record.key, record.value.as_deref());
                if let Err(error) = taken {
                    tracing::error!(kind = record.kind, key = record.key, %error, "a written row is not seen before the next start");
                }
            }
        });
        Ok(answer)
    }
}

/// A user id in one spelling: the server part in lower case. `None`: it is no user id, or one of no
/// sane length.
pub fn user_key(user_id: &str) -> Option<String> {
    if user_id.len() > MAX_USER_ID {
        return None;
    }
    let user = User::parse(user_id)?;
    let server = user.server.to_ascii_lowercase();
    Some(format!("@{}:{server}", user.localpart))
}

/// The guild of a room's key.
pub fn guild_of(key: &str) -> &str {
    let key = key.strip_prefix('!').unwrap_or(key);
    key.split_once(':').map_or(key, |(guild, _)| guild)
}

/// The server of a room's key.
pub fn server_of(key: &str) -> &str {
    key.split_once(':').map_or("", |(_, server)| server)
}

fn pairs<T>(from: &BTreeMap<String, Arc<T>>) -> Vec<(String, Arc<T>)> {
    from.iter()
        .map(|(key, value)| (key.clone(), Arc::clone(value)))
        .collect()
}
