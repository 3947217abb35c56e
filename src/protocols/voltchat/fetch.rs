//! `POST /relay/fetch`, both sides of it: a peer's mailbox handed out, and our own messages fetched.
//!
//! The protocol acknowledges nothing, see [`crate::outbound::mailbox`]. A published mainline has no
//! route for our fetches; where that is so we ask once a day.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use serde_json::value::RawValue;

use super::answer::Fail;
use super::judge::{self, NO_PUSHES, Serving};
use super::message::{Members, Received as Message};
use super::record::Peer;
use super::request::{self, Received};
use super::{ID, Limits, VoltChat, push, send};
use crate::http::written;
use crate::identity::Proof;
use crate::inbound::Entry;
use crate::outbound::mailbox::Rules;
use crate::protocol::{Answer, Learned};

/// Rows handed out once that wait for the second time, for one peer: a mainline knows the newest 500
/// ids again (sheet, 7.3).
const OUTSTANDING: usize = 200;
/// Bytes of messages in one answer, about.
const MAX_ANSWER: u64 = 8 * 1024 * 1024;
/// What our own fetch may take: a mainline bounds an answer by nothing but its 50 messages.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(10),
    answer: 32 * 1024 * 1024,
};
/// Fact: until when a peer is taken to have no route for fetches.
const NO_FETCHES_UNTIL: &str = "no_fetches_until";
/// It is asked again after this.
const ASK_AGAIN_MS: i64 = 24 * 3_600_000;
/// Tries to enter a fetched message while ledger or bus take nothing, and the pause between them.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Answers a peer's fetch.
pub async fn serve(v: &Arc<VoltChat>, r: &Received) -> Result<Response, Fail> {
    let caller = request::authenticate(v, r)?;
    request::spend(v, &caller.nonce, caller.client.as_deref()).await?;
    let (host, now) = (&caller.peer.host, v.clock.now_ms());
    let record = v.peers.known(ID, host);
    let handout = match judge::serving(record.as_deref(), now) {
        Serving::Nothing => None,
        Serving::Mailbox(_) if v.peers.is_paused(ID, host) => None,
        Serving::Mailbox(learned) => {
            v.peers.learn(ID, host, &learned);
            let rules = Rules {
                fresh: v.config.fetch_batch,
                outstanding: OUTSTANDING,
                bytes: MAX_ANSWER,
                gap: v.config.handout_gap,
            };
            let handout = v.mailbox.hand_out(ID, host, &rules).await;
            Some(handout.map_err(|error| Fail::store(&error))?)
        }
    };
    v.book.synced(host, now).await;
    v.peers.heard_from(ID, host);
    let Some(handout) = handout.filter(|handout| !handout.is_empty()) else {
        return Ok(list(written::body("[]".into(), r.connection.as_ref()).0));
    };
    let mut text = Vec::new();
    for body in handout.bodies() {
        text.push(if text.is_empty() { b'[' } else { b',' });
        text.extend_from_slice(body);
    }
    text.push(b']');
    let (body, written) = written::body(text.into(), r.connection.as_ref());
    let mailbox = v.mailbox.clone();
    tokio::spawn(async move {
        if written.wait().await {
            mailbox.has_left(handout).await;
        }
    });
    Ok(list(body))
}

fn list(body: axum::body::Body) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::OK, kind, body).into_response()
}

/// Fetches what a peer keeps for us. What goes wrong is logged: the next round asks again.
pub(super) async fn pull(v: &VoltChat, peer: &Peer) {
    let now = v.clock.now_ms();
    let record = v.peers.known(ID, &peer.host);
    let until = record.and_then(|r| r.facts.get(NO_FETCHES_UNTIL)?.as_i64());
    if until.is_some_and(|until| until > now) || !v.door.is_open() {
        return;
    }
    let token = match send::fresh_token(v, peer, now) {
        Ok(token) => token,
        Err(error) => return tracing::warn!(%error, "no token for a fetch"),
    };
    let body = json!({"host": v.own.host.as_str(), "token": token});
    let asked = v.ask(
        Method::POST,
        &peer.url,
        "/relay/fetch",
        HeaderMap::new(),
        Some(&body),
        LIMITS,
    );
    let answer = match asked.await {
        Ok(answer) => answer,
        Err(error) => return tracing::debug!(peer = %peer.host, %error, "a fetch failed"),
    };
    match answer.status {
        200 => take(v, peer, &answer).await,
        401 if judge::said(&answer).as_deref() == Some(NO_PUSHES) => no_fetches(v, peer, now),
        404 | 405 => no_fetches(v, peer, now),
        status => tracing::debug!(peer = %peer.host, status, "a fetch was refused"),
    }
}

/// Nothing is known of whether the peer has a route for fetches.
pub(super) fn nothing() -> Vec<Learned> {
    vec![Learned {
        key: NO_FETCHES_UNTIL,
        value: serde_json::Value::Null,
    }]
}

fn no_fetches(v: &VoltChat, peer: &Peer, now: i64) {
    tracing::debug!(peer = %peer.host, "the peer has no route for fetches; it is asked again in a day");
    let until = Learned {
        key: NO_FETCHES_UNTIL,
        value: json!(now.saturating_add(ASK_AGAIN_MS)),
    };
    v.peers.learn(ID, &peer.host, &[until]);
}

/// Enters the fetched messages in their order. Stops where one cannot be entered: a bridge hands it
/// out again, and what a mainline handed out is gone there already.
async fn take(v: &VoltChat, peer: &Peer, answer: &Answer) {
    let Ok(messages) = serde_json::from_slice::<Vec<&RawValue>>(&answer.body) else {
        return; // no list counts as an empty one (sheet, 7.1)
    };
    for raw in messages {
        let members = Members::read(raw.get().as_bytes()).unwrap_or_default();
        let read = |members: &Members<'_>| Message::read(members, peer.host.as_str(), &peer.name);
        if let Err(why) = read(&members) {
            push::refused(v, peer, why.words());
            continue;
        }
        let mut tries = 0;
        loop {
            let Ok(message) = read(&members) else { break };
            let proof = Proof::of_server(answer);
            match push::enter(v, peer, proof, message, Vec::new(), None).await {
                Entry::Unavailable { .. } if tries < TRIES => tries += 1,
                Entry::Unavailable { .. } => {
                    tracing::error!(peer = %peer.host, "fetched messages could not be taken; what the peer does not keep is lost");
                    let detail = "messages were fetched while ledger or bus took nothing";
                    let body =
                        json!({"peer": peer.host.as_str(), "code": "fetch_lost", "detail": detail});
                    v.ops
                        .event("ingest", "rejected", ID, peer.host.as_str(), body);
                    return;
                }
                Entry::TooLarge => {
                    push::refused(v, peer, "Payload too large");
                    break;
                }
                Entry::New | Entry::Held | Entry::Duplicate | Entry::Replayed => break,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
