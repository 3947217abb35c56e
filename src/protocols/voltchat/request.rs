//! A request as it arrives: how its body is read, who sent it, whether its token may be spent.
//!
//! The credentials are judged in one place. Whatever is wrong with them (host, token, allow list,
//! state of the peer) has one answer, and an unknown host costs the same work as a known one. What is
//! not proven is charged to the client's address, what is proven to the peer.

use std::sync::Arc;

use ::http::{HeaderMap, Method, StatusCode, header, request::Parts};
use axum::body::Body;
use bytes::Bytes;
use serde_json::Value;

use super::answer::Fail;
use super::record::{Peer, Status};
use super::send::{HOST_HEADER, TOKEN_HEADER};
use super::state::Contact;
use super::token::{self, Accepted};
use super::{ID, MAX_BODY, VoltChat, body, host};
use crate::clock::UnixMs;
use crate::http::server::ClientAddr;
use crate::http::written::Connection;
use crate::identity::Proof;
use crate::ops::metrics;
use crate::protocol::{PeerName, ReplayId};
use crate::protocols::wire::{self, Unread, client_window};
use crate::trust::Standing;

/// A request, read.
#[derive(Debug)]
pub struct Received {
    pub method: Method,
    pub headers: HeaderMap,
    /// The body's members, or an empty array for an array; `None`: there is no body, or one that is
    /// no JSON. Memory is bounded: once the members that are objects or arrays come to more than
    /// 256 KiB of JSON, further ones stand here as null; [`Received::raw`] has them whole.
    pub body: Option<Value>,
    /// The body as it came.
    pub raw: Bytes,
    /// The query, undecoded.
    pub query: Option<String>,
    /// Window of the client's address; `None`: it is not known.
    pub client: Option<String>,
    /// The connection the answer goes out by.
    pub connection: Option<Connection>,
    /// When it was read.
    pub now_ms: UnixMs,
}

impl Received {
    /// A member of the body.
    pub fn member(&self, name: &str) -> Option<&Value> {
        self.body.as_ref()?.get(name)
    }

    /// Reads a request in the order of sheet 6.1: size, Content-Type, JSON. A body needs a
    /// Content-Type, no body needs none.
    pub async fn read(parts: Parts, body: Body, now_ms: UnixMs) -> Result<Self, Fail> {
        let raw = wire::read_body(&parts.headers, body, MAX_BODY)
            .await
            .map_err(|unread| match unread {
                Unread::TooLarge => Fail::too_large(),
                Unread::Broken => Fail::malformed(now_ms),
            })?;
        let written = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
        let kind = parts.headers.get(header::CONTENT_TYPE);
        let json = match kind.map(|kind| media_type(kind.as_bytes())) {
            None if written && !raw.is_empty() => {
                return Err(Fail::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "Content-Type header required",
                ));
            }
            None => false,
            Some(Media::Json) => true,
            Some(Media::Form) => false,
            Some(Media::Other) if written => {
                return Err(Fail::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "Unsupported Content-Type",
                ));
            }
            Some(Media::Other) => false,
        };
        let body = if json && !raw.is_empty() && parts.method != Method::GET {
            Some(body::members(&raw).ok_or_else(|| Fail::malformed(now_ms))?)
        } else {
            None
        };
        let client = parts.extensions.get::<ClientAddr>();
        Ok(Self {
            client: client.map(|ClientAddr(ip)| client_window(*ip)),
            connection: parts.extensions.get::<Connection>().cloned(),
            query: parts.uri.query().map(str::to_owned),
            method: parts.method,
            headers: parts.headers,
            body,
            raw,
            now_ms,
        })
    }
}

enum Media {
    Json,
    /// Forms: they pass, and say nothing here.
    Form,
    Other,
}

fn media_type(value: &[u8]) -> Media {
    let essence = value.split(|b| *b == b';').next().unwrap_or_default();
    let essence = essence.trim_ascii().to_ascii_lowercase();
    match essence.as_slice() {
        b"application/json" => Media::Json,
        b"application/x-www-form-urlencoded" | b"multipart/form-data" => Media::Form,
        _ => Media::Other,
    }
}

