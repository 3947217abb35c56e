//! What a verified event looks like on the bus: subject and headers, as design.md section 1 says.

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::bus::BusMessage;
use crate::bus::subject::token;
use crate::clock::UnixMs;
use crate::protocol::Verified;
use crate::store::{NewInbound, Way};

/// Header of the broker's own deduplication.
pub const MSG_ID: &str = "Nats-Msg-Id";
/// Header of an event that the broker had lost and is given again: when, RFC 3339.
pub const REPUBLISHED: &str = "Fed-Republished";
const RECEIVED_AT: &str = "Fed-Received-At";

/// Type tokens a subject may have; a longer type is one (cut) token.
const MAX_TYPE_TOKENS: usize = 8;
/// Longest type that is split into tokens, bytes.
const MAX_TYPE: usize = 256;
/// Longest header value, bytes; the payload has the exact text.
const MAX_HEADER: usize = 512;

/// The ledger row of an event: `prefix` is the bus's subject prefix; `hold`: its peer is quarantined.
pub fn ledger_row(event: Verified, prefix: &str, hold: bool) -> NewInbound {
    let subject = subject(prefix, &event);
    let headers = headers(&event);
    NewInbound {
        protocol: event.protocol,
        peer: event.peer,
        dedupe_key: event.dedupe_key,
        event_id: event.event_id,
        event_type: event.event_type,
        subject,
        headers,
        payload: event.payload,
        received_ms: event.received_at_ms,
        replay: event.replay,
        hold,
        room_event: event.room_event,
    }
}

/// `<prefix>.in.<protocol>.<peer>.<type tokens>`.
fn subject(prefix: &str, event: &Verified) -> String {
    let mut text = format!(
        "{prefix}.in.{}.{}",
        event.protocol,
        token(event.peer.as_str())
    );
    let kind = &event.event_type;
    let split = kind.len() <= MAX_TYPE && kind.split('.').count() <= MAX_TYPE_TOKENS;
    if split {
        for part in kind.split('.') {
            text.push('.');
            text.push_str(&type_token(part));
        }
    } else {
        text.push('.');
        text.push_str(&type_token(kind));
    }
    text
}

/// A token that is never empty: an empty one would make no valid subject.
fn type_token(part: &str) -> String {
    if part.is_empty() {
        "=".to_owned()
    } else {
        token(part)
    }
}

fn headers(event: &Verified) -> Vec<(String, String)> {
    let mut list = vec![
        (
            MSG_ID.to_owned(),
            message_id(event.protocol, &event.dedupe_key),
        ),
        ("Fed-Event-Id".to_owned(), header_text(&event.event_id)),
        ("Fed-Type".to_owned(), header_text(&event.event_type)),
        ("Fed-Peer".to_owned(), event.peer.to_string()),
        ("Fed-Origin".to_owned(), header_text(&event.origin)),
        ("Fed-Key-Id".to_owned(), header_text(&event.key_id)),
        (RECEIVED_AT.to_owned(), rfc3339(event.received_at_ms)),
        ("Fed-Hops".to_owned(), event.hops.to_string()),
    ];
    if let Some(trace) = &event.traceparent {
        list.push(("traceparent".to_owned(), header_text(trace)));
    }
    list
}

/// The same for every copy of one logical event, whenever and by whichever instance it is published.
pub fn message_id(protocol: &str, dedupe_key: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(protocol.as_bytes());
    hash.update([0]);
    hash.update(dedupe_key.as_bytes());
    let mut text = format!("{protocol}:");
    for byte in hash.finalize().iter().take(20) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Text that is safe in a NATS header: control characters as `\u{…}`, cut at a character's edge.
fn header_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_HEADER));
    for c in text.trim().chars() {
        let room = MAX_HEADER.saturating_sub(out.len());
        if room < 12 {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The ledger's row as it is published: on `fed.in`, or on `fed.held`. `republished_ms`: the broker
/// had it, lost it, and is given it again at this time.
pub fn bus_message(
    way: Way,
    prefix: &str,
    subject: String,
    mut headers: Vec<(String, String)>,
    payload: Bytes,
    republished_ms: Option<UnixMs>,
) -> BusMessage {
    if let Some(at) = republished_ms {
        headers.push((REPUBLISHED.to_owned(), rfc3339(at)));
    }
    let subject = match way {
        Way::In => subject,
        Way::Held => held_subject(prefix, &subject),
    };
    BusMessage {
        subject,
        headers,
        payload,
        stream: way.stream(),
    }
}

/// `fed.held.…` for `fed.in.…`.
fn held_subject(prefix: &str, subject: &str) -> String {
    subject
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix(".in."))
        .map_or_else(
            || subject.to_owned(),
            |rest| format!("{prefix}.held.{rest}"),
        )
}

/// A message's id.
pub fn msg_id_of(headers: &[(String, String)]) -> Option<&str> {
    headers
        .iter()
        .find(|(name, _)| name == MSG_ID)
        .map(|(_, value)| value.as_str())
}

/// `2026-05-01T12:00:00.000Z`.
fn rfc3339(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| format!("{:.3}", at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_never_carries_a_line_break_and_is_bounded() {
        assert_eq!(
            header_text("a\r\nNats-Msg-Id: x"),
            "a\\u{d}\\u{a}Nats-Msg-Id: x"
        );
        let long = header_text(&"ü".repeat(5000));
        assert!(long.len() <= MAX_HEADER + 3, "{}", long.len());
    }

    #[test]
    fn times_are_written_in_milliseconds_and_utc() {
        assert_eq!(rfc3339(1_777_636_800_000), "2026-05-01T12:00:00.000Z");
        assert_eq!(rfc3339(1_777_636_800_250), "2026-05-01T12:00:00.250Z");
    }

    #[test]
    fn what_is_held_keeps_its_tokens() {
        let held = held_subject("a.in", "a.in.in.uam.x_test.message");
        assert_eq!(held, "a.in.held.uam.x_test.message");
    }

    #[test]
    fn an_empty_type_still_makes_a_subject() {
        assert_eq!(type_token(""), "=");
    }
}
