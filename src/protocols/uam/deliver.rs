//! The delivery route: the checks of the sheet's section 4 in their order, the first that fails answers.
//!
//! Two things differ from the reference on purpose. A relay is charged only for what it has signed:
//! before check 13 holds, anybody may have sent the request, so a failure costs the client's address a
//! place in a window of its own and gives the named relay its place in the rate window back. And the
//! agent is always verified with the key of its home relay, in both wire forms.

use std::sync::Arc;

use ::http::{HeaderMap, StatusCode};
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::clock::UnixMs;
use crate::http::server::ClientAddr;
use crate::identity::{b64, hex};
use crate::inbound::Entry;
use crate::ops::{metrics, trace};
use crate::protocol::{ReplayId, Verified, VerifiedParts};
use crate::trust::Standing;

use super::answer::{Fail, reply};
use super::envelope::Envelope;
use super::proof::{Proven, agent_proof, relay_proof};
use super::received::{client_key, is_json, read_body, shown};
use super::relay_request::RelayRequest;
use super::verify::{self, Charge, Limits, Rejection};
use super::{ID, Uam};

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

/// A refusal on its way: the answer, whom it costs something, and its short name.
pub(super) struct Refused {
    fail: Fail,
    charge: Charge,
    /// For metrics and operators.
    reason: &'static str,
}

impl Refused {
    fn free(reason: &'static str, fail: Fail) -> Self {
        Self {
            fail,
            charge: Charge::Nobody,
            reason,
        }
    }

