//! The parsers of VoltChat under any bytes ([`crate::fuzzing`]).

use ::http::{Method, Request};
use axum::body::Body;
use futures_util::FutureExt;
use serde_json::{Map, Value};

use super::allow::AllowList;
use super::invites::listing::Listing;
use super::message::{Draft, Members, Received as Message};
use super::request::Received;
use super::token::{self, Sender};
use super::{allow, body, explain, handshake, host, ids, judge, probe, push, record, text};
use crate::fuzzing::{NOW, answer, attempt, headers, peer, somebody};
use crate::identity::hmac::SharedSecret;

/// Shared with whoever asks.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A request's body, alone and with headers in front of it, and all that is read of one.
pub fn request(data: &[u8]) {
    if let Some(said) = body::members(data) {
        offered(&said);
    }
    let split = data.windows(2).position(|pair| pair == b"\n\n");
    let (head, rest) = match split {
        Some(at) => data.split_at(at),
        None => (&b"content-type: application/json"[..], data),
    };
    let rest = rest.strip_prefix(b"\n\n").unwrap_or(rest);
    let Ok(built) = Request::builder().method(Method::POST).uri("/").body(()) else {
        return;
    };
    let (mut parts, ()) = built.into_parts();
    parts.headers = headers(head);
    push::traceparent(&parts.headers);
    // The body is there, so nothing is waited for.
    if let Some(Ok(read)) = Received::read(parts, Body::from(rest.to_vec()), NOW).now_or_never() {
        if let Some(said) = &read.body {
            offered(said);
        }
        messages(&read.raw);
    }
}

/// The fields of a body: those of a handshake, of an invite, of a list.
fn offered(said: &Value) {
    let Some(members) = said.as_object() else {
        return;
    };
    let features = record::features(members.get("features"));
    handshake::is_bridge(&features);
    for value in members.values() {
        if let Some(text) = text::field(Some(value), 160) {
            assert!(text::units(&text) <= 160);
            names(&text);
        }
        if let Some(number) = text::integer(value, -5, 1_000) {
            assert!((-5..=1_000).contains(&number));
        }
        ids::has_reserved_key(value);
        let _ = allow::AllowList::from_json(value);
    }
}

/// Hosts, URLs, ids and times as texts.
fn names(text: &str) {
    host::strict(text);
    let normal = host::normal(text);
    host::lenient(text);
    host::is_private(&normal);
    for required in [true, false] {
        if let Some(url) = host::normal_url(text, None, required) {
            assert_eq!(host::normal_url(&url, None, required), Some(url));
        }
    }
    if let Some(name) = handshake::named(text) {
        assert_eq!(handshake::named(name.as_str()), Some(name));
    }
    ids::id(text);
    ids::relay_type(text);
    ids::made_at("peer", text);
    if let Some(at) = text::parse_time(text) {
        text::iso(at);
    }
    AllowList::new(&[text.to_owned()]).admits(&normal);
}

/// A relay message of a peer or a backend.
fn messages(raw: &[u8]) {
    let Some(members) = Members::read(raw) else {
        return;
    };
    let _ = Draft::read(&members);
    if let Ok(message) = Message::read(&members, "volt-b.example", "B") {
        let again = Members::read(&message.event);
        let again = again.and_then(|again| Message::read(&again, "volt-b.example", "B").ok());
        assert_eq!(again.map(|again| again.event), Some(message.event));
    }
}

/// A token: as it comes, and as the text of one that is signed.
pub fn token(data: &[u8]) {
    let (Ok(text), Some(secret)) = (std::str::from_utf8(data), SharedSecret::new(SECRET)) else {
        return;
    };
    let _ = token::verify(Some(&secret), "volt-b.example", text, NOW);
    let _ = token::verify(None, "volt-b.example", text, NOW);
    let host = token::claimed_host(text).unwrap_or_default();
    let _ = token::verify(Some(&secret), &host, text, NOW);
    let sealed = token::sealed(&secret, text);
    if let Ok(held) = token::verify(Some(&secret), "volt-b.example", &sealed, NOW) {
        assert!(!held.nonce.is_empty() && held.nonce.len() <= 64);
        assert!(NOW.abs_diff(held.timestamp_ms) <= 300_000);
    }
    let from = Sender {
        peer_id: text,
        host: "volt-b.example",
        name: text,
    };
    let made = token::make(&secret, &from, NOW, "aa");
    let held = token::verify(Some(&secret), "volt-b.example", &made, NOW);
    assert!(held.is_ok() || made.len() > 4_096, "{text:?}: {held:?}");
}

/// What a server answers: to a push, a look-up, a handshake, an examination.
pub fn answers(data: &[u8]) {
    let Some(name) = somebody() else {
        return;
    };
    let answer = answer(data);
    judge::judge(Ok(&answer), &peer("voltchat", &name), &attempt());
    if let Ok(listing) = Listing::read(&answer.body, NOW) {
        listing.shown("volt-b.example", NOW, None);
    }
    handshake::meaning(&answer);
    probe::readings(&name, &answer);
    // A record as it is kept never comes from outside, but its features do.
    let said: Map<String, Value> = serde_json::from_slice(&answer.body).unwrap_or_default();
    record::features(said.get("features"));
}

/// A saved request, explained.
pub fn verify(data: &[u8]) {
    let host = explain::claimed_host(data);
    for (secret, enabled) in [(SharedSecret::new(SECRET), true), (None, false)] {
        let context = explain::Context {
            now_ms: secret.as_ref().map(|_| NOW),
            host: host.clone(),
            secret,
            accepted: Some(enabled),
            allow: AllowList::new(&["*.example".to_owned()]),
            plain_hosts: Vec::new(),
            enabled,
        };
        let steps = explain::explain(data, &context);
        assert!(!steps.is_empty());
    }
}
