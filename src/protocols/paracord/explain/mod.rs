//! Explains a saved request, or an envelope alone, step by step: what the bridge checks, over which
//! bytes, and where it fails.
//!
//! The checks are those of the routes, in their order, by the same functions; nothing is looked up but
//! what the caller knows of servers. After a failure the rest is looked at all the same, since who
//! mends one fault wants to know of the next. Whether a signature was used before, and whether a rate
//! is exceeded, only the running bridge knows. The last step says what the bridge would answer.

mod event;
mod hints;
mod proof;
#[cfg(test)]
mod tests;

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::answer::Fail;
use super::envelope::{Envelope, Undecoded, decode_body};
use super::ids::{Room, User};
use super::member::{Invite, Membership};
use super::read::Wanted;
use super::record::Peer;
use super::request::{READ_TOKEN, Typed, is_json};
use super::{BASE, MAX_BODY, Own};
use crate::clock::UnixMs;
use crate::identity::{PublicKey, hex};
use crate::protocol::Step;
use crate::protocols::examine::Findings;
use crate::protocols::examine::saved::{self, Head, Saved, dechunk};
use crate::trust::Standing;
use proof::Request;

/// A server the caller knows, and what the rules say of it.
#[derive(Clone, Debug)]
pub struct Known {
    pub peer: Peer,
    pub standing: Standing,
}

/// What the checks need to know. What is `None` is not known, and its check is passed over.
#[derive(Clone, Debug)]
pub struct Context {
    /// When the request is taken to have arrived; `None`: at the time it names, so that an old file
    /// is not refused for its age alone.
    pub now_ms: Option<UnixMs>,
    /// Who we are.
    pub own: Option<Own>,
    /// Whether federation is switched on.
    pub enabled: bool,
    /// The servers we know.
    pub servers: Option<Vec<Known>>,
    /// Key of the server that sent the request, whatever is known of it.
    pub key: Option<PublicKey>,
    /// Key of the server that made the event.
    pub event_key: Option<PublicKey>,
}

impl Context {
    /// A server by its name as a signature writes it.
    fn server(&self, name: &str) -> Option<&Known> {
        let mut servers = self.servers.iter().flatten();
        servers.find(|known| known.peer.name.as_str() == name)
    }
}

/// Explains a saved HTTP request (with its headers), or an envelope alone.
pub fn explain(input: &[u8], context: &Context) -> Vec<Step> {
    let mut report = Findings::default();
    match saved::read(input) {
        Saved::Empty => report.fail("input", "the file is empty"),
        Saved::Cut => report.fail(
            "input",
            "the file begins like an HTTP request but has no empty line after the headers",
        ),
        Saved::Request { head, body } => {
            report.info("input", format!("{} {}", head.method, head.target));
            if !context.enabled {
                report.denied(
                    "switched on",
                    "paracord.enabled is false",
                    &Fail::forbidden(),
                );
            }
            request(&mut report, context, &head, body);
        }
        Saved::Other(text) => {
            report.info(
                "input",
                "no request with its headers: read as an envelope alone",
            );
            if let Some(envelope) = typed::<Envelope>(&mut report, &text) {
                event::check(&mut report, context, &envelope);
            }
        }
    }
    report.end(HELD)
}

/// A request by its route.
fn request(report: &mut Findings, context: &Context, head: &Head, body: Bytes) {
    let chunked = head
        .one("transfer-encoding")
        .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    let body = match chunked.then(|| dechunk(&body)).flatten() {
        Some(whole) => whole,
        None => body,
    };
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path, query),
        None => (head.target.as_str(), ""),
    };
    let Some(route) = path.strip_prefix(BASE) else {
        let why = match path.find(BASE) {
            Some(_) => {
                format!("{path:?} has something in front of {BASE}: a proxy must cut it off")
            }
            None => format!("{path:?} is not below {BASE}: did a proxy rewrite it?"),
        };
        report.fail("route", why);
        return;
    };
    let mut request = Request {
        head,
        path,
        received: &body,
        normal: None,
        origin: None,
    };
    match (head.method.as_str(), route) {
        ("POST", "/event") => {
            let envelope = posted::<Envelope>(report, head, &body);
            request.normal = envelope.as_ref().map(normal);
            proof::check(report, context, &request);
            if let Some(envelope) = envelope {
                event::check(report, context, &envelope);
            }
        }
        ("POST", "/invite") => {
            let invite = posted::<Invite>(report, head, &body);
            request.normal = invite.as_ref().map(normal);
            request.origin = invite.as_ref().and_then(Typed::origin);
            let by = proof::check(report, context, &request);
            if let Some(invite) = &invite {
                let fail = Fail::forbidden();
                user(report, by, "sender", &invite.sender, &fail, &fail);
                room(report, context, &invite.room_id);
            }
        }
        ("POST", "/join" | "/leave") => {
            let body = posted::<Membership>(report, head, &body);
            request.normal = body.as_ref().map(normal);
            request.origin = body.as_ref().and_then(Typed::origin);
            let by = proof::check(report, context, &request);
            if let Some(body) = &body {
                let none = Fail::bad_request("Invalid user_id");
                user(
                    report,
                    by,
                    "user_id",
                    &body.user_id,
                    &none,
                    &Fail::forbidden(),
                );
                room(report, context, &body.room_id);
            }
        }
        ("GET", "/events") => {
            match Wanted::read(query) {
                Ok(wanted) => report.pass("query", format!("room {}", wanted.room_id)),
                Err(fail) => report.denied("query", &fail.message, &fail),
            }
            request.path = &head.target;
            read(report, context, &request);
        }
        ("GET", route) if route.starts_with("/event/") => read(report, context, &request),
        ("GET", "/keys") => report.pass("route", "our keys, for anybody"),
        (method, _) => report.fail("route", format!("there is no {method} {path}")),
    }
}

