//! An envelope in: pushed or polled, to the door.
//!
//! What is asked of it, in this order (sheet, 5): its content is within the limits, it is signed, its
//! origin is trusted and one of its keys made the signature, its sender is a user of its origin. It
//! reaches backends in its normal form, the same bytes however it came. Who brought it may be another
//! server than who made it; both must be trusted, and while either is under quarantine it is held back.

use std::sync::Arc;

use ::http::request::Parts;
use axum::body::Body;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{Fail, accepted};
use super::envelope::{Envelope, Offered, Proven as ProvenEnvelope};
use super::ids::{Room, User};
use super::proof::{self, Of};
use super::record::Peer;
use super::refused::Refused;
use super::request::{self, Typed};
use super::{ID, Paracord, conduct, content};
use crate::clock::UnixMs;
use crate::identity::PublicKey;
use crate::inbound::Entry;
use crate::ops::metrics;
use crate::protocol::{ReplayId, RoomEvent, Verified, VerifiedParts};
use crate::trust::Standing;

/// Longest id, name and type of an event, bytes. They stand in tables and subjects.
pub(super) const MAX_NAME: usize = 512;
/// Seconds after which a sender that found no store may come again.
const AGAIN_S: u32 = 5;
/// Clocks differ by so much at most, milliseconds (sheet, 3).
const AHEAD_MS: i64 = 60_000;
/// The reason when store or bus take nothing now.
const UNAVAILABLE: &str = "unavailable";

impl Typed for Envelope {
    const HELD_IN_QUARANTINE: bool = true;

    /// Any: a server may bring what another made.
    fn origin(&self) -> Option<&str> {
        None
    }
}

/// What became of an event that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Durable, and on its way to backends.
    New,
    /// Durable, and held back: its origin or who brought it is under quarantine.
    Held,
    /// Known already.
    Duplicate,
    /// One of ours, come back.
    Ours,
    /// The signature of the request was used before.
    Replayed,
}

/// Answers `POST /event`.
pub async fn receive(p: &Paracord, parts: Parts, body: Body) -> Result<Response, Fail> {
    let (envelope, proven) = request::post::<Envelope>(p, &parts, body).await?;
    let id = envelope.event_id.clone();
    let answer = |inserted: bool| {
        let body = json!({"event_id": id, "inserted": inserted});
        accepted(&body, p.config.max_events_per_peer_per_minute)
    };
    let taken = match in_rate(p, &proven.peer) {
        true => {
            let replay = vec![proven.replay.clone()];
            let trace = request::traceparent(&parts.headers);
            take(p, envelope, &proven.peer, replay, trace).await
        }
        false => Err(too_fast(p)),
    };
    match taken {
        Ok(Taken::New | Taken::Held) => Ok(answer(true)),
        Ok(Taken::Duplicate | Taken::Ours) => {
            // The first copy's commit spent the signature of another request.
            request::spend(p, &proven).await?;
            Ok(answer(false))
        }
        Ok(Taken::Replayed) => Err(request::replayed(p, &proven)),
        Err(refused) if refused.code == UNAVAILABLE => {
            // Nothing is wrong with the request, but with us at this moment.
            metrics::inbound(ID, "unavailable");
            metrics::refusal(ID, UNAVAILABLE);
            Err(refused.fail)
        }
        Err(refused) => {
            request::spend(p, &proven).await?;
            refused.tell(p, Some(proven.peer.name.as_str()), Some(&id));
            if refused.is_fault() {
                conduct::offended(p, &proven.peer.name, &refused).await;
            }
            Err(refused.fail)
        }
    }
}

/// Whether one more event of this server is within its minute.
fn in_rate(p: &Paracord, peer: &Peer) -> bool {
    let limit = p.config.max_events_per_peer_per_minute;
    let key = format!("paracord/peer/{}", peer.name);
    limit == 0 || p.trust.admit(&key, limit)
}

fn too_fast(p: &Paracord) -> Refused {
    let limit = p.config.max_events_per_peer_per_minute;
    let why = format!("more than {limit} events came within a minute");
    Refused::new(Fail::rate_limited(), "rate", why)
}

impl Refused {
    /// Whether the server that brought an event is to blame for it.
    fn is_fault(&self) -> bool {
        matches!(
            self.code,
            "limits" | "unsigned" | "bad_event_signature" | "foreign_sender"
        )
    }
}