    pub(super) fn by(reason: &'static str) -> impl Fn(Rejection) -> Self {
        move |rejection| Self {
            charge: rejection.charge,
            fail: rejection.into(),
            reason,
        }
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
        return Err(refuse("content_type", Rejection::content_type().into()));
    }
    let request = RelayRequest::parse(&body, uam.config.wire_forms)
        .map_err(|error| refuse("invalid_body", Rejection::schema(&error).into()))?;
    if !uam.config.enabled {
        return Err(refuse("disabled", Rejection::not_enabled().into()));
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
    let relay = request.from_relay.as_str();
    let id = shown(request.envelope.message_id().unwrap_or_default());
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
    let outcome = match refused.reason {
        "replay" => "replayed",
        "store" | "unavailable" => "unavailable",
        _ => "refused",
    };
    metrics::inbound(ID, outcome);
    metrics::refusal(ID, refused.reason);
    tracing::info!(
        relay = %shown(relay),
        message_id = %id,
        status = refused.fail.status.as_u16(),
        reason = refused.reason,
        detail = %refused.fail.detail,
        "Federation message refused"
    );
    match refused.charge {
        Charge::Nobody => {}
        Charge::Relay => uam.trust.charge(ID, relay, PENALTY),
        Charge::Client if uam.config.charge_unproven => uam.trust.charge(ID, relay, PENALTY),
        Charge::Client => {
            uam.trust.withdraw(&Uam::rate_key(relay));
            if let Some(client) = client {
                uam.trust.admit(client, uam.config.unproven_per_minute);
            }
        }
    }
    if refused.charge == Charge::Relay {
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
    gate(uam, &request.from_relay)?;
    let limits = Limits {
        own_domain: uam.domain(),
        now_ms: now,
        max_age_s: i64::try_from(uam.config.timestamp_max_age.as_secs()).unwrap_or(i64::MAX),
        max_hops: uam.config.max_hops,
    };
    verify::check_claims(request, &limits).map_err(Refused::by("claims"))?;
    let relay = relay_proof(uam, headers, request).await?;
    let (peer, replay) = (relay.peer.clone(), replay_id(uam, request, now));
    // A copy of what is on its way has its outcome, and no replay of its own.
    let joins = on_its_way(uam, &request.envelope);
    let taken = past_replay(uam, headers, request, relay, now, replay.clone()).await;
    // Check 14. It comes before those in `past_replay`, but asks the database, and the ledger looks
    // again in the event's own commit: so it is put only where it would change the answer.
    let in_doubt = match &taken {
        Ok(Taken::Delivered) => false,
        Ok(Taken::Duplicate) => !joins,
        Err(refused) => refused.reason != "replay" && refused.reason != "unavailable",
    };
    if in_doubt && let Some(id) = &replay {
        let seen =
            uam.store.replay_seen(ID, id).await.map_err(|error| {
                Refused::free("store", Fail::unavailable(&error.to_string(), 5))
            })?;
        if seen {
            return Err(Refused::by("replay")(Rejection::replay()));
        }
    }
    if !matches!(&taken, Err(refused) if refused.reason == "replay") {
        uam.peers.heard_from(ID, &peer);
    }
    taken
}

/// Whether the same event has come in and has no outcome yet.
fn on_its_way(uam: &Uam, envelope: &Envelope) -> bool {
    match (envelope.from(), envelope.message_id()) {
        (Some(from), Some(id)) => uam.door.on_its_way(ID, &dedupe_key(from, id)),
        _ => false,
    }
}

/// Checks 15 to 19.
async fn past_replay(
    uam: &Arc<Uam>,
    headers: &HeaderMap,
    request: &RelayRequest,
    relay: Proven,
    now: UnixMs,
    replay: Option<ReplayId>,
) -> Result<Taken, Refused> {
    verify::check_envelope(&request.envelope, request.form()).map_err(Refused::by("envelope"))?;
    agent_proof(uam, &request.envelope).await?;
    let event = event(request, headers, relay, now, replay)?;
    let entry = match uam.trust.standing(ID, &request.from_relay) {
        Standing::Quarantined => uam.door.hold(event).await,
        _ => uam.door.enter(event).await,
    };
    match entry {
        Entry::New | Entry::Held => Ok(Taken::Delivered),
        Entry::Duplicate => Ok(Taken::Duplicate),
        Entry::Replayed => Err(Refused::by("replay")(Rejection::replay())),
        Entry::TooLarge => Err(Refused::by("too_large")(Rejection::too_large())),
        Entry::Unavailable { retry_after_s } => Err(Refused::free(
            "unavailable",
            Fail::unavailable("the ledger or the bus takes nothing now", retry_after_s),
        )),
    }
}

/// Checks 3 to 5: block list, reputation tier, rate.
fn gate(uam: &Uam, relay: &str) -> Result<(), Refused> {
    match uam.trust.standing(ID, relay) {
        Standing::Blocked => return Err(Refused::by("blocked")(Rejection::blocked())),
        Standing::Allowed => return Ok(()),
        // A quarantined relay is answered like any other; the door holds its events back.
        Standing::Quarantined | Standing::Ordinary => {}
    }
    let limit = tier_limit(uam.trust.score(ID, relay), uam.config.relay_rate_limit);
    if limit == 0 {
        return Err(Refused::by("reputation")(Rejection::reputation()));
    }
    if !uam.trust.admit(&Uam::rate_key(relay), limit) {
        let mut refused = Refused::by("rate")(Rejection::rate());
        refused.fail.retry_after_s = Some(COME_AGAIN);
        return Err(refused);
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

/// Check 14's id: the nonce by its decoded bytes, for as long as the request could be repeated.
fn replay_id(uam: &Uam, request: &RelayRequest, now: UnixMs) -> Option<ReplayId> {
    let nonce = request.nonce.as_deref()?;
    // A nonce that is no base64 is still one text and one nonce.
    let id = b64::decode(nonce).unwrap_or_else(|_| nonce.as_bytes().to_vec());
    let age = i64::try_from(uam.config.timestamp_max_age.as_millis()).unwrap_or(i64::MAX / 4);
    Some(ReplayId {
        scope: request.from_relay.clone(),
        id,
        expires_ms: now
            .saturating_add(age.saturating_mul(2))
            .saturating_add(REPLAY_MARGIN_MS),
    })
}

/// The event for the door; every field it needs was found by check 16.
fn event(
    request: &RelayRequest,
    headers: &HeaderMap,
    relay: Proven,
    now: UnixMs,
    replay: Option<ReplayId>,
) -> Result<Verified, Refused> {
    let envelope = &request.envelope;
    let (Some(from), Some(id), Some(kind)) =
        (envelope.from(), envelope.message_id(), envelope.kind())
    else {
        let fail = Fail::bad_request("Invalid envelope: Missing required fields");
        return Err(Refused::free("envelope", fail));
    };
    Ok(Verified::new(
        relay.proof,
        VerifiedParts {
            protocol: ID,
            peer: relay.peer,
            dedupe_key: dedupe_key(from, id),
            event_id: id.to_owned(),
            event_type: kind.to_owned(),
            payload: envelope.text().clone(),
            origin: from.to_owned(),
            key_id: relay.key_id,
            hops: u32::try_from(request.hop_count).unwrap_or(u32::MAX),
            received_at_ms: now,
            traceparent: traceparent(headers),
            replay: replay.into_iter().collect(),
            room_event: None,
        },
    ))
}

/// The request's trace context, if it has one that can be carried on.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    trace::carried(headers.get("traceparent")?.to_str().ok()?)
}

/// One message, once: its id as its sender's. Both are under the agent's signature, so no relay and
/// no other agent can use an id up before its owner does, and the same message is known again by
/// whichever relay it comes.
pub fn dedupe_key(from: &str, message_id: &str) -> String {
    let key = format!("{}:{from}:{message_id}", from.len());
    if key.len() <= MAX_DEDUPE_KEY {
        return key;
    }
    format!("sha256:{}", hex(&Sha256::digest(key.as_bytes())))
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
}
