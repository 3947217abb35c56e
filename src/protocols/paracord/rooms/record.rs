//! Rooms, follows and users as the store keeps them.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;
use crate::protocol::{PeerName, Record};

/// Kind of the rows of rooms we host; the key is the room's.
pub const ROOM: &str = "room";
/// Kind of the rows of rooms we follow; the key is the room's.
pub const FOLLOW: &str = "follow";
/// Kind of the rows of members; room and user.
pub const MEMBER: &str = "member";
/// Kind of the rows of servers that were sent an event of a room; room and server.
pub const READER: &str = "reader";
/// Kind of the rows of users of other servers that ever joined one of our rooms.
pub const USER: &str = "user";
/// Between the two parts of a key.
pub const SEPARATOR: char = '\n';

/// A room of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosted {
    /// What others are shown.
    pub name: String,
    /// Where a new member begins.
    pub default_channel_id: Option<String>,
    /// Every trusted server may read it.
    pub public: bool,
    /// Others may be invited, join and leave.
    pub allowed: bool,
    pub since_ms: UnixMs,
}

/// A room of another server whose events we fetch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Whom to ask; `None`: the server in the room's id.
    pub peer: Option<PeerName>,
    /// It is followed because a user of ours joined, and no longer than one is in it.
    pub joined: bool,
    pub since_ms: UnixMs,
}

/// Somebody in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub since_ms: UnixMs,
}

/// A user of another server that joined one of our rooms at some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The id the user has here.
    pub local_user_id: String,
    pub since_ms: UnixMs,
}

/// A row with this value.
pub(super) fn row(
    kind: &'static str,
    key: String,
    value: &impl Serialize,
) -> Result<Record, serde_json::Error> {
    let value = Some(serde_json::to_string(value)?);
    Ok(Record { kind, key, value })
}

/// The deletion of a row.
pub(super) fn gone(kind: &'static str, key: String) -> Record {
    Record {
        kind,
        key,
        value: None,
    }
}

/// The key of a row that belongs to a room and something else.
pub(super) fn pair(room: &str, other: &str) -> String {
    format!("{room}{SEPARATOR}{other}")
}
