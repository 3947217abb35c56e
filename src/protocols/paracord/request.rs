//! The checks in front of every signed route, in their order (sheet, 5).
//!
//! A POST: the body is read and has its shape, the protocol is on, the headers are there, the body
//! names the same server as they do, the clocks agree, the server is trusted, one of its keys made the
//! signature, the signature is new. A read: the same without body and memory, or the read token.
//!
//! Whatever is wrong with a proof has one answer. What is not proven is charged to the client's
//! address, and a client with too many of those is refused before anything is computed for it.

use std::borrow::Cow;
use std::sync::Arc;

use ::http::{HeaderMap, HeaderName, StatusCode, header, request::Parts};
use axum::body::Body;
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::answer::Fail;
use super::envelope::{Undecoded, decode_body};
use super::proof::{Signed, asked_again, claimant};
use super::record::Peer;
use super::refused::Refused;
use super::transport::Claim;
use super::{ID, MAX_BODY, Paracord};
use crate::clock::UnixMs;
use crate::http::server::ClientAddr;
use crate::identity::hmac;
use crate::ops::{metrics, trace};
use crate::protocol::ReplayId;
use crate::protocols::room::{COME_AGAIN_S, Full};
use crate::protocols::wire::{self, Unread};
use crate::trust::Standing;

/// Lets anybody who shows it read.
pub const READ_TOKEN: HeaderName = HeaderName::from_static("x-paracord-federation-token");
/// How long a used signature is remembered.
const REPLAY_MS: UnixMs = 24 * 3_600_000;

/// A body of a signed POST. Its normal form is its compact JSON with members in the type's order.
pub trait Typed: DeserializeOwned + Serialize + Send + Sync {
    /// Whether it may come from a server under quarantine (it is held back then).
    const HELD_IN_QUARANTINE: bool = false;

    /// The server it says it is from, where that must be the one that signs; `None`: it need not be.
    fn origin(&self) -> Option<&str>;
}

/// A POST that its server signed. That the signature is new is not known yet: an event's own commit,
/// or [`spend`], finds that out.
#[derive(Debug)]
pub struct Proven {
    /// The server, trusted and not blocked.
    pub peer: Arc<Peer>,
    /// The signature, to be spent.
    pub replay: ReplayId,
    /// Window of the client's address.
    pub client: Option<String>,
}

/// Who may read.
#[derive(Clone, Debug)]
pub enum Reader {
    /// Somebody who has the read token: everything.
    Token,
    /// A trusted server: what it may.
    Peer(Arc<Peer>),
}

/// The window of the address a request came from.
pub fn client(parts: &Parts) -> Option<String> {
    let client = parts.extensions.get::<ClientAddr>();
    client.map(|ClientAddr(ip)| wire::client_window(*ip))
}

/// The request's trace context, if it has one that can be carried on.
pub fn traceparent(headers: &HeaderMap) -> Option<String> {
    trace::carried(headers.get("traceparent")?.to_str().ok()?)
}

/// Reads a POST and checks it up to the signature. The path that is signed is the route's own.
pub async fn post<T: Typed>(p: &Paracord, parts: &Parts, body: Body) -> Result<(T, Proven), Fail> {
    let client = client(parts);
    may_try(p, client.as_deref())?;
    // Given back when the checks are over.
    let place = p.bodies.take(HttpBody::size_hint(&body).upper());
    let _place = place.map_err(|Full| Fail::unavailable(COME_AGAIN_S))?;
    let (typed, received) = match typed::<T>(&parts.headers, body).await {
        Ok(read) => read,
        Err(fail) => {
            charge(p, client.as_deref());
            metrics::inbound(ID, "refused");
            metrics::refusal(ID, "unreadable");
            return Err(fail);
        }
    };
    let claim = claimed(p, &parts.headers, client.as_deref())?;
    let request = Signed {
        claim: &claim,
        method: parts.method.as_str(),
        path: parts.uri.path(),
        received: &received,
    };
    let checked = proven(p, typed, request).await;
    let (typed, peer) = settle(p, checked, &claim, client.as_deref())?;
    greet(p, &peer);
    if !T::HELD_IN_QUARANTINE {
        not_quarantined(p, &peer)?;
    }
    let replay = ReplayId {
        scope: peer.name.to_string(),
        // A signature that held has all its bytes.
        id: claim.signature.map_or_else(Vec::new, |bytes| bytes.into()),
        expires_ms: p.clock.now_ms().saturating_add(REPLAY_MS),
    };
    Ok((
        typed,
        Proven {
            peer,
            replay,
            client,
        },
    ))
}

