//! Rooms: those we host, those we follow, who is in them and who may read them.
//!
//! Questions are answered from memory. A change is decided on what is known, one at a time for each
//! room, and is durable before it is seen; it runs to its end even when who asked for it has gone.
//!
//! A room has one spelling here, its *key*: `!<guild>:<server>`, the server in lower case, and our
//! domain where the room is ours, whichever of our names was used.

mod births;
pub mod record;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::json;
use sha2::{Digest, Sha256};

pub use record::{Followed, Hosted};

use super::envelope::Envelope;
use super::ids::{Room, User};
use super::{ID, Own};
use crate::clock::{Clock, UnixMs};
use crate::config::ParacordConfig;
use crate::ops::Ops;
use crate::protocol::{PeerName, Record};
use crate::store::{Store, StoreError};
use births::Births;
use record::{FOLLOW, Known, MEMBER, Member, READER, ROOM, USER, gone, pair, row};
use shelf::Shelf;

/// Changes of different rooms that run beside one another at most.
const LANES: usize = 64;
/// Rows deleted in one commit at most.
const CHUNK: usize = 1_000;
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
    lanes: Vec<tokio::sync::Mutex<()>>,
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
                lanes: (0..LANES).map(|_| tokio::sync::Mutex::new(())).collect(),
            }),
        })
    }

    // ---- names

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

    // ---- rooms of ours

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

    // ---- rooms we follow

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

    // ---- members

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

    // ---- readers

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

    // ---- polling

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

    fn lane(&self, key: &str) -> &tokio::sync::Mutex<()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0);
        // There are as many as the remainder can be.
        &self.lanes[at]
    }

    async fn edit<T>(
        &self,
        key: &str,
        decide: impl FnOnce(&Shelf) -> Result<Edit<T>, RoomsError>,
    ) -> Result<T, RoomsError> {
        let _one_at_a_time = self.lane(key).lock().await;
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

fn pairs<T>(from: &std::collections::BTreeMap<String, Arc<T>>) -> Vec<(String, Arc<T>)> {
    from.iter()
        .map(|(key, value)| (key.clone(), Arc::clone(value)))
        .collect()
}

/// An id for a user that no backend has named: a positive number, always the same one.
fn made_up(user: &str) -> String {
    let hash = Sha256::digest(user.as_bytes());
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(hash.get(..8).unwrap_or(&[0; 8]));
    // 63 bits: it is read as a signed number elsewhere.
    (u64::from_be_bytes(bytes) >> 1).to_string()
}
