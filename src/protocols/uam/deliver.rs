//! The delivery route: the checks of the sheet's section 4 in their order, the first that fails answers.
//!
//! Two things differ from the reference on purpose. A relay is charged only for what it has signed:
//! before check 13 holds, anybody may have sent the request, so a failure costs the client's address a
//! place in a window of its own and gives the named relay its place in the rate window back. And the
//! agent is always verified with the key of its home relay, in both wire forms.

use std::net::IpAddr;
use std::sync::Arc;

use ::http::{HeaderMap, StatusCode};
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::json;

use crate::clock::UnixMs;
use crate::http::server::ClientAddr;
use crate::identity::{Proof, PublicKey};
use crate::inbound::Entry;
use crate::ops::metrics;
use crate::protocol::{PeerName, ReplayId, Verified, VerifiedParts};
use crate::trust::Standing;

use super::answer::{Fail, reply};
use super::relay::RelayRequest;
use super::{ID, MAX_BODY, Uam, checks, encoding};

/// What an accepted message adds to its relay's score, and what a proven fault takes.
const REWARD: i64 = 1;
const PENALTY: i64 = -5;
/// Score from which the whole limit, half of it, a tenth of it holds; below the last: nothing.
const TIERS: [(i64, u32); 3] = [(80, 1), (50, 2), (20, 10)];
/// Seconds after which a limited client may come again.
const COME_AGAIN: u32 = 60;
/// Replay ids outlive the last moment their request could be accepted by this much.
const REPLAY_MARGIN_MS: i64 = 1_000;
/// Longest dedupe key kept as text; a longer one is hashed.
const MAX_DEDUPE_KEY: usize = 400;

/// What became of a request that was not refused.
enum Taken {
    Delivered,
    Duplicate,
}

/// Whom a refusal costs something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cost {
    /// Nobody.
    Nothing,
    /// The client's address: the relay named has proven nothing.
    Client,
    /// The relay: it signed this.
    Relay,
}

struct Refused {
    fail: Fail,
    cost: Cost,
    /// Short name for metrics and operators.
    reason: &'static str,
}

impl Refused {
    fn new(cost: Cost, reason: &'static str, fail: Fail) -> Self {
        Self { fail, cost, reason }
    }
}

/// `POST /api/v1/federation/deliver`.
pub async fn route(
    State(uam): State<Arc<Uam>>,
    client: Option<Extension<ClientAddr>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let client = client.map(|Extension(ClientAddr(ip))| client_key(ip));
    match receive(&uam, client.as_deref(), &headers, body).await {
        Ok(Taken::Delivered) => reply(
            StatusCode::OK,
            &json!({"status": "delivered", "detail": null}),
        ),
        Ok(Taken::Duplicate) => reply(
            StatusCode::OK,
            &json!({"status": "duplicate", "detail": "Message already delivered"}),
        ),
        Err(fail) => fail.into_response(),
    }
}