/// Checks a GET whose signed path is this one.
pub async fn read(p: &Paracord, parts: &Parts, path: &str) -> Result<Reader, Fail> {
    let client = client(parts);
    may_try(p, client.as_deref())?;
    enabled(p)?;
    if has_read_token(p, &parts.headers) {
        return Ok(Reader::Token);
    }
    let claim = claimed(p, &parts.headers, client.as_deref())?;
    let request = Signed {
        claim: &claim,
        method: parts.method.as_str(),
        path,
        received: &[],
    };
    let checked = proven_read(p, request).await;
    let peer = settle(p, checked, &claim, client.as_deref())?;
    greet(p, &peer);
    not_quarantined(p, &peer)?;
    Ok(Reader::Peer(peer))
}

/// Spends the signature of a request that enters no event: used already, it is a 409.
pub async fn spend(p: &Paracord, proven: &Proven) -> Result<(), Fail> {
    let claimed = match p.store.claim_replay(ID, proven.replay.clone()).await {
        Ok(commit) => commit.await,
        Err(error) => Err(error),
    };
    match claimed {
        Ok(true) => Ok(()),
        Ok(false) => Err(replayed(p, proven)),
        Err(error) => {
            metrics::inbound(ID, "unavailable");
            metrics::refusal(ID, "store");
            Err(Fail::store(&error))
        }
    }
}

/// The answer to a signature that was used before. Who repeats one need not be who made it.
pub fn replayed(p: &Paracord, proven: &Proven) -> Fail {
    charge(p, proven.client.as_deref());
    metrics::inbound(ID, "replayed");
    let refused = Refused::new(
        Fail::conflict(),
        "replay",
        "the signature of this request was used before",
    );
    refused.tell(p, Some(proven.peer.name.as_str()), None);
    refused.fail
}

/// Whether this client may try to prove something now.
fn may_try(p: &Paracord, client: Option<&str>) -> Result<(), Fail> {
    let full = |client| {
        p.trust
            .full(&unproven_key(client), p.config.unproven_per_minute)
    };
    if client.is_some_and(full) {
        metrics::inbound(ID, "refused");
        metrics::refusal(ID, "client_limit");
        return Err(Fail::rate_limited());
    }
    Ok(())
}

/// Charges a client for what it did not prove.
fn charge(p: &Paracord, client: Option<&str>) {
    if let Some(client) = client {
        p.trust
            .admit(&unproven_key(client), p.config.unproven_per_minute);
    }
}

fn unproven_key(client: &str) -> String {
    format!("paracord/client/{client}")
}

/// Off, everything that needs trust is refused.
fn enabled(p: &Paracord) -> Result<(), Fail> {
    if p.config.enabled {
        return Ok(());
    }
    metrics::inbound(ID, "refused");
    metrics::refusal(ID, "disabled");
    Err(Fail::forbidden())
}

/// The body, and the bytes it came in: JSON by its type, of a size, of this shape.
async fn typed<T: Typed>(headers: &HeaderMap, body: Body) -> Result<(T, Bytes), Fail> {
    if !is_json(headers) {
        return Err(Fail::plain(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Expected request with `Content-Type: application/json`",
        ));
    }
    let received = wire::read_body(headers, body, MAX_BODY).await;
    let received = received.map_err(|unread| match unread {
        Unread::TooLarge => Fail::plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("The request body is larger than {MAX_BODY} bytes"),
        ),
        Unread::Broken => Fail::plain(StatusCode::BAD_REQUEST, "The request body broke off"),
    })?;
    match decode_body(&received) {
        Ok(typed) => Ok((typed, received)),
        Err(why) => {
            let status = match &why {
                Undecoded::Syntax(_) => StatusCode::BAD_REQUEST,
                Undecoded::Shape(_) => StatusCode::UNPROCESSABLE_ENTITY,
            };
            Err(Fail::plain(status, why.to_string()))
        }
    }
}

