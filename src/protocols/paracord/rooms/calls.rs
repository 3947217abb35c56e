//! What a backend or an operator asks for about rooms (`fed.do.paracord.<method>`).
//!
//! | method | body | answer |
//! | --- | --- | --- |
//! | `room.put` | `{room_id or guild_id, name?, default_channel_id?, public?, allowed?}` | the room |
//! | `room.remove` | `{room_id or guild_id}` | `{room_id, removed}` |
//! | `room.list` | – | rooms of ours, then rooms we follow |
//! | `room.follow` | `{room_id, peer?}` | the room |
//! | `room.unfollow` | `{room_id}` | `{room_id, unfollowed}` |
//! | `room.members` | `{room_id or guild_id}` | `[{user_id, since_ms}]` |
//! | `invite` | `{room_id, sender, max_age_seconds?, server?}` | the server's answer |
//! | `join`, `leave` | `{room_id, user_id, server?}` | the server's answer |

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::ids::Room;
use super::super::record::Peer;
use super::super::{Paracord, member};
use super::{Followed, Hosted, Put, RoomsError};
use crate::protocol::{PeerName, Refusal};

/// What [`call`] knows, for a refusal.
pub const METHODS: &str = "room.put, room.remove, room.list, room.follow, room.unfollow, \
                           room.members, invite, join, leave";
/// Longest name of a room, bytes.
const MAX_NAME: usize = 512;
/// Longest server part of a room, and longest id of a channel, bytes.
const MAX_ID: usize = 255;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutCall {
    room_id: Option<String>,
    guild_id: Option<Id>,
    name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    default_channel_id: Option<Option<Id>>,
    public: Option<bool>,
    allowed: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoomCall {
    room_id: Option<String>,
    guild_id: Option<Id>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FollowCall {
    room_id: String,
    peer: Option<String>,
}

/// A number, or its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

impl Id {
    fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// A member that stands there, were it null.
fn given<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<Id>>, D::Error> {
    Option::<Id>::deserialize(from).map(Some)
}

/// Answers one call; `None`: it is about something else.
pub async fn call(p: &Paracord, method: &str, body: &[u8]) -> Option<Result<Value, Refusal>> {
    Some(match method {
        "room.put" => put(p, body).await,
        "room.remove" => remove(p, body).await,
        "room.list" => Ok(list(p)),
        "room.follow" => follow(p, body).await,
        "room.unfollow" => unfollow(p, body).await,
        "room.members" => members(p, body),
        "invite" => match read(body) {
            Ok(body) => member::ask_invite(p, body).await,
            Err(refusal) => Err(refusal),
        },
        "join" => match read(body) {
            Ok(body) => member::ask_join(p, body).await,
            Err(refusal) => Err(refusal),
        },
        "leave" => match read(body) {
            Ok(body) => member::ask_leave(p, body).await,
            Err(refusal) => Err(refusal),
        },
        _ => return None,
    })
}

async fn put(p: &Paracord, body: &[u8]) -> Result<Value, Refusal> {
    let call: PutCall = read(body)?;
    let room = named(p, call.room_id.as_deref(), call.guild_id)?;
    let key = own(p, &room)?;
    let channel = call.default_channel_id.map(|id| id.map(Id::into_text));
    if call.name.as_ref().is_some_and(|name| !is_name(name)) {
        let why = format!("a room's name has 1 to {MAX_NAME} bytes");
        return Err(Refusal::new("bad_request", why));
    }
    if channel
        .iter()
        .flatten()
        .any(|id| id.is_empty() || id.len() > MAX_ID)
    {
        let why = format!("a channel's id has 1 to {MAX_ID} bytes");
        return Err(Refusal::new("bad_request", why));
    }
    let put = Put {
        name: call.name,
        default_channel_id: channel,
        public: call.public,
        allowed: call.allowed,
    };
    let hosted = p.rooms.put(&key, put).await.map_err(|e| unkept(&e))?;
    Ok(shown(p, &key, &hosted))
}

async fn remove(p: &Paracord, body: &[u8]) -> Result<Value, Refusal> {
    let call: RoomCall = read(body)?;
    let room = named(p, call.room_id.as_deref(), call.guild_id)?;
    let key = own(p, &room)?;
    let removed = p.rooms.remove(&key).await.map_err(|e| unkept(&e))?;
    Ok(json!({"room_id": key, "removed": removed}))
}

fn list(p: &Paracord) -> Value {
    let hosted = p.rooms.all_hosted().into_iter();
    let hosted = hosted.map(|(key, room)| shown(p, &key, &room));
    let followed = p.rooms.all_followed().into_iter();
    let followed = followed.map(|(key, follow)| shown_followed(p, &key, &follow));
    hosted.chain(followed).collect()
}

async fn follow(p: &Paracord, body: &[u8]) -> Result<Value, Refusal> {
    let call: FollowCall = read(body)?;
    let room = named(p, Some(&call.room_id), None)?;
    if p.rooms.is_ours(&room) {
        let why = format!(
            "{} is a room of ours; others' rooms are followed",
            call.room_id
        );
        return Err(Refusal::new("own_room", why));
    }
    let asked = match &call.peer {
        None => None,
        Some(name) => Some(known(p, name)?),
    };
    let host = p.book.of_server(&room.server);
    let key = match &host {
        Some(host) => p.rooms.at(host, &room).0,
        None => p.rooms.key(&room),
    };
    let via = asked.filter(|asked| host.as_ref().is_none_or(|host| host.name != asked.name));
    if via.is_none() && host.is_none() {
        tracing::warn!(
            room = key,
            "no trusted server has this room's server as its name or domain; it is polled once there is one"
        );
    }
    let via = via.map(|peer| peer.name.clone());
    let follow = p.rooms.follow(&key, via).await;
    let follow = follow.map_err(|error| unkept(&error))?;
    Ok(shown_followed(p, &key, &follow))
}

async fn unfollow(p: &Paracord, body: &[u8]) -> Result<Value, Refusal> {
    let call: RoomCall = read(body)?;
    let room = named(p, call.room_id.as_deref(), call.guild_id)?;
    let key = spelled(p, &room);
    let unfollowed = p.rooms.unfollow(&key).await.map_err(|e| unkept(&e))?;
    Ok(json!({"room_id": key, "unfollowed": unfollowed}))
}

fn members(p: &Paracord, body: &[u8]) -> Result<Value, Refusal> {
    let call: RoomCall = read(body)?;
    let room = named(p, call.room_id.as_deref(), call.guild_id)?;
    let members = p.rooms.members(&spelled(p, &room)).into_iter();
    Ok(members
        .map(|(user, since_ms)| json!({"user_id": user, "since_ms": since_ms}))
        .collect())
}

/// The room a call is about.
fn named(p: &Paracord, room_id: Option<&str>, guild_id: Option<Id>) -> Result<Room, Refusal> {
    let text = match (room_id, guild_id) {
        (Some(room_id), None) => room_id.to_owned(),
        (None, Some(guild)) => format!("!{}:{}", guild.into_text(), p.own.domain),
        _ => {
            let why = "a room is named by room_id, or one of ours by guild_id";
            return Err(Refusal::new("bad_request", why));
        }
    };
    let fit = |c: char| !c.is_whitespace() && !c.is_control();
    Room::parse(&text)
        .filter(|room| room.server.len() <= MAX_ID && room.server.chars().all(fit))
        .ok_or_else(|| {
            let why = format!("{text:?} is no room; they are written !<guild id>:<server>");
            Refusal::new("bad_room", why)
        })
}

/// The key of a room of ours.
fn own(p: &Paracord, room: &Room) -> Result<String, Refusal> {
    if p.rooms.is_ours(room) {
        return Ok(p.rooms.key(room));
    }
    let (domain, server) = (&p.own.domain, &room.server);
    let why = format!("a room of ours ends in :{domain}, not in :{server}; others' are followed");
    Err(Refusal::new("foreign_room", why))
}

/// The key of any room; one of a server we know ends in its domain, unless it was followed before we
/// knew it.
fn spelled(p: &Paracord, room: &Room) -> String {
    let key = p.rooms.key(room);
    if p.rooms.followed(&key).is_some() {
        return key;
    }
    let host = p.book.of_server(&room.server);
    let host = host.filter(|_| !p.rooms.is_ours(room));
    match host {
        Some(host) => p.rooms.at(&host, room).0,
        None => key,
    }
}

fn known(p: &Paracord, name: &str) -> Result<std::sync::Arc<Peer>, Refusal> {
    let peer = PeerName::parse(name)
        .ok()
        .and_then(|name| p.book.get(&name));
    peer.or_else(|| p.book.of_server(name)).ok_or_else(|| {
        let why = format!("{name:?} is no server we know; `drawbridge peers list` names them");
        Refusal::new("unknown_peer", why)
    })
}

fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= MAX_NAME
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        let why = format!("the body must be a JSON object with the call's members: {error}");
        Refusal::new("bad_request", why)
    })
}

