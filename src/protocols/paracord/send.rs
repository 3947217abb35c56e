//! From a backend's message to a push.
//!
//! A message is `{room_id, sender, content, state_key?}` under the event's type. What other servers need
//! besides is made here, from the message and the broker's time alone: so a message that comes again
//! becomes the same event, byte for byte.

use std::borrow::Cow;
use std::collections::HashSet;

use ::http::{HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::envelope::Envelope;
use super::ids::{self, Room, User};
use super::rooms::Rooms;
use super::{ID, Paracord, USER_AGENT, content, transport};
use crate::faults;
use crate::protocol::{
    Claimed, OutEvent, PeerName, PeerRecord, Refusal, Request, RoomEvent, Scope, Sealed, Targets,
    Try,
};
use crate::trust::Standing;

/// Where events are pushed to, behind a server's endpoint.
const EVENT: &str = "/event";
/// Longest type of an event, bytes.
const MAX_TYPE: usize = 255;

/// A backend's message.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    room_id: String,
    sender: String,
    #[serde(deserialize_with = "crate::protocols::plain::any_json")]
    content: Value,
    #[serde(default)]
    state_key: Option<String>,
}

/// What says in which order it is sealed.
#[derive(Deserialize)]
struct Glance<'a> {
    #[serde(borrow)]
    room_id: Cow<'a, str>,
    content: Named,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    message_id: Value,
}

/// The room it is sealed in, and the event it claims. None: it cannot be read, which the seal says
/// in detail.
pub fn scope(p: &Paracord, event: &OutEvent) -> Option<Scope> {
    let glance: Glance<'_> = serde_json::from_slice(&event.payload).ok()?;
    let room = Room::parse(&glance.room_id)?;
    let content = Map::from_iter([("message_id".to_owned(), glance.content.message_id)]);
    let claimed = ids::claimed_id(&event.event_type, &Value::Object(content), &p.own.domain);
    Some(Scope {
        name: place(p, &room).0,
        claims: claimed.map(|event_id| Claimed {
            event_id,
            origin: p.own.name.to_string(),
        }),
    })
}

/// Whom it goes to, and what. `previous`: the depth of our last event in the room.
pub fn prepare(
    p: &Paracord,
    event: &OutEvent,
    previous: Option<&str>,
) -> Result<(Targets, Sealed), Refusal> {
    let message: Message = serde_json::from_slice(&event.payload).map_err(|error| {
        let why = format!(
            "the body of an event is {{\"room_id\":…,\"sender\":…,\"content\":{{…}}}}, and a \
             state_key where it has one: {error}"
        );
        bad(why)
    })?;
    let room = Room::parse(&message.room_id).ok_or_else(|| {
        bad(format!(
            "room_id must be !NUMBER:SERVER, not {:?}",
            message.room_id
        ))
    })?;
    ours(p, &message.sender)?;
    if event.event_type.is_empty() || event.event_type.len() > MAX_TYPE {
        return Err(bad(format!(
            "the type of an event has 1 to {MAX_TYPE} characters"
        )));
    }
    content::outgoing(&event.event_type, &message.content).map_err(bad)?;
    content::within_limits(&message.content).map_err(|why| Refusal::new("too_large", why))?;
    let (key, room_id) = place(p, &room);
    let peers = targets(p, event, &room, &key)?;
    let sealed = seal(p, event, message, (key, room_id), previous, &peers)?;
    Ok((Targets::Peers(peers), sealed))
}

fn bad(why: String) -> Refusal {
    Refusal::new("bad_message", why)
}

/// A sender is one of our users: nobody takes another from us.
fn ours(p: &Paracord, sender: &str) -> Result<(), Refusal> {
    match User::parse(sender) {
        None => Err(bad(format!("sender must be @NAME:SERVER, not {sender:?}"))),
        Some(user) if !p.own.is(user.server) => Err(Refusal::new(
            "bad_sender",
            format!(
                "sender {sender:?} is a user of {}; this server signs for users of {} only",
                user.server, p.own.domain
            ),
        )),
        Some(_) => Ok(()),
    }
}

/// The servers it goes to, never the one it came from.
fn targets(
    p: &Paracord,
    event: &OutEvent,
    room: &Room,
    key: &str,
) -> Result<Vec<PeerName>, Refusal> {
    let from = event.came_from.as_deref();
    let mut peers = match event.peer.as_str() {
        "_all" => p.book.trusted(),
        "_room" => of_room(p, room, key),
        name => {
            let name = PeerName::parse(name)
                .map_err(|_| Refusal::new("bad_peer", format!("{name:?} is no server's name")))?;
            if Some(name.as_str()) == from {
                let why = "an event received from a server is not sent back to it";
                return Err(Refusal::new("loop", why));
            }
            trusted(p, &name)?;
            return Ok(vec![name]);
        }
    };
    peers.retain(|peer| Some(peer.as_str()) != from && !is_blocked(p, peer));
    Ok(peers)
}

/// Servers with somebody in the room, and the one it lives on. A room of ours that nobody joined yet
/// goes to every server we trust: that is how they hear of it (sheet, 7).
fn of_room(p: &Paracord, room: &Room, key: &str) -> Vec<PeerName> {
    let servers = p.rooms.member_servers(key);
    let mut peers: HashSet<PeerName> = servers
        .iter()
        .filter_map(|server| p.book.of_server(server))
        .map(|peer| peer.name.clone())
        .collect();
    if !p.rooms.is_ours(room) {
        peers.extend(p.book.of_server(&room.server).map(|peer| peer.name.clone()));
    } else if peers.is_empty() {
        peers.extend(p.book.trusted());
    }
    let mut peers: Vec<PeerName> = peers.into_iter().collect();
    peers.sort_unstable();
    peers
}