/// Whether the content type is JSON, or one that is built on it.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return false;
    };
    let essence = value.as_bytes().split(|b| *b == b';').next();
    let essence = essence
        .unwrap_or_default()
        .trim_ascii()
        .to_ascii_lowercase();
    let Some(subtype) = essence.strip_prefix(b"application/") else {
        return false;
    };
    subtype == b"json" || (subtype.len() > 5 && subtype.ends_with(b"+json"))
}

/// Whether the request shows the read token.
fn has_read_token(p: &Paracord, headers: &HeaderMap) -> bool {
    let Some(wanted) = &p.config.read_token else {
        return false;
    };
    let given = headers.get(READ_TOKEN).map(|value| value.as_bytes());
    given.is_some_and(|given| hmac::same(given.trim_ascii(), wanted.0.as_bytes()))
}

/// The four headers, when the protocol is on and they can be read.
fn claimed(p: &Paracord, headers: &HeaderMap, client: Option<&str>) -> Result<Claim, Fail> {
    enabled(p)?;
    Claim::read(headers).map_err(|name| {
        charge(p, client);
        let refused = Refused::unauthorized(
            "bad_header",
            format!("the header {name} is missing, empty or no number"),
        );
        refused.tell(p, None, None);
        refused.fail
    })
}

/// A POST whose server signed it, and that server.
async fn proven<T: Typed>(
    p: &Paracord,
    typed: T,
    request: Signed<'_>,
) -> Result<(T, Arc<Peer>), Refused> {
    let claim = request.claim;
    if typed.origin().is_some_and(|origin| origin != claim.origin) {
        return Err(Refused::forbidden(
            "other_origin",
            "the body names another origin_server than X-Paracord-Origin",
        ));
    }
    let peer = claimant(p, claim)?;
    let form = |typed: &T| serde_json::to_vec(typed).unwrap_or_default();
    let first = request.by(&peer, p.clock.now_ms(), || form(&typed).into());
    let Err(why) = first else {
        return Ok((typed, peer));
    };
    // A body read is many times its bytes. What nobody has proven does not stay so in memory while
    // its server is asked.
    let normal = form(&typed);
    drop(typed);
    let peer = asked_again(p, &peer, why).await?;
    request.by(&peer, p.clock.now_ms(), || (&normal).into())?;
    let typed = decode_body(request.received);
    let typed = typed.map_err(|why| Refused::forbidden("unreadable", why.to_string()))?;
    Ok((typed, peer))
}

/// The server that signed a read.
async fn proven_read(p: &Paracord, request: Signed<'_>) -> Result<Arc<Peer>, Refused> {
    let peer = claimant(p, request.claim)?;
    let nothing = || Cow::Borrowed(request.received);
    let Err(why) = request.by(&peer, p.clock.now_ms(), nothing) else {
        return Ok(peer);
    };
    let peer = asked_again(p, &peer, why).await?;
    request.by(&peer, p.clock.now_ms(), nothing)?;
    Ok(peer)
}

/// Charges and tells of a proof that did not hold.
fn settle<T>(
    p: &Paracord,
    checked: Result<T, Refused>,
    claim: &Claim,
    client: Option<&str>,
) -> Result<T, Fail> {
    checked.map_err(|refused| {
        charge(p, client);
        refused.tell(p, Some(&claim.origin), None);
        refused.fail
    })
}

/// Notes that a server proved itself.
fn greet(p: &Paracord, peer: &Peer) {
    p.book.seen(&peer.name, p.clock.now_ms());
    p.peers.heard_from(ID, &peer.name);
}

/// Nothing but events is taken from a server under quarantine.
fn not_quarantined(p: &Paracord, peer: &Peer) -> Result<(), Fail> {
    if p.trust.standing(ID, peer.name.as_str()) != Standing::Quarantined {
        return Ok(());
    }
    let why = format!("{} is under quarantine", peer.name);
    let refused = Refused::forbidden("quarantined", why);
    refused.tell(p, Some(peer.name.as_str()), None);
    Err(refused.fail)
}
