//! `POST /invite`, `/join`, `/leave` (sheet, 5).
//!
//! The checks of every signed request come first, and its signature is spent. Then the names, the
//! room, and a backend's word. A join is durable before it is answered; an invite keeps nothing.
//! Every member of an answer is there, whatever a backend says.

use ::http::request::Parts;
use axum::body::Body;
use axum::response::Response;
use serde_json::{Value, json};

use super::super::answer::{Fail, ok};
use super::super::ids::{Room, User};
use super::super::refused::Refused;
use super::super::request::{self, Proven};
use super::super::rooms::{Hosted, Put, RoomsError, user_key};
use super::super::{BASE, ID, Paracord};
use super::backend::{self, Word};
use super::{Invite, Membership};

/// How long an invite holds when its sender says nothing, seconds.
const EXPIRES: i64 = 3_600;
/// And within which bounds.
const EXPIRES_WITHIN: (i64, i64) = (60, 86_400);
/// Seconds after which a join that found no store may be repeated.
const STORE_AGAIN_S: u32 = 5;

/// `POST /invite`: a preview of a room for somebody who may join it.
pub async fn invite(p: &Paracord, parts: &Parts, body: Body) -> Result<Response, Fail> {
    let (invite, proven) = request::post::<Invite>(p, parts, body).await?;
    request::spend(p, &proven).await?;
    let sender = User::parse(&invite.sender);
    if !sender.is_some_and(|sender| proven.peer.speaks_for(sender.server)) {
        let why = format!("{:?} is no user of {}", invite.sender, proven.peer.name);
        return Err(refuse(p, &proven, "foreign_user", why));
    }
    let (room, key) = ours(p, &invite.room_id)?;
    allowed(p, &proven, &room)?;
    let hosted = p.rooms.hosted(&key);
    let expires = clamped(invite.max_age_seconds.unwrap_or(EXPIRES));
    let question = json!({
        "peer": proven.peer.name.as_str(),
        "origin_server": invite.origin_server,
        "room_id": key,
        "guild_id": room.guild.to_string(),
        "sender": invite.sender,
        "max_age_seconds": invite.max_age_seconds,
        "known": hosted.is_some(),
        "guild_name": hosted.as_ref().map(|room| room.name.as_str()),
        "default_channel_id": channel(hosted.as_deref()),
        "expires_in_seconds": expires,
    });
    let word = asked(p, &proven, "invite", "accepted", &question).await?;
    if hosted.is_none() && word.flag("accepted") != Some(true) {
        return Err(Fail::not_found());
    }
    told(p, &proven, "invited", &key, &invite.sender);
    let name = hosted.as_ref().map(|room| room.name.clone());
    Ok(ok(&json!({
        "accepted": true,
        "default_channel_id": word
            .id_or_none("default_channel_id")
            .unwrap_or_else(|| channel(hosted.as_deref()).map(str::to_owned)),
        "expires_in_seconds": word.number("expires_in_seconds").map_or(expires, clamped),
        "guild_id": room.guild.to_string(),
        "guild_name": word
            .text("guild_name")
            .or(name)
            .unwrap_or_else(|| room.guild.to_string()),
        "join_endpoint": format!("{BASE}/join"),
        "room_id": key,
    })))
}

/// `POST /join`.
pub async fn join(p: &Paracord, parts: &Parts, body: Body) -> Result<Response, Fail> {
    let (join, proven) = request::post::<Membership>(p, parts, body).await?;
    request::spend(p, &proven).await?;
    let (user, server) = user(p, &proven, &join.user_id)?;
    let (room, key) = ours(p, &join.room_id)?;
    allowed(p, &proven, &room)?;
    let known = p.rooms.hosted(&key).is_some();
    // Where only a backend can know the room, it is asked before a user is counted.
    if known && !p.rooms.may_make(&user, &server) {
        return Err(crowded(p, &proven, &server));
    }
    let question = json!({
        "peer": proven.peer.name.as_str(),
        "origin_server": join.origin_server,
        "room_id": key,
        "guild_id": room.guild.to_string(),
        "user_id": join.user_id,
        "known": known,
        "member": p.rooms.is_member(&key, &user),
    });
    let word = asked(p, &proven, "join", "joined", &question).await?;
    if !known {
        if word.flag("joined") != Some(true) {
            return Err(Fail::not_found());
        }
        if !p.rooms.may_make(&user, &server) {
            return Err(crowded(p, &proven, &server));
        }
        let put = Put {
            name: word.text("guild_name"),
            default_channel_id: word.id_or_none("default_channel_id"),
            ..Put::default()
        };
        p.rooms.put(&key, put).await.map_err(|e| unkept(&e))?;
    }
    let local = word.id("local_user_id");
    let joined = p.rooms.join(&key, &user, local).await;
    let (local_user_id, new) = joined.map_err(|error| unkept(&error))?;
    if new {
        told(p, &proven, "joined", &key, &user);
    }
    Ok(ok(&json!({
        "guild_id": room.guild.to_string(),
        "joined": true,
        "local_user_id": local_user_id,
        "room_id": key,
    })))
}