/// Everything after the proof of the request that brought it. A poll has no `replay`.
pub async fn take(
    p: &Paracord,
    envelope: Envelope,
    carrier: &Peer,
    replay: Vec<ReplayId>,
    traceparent: Option<String>,
) -> Result<Taken, Refused> {
    within_limits(&envelope)?;
    let Some(offered) = envelope.signature() else {
        let why = format!("nothing is signed by {:?}", envelope.origin_server);
        return Err(Refused::unauthorized("unsigned", why));
    };
    if p.own.is(&envelope.origin_server) {
        return ours(p, &envelope).await;
    }
    let author = proof::trusted(p, &envelope.origin_server)?;
    let (author, proven) = proven(p, author, &envelope, &offered).await?;
    sent_by(&author, &envelope.sender)?;
    let suspect = |peer: &Peer| p.trust.standing(ID, peer.name.as_str()) == Standing::Quarantined;
    let of_suspect = suspect(&author);
    let held = of_suspect || suspect(carrier);
    // Retried by who pushed it, a member's event is applied again: the first time may have been cut
    // short between its commit and its effect.
    let pushed = !replay.is_empty();
    // What its maker is suspected for is not passed on to other servers.
    let room_event = (!of_suspect).then(|| room_event(p, &envelope, &offered));
    let room_event = room_event.flatten();
    let member = is_member_event(&envelope).then(|| without_content(&envelope));
    let event = verified(
        p,
        envelope,
        &author,
        &offered,
        proven,
        Extras {
            replay,
            traceparent,
            room_event,
        },
    );
    let entry = match held {
        true => p.door.hold(event).await,
        false => p.door.enter(event).await,
    };
    let taken = outcome(entry)?;
    if let Some(member) = member
        && (taken == Taken::New || (taken == Taken::Duplicate && pushed && !held))
    {
        p.rooms.member_event(&member.event_type, &member).await;
    }
    Ok(taken)
}

fn outcome(entry: Entry) -> Result<Taken, Refused> {
    match entry {
        Entry::New => Ok(Taken::New),
        Entry::Held => Ok(Taken::Held),
        Entry::Duplicate => Ok(Taken::Duplicate),
        Entry::Replayed => Ok(Taken::Replayed),
        Entry::TooLarge => Err(Refused::new(
            Fail::too_large(),
            "too_large",
            "the broker takes no message of that size",
        )),
        Entry::Unavailable { retry_after_s } => Err(unavailable(
            retry_after_s,
            "the ledger or the bus takes nothing now",
        )),
    }
}

fn unavailable(retry_after_s: u32, why: impl Into<String>) -> Refused {
    Refused::new(Fail::unavailable(retry_after_s), UNAVAILABLE, why)
}

/// Size, width and depth of the content, and the length of what names the event.
fn within_limits(envelope: &Envelope) -> Result<(), Refused> {
    let refuse = |why: String| Refused::new(Fail::bad_request(&why), "limits", why);
    content::within_limits(&envelope.content).map_err(refuse)?;
    for (name, text) in names(envelope) {
        if text.len() > MAX_NAME {
            return Err(refuse(format!("{name} exceeds {MAX_NAME} bytes")));
        }
    }
    Ok(())
}

