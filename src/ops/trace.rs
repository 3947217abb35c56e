//! W3C trace context (<https://www.w3.org/TR/trace-context/>): carried on, never begun.
//!
//! A backend's `traceparent` goes out with its message, a remote server's comes in with its event.
//! Each attempt is a span of its own: same trace id and flags, a new parent id. What is malformed
//! is dropped, since it could only break the trace it claims to belong to. `tracestate` is not
//! carried: its members are for vendors that see each hop, and the bus has no place for them.

use std::fmt;

/// `version-traceid-parentid-flags` in version 00.
const LENGTH: usize = 55;

/// A well-formed `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: String,
    parent: String,
    flags: String,
}

impl TraceParent {
    /// Reads a header's value. A later version than 00 may have more behind its first four fields,
    /// which is left out; ids of zeros, upper case and version ff are malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.split_at_checked(LENGTH)?;
        let mut parts = head.split('-');
        let (version, trace, parent, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lengths = [version.len(), trace.len(), parent.len(), flags.len()] == [2, 32, 16, 2];
        let whole = match version {
            "ff" => false,
            "00" => rest.is_empty(),
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let good = lengths
            && whole
            && parts.next().is_none()
            && [version, trace, parent, flags].into_iter().all(is_hex)
            && [trace, parent].into_iter().all(|id| !is_zero(id));
        good.then(|| Self {
            trace: trace.to_owned(),
            parent: parent.to_owned(),
            flags: flags.to_owned(),
        })
    }

    /// The next span of the same trace; `None`: the system gives no random bytes.
    pub fn child(&self) -> Option<Self> {
        let mut span = [0u8; 8];
        while span == [0; 8] {
            getrandom::fill(&mut span).ok()?;
        }
        Some(Self {
            parent: span.iter().map(|byte| format!("{byte:02x}")).collect(),
            ..self.clone()
        })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{}", self.trace, self.parent, self.flags)
    }
}

/// What an attempt sends for a message's `traceparent`: a child of it, or nothing for a malformed one.
pub fn child(text: &str) -> Option<String> {
    Some(TraceParent::parse(text)?.child()?.to_string())
}

/// A `traceparent` as it may be carried on unchanged, or nothing for a malformed one.
pub fn carried(text: &str) -> Option<String> {
    TraceParent::parse(text).map(|trace| trace.to_string())
}

/// The trace id of a well-formed `traceparent`, for logs and operator events.
pub fn id(text: &str) -> Option<String> {
    TraceParent::parse(text).map(|trace| trace.trace)
}

/// The JSON object `body` with a member `trace_id` when there is a trace.
pub fn named(mut body: serde_json::Value, traceparent: Option<&str>) -> serde_json::Value {
    if let Some(id) = traceparent.and_then(id)
        && let Some(members) = body.as_object_mut()
    {
        members.insert("trace_id".to_owned(), id.into());
    }
    body
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_zero(text: &str) -> bool {
    text.bytes().all(|b| b == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_child_keeps_trace_and_flags_and_has_an_id_of_its_own() {
        let first = child(GOOD).unwrap();
        let second = child(GOOD).unwrap();
        assert_eq!(first[..36], GOOD[..36]);
        assert_eq!(first[52..], GOOD[52..]);
        assert_ne!(first[36..52], GOOD[36..52]);
        assert_ne!(first, second);
        assert_eq!(id(&first).as_deref(), Some(&GOOD[3..35]));
        assert_eq!(carried(&first), Some(first));
    }

    #[test]
    fn what_is_malformed_is_dropped() {
        for bad in [
            "",
            "00-x-y-01",
            &GOOD.to_uppercase(),
            &format!("{GOOD}-1"),
            &format!("{GOOD}1"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-é",
        ] {
            assert_eq!(carried(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_later_version_is_read_by_its_first_four_fields() {
        let later = format!("cc{}-what-the-future-holds", &GOOD[2..]);
        assert_eq!(carried(&later).as_deref(), Some(GOOD));
    }
}
