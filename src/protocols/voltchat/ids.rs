//! Ids, relay types and member names that both sides accept.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::text::trim;
use crate::clock::UnixMs;
use crate::identity::hex;

/// Most characters of an id.
const MAX_ID: usize = 160;

/// Names that mean something else to an ECMAScript server; no id and no member of a payload.
pub(super) const RESERVED: [&str; 3] = ["__proto__", "constructor", "prototype"];

/// An id of a peer, server, invite, user or message, trimmed: 1 to 160 letters, digits and `_.:@-`,
/// not reserved.
pub fn id(text: &str) -> Option<&str> {
    let text = trim(text);
    let right = (1..=MAX_ID).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'@' | b'-'))
        && !RESERVED.contains(&text);
    right.then_some(text)
}

/// Whether a text is the type of a relay message: one or more letters, digits and `:_-`.
pub fn relay_type(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'-'))
}

/// Whether a payload has a reserved name among its own members; those further down do not count.
pub fn has_reserved_key(payload: &Value) -> bool {
    payload
        .as_object()
        .is_some_and(|members| RESERVED.iter().any(|name| members.contains_key(*name)))
}

/// A fresh id such as `peer_1700000000000_0a1b2c3d`: unique, not secret.
pub fn fresh(prefix: &str, now_ms: UnixMs) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut tag = [0u8; 4];
    if getrandom::fill(&mut tag).is_err() {
        // Without random bytes the count still tells this process's ids apart.
        tag = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    }
    format!("{prefix}_{now_ms:013}_{}", hex(&tag))
}

/// When an id such as [`fresh`] makes was made, milliseconds since the epoch; `None`: it has not that
/// form.
pub fn made_at(prefix: &str, id: &str) -> Option<UnixMs> {
    let (time, tag) = id
        .strip_prefix(prefix)?
        .strip_prefix('_')?
        .split_once('_')?;
    let is_hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    let formed = time.len() == 13
        && time.bytes().all(|b| b.is_ascii_digit())
        && tag.len() == 8
        && tag.bytes().all(is_hex);
    formed.then(|| time.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_is_trimmed_short_and_of_few_characters() {
        assert_eq!(id(" A_z.9:@- "), Some("A_z.9:@-"));
        assert!(id(&"x".repeat(160)).is_some() && id(&"x".repeat(161)).is_none());
        for none in ["", " ", "a b", "a/b", "\u{e4}", "__proto__", " constructor"] {
            assert_eq!(id(none), None, "{none}");
        }
    }

    #[test]
    fn an_id_says_when_it_was_made() {
        assert_eq!(
            made_at("relay", &fresh("relay", 1_700_000_000_000)),
            Some(1_700_000_000_000)
        );
        for other in [
            "relay_1_0a1b2c3d",
            "peer_1700000000000_0a1b2c3d",
            "relay_1700000000000_0A1B2C3D",
            "x",
        ] {
            assert_eq!(made_at("relay", other), None, "{other}");
        }
    }

    #[test]
    fn a_relay_type_has_no_dot() {
        assert!(relay_type("dm:message") && relay_type(&"x".repeat(5000)));
        assert!(!relay_type("a.b") && !relay_type("") && !relay_type(" a"));
    }

    #[test]
    fn only_a_payload_s_own_members_can_be_reserved() {
        assert!(has_reserved_key(&json!({"a": 1, "__proto__": {}})));
        assert!(!has_reserved_key(&json!({"a": {"prototype": 1}})));
        assert!(!has_reserved_key(&json!(["constructor"])));
    }

    #[test]
    fn fresh_ids_differ_and_are_ids() {
        let (one, two) = (fresh("peer", 1_700_000_000_000), fresh("peer", 7));
        assert!(one.starts_with("peer_1700000000000_") && one.len() == 27);
        assert!(two.starts_with("peer_0000000000007_") && id(&two).is_some());
        assert_ne!(fresh("peer", 7), two);
    }
}