/// Who proved itself.
#[derive(Debug)]
pub struct Caller {
    pub peer: Arc<Peer>,
    pub proof: Proof,
    /// What [`spend`], or an event's own commit, makes unusable.
    pub nonce: ReplayId,
    /// Window of the client's address.
    pub client: Option<String>,
}

/// Whether this client may try credentials now. Asked before a body is read.
pub fn may_try(v: &VoltChat, client: Option<&str>) -> Result<(), Fail> {
    match client {
        Some(client)
            if v.trust
                .full(&unproven_key(client), v.config.unproven_per_minute) =>
        {
            metrics::inbound(ID, "refused");
            metrics::refusal(ID, "client_limit");
            Err(Fail::limited())
        }
        _ => Ok(()),
    }
}

/// Charges a client for credentials that did not hold.
pub fn charge(v: &VoltChat, client: Option<&str>) {
    if let Some(client) = client {
        v.trust
            .admit(&unproven_key(client), v.config.unproven_per_minute);
    }
}

fn unproven_key(client: &str) -> String {
    format!("voltchat/client/{client}")
}

/// Checks the credentials of a request for data: switched on, host, token, allow list, trust rules,
/// state, rate. The nonce is not spent yet.
pub fn authenticate(v: &VoltChat, r: &Received) -> Result<Caller, Fail> {
    authenticate_as(v, r, Contact::Other)
}

/// The same for a request of this kind: a peer we asked proves its acceptance by a ping, and by
/// nothing else.
pub fn authenticate_as(v: &VoltChat, r: &Received, by: Contact) -> Result<Caller, Fail> {
    if !v.config.enabled {
        return Err(Fail::disabled());
    }
    let refuse = |reason: &'static str| {
        metrics::inbound(ID, "refused");
        metrics::refusal(ID, reason);
        tracing::debug!(reason, "federation credentials refused");
        charge(v, r.client.as_deref());
        Fail::credentials()
    };
    let (peer, accepted) = credentials(v, r).map_err(refuse)?;
    if !v.allow.admits(peer.host.as_str())
        || v.trust.standing(ID, peer.host.as_str()) == Standing::Blocked
    {
        return Err(refuse("not_allowed"));
    }
    let may =
        peer.status.is_accepted() || (by == Contact::Ping && peer.status == Status::Requested);
    if !may {
        return Err(refuse("not_accepted"));
    }
    if !v.trust.admit(
        &format!("voltchat/peer/{}", peer.host),
        v.config.peer_rate_limit,
    ) {
        metrics::inbound(ID, "refused");
        metrics::refusal(ID, "rate");
        return Err(Fail::limited());
    }
    let nonce = ReplayId {
        scope: peer.host.as_str().to_owned(),
        id: accepted.nonce,
        expires_ms: accepted
            .timestamp_ms
            .saturating_add(token::MAX_AGE_MS)
            .saturating_add(token::MAX_AHEAD_MS),
    };
    Ok(Caller {
        peer,
        proof: accepted.proof,
        nonce,
        client: r.client.clone(),
    })
}

