//! What a signature that does not hold may have been made over: the mistakes implementations make.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::BASE;
use super::super::envelope::Envelope;
use super::super::transport::Claim;
use super::proof::Request;
use crate::identity::{PublicKey, hex};
use crate::protocols::plain;

/// The sentence when nothing is found.
const NONE: &str = "none of the usual mistakes: another key made it, or the bytes were changed on \
                    their way";

/// For the signature of a request.
pub(super) fn request(request: &Request<'_>, claim: &Claim, keys: &[PublicKey]) -> String {
    let Some(signature) = &claim.signature else {
        return NONE.to_owned();
    };
    let method = request.head.method.as_str();
    let lower = method.to_ascii_lowercase();
    let target = request.head.target.as_str();
    let bare = target.split('?').next().unwrap_or(target);
    let route = bare.strip_prefix(BASE).unwrap_or(bare);
    let at = claim.timestamp_ms;
    let seconds = at / 1000;
    let received = request.received;
    let normal = request.normal.as_deref().unwrap_or(received);
    let sorted = sorted(received);
    let trimmed = received.trim_ascii_end();
    let tried: [(&str, &str, &str, i64, &[u8]); 9] = [
        (
            "this text, by another key of the same server",
            method,
            request.path,
            at,
            received,
        ),
        (
            "its normal form, by another key of the same server",
            method,
            request.path,
            at,
            normal,
        ),
        (
            "the method in lower case",
            &lower,
            request.path,
            at,
            received,
        ),
        (
            "the path with its query; it is signed without",
            method,
            target,
            at,
            received,
        ),
        (
            "the path without its query; it is signed with it",
            method,
            bare,
            at,
            received,
        ),
        (
            "the path behind the protocol's base alone",
            method,
            route,
            at,
            received,
        ),
        (
            "the time in seconds",
            method,
            request.path,
            seconds,
            received,
        ),
        (
            "the body with its members sorted",
            method,
            request.path,
            at,
            &sorted,
        ),
        (
            "the body without the line end of the saved file",
            method,
            request.path,
            at,
            trimmed,
        ),
    ];
    for (what, method, path, at, body) in tried {
        let body = hex(&Sha256::digest(body));
        let text = format!("{method}\n{path}\n{at}\n{body}");
        if holds(keys, text.as_bytes(), signature) {
            return format!("it holds over {what}");
        }
    }
    NONE.to_owned()
}

/// For the signature of an envelope.
pub(super) fn event(envelope: &Envelope, signature: &[u8; 64], keys: &[PublicKey]) -> String {
    let Ok(Value::Object(mut members)) = serde_json::to_value(envelope) else {
        return NONE.to_owned();
    };
    members.remove("signatures");
    let all = Value::Object(members.clone());
    members.remove("state_key");
    let stateless = Value::Object(members);
    let tried: [(&str, Vec<u8>); 4] = [
        (
            "this text, by another key of the same server",
            compact(&all),
        ),
        (
            "a text without state_key; it is signed as null",
            compact(&stateless),
        ),
        (
            "the members in wire order; they are signed sorted",
            wire_order(envelope),
        ),
        ("the whole envelope, signatures included", envelope.wire()),
    ];
    for (what, text) in tried {
        if holds(keys, &text, signature) {
            return format!("it holds over {what}");
        }
    }
    NONE.to_owned()
}

fn holds(keys: &[PublicKey], text: &[u8], signature: &[u8; 64]) -> bool {
    keys.iter().any(|key| key.verify(text, signature).is_ok())
}

/// A body with its members sorted at every level.
fn sorted(body: &[u8]) -> Vec<u8> {
    let value = plain::json(body);
    value.map_or_else(|_| body.to_vec(), |value| compact(&value))
}

/// Nine members in the order in which they travel.
fn wire_order(envelope: &Envelope) -> Vec<u8> {
    let wire = String::from_utf8(envelope.wire()).unwrap_or_default();
    let cut = wire.rsplit_once(",\"signatures\":");
    let kept = cut.map_or(wire.as_str(), |(kept, _)| kept);
    format!("{kept}}}").into_bytes()
}

/// Compact JSON with its members sorted.
fn compact(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
