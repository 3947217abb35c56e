//! From a backend's message to a push, or to a row that the peer fetches.

use std::sync::Arc;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::message::{Draft, Malformed, Members, Outgoing};
use super::record::Peer;
use super::token::{self, Sender};
use super::{BASE, ID, VoltChat, dressed, ids, text};
use crate::clock::UnixMs;
use crate::protocol::{OutEvent, PeerName, PeerRecord, Refusal, Request, Sealed, Targets, Try};

/// Headers that prove a push.
pub(super) const TOKEN_HEADER: &str = "x-federation-token";
pub(super) const HOST_HEADER: &str = "x-federation-host";
pub(super) const TOKEN: HeaderName = HeaderName::from_static(TOKEN_HEADER);
pub(super) const HOST: HeaderName = HeaderName::from_static(HOST_HEADER);
/// What the ids of relay messages begin with.
pub(super) const RELAY: &str = "relay";
/// Where pushes go.
const PUSH: &str = "/relay/push";

/// Whom it goes to, and what.
pub fn prepare(volt: &VoltChat, event: &OutEvent) -> Result<(Targets, Sealed), Refusal> {
    let draft = Members::read(&event.payload)
        .ok_or_else(|| refused(Malformed::NoTypeOrPayload))
        .and_then(|members| Draft::read(&members).map_err(refused))?;
    let hops = event.hops.unwrap_or(0);
    if hops >= volt.config.max_hops {
        let why = format!(
            "it has come {hops} hops, and voltchat.max_hops is {}",
            volt.config.max_hops
        );
        return Err(Refusal::new("hop_limit", why));
    }
    let from = event.came_from.as_deref().or(draft.from_host.as_deref());
    let targets = targets(volt, &event.peer, from)?;
    Ok((targets, seal(volt, event, &draft, hops)?))
}

fn refused(malformed: Malformed) -> Refusal {
    let why = match malformed {
        Malformed::Type => "the type of a relay message is made of letters, digits, : _ and -; \
             where the subject's last tokens cannot say it, the body does: {\"type\":…,\"payload\":…}"
            .to_owned(),
        Malformed::Keys => malformed.words().to_owned(),
        _ => "the body of a message is {\"type\":…,\"payload\":…}, the type only where the subject \
             does not say it"
            .to_owned(),
    };
    Refusal::new("bad_message", why)
}

/// Never the peer it came from.
fn targets(volt: &VoltChat, to: &str, from: Option<&str>) -> Result<Targets, Refusal> {
    if to == "_all" {
        let mut peers = volt.book.accepted();
        peers.retain(|peer| Some(peer.as_str()) != from);
        return Ok(Targets::Peers(peers));
    }
    let peer = PeerName::parse(to).map_err(|_| {
        Refusal::new(
            "bad_peer",
            format!("{to:?} is no host of a VoltChat server"),
        )
    })?;
    if Some(peer.as_str()) == from {
        let why = "a message received from a peer is not sent back to it";
        return Err(Refusal::new("loop", why));
    }
    accepted(volt, &peer)?;
    Ok(Targets::Peers(vec![peer]))
}

/// The peer, where it may be sent anything.
pub(super) fn accepted(volt: &VoltChat, name: &PeerName) -> Result<Arc<Peer>, Refusal> {
    let not = |why: String| Refusal::new("peer_not_connected", why);
    let peer = volt
        .book
        .get(name)
        .ok_or_else(|| not(format!("{name} is no peer of this server")))?;
    if !peer.status.is_accepted() {
        let status = peer.status.name();
        return Err(not(format!("the peering with {name} is {status}")));
    }
    Ok(peer)
}

fn seal(
    volt: &VoltChat,
    event: &OutEvent,
    draft: &Draft<'_>,
    hops: u32,
) -> Result<Sealed, Refusal> {
    let kind = draft.kind.as_deref().unwrap_or(&event.event_type);
    if !ids::relay_type(kind) {
        return Err(refused(Malformed::Type));
    }
    let (id, made_ms) = identity(event);
    let timestamp = text::iso(made_ms);
    let message = Outgoing {
        id: &id,
        schema_version: 1,
        kind,
        payload: draft.payload,
        timestamp: &timestamp,
        from_host: volt.own.host.as_str(),
        from_mainline: &volt.own.name,
        hops,
    };
    let body = serde_json::to_vec(&message)
        .map_err(|error| Refusal::new("bad_message", format!("it cannot be written: {error}")))?;
    Ok(Sealed {
        event_id: id,
        body: body.into(),
        order_key: event.order.clone().unwrap_or_default(),
        expires_ms: event.expires_ms,
        records: Vec::new(),
        room_event: None,
        state: None,
    })
}

/// A message's id and time. One whose `Nats-Msg-Id` has the form of a relay id goes by it; the
/// stream's time and number make any other, and no two messages of a stream share both.
fn identity(event: &OutEvent) -> (String, UnixMs) {
    if let Some(made_ms) = ids::made_at(RELAY, &event.msg_id) {
        return (event.msg_id.clone(), made_ms);
    }
    let at = event.broker_time_ms;
    let number = event.out_seq & u64::from(u32::MAX);
    (format!("{RELAY}_{at:013}_{number:08x}"), at)
}

/// Signs one push.
pub fn dress(
    volt: &VoltChat,
    sealed: &Sealed,
    record: &PeerRecord,
    attempt: &Try,
) -> Result<Request, Refusal> {
    let peer = accepted(volt, &record.name)?;
    let mut headers = HeaderMap::new();
    headers.extend(credentials(volt, &peer, attempt.now_ms)?);
    if let Some(parent) = &attempt.traceparent
        && let Ok(value) = HeaderValue::from_str(parent)
    {
        headers.insert(HeaderName::from_static("traceparent"), value);
    }
    Ok(Request {
        method: Method::POST,
        url: format!("{}{BASE}{PUSH}", peer.url),
        headers: dressed(headers),
        body: sealed.body.clone(),
    })
}

/// What proves us to a peer, made anew for every request.
pub(super) fn credentials(
    volt: &VoltChat,
    peer: &Peer,
    now_ms: UnixMs,
) -> Result<[(HeaderName, HeaderValue); 2], Refusal> {
    let value = |text: &str| {
        HeaderValue::from_str(text)
            .map_err(|_| Refusal::new("internal_error", "a header of ours cannot be written"))
    };
    let token = fresh_token(volt, peer, now_ms)?;
    Ok([
        (TOKEN, value(&token)?),
        (HOST, value(volt.own.host.as_str())?),
    ])
}

/// A token for this peer.
pub(super) fn fresh_token(volt: &VoltChat, peer: &Peer, now_ms: UnixMs) -> Result<String, Refusal> {
    let nonce = token::fresh_nonce().map_err(|error| {
        let why = format!("the system gives no random numbers: {error}");
        Refusal::new("internal_error", why)
    })?;
    let from = Sender {
        peer_id: &peer.id,
        host: volt.own.host.as_str(),
        name: &volt.own.name,
    };
    Ok(token::make(&peer.secret, &from, now_ms, &nonce))
}

/// What is known of a peer, for the core.
pub fn record(volt: &VoltChat, name: &PeerName) -> Result<PeerRecord, Refusal> {
    let peer = accepted(volt, name)?;
    Ok(PeerRecord {
        protocol: ID,
        name: name.clone(),
        endpoint: peer.url.clone(),
        alternatives: Vec::new(),
        public_key: None,
        discovered_via: "peering".to_owned(),
        last_verified_ms: volt.clock.now_ms(),
        ttl_ms: Some(60_000),
        facts: serde_json::Map::new(),
    })
}