/// Refuses a server that may not be sent anything.
fn trusted(p: &Paracord, name: &PeerName) -> Result<(), Refusal> {
    let peer = p.book.get(name).ok_or_else(|| {
        let why = format!("{name} is not known; add it with `drawbridge peers add`");
        Refusal::new("peer_not_trusted", why)
    })?;
    if !peer.is_trusted() {
        let why = format!("{name} is {} here, not trusted", peer.status.name());
        return Err(Refusal::new("peer_not_trusted", why));
    }
    if is_blocked(p, name) {
        let why = format!("{name} is on the block list");
        return Err(Refusal::new("peer_blocked", why));
    }
    Ok(())
}

fn is_blocked(p: &Paracord, name: &PeerName) -> bool {
    p.trust.standing(ID, name.as_str()) == Standing::Blocked
}

fn seal(
    p: &Paracord,
    event: &OutEvent,
    message: Message,
    (key, room_id): (String, String),
    previous: Option<&str>,
    peers: &[PeerName],
) -> Result<Sealed, Refusal> {
    let depth = next_depth(previous, event.broker_time_ms)?;
    let kind = event.event_type.as_str();
    let event_id = ids::event_id(
        kind,
        &message.content,
        &room_id,
        &message.sender,
        depth,
        &p.own.domain,
    );
    let mut envelope = Envelope {
        event_id: event_id.clone(),
        room_id,
        event_type: kind.to_owned(),
        sender: message.sender,
        origin_server: p.own.name.to_string(),
        origin_ts: event.broker_time_ms,
        content: message.content,
        depth,
        state_key: message.state_key,
        signatures: Value::Null,
    };
    let active = p.keys.active();
    envelope.sign(&active.key, &active.key_id);
    let body = bytes::Bytes::from(envelope.wire());
    let new_readers = peers.iter().filter(|peer| !p.rooms.is_reader(&key, peer));
    let records = new_readers
        .map(|peer| Rooms::reader_record(&key, peer))
        .collect();
    for peer in peers {
        p.rooms.note_reader(&key, peer);
    }
    Ok(Sealed {
        event_id: event_id.clone(),
        body: body.clone(),
        order_key: event.order.clone().unwrap_or_else(|| key.clone()),
        expires_ms: event.expires_ms,
        records,
        room_event: Some(RoomEvent {
            room: key,
            event_id,
            origin: p.own.name.to_string(),
            position: depth,
            envelope: body,
        }),
        state: Some(depth.to_string()),
    })
}

/// One more than the last one of ours in the room, and never below the event's own time, for readers
/// go on from the greater of both (sheet, 4).
fn next_depth(previous: Option<&str>, time_ms: i64) -> Result<i64, Refusal> {
    let internal = |why: String| Refusal::new("internal_error", why);
    let last: i64 = match previous {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| internal(format!("the room's last depth is kept as {text:?}")))?,
    };
    if faults::on("flat_depth") {
        return Ok(time_ms / 1_000 * 1_000);
    }
    let next = last
        .checked_add(1)
        .ok_or_else(|| internal("the room has no depth left".to_owned()))?;
    Ok(next.max(time_ms).max(1))
}

/// The room's key, and its id as its own server spells it: others compare room ids byte for byte when
/// they read.
fn place(p: &Paracord, room: &Room) -> (String, String) {
    match p.book.of_server(&room.server) {
        Some(host) => p.rooms.at(&host, room),
        None => {
            let key = p.rooms.key(room);
            (key.clone(), key)
        }
    }
}

/// Signs one attempt.
pub fn dress(
    p: &Paracord,
    sealed: &Sealed,
    record: &PeerRecord,
    attempt: &Try,
) -> Result<Request, Refusal> {
    trusted(p, &record.name)?;
    let url = format!("{}{EVENT}", record.endpoint);
    let path = transport::live_path(&url)
        .ok_or_else(|| Refusal::new("bad_endpoint", format!("{url} is no URL")))?;
    let active = p.keys.active();
    let mut headers = transport::headers(
        p.own.name.as_str(),
        &active.key_id,
        &active.key,
        Method::POST.as_str(),
        &path,
        attempt.now_ms,
        &sealed.body,
    );
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    if let Some(parent) = &attempt.traceparent
        && let Ok(value) = HeaderValue::from_str(parent)
    {
        headers.insert("traceparent", value);
    }
    Ok(Request {
        method: Method::POST,
        url,
        headers,
        body: sealed.body.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_rises_by_itself_and_never_falls_behind_the_time() {
        assert_eq!(next_depth(None, 1_700), Ok(1_700));
        assert_eq!(next_depth(Some("1700"), 1_700), Ok(1_701));
        assert_eq!(next_depth(Some("1700"), 1_600), Ok(1_701));
        assert_eq!(next_depth(Some("1700"), 1_800), Ok(1_800));
        assert_eq!(next_depth(None, -5), Ok(1));
        assert!(next_depth(Some("9223372036854775807"), 1).is_err());
        assert!(next_depth(Some("x"), 1).is_err());
    }
}