/// Up to the point where the request names a relay.
async fn receive(
    uam: &Arc<Uam>,
    client: Option<&str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Taken, Fail> {
    let refuse = |reason, fail: Fail| {
        metrics::inbound(ID, "refused");
        metrics::refusal(ID, reason);
        tracing::debug!(reason, status = fail.status.as_u16(), detail = %fail.detail, "federation request refused");
        fail
    };
    if let Some(client) = client
        && uam.trust.full(client, uam.config.unproven_per_minute)
    {
        let fail = Fail::rate_limited("Too many unproven federation requests", COME_AGAIN);
        return Err(refuse("client_limit", fail));
    }
    let body = read_body(headers, body)
        .await
        .map_err(|fail| refuse("body", fail))?;
    if !is_json(headers) {
        let fail = Fail::validation("Content-Type must be application/json");
        return Err(refuse("content_type", fail));
    }
    let request = RelayRequest::parse(&body)
        .map_err(|error| refuse("invalid_body", Fail::validation(error.to_string())))?;
    if !uam.config.enabled {
        return Err(refuse("disabled", Fail::disabled()));
    }
    judge(uam, client, headers, &request).await
}

/// From the named relay on: every outcome leaves one line and its cost.
async fn judge(
    uam: &Arc<Uam>,
    client: Option<&str>,
    headers: &HeaderMap,
    request: &RelayRequest,
) -> Result<Taken, Fail> {
    let relay = request.from_relay();
    let id = shown(request.message_id());
    let refused = match check(uam, headers, request).await {
        Ok(taken) => {
            match taken {
                Taken::Delivered => {
                    uam.trust.charge(ID, relay, REWARD);
                    tracing::info!(relay, message_id = %id, "Federation message delivered");
                }
                Taken::Duplicate => {
                    tracing::info!(relay, message_id = %id, "Federation message is a duplicate");
                }
            }
            return Ok(taken);
        }
        Err(refused) => refused,
    };
    metrics::inbound(ID, "refused");
    metrics::refusal(ID, refused.reason);
    tracing::info!(
        relay = %shown(relay),
        message_id = %id,
        status = refused.fail.status.as_u16(),
        reason = refused.reason,
        detail = %refused.fail.detail,
        "Federation message refused"
    );
    match refused.cost {
        Cost::Nothing => {}
        Cost::Relay => uam.trust.charge(ID, relay, PENALTY),
        Cost::Client if uam.config.charge_unproven => uam.trust.charge(ID, relay, PENALTY),
        Cost::Client => {
            uam.trust.withdraw(&Uam::rate_key(relay));
            if let Some(client) = client {
                uam.trust.admit(client, uam.config.unproven_per_minute);
            }
        }
    }
    if refused.cost == Cost::Relay {
        uam.ops.event(
            "ingest",
            "rejected",
            ID,
            relay,
            json!({
                "event_id": id,
                "peer": relay,
                "code": refused.reason,
                "status": refused.fail.status.as_u16(),
                "detail": refused.fail.detail,
            }),
        );
    }
    Err(refused.fail)
}

/// Checks 3 to 19.
async fn check(
    uam: &Arc<Uam>,
    headers: &HeaderMap,
    request: &RelayRequest,
) -> Result<Taken, Refused> {
    let now = uam.clock.now_ms();
    gate(uam, request)?;
    unproven(uam, request, now)?;
    let (peer, key_id, proof) = relay_proof(uam, headers, request).await?;
    let replay = replay_id(uam, request, now)?;
    if let Some(id) = &replay {
        let seen = uam.store.replay_seen(ID, id).await.map_err(|error| {
            let fail = Fail::unavailable(&error.to_string(), 5);
            Refused::new(Cost::Nothing, "store", fail)
        })?;
        if seen {
            return Err(replayed());
        }
    }
    checks::envelope(request).map_err(|fault| {
        let cost = if fault.charged {
            Cost::Relay
        } else {
            Cost::Nothing
        };
        Refused::new(cost, fault.reason, fault.fail)
    })?;
    agent_proof(uam, request).await?;
    let event = Verified::new(proof, parts(request, headers, peer, key_id, now, replay));
    match uam.door.enter(event).await {
        Entry::New => Ok(Taken::Delivered),
        Entry::Duplicate => Ok(Taken::Duplicate),
        Entry::Replayed => Err(replayed()),
        Entry::TooLarge => Err(Refused::new(
            Cost::Nothing,
            "too_large",
            Fail::too_large("The message is larger than this relay takes"),
        )),
        Entry::Unavailable { retry_after_s } => Err(Refused::new(
            Cost::Nothing,
            "unavailable",
            Fail::unavailable("the ledger or the bus takes nothing now", retry_after_s),
        )),
    }
}

/// Checks 3 to 5: block list, reputation tier, rate.
fn gate(uam: &Uam, request: &RelayRequest) -> Result<(), Refused> {
    let relay = request.from_relay();
    match uam.trust.standing(ID, relay) {
        // Nothing holds a quarantined peer's events back yet, so they are refused.
        Standing::Blocked | Standing::Quarantined => {
            return Err(Refused::new(
                Cost::Nothing,
                "blocked",
                Fail::forbidden("Source relay is blocked"),
            ));
        }
        Standing::Allowed => return Ok(()),
        Standing::Ordinary => {}
    }
    let limit = tier_limit(uam.trust.score(ID, relay), uam.config.relay_rate_limit);
    if limit == 0 {
        return Err(Refused::new(
            Cost::Nothing,
            "reputation",
            Fail::forbidden("Source relay reputation too low"),
        ));
    }
    if !uam.trust.admit(&Uam::rate_key(relay), limit) {
        return Err(Refused::new(
            Cost::Nothing,
            "rate",
            Fail::rate_limited("Federation rate limit exceeded", COME_AGAIN),
        ));
    }
    Ok(())
}

/// Requests a minute that a score allows.
fn tier_limit(score: i64, base: u32) -> u32 {
    TIERS
        .iter()
        .find(|(from, _)| score >= *from)
        .map_or(0, |(_, part)| base / part)
}

/// Checks 6 to 11, on what anybody may have written.
fn unproven(uam: &Uam, request: &RelayRequest, now: UnixMs) -> Result<(), Refused> {
    let limits = checks::Limits {
        now_ms: now,
        max_age_ms: i64::try_from(uam.config.timestamp_max_age.as_millis()).unwrap_or(i64::MAX),
        max_hops: uam.config.max_hops,
        domain: uam.domain(),
    };
    checks::request(request, &limits)
        .map_err(|fault| Refused::new(Cost::Client, fault.reason, fault.fail))
}

/// Checks 12 and 13: the relay's own signature, with the key we know or, once, the key it shows now.
async fn relay_proof(
    uam: &Arc<Uam>,
    headers: &HeaderMap,
    request: &RelayRequest,
) -> Result<(PeerName, String, Proof), Refused> {
    let bad = || {
        Refused::new(
            Cost::Client,
            "bad_relay_signature",
            Fail::unauthorized("Invalid relay signature"),
        )
    };
    let signature = signature(headers)?;
    let signature = encoding::decode(signature).ok_or_else(bad)?;
    let peer = PeerName::parse(request.from_relay()).map_err(|_| bad())?;
    let signed = request.signed_bytes();
    let prove = |bytes: &[u8; 32]| {
        let key = PublicKey::parse(bytes).ok()?;
        let proof = key.verify(&signed, &signature).ok()?;
        Some((key.fingerprint(), proof))
    };
    let known = uam
        .peers
        .known(ID, &peer)
        .and_then(|record| record.public_key);
    if let Some((key_id, proof)) = known.as_ref().and_then(prove) {
        return Ok((peer, key_id, proof));
    }
    let uam_dyn = uam.shared().ok_or_else(bad)?;
    let record = if known.is_some() {
        uam.peers.refresh(&uam_dyn, &peer).await.ok().flatten()
    } else {
        uam.peers.resolve(&uam_dyn, &peer).await.ok()
    };
    let shown = record.and_then(|record| record.public_key);
    if shown == known {
        return Err(bad());
    }
    match shown.as_ref().and_then(prove) {
        Some((key_id, proof)) => {
            if known.is_some() {
                tracing::info!(relay = %peer, key = %key_id, "the relay has a new key");
                uam.ops.event(
                    "key",
                    "changed",
                    ID,
                    peer.as_str(),
                    json!({"peer": peer.as_str(), "key_id": key_id}),
                );
            }
            Ok((peer, key_id, proof))
        }
        None => Err(bad()),
    }
}

/// The one signature header.
fn signature(headers: &HeaderMap) -> Result<&str, Refused> {
    let mut all = headers.get_all("x-uam-relay-signature").iter();
    let fault =
        |text: &str| Refused::new(Cost::Client, "no_relay_signature", Fail::unauthorized(text));
    let missing = "Missing X-UAM-Relay-Signature header";
    let first = all.next().ok_or_else(|| fault(missing))?;
    if all.next().is_some() {
        return Err(fault("X-UAM-Relay-Signature header given more than once"));
    }
    match first.to_str() {
        Ok("") => Err(fault(missing)),
        Ok(text) => Ok(text),
        Err(_) => Err(fault("Invalid relay signature")),
    }
}

/// Check 14's id: the nonce by its decoded bytes, for as long as the request could be repeated.
fn replay_id(uam: &Uam, request: &RelayRequest, now: UnixMs) -> Result<Option<ReplayId>, Refused> {
    let Some(nonce) = request.nonce() else {
        return Ok(None);
    };
    // A nonce that is no base64 is still one text and one nonce.
    let id = encoding::decode(nonce).unwrap_or_else(|| nonce.as_bytes().to_vec());
    let age = i64::try_from(uam.config.timestamp_max_age.as_millis()).unwrap_or(i64::MAX / 4);
    Ok(Some(ReplayId {
        scope: request.from_relay().to_owned(),
        id,
        expires_ms: now
            .saturating_add(age.saturating_mul(2))
            .saturating_add(REPLAY_MARGIN_MS),
    }))
}

fn replayed() -> Refused {
    Refused::new(
        Cost::Relay,
        "replay",
        Fail::conflict("Federation request replay (nonce already seen)"),
    )
}

/// Check 17: the agent's signature, with the key of its home relay.
async fn agent_proof(uam: &Arc<Uam>, request: &RelayRequest) -> Result<(), Refused> {
    let from = request.from();
    let unknown = || {
        Refused::new(
            Cost::Relay,
            "unknown_sender",
            Fail::forbidden(format!(
                "Cannot resolve sender key for '{from}': home relay unreachable or sender unknown"
            )),
        )
    };
    let uam_dyn = uam.shared().ok_or_else(unknown)?;
    let known = uam.agents.key(&uam_dyn, from).await.ok_or_else(unknown)?;
    let first = agent_signature(request, &known.key);
    let (Err(refused), true) = (&first, known.may_be_old) else {
        return first;
    };
    // The agent may have another key by now: its relay is asked once more.
    match uam.agents.key_anew(&uam_dyn, from).await {
        Some(anew) if anew.key != known.key => agent_signature(request, &anew.key),
        _ => {
            tracing::debug!(detail = %refused.fail.detail, "the sender's key is unchanged");
            first
        }
    }
}

fn agent_signature(request: &RelayRequest, key: &PublicKey) -> Result<(), Refused> {
    if let Some(sender_key) = request.sender_key()
        && encoding::decode_key(sender_key) != Some(key.to_bytes())
    {
        return Err(Refused::new(
            Cost::Relay,
            "sender_key",
            Fail::forbidden("Envelope sender_key does not match home-relay record"),
        ));
    }
    request.verify_agent(key).map(|_| ()).map_err(|_| {
        Refused::new(
            Cost::Relay,
            "bad_agent_signature",
            Fail::bad_request("Invalid agent envelope signature: Signature was forged or corrupt"),
        )
    })
}

fn parts(
    request: &RelayRequest,
    headers: &HeaderMap,
    peer: PeerName,
    key_id: String,
    now: UnixMs,
    replay: Option<ReplayId>,
) -> VerifiedParts {
    VerifiedParts {
        protocol: ID,
        peer,
        dedupe_key: dedupe_key(request.from(), request.message_id()),
        event_id: request.message_id().to_owned(),
        event_type: request.event_type().to_owned(),
        payload: request.envelope_text(),
        origin: request.from().to_owned(),
        key_id,
        hops: u32::try_from(request.hop_count()).unwrap_or(u32::MAX),
        received_at_ms: now,
        traceparent: traceparent(headers),
        replay: replay.into_iter().collect(),
    }
}

/// One message, once: its id as its sender's. Both are under the agent's signature, so no relay and
/// no other agent can use an id up before its owner does, and the same message is known again by
/// whichever relay it comes.
pub fn dedupe_key(from: &str, message_id: &str) -> String {
    let key = format!("{}:{from}:{message_id}", from.len());
    if key.len() <= MAX_DEDUPE_KEY {
        return key;
    }
    use sha2::{Digest, Sha256};
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(key.as_bytes()).iter() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Window of a client's unproven failures; an IPv6 client is its /64.
fn client_key(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => format!("uam/client/{v4}"),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => format!("uam/client/{v4}"),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                format!("uam/client/{a:x}:{b:x}:{c:x}:{d:x}::/64")
            }
        },
    }
}

