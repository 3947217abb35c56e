//! What the fuzzers in `fuzz/` call: one function a parser that reads the network, each given any
//! bytes. Without the feature `fuzzing`, and out of tests, nothing of this is in the library.
//!
//! A function here promises that its parser comes to an end without a panic whatever it is given, and
//! checks what must hold of whatever was read: what is written back reads the same, what was cut fits
//! its limit. The functions stand in the rooms whose parsers they call ([`crate::protocols`],
//! [`crate::bus`], [`crate::admin`]); this file is their list. The test below runs every seed through
//! all of them, so that what a fuzzer once found stays found.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use serde_json::Value;

use crate::config::parse_duration;
use crate::http::certificate::CertificateFacts;
use crate::http::{forwarded, guard};
use crate::identity::{PublicKey, b64, hex, hmac::SharedSecret, unhex, units};
use crate::ops::trace::TraceParent;
use crate::protocol::{Answer, PeerName, PeerRecord, Try};
use crate::{admin, bus, protocols};

/// A parser under any bytes.
pub type Target = fn(&[u8]);

/// Every target with the name of its fuzzer.
pub const TARGETS: &[(&str, Target)] = &[
    ("uam_json", protocols::uam::fuzzing::json),
    ("uam_envelope", protocols::uam::fuzzing::envelope),
    ("uam_relay_request", protocols::uam::fuzzing::relay_request),
    ("uam_answers", protocols::uam::fuzzing::answers),
    ("uam_verify", protocols::uam::fuzzing::verify),
    ("voltchat_request", protocols::voltchat::fuzzing::request),
    ("voltchat_token", protocols::voltchat::fuzzing::token),
    ("voltchat_answers", protocols::voltchat::fuzzing::answers),
    ("voltchat_verify", protocols::voltchat::fuzzing::verify),
    ("paracord_envelope", protocols::paracord::fuzzing::envelope),
    ("paracord_pages", protocols::paracord::fuzzing::pages),
    ("paracord_answers", protocols::paracord::fuzzing::answers),
    ("paracord_verify", protocols::paracord::fuzzing::verify),
    ("bus_message", bus::fuzzing::message),
    ("admin_request", admin::fuzzing::request),
    ("http_head", head),
    ("names_and_keys", names_and_keys),
    ("certificate", certificate),
];

/// The texts within a JSON document, and its smaller objects as text: what the fuzzers begin with.
pub fn seeds(value: &Value, into: &mut BTreeSet<Vec<u8>>) {
    match value {
        Value::String(text) => {
            into.insert(text.clone().into_bytes());
        }
        Value::Array(list) => list.iter().for_each(|value| seeds(value, into)),
        Value::Object(members) => {
            let text = value.to_string();
            if text.len() <= 4096 {
                into.insert(text.into_bytes());
            }
            members.values().for_each(|value| seeds(value, into));
        }
        _ => {}
    }
}

/// Headers that decide who a client is and which trace a request belongs to.
pub fn head(data: &[u8]) {
    let headers = headers(data);
    let trusted = ["10.0.0.0/8", "::1/128", "fd00::/8"].map(|net| net.parse());
    let trusted: Vec<_> = trusted.into_iter().flatten().collect();
    for socket in ["10.1.2.3", "203.0.113.7", "::1", "::ffff:10.0.0.1"] {
        let Ok(socket) = socket.parse::<IpAddr>() else {
            continue;
        };
        let client = forwarded::client_address(socket, &headers, &trusted);
        assert_eq!(client, client.to_canonical());
        let stranger = forwarded::client_address(socket, &headers, &[]);
        assert_eq!(stranger, socket.to_canonical());
        guard::special(client);
    }
    for value in headers.values().filter_map(|value| value.to_str().ok()) {
        if let Some(trace) = TraceParent::parse(value) {
            let again = TraceParent::parse(&trace.to_string());
            assert_eq!(again, Some(trace));
        }
    }
}

/// Names, keys, secrets and encodings: the small texts that everything larger holds.
pub fn names_and_keys(data: &[u8]) {
    assert_eq!(b64::decode(&b64::encode(data)).as_deref(), Ok(data));
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(name) = PeerName::parse(text) {
        assert_eq!(name.as_str(), text);
        assert!(text.len() <= 255);
    }
    if let Ok(bytes) = b64::decode(text) {
        assert_eq!(b64::decode(&b64::encode(&bytes)), Ok(bytes));
    }
    if let Ok(key) = PublicKey::from_base64(text) {
        assert_eq!(PublicKey::parse(&key.to_bytes()), Ok(key.clone()));
        assert!(key.verify(data, data).is_err());
    }
    if let Some(bytes) = unhex::<32>(text) {
        assert!(hex(&bytes).eq_ignore_ascii_case(text));
        let _ = PublicKey::parse(&bytes);
    }
    if let Some(secret) = SharedSecret::new(text) {
        assert!(units::units(secret.as_text()) <= SharedSecret::MAX_UNITS);
        assert!(secret.same(secret.as_text()));
    }
    for limit in [0, 1, 7, 160] {
        assert!(units::units(&units::cut(text, limit)) <= limit);
    }
    parse_duration(text);
    guard::HostRules::new([text]).names(text, 443);
}

/// A certificate that a server shows.
pub fn certificate(data: &[u8]) {
    if let Some(facts) = CertificateFacts::read(data) {
        let _ = facts.title();
    }
}

/// Lines `name: value` as headers; what cannot be one is left out.
pub(crate) fn headers(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|b| *b == b'\n').take(64) {
        let mut parts = line.splitn(2, |b| *b == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            continue;
        };
        let name = HeaderName::from_bytes(name.trim_ascii());
        let value = HeaderValue::from_bytes(value.trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// An answer: its status in the first two bytes, headers up to an empty line, a body. Bytes without
/// such a line are the body of a 200.
pub(crate) fn answer(data: &[u8]) -> Answer {
    let whole = || (200, HeaderMap::new(), data);
    let split = data.windows(2).position(|pair| pair == b"\n\n");
    let (status, headers, body) = match (data, split) {
        ([high, low, ..], Some(at)) => {
            let status = 100 + u16::from_be_bytes([*high, *low]) % 500;
            let head = data.get(2..at).unwrap_or_default();
            (
                status,
                headers(head),
                data.get(at + 2..).unwrap_or_default(),
            )
        }
        _ => whole(),
    };
    Answer {
        status,
        headers,
        body: Bytes::copy_from_slice(body),
        elapsed: std::time::Duration::ZERO,
    }
}

/// A peer that answers, of which nothing was learned so far.
pub(crate) fn peer(protocol: crate::protocol::ProtocolId, name: &PeerName) -> PeerRecord {
    PeerRecord {
        protocol,
        name: name.clone(),
        endpoint: format!("https://{name}/"),
        alternatives: Vec::new(),
        public_key: None,
        discovered_via: String::new(),
        last_verified_ms: 0,
        ttl_ms: None,
        facts: serde_json::Map::new(),
    }
}

/// A first attempt at a fixed time.
pub(crate) fn attempt() -> Try {
    Try {
        number: 1,
        now_ms: NOW,
        again: 0,
        traceparent: None,
    }
}

/// A time near which the vectors were made, ms since 1970.
pub(crate) const NOW: crate::clock::UnixMs = 1_777_636_800_000;

/// A name for whoever stands on the other side.
pub(crate) fn somebody() -> Option<PeerName> {
    PeerName::parse("beta.test").ok()
}

#[cfg(test)]
mod tests;
