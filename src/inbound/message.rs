//! What a verified event looks like on the bus: subject and headers, as design.md section 1 says.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::bus::subject::token;
use crate::clock::UnixMs;
use crate::protocol::Verified;
use crate::store::NewInbound;

/// Header of the broker's own deduplication.
pub const MSG_ID: &str = "Nats-Msg-Id";
const RECEIVED_AT: &str = "Fed-Received-At";

/// Type tokens a subject may have; a longer type is one (cut) token.
const MAX_TYPE_TOKENS: usize = 8;
/// Longest type that is split into tokens, bytes.
const MAX_TYPE: usize = 256;
/// Longest header value, bytes; the payload has the exact text.
const MAX_HEADER: usize = 512;

/// The ledger row of an event: `prefix` is the bus's subject prefix.
pub fn ledger_row(event: Verified, prefix: &str) -> NewInbound {
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
        (MSG_ID.to_owned(), message_id(event)),
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
fn message_id(event: &Verified) -> String {
    let mut hash = Sha256::new();
    hash.update(event.protocol.as_bytes());
    hash.update([0]);
    hash.update(event.dedupe_key.as_bytes());
    let mut text = format!("{}:", event.protocol);
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

/// A row's message id.
pub fn msg_id_of(headers: &[(String, String)]) -> Option<&str> {
    value(headers, MSG_ID)
}

/// When a row was received; `None` if its header does not say.
pub fn received_of(headers: &[(String, String)]) -> Option<UnixMs> {
    let at: Timestamp = value(headers, RECEIVED_AT)?.parse().ok()?;
    Some(at.as_millisecond())
}

fn value<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(n, _)| n == name)
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
    fn an_empty_type_still_makes_a_subject() {
        assert_eq!(type_token(""), "=");
    }
}