/// At most 1 MiB, announced or not.
async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Fail> {
    let too_large = || Fail::too_large(format!("Request body exceeds {MAX_BODY} bytes"));
    let announced = headers
        .get(::http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    axum::body::to_bytes(body, MAX_BODY).await.map_err(|error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            if error.is::<http_body_util::LengthLimitError>() {
                return too_large();
            }
            cause = error.source();
        }
        Fail::bad_request("The request body broke off")
    })
}

/// `application/json` or `application/*+json`, once.
fn is_json(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(::http::header::CONTENT_TYPE).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return false;
    };
    let Ok(text) = value.to_str() else {
        return false;
    };
    let kind = text
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// A well-formed W3C trace context, else none.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts.as_slice() else {
        return None;
    };
    let lengths = [version.len(), trace.len(), span.len(), flags.len()] == [2, 32, 16, 2];
    let hex = text
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b == b'-');
    (lengths && hex).then(|| text.to_owned())
}

/// Foreign text for a log line: printable and bounded.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_allows_all_half_a_tenth_or_nothing() {
        let found: Vec<u32> = [100, 80, 79, 50, 49, 20, 19, 0]
            .iter()
            .map(|score| tier_limit(*score, 1000))
            .collect();
        assert_eq!(found, [1000, 1000, 500, 500, 100, 100, 0, 0]);
        assert_eq!(tier_limit(60, 5), 2);
    }

    #[test]
    fn an_id_is_its_senders_own() {
        assert_ne!(dedupe_key("a::x", "1"), dedupe_key("b::x", "1"));
        assert_ne!(dedupe_key("a", "b:c"), dedupe_key("a:b", "c"));
        assert!(dedupe_key("a::x", &"m".repeat(60_000)).len() < MAX_DEDUPE_KEY);
    }

    #[test]
    fn a_client_is_an_address_or_a_64() {
        let key = |text: &str| client_key(text.parse().unwrap());
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    }

    #[test]
    fn only_a_well_formed_trace_is_carried() {
        let mut headers = HeaderMap::new();
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.insert("traceparent", good.parse().unwrap());
        assert_eq!(traceparent(&headers).as_deref(), Some(good));
        for bad in ["", "00-x-y-01", &good.to_uppercase(), &format!("{good}-1")] {
            headers.insert("traceparent", bad.parse().unwrap());
            assert_eq!(traceparent(&headers), None, "{bad}");
        }
    }
}
