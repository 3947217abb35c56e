//! `fed.do.paracord.invite|join|leave`: the same of a remote server, for a user of ours.
//!
//! The server is the room's host, or the one the caller names. Its answer is passed on as it is; what
//! it refuses comes back with its own words. Nothing is repeated here: who asked sees what happened.
//! A join that was taken is remembered, and its room followed, before the caller hears of it.

use std::sync::Arc;
use std::time::Duration;

use ::http::Method;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::ids::{Room, User};
use super::super::record::Peer;
use super::super::rooms::{RoomsError, user_key};
use super::super::{ID, Paracord};
use super::{Invite, Membership};
use crate::protocol::{Answer, Refusal};
use crate::protocols::plain;
use crate::trust::Standing;

/// How long a server has for its answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Largest answer, bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// A signature covers its millisecond: the same call twice within one is told apart by waiting.
const TOLD_APART: Duration = Duration::from_millis(3);
/// Characters of a server's words that are passed on.
const WORDS: usize = 300;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InviteCall {
    room_id: String,
    sender: String,
    max_age_seconds: Option<i64>,
    server: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MembershipCall {
    room_id: String,
    user_id: String,
    server: Option<String>,
}

/// Whom a call goes to, and of what it speaks.
struct Asked {
    peer: Arc<Peer>,
    /// Our spelling of the room.
    key: String,
    /// The server's.
    room_id: String,
    /// The room is not the server's own.
    elsewhere: bool,
}

/// `fed.do.paracord.invite{room_id, sender, max_age_seconds?, server?}`.
pub async fn ask_invite(p: &Paracord, body: Value) -> Result<Value, Refusal> {
    let call: InviteCall = read("invite", body)?;
    of_ours(p, &call.sender)?;
    let asked = whom(p, &call.room_id, call.server.as_deref())?;
    let invite = Invite {
        origin_server: p.own.name.to_string(),
        room_id: asked.room_id.clone(),
        sender: call.sender,
        max_age_seconds: call.max_age_seconds,
    };
    let answer = post(p, &asked.peer, "invite", &invite).await?;
    holds(&asked.peer, &answer, "accepted")?;
    told(p, &asked, "invited", &invite.sender);
    Ok(answer)
}

/// `fed.do.paracord.join{room_id, user_id, server?}`.
pub async fn ask_join(p: &Paracord, body: Value) -> Result<Value, Refusal> {
    let call: MembershipCall = read("join", body)?;
    let user = of_ours(p, &call.user_id)?;
    let asked = whom(p, &call.room_id, call.server.as_deref())?;
    let join = membership(p, &asked, call.user_id);
    let answer = post(p, &asked.peer, "join", &join).await?;
    holds(&asked.peer, &answer, "joined")?;
    let via = asked.elsewhere.then(|| asked.peer.name.clone());
    let kept = p.rooms.joined_there(&asked.key, &user, via).await;
    kept.map_err(|error| unkept(&asked, "joined", &error))?;
    told(p, &asked, "joined", &user);
    Ok(answer)
}

/// `fed.do.paracord.leave{room_id, user_id, server?}`.
pub async fn ask_leave(p: &Paracord, body: Value) -> Result<Value, Refusal> {
    let call: MembershipCall = read("leave", body)?;
    let user = of_ours(p, &call.user_id)?;
    let asked = whom(p, &call.room_id, call.server.as_deref())?;
    let leave = membership(p, &asked, call.user_id);
    let answer = post(p, &asked.peer, "leave", &leave).await?;
    let left = p.rooms.leave(&asked.key, &user).await;
    left.map_err(|error| unkept(&asked, "left", &error))?;
    told(p, &asked, "left", &user);
    Ok(answer)
}

fn membership(p: &Paracord, asked: &Asked, user_id: String) -> Membership {
    Membership {
        origin_server: p.own.name.to_string(),
        room_id: asked.room_id.clone(),
        user_id,
    }
}

fn read<T: DeserializeOwned>(what: &str, body: Value) -> Result<T, Refusal> {
    serde_json::from_value(body)
        .map_err(|error| Refusal::new("bad_request", format!("{what}: {error}")))
}

/// A user of ours in one spelling.
fn of_ours(p: &Paracord, user_id: &str) -> Result<String, Refusal> {
    let user = User::parse(user_id).filter(|user| p.own.is(user.server));
    user.and_then(|_| user_key(user_id)).ok_or_else(|| {
        let domain = &p.own.domain;
        let why = format!("{user_id:?} is no user of ours; they are written @name:{domain}");
        Refusal::new("bad_user", why)
    })
}

/// The server a call goes to.
fn whom(p: &Paracord, room_id: &str, server: Option<&str>) -> Result<Asked, Refusal> {
    let room = Room::parse(room_id).ok_or_else(|| {
        let why = format!("{room_id:?} is no room; they are written !<guild id>:<server>");
        Refusal::new("bad_room", why)
    })?;
    if p.rooms.is_ours(&room) {
        let why =
            format!("{room_id} is a room of ours: who is in it is for our own backends to say");
        return Err(Refusal::new("own_room", why));
    }
    let server = server.unwrap_or(&room.server);
    let peer = p.book.of_server(server).ok_or_else(|| {
        let why = format!(
            "no trusted server has the name or domain {server:?}; `drawbridge peers` adds and \
             trusts one"
        );
        Refusal::new("unknown_peer", why)
    })?;
    if p.trust.standing(ID, peer.name.as_str()) == Standing::Blocked {
        let why = format!("{} is blocked by a rule of ours", peer.name);
        return Err(Refusal::new("peer_blocked", why));
    }
    let elsewhere = !peer.speaks_for(&room.server);
    let (key, room_id) = p.rooms.at(&peer, &room);
    Ok(Asked {
        peer,
        key,
        room_id,
        elsewhere,
    })
}

/// Sends a body, signed; answers the JSON object of a 2xx.
async fn post(
    p: &Paracord,
    peer: &Peer,
    route: &str,
    body: &impl Serialize,
) -> Result<Value, Refusal> {
    let body = serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| Refusal::new("bad_request", error.to_string()))?;
    let url = format!("{}/{route}", peer.endpoint);
    let mut answer = send(p, peer, &url, &body).await?;
    if answer.status == 409 {
        tokio::time::sleep(TOLD_APART).await;
        answer = send(p, peer, &url, &body).await?;
    }
    if !(200..300).contains(&answer.status) {
        return Err(refused(peer, &answer));
    }
    p.book.seen(&peer.name, p.clock.now_ms());
    p.peers.heard_from(ID, &peer.name);
    match plain::json(&answer.body) {
        Ok(answer @ Value::Object(_)) => Ok(answer),
        _ => {
            let why = format!(
                "{} answered {} without a JSON object",
                peer.name, answer.status
            );
            Err(Refusal::new("remote_garbage", why))
        }
    }
}

