//! Events pushed: signatures, ways to write a body, clocks, limits, peers.

use serde_json::{Value, json};

use super::{case, given, with_peer, with_third};
use crate::paracord::HttpCase;

pub fn cases() -> Vec<HttpCase> {
    let taken = json!({"status": 202, "inserted": true});
    let forbidden = json!({"status": 403, "code": "FORBIDDEN"});
    let unauthorized = json!({"status": 401, "code": "UNAUTHORIZED"});
    let conflict = json!({"status": 409, "code": "CONFLICT"});
    let bad = |message: &str| json!({"status": 400, "code": "BAD_REQUEST", "message": message});
    let thirds = |sender: &str| json!({"origin_server": "third.example", "sender": sender});
    let all = [
        (
            "an unknown key id sorts first",
            json!({"event_signature": "unknown_first"}),
            forbidden.clone(),
        ),
        (
            "a number sorts first",
            json!({"event_signature": "nonstring_first"}),
            taken.clone(),
        ),
        (
            "signatures are null",
            json!({"event_signature": "null"}),
            unauthorized.clone(),
        ),
        (
            "upper case",
            json!({"event_signature": "upper"}),
            taken.clone(),
        ),
        (
            "an extra member as sent",
            json!({"send_as": "extra_member"}),
            taken.clone(),
        ),
        (
            "escapes as sent",
            json!({"send_as": "ascii_escapes"}),
            taken.clone(),
        ),
        (
            "sorted, normal form signed",
            json!({"send_as": "sorted", "sign_over": "normal_form"}),
            taken.clone(),
        ),
        (
            "no state_key, normal form signed",
            json!({"send_as": "without_state_key", "sign_over": "normal_form"}),
            taken.clone(),
        ),
        (
            "exactly 60 s old",
            json!({"timestamp_offset_ms": -60_000}),
            taken.clone(),
        ),
        (
            "60.001 s old",
            json!({"timestamp_offset_ms": -60_001}),
            unauthorized.clone(),
        ),
        (
            "60.001 s ahead",
            json!({"timestamp_offset_ms": 60_001}),
            unauthorized.clone(),
        ),
        (
            "the smallest time",
            json!({"timestamp_ms": i64::MIN}),
            unauthorized.clone(),
        ),
        (
            "the greatest time",
            json!({"timestamp_ms": i64::MAX.to_string()}),
            unauthorized.clone(),
        ),
        (
            "a plus in front of the time",
            json!({"header_rewrite": {"x-paracord-timestamp": "+0{}"}}),
            taken.clone(),
        ),
        (
            "an empty key id",
            json!({"header_rewrite": {"X-Paracord-Key-Id": " "}}),
            unauthorized.clone(),
        ),
        (
            "a signature of no hex",
            json!({"header_rewrite": {"X-Paracord-Signature": "zz"}}),
            forbidden.clone(),
        ),
        (
            "a signature in capitals",
            json!({"header_rewrite": {"X-Paracord-Signature": "UPPER"}}),
            taken.clone(),
        ),
        (
            "no signature at all",
            json!({"unsigned": true}),
            unauthorized.clone(),
        ),
        (
            "charset in the content type",
            json!({"content_type": "application/json; charset=utf-8"}),
            taken.clone(),
        ),
        (
            "a JSON dialect",
            json!({"content_type": "application/cbor+json"}),
            taken.clone(),
        ),
        (
            "no content type",
            json!({"content_type": null}),
            json!({"status": 415, "plain_text": "Expected"}),
        ),
        (
            "129 levels of JSON",
            json!({"event": {"content": {"nested_objects": 128}}}),
            json!({"status": 400, "plain_text": "recursion"}),
        ),
        (
            "a text for a depth",
            json!({"event": {"depth": "6"}}),
            json!({"status": 422, "plain_text": "invalid type"}),
        ),
        (
            "a depth of 0",
            json!({"event": {"depth": 0}}),
            taken.clone(),
        ),
        (
            "the smallest depth",
            json!({"event": {"depth": i64::MIN, "origin_ts": i64::MIN}}),
            taken.clone(),
        ),
        (
            "the greatest depth",
            json!({"event": {"depth": i64::MAX, "origin_ts": i64::MAX}}),
            taken.clone(),
        ),
        (
            "32 levels of content",
            json!({"event": {"content": {"nested_objects": 32}}}),
            taken.clone(),
        ),
        (
            "33 levels of content",
            json!({"event": {"content": {"nested_objects": 33}}}),
            bad("bad request: federation event content exceeds maximum nesting depth of 32"),
        ),
        (
            "10000 elements",
            json!({"event": {"content": {"a": {"repeat": 0, "times": 10_000}}}}),
            taken.clone(),
        ),
        (
            "10001 elements",
            json!({"event": {"content": {"a": {"repeat": 0, "times": 10_001}}}}),
            bad("bad request: federation event content array exceeds maximum element count"),
        ),
        (
            "attachments after signing",
            json!({"after_signing": {"attachments": [{"id": "1"}]}}),
            taken.clone(),
        ),
        (
            "twice, the second in capitals of the key id",
            json!({"times": 2, "second_header_rewrite": {"X-Paracord-Key-Id": "UPPER"}}),
            json!([taken, forbidden]),
        ),
        (
            "three times",
            json!({"times": 3}),
            json!([taken, conflict, conflict]),
        ),
        (
            "paused",
            json!({"given": given(json!({"enabled": false}))}),
            forbidden.clone(),
        ),
        (
            "paused, unsigned",
            json!({"unsigned": true, "given": given(json!({"enabled": false}))}),
            forbidden.clone(),
        ),
        (
            "an untrusted peer",
            json!({"given": with_peer(json!({"trusted": false}))}),
            forbidden.clone(),
        ),
        (
            "a relay of two that are trusted",
            json!({"event": thirds("@a:third.example"), "given": with_third()}),
            taken.clone(),
        ),
        (
            "a relay: the carrier's key is not the origin's",
            json!({"event": thirds("@a:third.example"), "event_signature": "wrong_key",
                "given": with_third()}),
            forbidden.clone(),
        ),
        (
            "the sender by the registered domain",
            json!({"event": thirds("@a:CHAT.third.example"), "given": with_third()}),
            taken.clone(),
        ),
        (
            "two keys of one id",
            json!({"given": with_peer(json!({"keys": [
                {"key_id": "ed25519:auto", "seed_hex": "fe".repeat(32)},
                {"key_id": "ed25519:auto", "seed_hex": "11".repeat(32)},
            ]}))}),
            taken.clone(),
        ),
        (
            "a small-order key",
            json!({"given": with_peer(json!({"keys": [
                {"key_id": "ed25519:auto", "public_key_hex": format!("01{}", "00".repeat(31))},
            ]}))}),
            forbidden.clone(),
        ),
    ];
    all.into_iter()
        .map(|(name, how, expect)| case(name, event(), how, expect))
        .collect()
}

fn event() -> Value {
    json!({"method": "POST", "path": "/_paracord/federation/v1/event", "event": {}})
}