fn unkept(error: &RoomsError) -> Refusal {
    let why = format!("nothing was changed: {error}");
    Refusal::new("store_unavailable", why)
}

fn shown(p: &Paracord, key: &str, room: &Hosted) -> Value {
    json!({
        "kind": "hosted",
        "room_id": key,
        "name": room.name,
        "default_channel_id": room.default_channel_id,
        "public": room.public,
        "allowed": Room::parse(key).is_some_and(|room| p.rooms.is_allowed(&room)),
        "members": p.rooms.member_count(key),
        "servers": p.rooms.member_servers(key),
        "readers": p.rooms.readers(key).iter().map(PeerName::as_str).collect::<Vec<_>>(),
        "since_ms": room.since_ms,
    })
}

fn shown_followed(p: &Paracord, key: &str, follow: &Followed) -> Value {
    let host = p.book.of_server(super::server_of(key));
    let host = host.map(|host| host.name.clone());
    let peer = follow.peer.clone().or(host);
    let reached = peer.as_ref().map(|peer| p.polls.room(peer, key).0);
    json!({
        "kind": "followed",
        "room_id": key,
        "peer": peer.as_ref().map(PeerName::as_str),
        "joined": follow.joined,
        "members": p.rooms.member_count(key),
        "read_up_to_ms": reached.filter(|reached| *reached > 0),
        "since_ms": follow.since_ms,
    })
}