/// `POST /leave`.
pub async fn leave(p: &Paracord, parts: &Parts, body: Body) -> Result<Response, Fail> {
    let (leave, proven) = request::post::<Membership>(p, parts, body).await?;
    request::spend(p, &proven).await?;
    let (user, _) = user(p, &proven, &leave.user_id)?;
    let (room, key) = ours(p, &leave.room_id)?;
    allowed(p, &proven, &room)?;
    let question = json!({
        "peer": proven.peer.name.as_str(),
        "origin_server": leave.origin_server,
        "room_id": key,
        "guild_id": room.guild.to_string(),
        "user_id": leave.user_id,
        "member": p.rooms.is_member(&key, &user),
    });
    // Who wants to go goes, whatever a backend says.
    let word = backend::ask(p, "leave", None, &question).await?;
    let left = p.rooms.leave(&key, &user).await;
    let left = left.map_err(|error| unkept(&error))?;
    if left.was_in {
        told(p, &proven, "left", &key, &user);
    }
    // True for whoever was here at some time, as the reference has it.
    let known = left.was_in || p.rooms.local_user_id(&user).is_some();
    Ok(ok(&json!({
        "guild_id": room.guild.to_string(),
        "left": word.flag("left").unwrap_or(known),
        "room_id": key,
    })))
}

/// The room, if it is one of ours.
fn ours(p: &Paracord, room_id: &str) -> Result<(Room, String), Fail> {
    let room = Room::parse(room_id).filter(|room| p.rooms.is_ours(room));
    let room = room.ok_or_else(|| Fail::bad_request("Invalid room_id format"))?;
    let key = p.rooms.key(&room);
    Ok((room, key))
}

/// Whether others may be in it.
fn allowed(p: &Paracord, proven: &Proven, room: &Room) -> Result<(), Fail> {
    if p.rooms.is_allowed(room) {
        return Ok(());
    }
    let why = format!(
        "guild {} is not on paracord.allowed_guild_ids, and no room of ours that allows others",
        room.guild
    );
    Err(refuse(p, proven, "guild_not_allowed", why))
}

/// The user in one spelling and its server, if it is one of the caller's.
fn user(p: &Paracord, proven: &Proven, user_id: &str) -> Result<(String, String), Fail> {
    let invalid = || Fail::bad_request("Invalid user_id");
    let key = user_key(user_id).ok_or_else(invalid)?;
    let user = User::parse(user_id).ok_or_else(invalid)?;
    if !proven.peer.speaks_for(user.server) {
        let why = format!("{user_id:?} is no user of {}", proven.peer.name);
        return Err(refuse(p, proven, "foreign_user", why));
    }
    Ok((key, user.server.to_owned()))
}

/// A backend's word; a refusal of its is the generic 403.
async fn asked(
    p: &Paracord,
    proven: &Proven,
    method: &'static str,
    yes: &str,
    question: &Value,
) -> Result<Word, Fail> {
    match backend::ask(p, method, Some(yes), question).await? {
        Word::Refused(reason) => {
            let why = format!("the backend refuses the {method}: {reason}");
            Err(refuse(p, proven, "backend_refused", why))
        }
        word => Ok(word),
    }
}

fn refuse(p: &Paracord, proven: &Proven, code: &'static str, why: String) -> Fail {
    let refused = Refused::forbidden(code, why);
    refused.tell(p, Some(proven.peer.name.as_str()), None);
    refused.fail
}

fn crowded(p: &Paracord, proven: &Proven, server: &str) -> Fail {
    let why = format!(
        "{server} brought more than {} new users this hour \
         (paracord.max_user_creates_per_peer_per_hour)",
        p.config.max_user_creates_per_peer_per_hour
    );
    let refused = Refused::new(Fail::rate_limited(), "user_limit", why);
    refused.tell(p, Some(proven.peer.name.as_str()), None);
    refused.fail
}

/// Says what somebody of another server did here.
fn told(p: &Paracord, proven: &Proven, what: &'static str, room: &str, user: &str) {
    let peer = proven.peer.name.as_str();
    tracing::info!(peer, what, room, user, "a room of ours");
    let body = json!({"room_id": room, "user_id": user, "direction": "in"});
    p.ops.event("room", what, ID, peer, body);
}

fn unkept(error: &RoomsError) -> Fail {
    match error {
        RoomsError::Store(error) => Fail::store(error),
        other => {
            tracing::warn!(error = %other, "a membership is not kept; the request is answered 503");
            Fail::unavailable(STORE_AGAIN_S)
        }
    }
}

fn clamped(seconds: i64) -> i64 {
    seconds.clamp(EXPIRES_WITHIN.0, EXPIRES_WITHIN.1)
}

fn channel(room: Option<&Hosted>) -> Option<&str> {
    room?.default_channel_id.as_deref()
}
