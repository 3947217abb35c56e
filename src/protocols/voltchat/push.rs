//! `POST /relay/push`: a peer's message, to the door. Fetched messages take the same way in.
//!
//! A message is known by its sender and id, whatever token it came with, so the two pushes of a
//! mainline (sheet, fact 4) are one event. The nonce of the token is spent in the event's own commit;
//! a copy, or a message that is refused, spends it by itself.

use ::http::HeaderMap;
use axum::response::Response;
use serde_json::json;

use super::answer::{Fail, ok};
use super::message::{Members, Received as Message};
use super::record::Peer;
use super::request::{self, Caller, Received};
use super::{ID, VoltChat};
use crate::identity::Proof;
use crate::inbound::Entry;
use crate::ops::{metrics, trace};
use crate::protocol::{ReplayId, Verified, VerifiedParts};
use crate::trust::Standing;

/// Answers one push.
pub async fn receive(v: &VoltChat, r: &Received) -> Result<Response, Fail> {
    let Caller {
        peer,
        proof,
        nonce,
        client,
    } = request::authenticate(v, r)?;
    let read = match Members::read(&r.raw) {
        Some(members) => Message::read(&members, peer.host.as_str(), &peer.name),
        None => Err(super::message::Malformed::Incomplete),
    };
    let client = client.as_deref();
    let message = match read {
        Ok(message) => message,
        Err(why) => {
            request::spend(v, &nonce, client).await?;
            refused(v, &peer, why.words());
            return Err(Fail::bad(why.words()));
        }
    };
    let parent = traceparent(&r.headers);
    let entry = enter(v, &peer, proof, message, vec![nonce.clone()], parent).await;
    match entry {
        Entry::New | Entry::Held => {}
        // The first copy's commit spent the nonce of another token.
        Entry::Duplicate => request::spend(v, &nonce, client).await?,
        Entry::Replayed => {
            metrics::inbound(ID, "replayed");
            metrics::refusal(ID, "replay");
            request::charge(v, client);
            return Err(Fail::credentials());
        }
        Entry::TooLarge => {
            request::spend(v, &nonce, client).await?;
            refused(v, &peer, "Payload too large");
            return Err(Fail::too_large());
        }
        Entry::Unavailable { retry_after_s } => {
            metrics::inbound(ID, "unavailable");
            metrics::refusal(ID, "unavailable");
            let why = "the ledger or the bus takes nothing now";
            return Err(Fail::unavailable(why, retry_after_s));
        }
    }
    v.book.seen(&peer.host, v.clock.now_ms()).await;
    v.peers.heard_from(ID, &peer.host);
    Ok(ok(&json!({"success": true})))
}

/// A proven message to the ledger and to `fed.in`, or to `fed.held` while its peer is quarantined.
pub(super) async fn enter(
    v: &VoltChat,
    peer: &Peer,
    proof: Proof,
    message: Message,
    replay: Vec<ReplayId>,
    traceparent: Option<String>,
) -> Entry {
    let host = peer.host.as_str();
    let (id, kind) = (message.id, message.kind);
    tracing::debug!(peer = host, id, kind, "a relay message came in");
    let event = Verified::new(
        proof,
        VerifiedParts {
            protocol: ID,
            peer: peer.host.clone(),
            dedupe_key: format!("{host}/{id}"),
            event_id: id,
            event_type: kind,
            payload: message.event,
            origin: host.to_owned(),
            key_id: peer.id.clone(),
            hops: message.hops.saturating_add(1),
            received_at_ms: v.clock.now_ms(),
            traceparent,
            replay,
            room_event: None,
        },
    );
    to_door(v, event).await
}

/// A proven event to `fed.in`, or to `fed.held` while its peer is quarantined.
pub(super) async fn to_door(v: &VoltChat, event: Verified) -> Entry {
    match v.trust.standing(ID, event.peer.as_str()) {
        Standing::Quarantined => v.door.hold(event).await,
        _ => v.door.enter(event).await,
    }
}

/// Says that a proven peer's message is not taken.
pub(super) fn refused(v: &VoltChat, peer: &Peer, words: &str) {
    metrics::inbound(ID, "refused");
    metrics::refusal(ID, "malformed");
    let host = peer.host.as_str();
    tracing::info!(peer = host, words, "relay message refused");
    let body = json!({"peer": host, "code": "malformed", "detail": words});
    v.ops.event("ingest", "rejected", ID, host, body);
}

/// The request's trace context, if it has one that can be carried on.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<String> {
    trace::carried(headers.get("traceparent")?.to_str().ok()?)
}