async fn send(p: &Paracord, peer: &Peer, url: &str, body: &Bytes) -> Result<Answer, Refusal> {
    let request = p.signed(Method::POST, url, body.clone());
    p.net
        .send(request, PATIENCE, MAX_ANSWER)
        .await
        .map_err(|error| {
            let why = format!("{} could not be asked: {error}", peer.name);
            Refusal::new("remote_unreachable", why)
        })
}

/// A refusal in the server's own words.
fn refused(peer: &Peer, answer: &Answer) -> Refusal {
    let code = match answer.status {
        400 | 422 => "remote_bad_request",
        401 => "remote_unauthorized",
        403 => "remote_forbidden",
        404 => "remote_not_found",
        429 => "remote_rate_limited",
        _ => "remote_failed",
    };
    let mut why = format!("{} answered {}", peer.name, answer.status);
    let words = words(&answer.body);
    if !words.is_empty() {
        why = format!("{why}: {words}");
    }
    Refusal::new(code, why)
}

/// What a refusal says, fit to be shown.
fn words(body: &[u8]) -> String {
    let said = plain::json(body).ok();
    let said = said.as_ref().and_then(|said| {
        let message = said.get("message").or_else(|| said.get("error"));
        message.and_then(Value::as_str).map(str::to_owned)
    });
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let said: String = said.chars().take(WORDS).map(plain).collect();
    said.trim().to_owned()
}

/// A success must say so.
fn holds(peer: &Peer, answer: &Value, member: &str) -> Result<(), Refusal> {
    if answer.get(member) == Some(&Value::Bool(true)) {
        return Ok(());
    }
    let why = format!("{} answered without \"{member}\": true", peer.name);
    Err(Refusal::new("remote_garbage", why))
}

fn unkept(asked: &Asked, what: &str, error: &RoomsError) -> Refusal {
    let why = format!(
        "{} says {what}, but it could not be written down ({error}); make the same call again",
        asked.peer.name
    );
    Refusal::new("store_unavailable", why)
}

/// Says what one of ours did there.
fn told(p: &Paracord, asked: &Asked, what: &'static str, user: &str) {
    let (peer, room) = (asked.peer.name.as_str(), &asked.key);
    tracing::info!(peer, what, room, user, "a room of another server");
    let body = json!({"room_id": room, "user_id": user, "direction": "out"});
    p.ops.event("room", what, ID, peer, body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_words_are_shown_without_what_could_move_a_terminal() {
        assert_eq!(words(b"{\"message\":\"for\\u001bbidden\"}"), "for bidden");
        assert_eq!(words(b"plain\ntext "), "plain text");
        assert_eq!(words(b""), "");
        assert_eq!(words("x".repeat(9_999).as_bytes()).len(), WORDS);
    }
}