/// What names an event, by the members' names.
pub(super) fn names(envelope: &Envelope) -> [(&'static str, &str); 4] {
    [
        ("event_id", &envelope.event_id),
        ("room_id", &envelope.room_id),
        ("event_type", &envelope.event_type),
        ("sender", &envelope.sender),
    ]
}

/// An event that says it is ours: it is, if we have it.
async fn ours(p: &Paracord, envelope: &Envelope) -> Result<Taken, Refused> {
    let kept = p.store.room_event(ID, &envelope.event_id).await;
    let kept = kept.map_err(|error| unavailable(AGAIN_S, error.to_string()))?;
    if kept.iter().any(|event| event.origin == p.own.name.as_str()) {
        return Ok(Taken::Ours);
    }
    let why = "the event says it is ours, and we did not make it";
    Err(Refused::forbidden("not_ours", why))
}

/// The signature of the envelope, by a key of its origin.
async fn proven(
    p: &Paracord,
    author: Arc<Peer>,
    envelope: &Envelope,
    offered: &Offered,
) -> Result<(Arc<Peer>, ProvenEnvelope), Refused> {
    let Some(signature) = &offered.bytes else {
        let why = "the signature of the event is not 128 hex digits";
        return Err(Refused::forbidden("bad_event_signature", why));
    };
    let check = |key: &PublicKey| envelope.check(key, signature).ok();
    proof::with_keys(p, author, &offered.key_id, Of::Event, check).await
}

/// A server speaks for its own users.
fn sent_by(author: &Peer, sender: &str) -> Result<(), Refused> {
    let user = User::parse(sender);
    if user.is_some_and(|user| author.speaks_for(user.server)) {
        return Ok(());
    }
    let (name, domain) = (&author.name, &author.domain);
    let why = format!("the sender {sender:?} is no user of {name} (domain {domain})");
    Err(Refused::forbidden("foreign_sender", why))
}

fn is_member_event(envelope: &Envelope) -> bool {
    matches!(
        envelope.event_type.as_str(),
        "m.member.join" | "m.member.leave"
    )
}

/// What a change of membership needs: the room, the sender and the type.
fn without_content(envelope: &Envelope) -> Envelope {
    Envelope {
        event_id: envelope.event_id.clone(),
        room_id: envelope.room_id.clone(),
        event_type: envelope.event_type.clone(),
        sender: envelope.sender.clone(),
        origin_server: envelope.origin_server.clone(),
        origin_ts: envelope.origin_ts,
        content: Value::Null,
        depth: envelope.depth,
        state_key: envelope.state_key.clone(),
        signatures: Value::Null,
    }
}

/// The event as others read it, if its room is one of ours.
fn room_event(p: &Paracord, envelope: &Envelope, offered: &Offered) -> Option<RoomEvent> {
    let room = Room::parse(&envelope.room_id).filter(|room| p.rooms.is_ours(room))?;
    let key = p.rooms.key(&room);
    if p.rooms.hosted(&key).is_none() && !p.rooms.is_allowed(&room) {
        return None;
    }
    if is_to_come(envelope, p.clock.now_ms()) {
        return None;
    }
    Some(RoomEvent {
        room: key,
        event_id: envelope.event_id.clone(),
        origin: envelope.origin_server.clone(),
        position: position(envelope.depth, envelope.origin_ts),
        // Without our remark on it: it must verify.
        envelope: envelope.normal(&offered.key_id, offered.bytes.as_ref()?, true),
    })
}

/// Whether an event claims a place that is still to come. Who reads a room goes on from the deepest event
/// it saw: such a one would make every other server deaf to the room until then, so none is given it.
fn is_to_come(envelope: &Envelope, now: UnixMs) -> bool {
    envelope.depth.max(envelope.origin_ts) > now.saturating_add(AHEAD_MS)
}

/// Where an event of others stands in its room.
fn position(depth: i64, origin_ts: i64) -> i64 {
    if depth > 0 { depth } else { origin_ts.max(1) }
}

struct Extras {
    replay: Vec<ReplayId>,
    traceparent: Option<String>,
    room_event: Option<RoomEvent>,
}

fn verified(
    p: &Paracord,
    envelope: Envelope,
    author: &Peer,
    offered: &Offered,
    proven: ProvenEnvelope,
    extras: Extras,
) -> Verified {
    let signature = offered.bytes.unwrap_or([0; 64]);
    let payload = match &extras.room_event {
        // The same bytes but for our remark.
        Some(kept) if proven.attachments_covered => kept.envelope.clone(),
        _ => envelope.normal(&offered.key_id, &signature, proven.attachments_covered),
    };
    tracing::debug!(peer = %author.name, id = envelope.event_id, "an event came in");
    Verified::new(
        proven.proof,
        VerifiedParts {
            protocol: ID,
            peer: author.name.clone(),
            dedupe_key: format!("{}/{}", author.name, envelope.event_id),
            event_id: envelope.event_id,
            event_type: envelope.event_type,
            payload,
            origin: envelope.sender,
            key_id: offered.key_id.clone(),
            hops: 1,
            received_at_ms: p.clock.now_ms(),
            traceparent: extras.traceparent,
            replay: extras.replay,
            room_event: extras.room_event,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_without_a_depth_stands_at_its_time() {
        for (depth, origin_ts, wanted) in [
            (5, 9, 5),
            (0, 9, 9),
            (-1, 9, 9),
            (0, 0, 1),
            (i64::MIN, i64::MIN, 1),
            (i64::MAX, 0, i64::MAX),
        ] {
            assert_eq!(position(depth, origin_ts), wanted, "{depth} {origin_ts}");
        }
    }
}
