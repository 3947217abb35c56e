//! `POST /member-joined`: a peer says that somebody joined one of our servers. It becomes an event on
//! `fed.in` (type `member-joined`), and the peer hears of success only when that is durable.
//!
//! The notice has no id of its own. The token it comes under is used once and no second time, so its
//! nonce names the event. The user is passed on as it came, byte for byte.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::answer::{Fail, ok};
use super::message::Members;
use super::record::Peer;
use super::request::{self, Caller, Received};
use super::{ID, VoltChat, body, ids, push, text};
use crate::identity::hex;
use crate::inbound::Entry;
use crate::ops::metrics;
use crate::protocol::{Verified, VerifiedParts};

/// Type of the event.
pub const EVENT_TYPE: &str = "member-joined";
/// Bytes of the nonce's hash that name the event.
const TAG: usize = 16;

/// `POST /member-joined`.
pub async fn receive(v: &VoltChat, r: &Received) -> Result<Response, Fail> {
    let caller = request::authenticate(v, r)?;
    request::spend(v, &caller.nonce, caller.client.as_deref()).await?;
    let peer = Arc::clone(&caller.peer);
    let joined = Joined::read(r).map_err(|words| {
        push::refused(v, &peer, words);
        Fail::bad(words)
    })?;
    let event = event(&joined, caller, r)?;
    match push::to_door(v, event).await {
        Entry::New | Entry::Held | Entry::Duplicate => {}
        Entry::Replayed => return Err(Fail::credentials()),
        Entry::TooLarge => {
            push::refused(v, &peer, "Payload too large");
            return Err(Fail::too_large());
        }
        Entry::Unavailable { retry_after_s } => {
            metrics::inbound(ID, "unavailable");
            metrics::refusal(ID, "unavailable");
            let why = "the ledger or the bus takes nothing now";
            return Err(Fail::unavailable(why, retry_after_s));
        }
    }
    v.book.seen(&peer.host, r.now_ms).await;
    v.peers.heard_from(ID, &peer.host);
    Ok(ok(&json!({"success": true})))
}

/// Who joined what.
#[derive(Debug)]
struct Joined<'a> {
    server_id: String,
    user_id: String,
    /// As it came.
    user: &'a RawValue,
}

impl<'a> Joined<'a> {
    /// Reads a body; the error is the answer's text.
    fn read(r: &'a Received) -> Result<Self, &'static str> {
        let missing = "serverId and user are required";
        let server = r
            .member("serverId")
            .filter(|id| !blank(id))
            .ok_or(missing)?;
        let members = Members::read(&r.raw).unwrap_or_default();
        let user = members.raw("user").ok_or(missing)?;
        let scalar = !user.get().starts_with(['{', '[']);
        if scalar && serde_json::from_str(user.get()).is_ok_and(|user: Value| blank(&user)) {
            return Err(missing);
        }
        let server_id = server
            .as_str()
            .and_then(ids::id)
            .ok_or("Invalid serverId")?;
        let members = body::members(user.get().as_bytes());
        let members = members
            .filter(Value::is_object)
            .ok_or("Invalid user payload")?;
        if ids::has_reserved_key(&members) {
            return Err("Invalid user payload");
        }
        let id = members.get("id").and_then(Value::as_str).and_then(ids::id);
        Ok(Self {
            server_id: server_id.to_owned(),
            user_id: id.ok_or("Invalid user id")?.to_owned(),
            user,
        })
    }

    /// The event's payload: the source is the peer that proved itself.
    fn payload(&self, peer: &Peer) -> Result<Bytes, serde_json::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Payload<'a> {
            r#type: &'a str,
            server_id: &'a str,
            user: &'a RawValue,
            from_host: &'a str,
            from_mainline: &'a str,
        }
        serde_json::to_vec(&Payload {
            r#type: EVENT_TYPE,
            server_id: &self.server_id,
            user: self.user,
            from_host: peer.host.as_str(),
            from_mainline: &peer.name,
        })
        .map(Bytes::from)
    }
}

/// What counts as not given: null, false, zero, an empty text.
fn blank(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(said) => text::trim(said).is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

fn event(joined: &Joined<'_>, caller: Caller, r: &Received) -> Result<Verified, Fail> {
    let peer = &caller.peer;
    let host = peer.host.as_str();
    let hash = Sha256::digest(&caller.nonce.id);
    let id = format!("member_{}", hex(hash.get(..TAG).unwrap_or_default()));
    let payload = joined
        .payload(peer)
        .map_err(|_| Fail::bad("Invalid user payload"))?;
    Ok(Verified::new(
        caller.proof,
        VerifiedParts {
            protocol: ID,
            peer: peer.host.clone(),
            // No relay id has a slash.
            dedupe_key: format!("{host}/{EVENT_TYPE}/{id}"),
            event_id: id,
            event_type: EVENT_TYPE.to_owned(),
            payload,
            origin: format!("{}@{host}", joined.user_id),
            key_id: peer.id.clone(),
            hops: 1,
            received_at_ms: r.now_ms,
            traceparent: push::traceparent(&r.headers),
            replay: Vec::new(),
            room_event: None,
        },
    ))
}

#[cfg(test)]
mod tests {
    use ::http::{Method, Request, header};
    use axum::body::Body;

    use super::*;

    async fn received(body: &str) -> Received {
        let request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "application/json");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Received::read(parts, Body::from(body.to_owned()), 0)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_in_the_order_of_the_sheet() {
        for (body, said) in [
            ("{}", "serverId and user are required"),
            (r#"{"serverId":"a b"}"#, "serverId and user are required"),
            (
                r#"{"serverId":" ","user":{"id":"u"}}"#,
                "serverId and user are required",
            ),
            (
                r#"{"serverId":"s","user":null}"#,
                "serverId and user are required",
            ),
            (
                r#"{"serverId":"s","user":""}"#,
                "serverId and user are required",
            ),
            ("[]", "serverId and user are required"),
            (r#"{"serverId":"a b","user":"x"}"#, "Invalid serverId"),
            (r#"{"serverId":5,"user":{"id":"u"}}"#, "Invalid serverId"),
            (r#"{"serverId":"s","user":"x"}"#, "Invalid user payload"),
            (r#"{"serverId":"s","user":[1]}"#, "Invalid user payload"),
            (
                r#"{"serverId":"s","user":{"id":"u","__proto__":1}}"#,
                "Invalid user payload",
            ),
            (r#"{"serverId":"s","user":{}}"#, "Invalid user id"),
            (r#"{"serverId":"s","user":{"id":"a b"}}"#, "Invalid user id"),
        ] {
            let r = received(body).await;
            assert_eq!(Joined::read(&r).unwrap_err(), said, "{body}");
        }
    }

    #[tokio::test]
    async fn a_user_is_passed_on_as_it_came() {
        let user = r#"{"id":" u1 ","displayName":"a\ud800b","n":1.0}"#;
        let r = received(&format!(
            r#"{{"user":1,"serverId":" s1 ","token":"t","user":{user}}}"#
        ))
        .await;
        let joined = Joined::read(&r).unwrap();
        assert_eq!(
            (joined.server_id.as_str(), joined.user_id.as_str()),
            ("s1", "u1")
        );
        assert_eq!(joined.user.get(), user);
    }
}