/// A read: with the token, or signed.
fn read(report: &mut Findings, context: &Context, request: &Request<'_>) {
    if request.head.one(READ_TOKEN.as_str()).is_some() {
        let why = "it shows a read token; if that is ours, nothing else is asked";
        report.unknown("read token", "the read token", why);
        return;
    }
    proof::check(report, context, request);
    report.unknown(
        "room",
        "whether it may read this room",
        "a server reads rooms in which it has a member or of which it was sent an event, and \
         public ones; others are answered 404",
    );
}

/// A POST's body: its type, size, JSON and shape.
fn posted<T: Typed>(report: &mut Findings, head: &Head, body: &Bytes) -> Option<T> {
    let kind = head.one("content-type").unwrap_or("none");
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(kind) {
        headers.insert(::http::header::CONTENT_TYPE, value);
    }
    if !is_json(&headers) {
        let fail = Fail::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "");
        let why = format!("the content type is {kind}, not application/json");
        report.denied("content type", &why, &fail);
    }
    if body.len() > MAX_BODY {
        let fail = Fail::plain(StatusCode::PAYLOAD_TOO_LARGE, "");
        let why = format!("it has {} bytes, {MAX_BODY} are allowed", body.len());
        report.denied("body", &why, &fail);
        return None;
    }
    typed(report, body)
}

fn typed<T: Typed>(report: &mut Findings, body: &[u8]) -> Option<T> {
    match decode_body::<T>(body) {
        Ok(typed) => {
            let same = normal(&typed) == body;
            let form = match same {
                true => "it is in the normal form that servers hash",
                false => {
                    "it is not in the normal form; either is taken here, others take that alone"
                }
            };
            report.pass("body", format!("{} bytes; {form}", body.len()));
            Some(typed)
        }
        Err(why) => {
            let status = match &why {
                Undecoded::Syntax(_) => StatusCode::BAD_REQUEST,
                Undecoded::Shape(_) => StatusCode::UNPROCESSABLE_ENTITY,
            };
            report.denied("body", &why.to_string(), &Fail::plain(status, ""));
            None
        }
    }
}

/// The bytes a reference server hashes.
fn normal(typed: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(typed).unwrap_or_default()
}

/// A user of the server that asks.
fn user(
    report: &mut Findings,
    by: Option<&Known>,
    name: &str,
    id: &str,
    none: &Fail,
    foreign: &Fail,
) {
    let Some(user) = User::parse(id) else {
        report.denied(name, &format!("{id:?} is no user id"), none);
        return;
    };
    match by {
        Some(known) if known.peer.speaks_for(user.server) => report.pass(name, id),
        Some(known) => {
            let peer = &known.peer;
            let why = format!(
                "{id:?} is no user of {} (domain {})",
                peer.name, peer.domain
            );
            report.denied(name, &why, foreign);
        }
        None => report.unknown(
            name,
            "whose user it is",
            format!("{id:?}; what its server's domain is is not known here"),
        ),
    }
}

/// A room of ours.
fn room(report: &mut Findings, context: &Context, id: &str) {
    let fail = Fail::bad_request("Invalid room_id format");
    match (Room::parse(id), &context.own) {
        (None, _) => report.denied("room", &format!("{id:?} is no room id"), &fail),
        (Some(room), Some(own)) if !own.is(&room.server) => {
            let why = format!("{id:?} lives on {}, not here", room.server);
            report.denied("room", &why, &fail);
        }
        (Some(_), _) => report.unknown(
            "room",
            "whether the room is open to others",
            format!("{id:?}; the list of allowed guilds and the room itself decide"),
        ),
    }
}

/// The headers of a saved request, as the routes read them.
fn headers(head: &Head, names: &[HeaderName]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in names {
        let value = head.one(name.as_str());
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name.clone(), value);
        }
    }
    headers
}

/// Bytes with length and hash, to compare with the sender's.
fn shown(bytes: &[u8]) -> String {
    format!(
        "{} bytes, sha256 {}\n{}",
        bytes.len(),
        hex(&Sha256::digest(bytes)),
        String::from_utf8_lossy(bytes)
    )
}

impl Findings {
    /// A failed check with the answer it gives; the answer says less than we do.
    pub(super) fn denied(&mut self, name: &str, why: &str, fail: &Fail) {
        let answer = match fail.code {
            Some(code) => format!("{} {code} {:?}", fail.status.as_u16(), fail.message),
            None => format!("{}, in plain text", fail.status.as_u16()),
        };
        self.refused(name, why, answer);
    }
}

/// The sentence when nothing was found.
const HELD: &str = "everything that was checked holds; that its signature is new and its server \
                    within its rate only the running bridge can tell";