/// Host and token, proven; the short reason otherwise.
fn credentials(v: &VoltChat, r: &Received) -> Result<(Arc<Peer>, Accepted), &'static str> {
    let head = |name: &str| {
        let value = r.headers.get(name)?.to_str().ok()?;
        (!value.is_empty()).then_some(value)
    };
    // An empty one falls through to the next place; one of another type does not.
    let said = |name: &str| r.member(name).filter(|value| is_truthy(value));
    let token = match head(TOKEN_HEADER) {
        Some(token) => Some(token),
        None => said("token").and_then(Value::as_str),
    };
    let claimed = match head(HOST_HEADER) {
        Some(host) => Some(host),
        None => said("host")
            .or_else(|| said("fromHost"))
            .and_then(Value::as_str),
    };
    let (Some(token), Some(claimed)) = (token, claimed) else {
        return Err("no_credentials");
    };
    let claimed = host::normal(claimed);
    let peer = PeerName::parse(&claimed)
        .ok()
        .and_then(|name| v.book.get(&name));
    let secret = peer.as_ref().map(|peer| &peer.secret);
    let verified = token::verify(secret, &claimed, token, r.now_ms);
    match (peer, verified) {
        (Some(peer), Ok(accepted)) => Ok((peer, accepted)),
        (Some(_), Err(why)) => {
            tracing::debug!(host = %claimed, ?why, "token refused");
            Err("token")
        }
        (None, _) => Err("unknown_host"),
    }
}

/// Whether ECMAScript takes it for true.
pub fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Array(_) | Value::Object(_) => true,
    }
}

/// Spends the nonce of a request that enters no event: used already, it is refused like any other
/// token.
pub async fn spend(v: &VoltChat, nonce: &ReplayId, client: Option<&str>) -> Result<(), Fail> {
    let claimed = match v.store.claim_replay(ID, nonce.clone()).await {
        Ok(commit) => commit.await,
        Err(error) => Err(error),
    };
    match claimed {
        Ok(true) => Ok(()),
        Ok(false) => {
            metrics::inbound(ID, "replayed");
            metrics::refusal(ID, "replay");
            charge(v, client);
            Err(Fail::credentials())
        }
        Err(error) => {
            metrics::inbound(ID, "unavailable");
            metrics::refusal(ID, "store");
            Err(Fail::store(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(method: Method, kind: Option<&str>, body: &str) -> Result<Received, Fail> {
        let mut request = ::http::Request::builder().method(method).uri("/x");
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Received::read(parts, Body::from(body.to_owned()), 1_700_000_000_000).await
    }

    fn refused(answer: Result<Received, Fail>) -> (u16, &'static str) {
        let fail = answer.unwrap_err();
        (fail.status.as_u16(), fail.error)
    }

    const JSON: Option<&str> = Some("application/json; charset=utf-8");

    #[tokio::test]
    async fn a_body_needs_a_content_type_and_no_body_needs_none() {
        assert!(read(Method::POST, None, "").await.unwrap().body.is_none());
        assert_eq!(
            refused(read(Method::POST, None, "{}").await),
            (415, "Content-Type header required")
        );
        assert_eq!(
            refused(read(Method::POST, Some("text/plain"), "{}").await),
            (415, "Unsupported Content-Type")
        );
        for form in [
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ] {
            assert!(
                read(Method::POST, Some(form), "a=b")
                    .await
                    .unwrap()
                    .body
                    .is_none()
            );
        }
        assert!(read(Method::DELETE, JSON, "").await.unwrap().body.is_none());
        assert!(read(Method::GET, None, "").await.unwrap().body.is_none());
    }

    #[tokio::test]
    async fn what_is_no_object_or_array_is_refused_in_the_frames_words() {
        for bad in ["{", "\"x\"", "7", "null", "{} x", "{\"a\":}"] {
            let fail = read(Method::POST, JSON, bad).await.unwrap_err();
            assert_eq!(fail.status, 400, "{bad}");
            assert!(fail.frame_at_ms.is_some(), "{bad}");
        }
        let array = read(Method::POST, JSON, "[1,{\"host\":\"x\"}]")
            .await
            .unwrap();
        assert!(array.member("host").is_none());
    }

    #[tokio::test]
    async fn a_body_over_ten_mebibytes_is_refused_announced_or_not() {
        let body = format!("{{\"x\":\"{}\"}}", "a".repeat(MAX_BODY));
        assert_eq!(
            refused(read(Method::POST, JSON, &body).await),
            (413, "Payload too large")
        );
    }

    #[test]
    fn a_client_is_an_address_or_a_64() {
        let key = |text: &str| client_window(text.parse().unwrap());
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    }
}
