//! `POST /relay/:peerId`: an operator's message. It takes the way of a backend's: through `FED_OUT`,
//! so it is durable when it is answered, and in order with the others.

use ::http::StatusCode;
use axum::response::Response;
use serde_json::value::RawValue;

use super::answer::{Fail, reply};
use super::message::{Draft, Malformed, Members, Outgoing};
use super::record::Peer;
use super::request::Received;
use super::send::RELAY;
use super::{ID, VoltChat, admin, ids, text};

/// Longest type that stands in the subject, bytes; a longer one stands in the body alone.
const MAX_SUBJECT_TYPE: usize = 64;

/// Queues the message in the body for the peer of this id and answers it as it will go out. The caller
/// has found the operator.
pub async fn post(v: &VoltChat, id: &str, r: &Received) -> Result<Response, Fail> {
    if !v.config.enabled {
        return Err(Fail::disabled());
    }
    let peer = admin::known(v, id)?;
    if !peer.status.is_accepted() {
        return Err(Fail::bad("Peer not connected"));
    }
    let members = Members::read(&r.raw).unwrap_or_default();
    let draft = Draft::read(&members).map_err(|why| Fail::bad(why.words()))?;
    let kind = draft.kind.as_deref();
    let kind = kind.ok_or_else(|| Fail::bad(Malformed::NoTypeOrPayload.words()))?;
    let now = v.clock.now_ms();
    let id = ids::fresh(RELAY, now);
    publish(v, &peer, &id, kind, draft.payload)
        .await
        .map_err(|why| {
            tracing::warn!(peer = %peer.host, why, "an operator's message could not be queued");
            let words = "Failed to queue relay message";
            Fail::new(StatusCode::INTERNAL_SERVER_ERROR, words)
        })?;
    let queued = Outgoing {
        id: &id,
        schema_version: 1,
        kind,
        payload: draft.payload,
        timestamp: &text::iso(now),
        from_host: v.own.host.as_str(),
        from_mainline: &v.own.name,
        hops: 0,
    };
    let queued = serde_json::to_value(&queued).unwrap_or_default();
    Ok(reply(StatusCode::OK, &queued))
}

/// As a backend would, under the id that the message keeps.
async fn publish(
    v: &VoltChat,
    peer: &Peer,
    id: &str,
    kind: &str,
    payload: &RawValue,
) -> Result<(), String> {
    let bus = v.bus.as_ref().ok_or("there is no broker")?;
    #[derive(serde::Serialize)]
    struct Body<'a> {
        r#type: &'a str,
        payload: &'a RawValue,
    }
    let body = serde_json::to_vec(&Body {
        r#type: kind,
        payload,
    });
    let body = body.map_err(|error| error.to_string())?;
    let shown = if kind.len() <= MAX_SUBJECT_TYPE {
        kind
    } else {
        "relay"
    };
    let headers = vec![("Nats-Msg-Id".to_owned(), id.to_owned())];
    let published = bus.publish_out(ID, peer.host.as_str(), shown, headers, body.into());
    published.await.map(drop).map_err(|error| error.to_string())
}
