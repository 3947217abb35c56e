//! From a stored message of the outbound stream to an [`OutEvent`]: pure, so that every way in
//! which a message can be wrong has a test and a reason code.
//!
//! The broker stores `fed.out.<protocol>.<peer>.<type>` as
//! `fed.outp.<partition>.<protocol>.<peer>.<type>` (streams/fed_out.json). A subject with fewer
//! tokens is not transformed and is found as it was published.

use async_nats::HeaderMap;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::subject::{hex, untoken};
use crate::clock::UnixMs;
use crate::ops::trace;
use crate::protocol::{OutEvent, Refusal};

/// Longest `Nats-Msg-Id` and `Fed-Order`, bytes.
const MAX_KEY: usize = 1024;

/// The id of the message that this one is a copy of, for one of its targets.
pub(super) const FORWARDED_ID: &str = "Fed-Forwarded-Id";
/// The exact name of that target.
pub(super) const FORWARDED_PEER: &str = "Fed-Forwarded-Peer";

/// A message as the stream holds it.
pub(super) struct Stored<'a> {
    pub prefix: &'a str,
    pub stream: &'a str,
    pub subject: &'a str,
    pub headers: Option<&'a HeaderMap>,
    pub payload: Bytes,
    pub sequence: u64,
    /// When the broker stored it, nanoseconds since the epoch.
    pub published_ns: i128,
}

/// What [`parse`] read.
pub(super) struct Parsed {
    pub subject: String,
    pub protocol: String,
    pub partition: u8,
    pub event: Result<OutEvent, (Refusal, OutEvent)>,
    pub forwarded: bool,
}

/// Reads one message. What is wrong with it is the reason to dead-letter it with.
pub(super) fn parse(stored: Stored<'_>) -> Parsed {
    let address = Address::read(stored.prefix, stored.subject);
    let mut wrong = address.refusal;
    let mut note = |found: Result<Option<String>, Refusal>| match found {
        Ok(value) => value,
        Err(refusal) => {
            wrong.get_or_insert(refusal);
            None
        }
    };
    let headers = stored.headers;
    let given_id = note(key(headers, "Nats-Msg-Id")).filter(|id| !id.is_empty());
    // A copy that a reader sent on is, for everybody but the broker, the message that was published.
    let original_id = note(key(headers, FORWARDED_ID)).filter(|id| !id.is_empty());
    let exact_peer = note(single(headers, FORWARDED_PEER)).filter(|peer| !peer.is_empty());
    let forwarded = original_id.is_some();
    let order = note(key(headers, "Fed-Order"));
    let expires = note(single(headers, "Fed-Expires"));
    let hops = note(single(headers, "Fed-Hops"));
    let came_from = note(single(headers, "Fed-Peer")).filter(|peer| !peer.is_empty());
    let traceparent = single(headers, "traceparent")
        .ok()
        .flatten()
        .and_then(|text| trace::carried(&text));
    let expires_ms = match expires.as_deref().map(rfc3339) {
        None => None,
        Some(Ok(at)) => Some(at),
        Some(Err(refusal)) => {
            wrong.get_or_insert(refusal);
            None
        }
    };
    let hops = match hops.as_deref().map(str::parse::<u32>) {
        None => None,
        Some(Ok(hops)) => Some(hops),
        Some(Err(_)) => {
            wrong.get_or_insert(Refusal::new(
                "bad_header",
                "Fed-Hops is not a whole number of hops",
            ));
            None
        }
    };
    let given_id = original_id.or(given_id);
    let msg_id = given_id.unwrap_or_else(|| made_id(&stored, &address.published));
    let event = OutEvent {
        msg_id,
        out_seq: stored.sequence,
        broker_time_ms: i64::try_from(stored.published_ns.div_euclid(1_000_000)).unwrap_or(0),
        peer: exact_peer.filter(|_| forwarded).unwrap_or(address.peer),
        event_type: address.event_type,
        order,
        expires_ms,
        hops,
        came_from,
        traceparent,
        payload: stored.payload,
    };
    Parsed {
        subject: address.published,
        protocol: address.protocol,
        partition: address.partition,
        forwarded,
        event: match wrong {
            None => Ok(event),
            Some(refusal) => Err((refusal, event)),
        },
    }
}

/// The parts of a subject, as far as they could be read.
#[derive(Default)]
struct Address {
    published: String,
    protocol: String,
    partition: u8,
    peer: String,
    event_type: String,
    refusal: Option<Refusal>,
}

impl Address {
    fn read(prefix: &str, subject: &str) -> Self {
        let stored = subject
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix(".outp."))
            .and_then(|rest| rest.split_once('.'));
        let Some((partition, tail)) = stored else {
            let mut tokens = subject
                .strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix(".out."))
                .unwrap_or_default()
                .split('.');
            return Self {
                published: subject.to_owned(),
                protocol: tokens.next().unwrap_or_default().to_owned(),
                peer: tokens.next().unwrap_or_default().to_owned(),
                refusal: Some(Refusal::new(
                    "bad_subject",
                    format!("the subject {subject:?} is not {prefix}.out.<protocol>.<peer>.<type>"),
                )),
                ..Self::default()
            };
        };
        let mut tokens = tail.splitn(3, '.');
        let protocol = tokens.next().unwrap_or_default();
        let peer = tokens.next().unwrap_or_default();
        let kind = tokens.next().unwrap_or_default();
        // A leading `_` would be a name that begins with a dot, which no server has: these are
        // the contract's reserved words (`_all`, `_to`, `_room`), kept as they stand.
        let decoded = if peer.starts_with('_') {
            Some(peer.to_owned())
        } else {
            untoken(peer)
        };
        let refusal = decoded.is_none().then(|| {
            Refusal::new(
                "bad_subject",
                format!(
                    "the peer token {peer:?} does not read back as a server name; \
                     write beta.com:8443 as beta_com:8443"
                ),
            )
        });
        Self {
            published: format!("{prefix}.out.{tail}"),
            protocol: protocol.to_owned(),
            partition: partition.parse().unwrap_or(0),
            peer: decoded.unwrap_or_else(|| peer.to_owned()),
            event_type: kind
                .split('.')
                .map(|t| untoken(t).unwrap_or_else(|| t.to_owned()))
                .collect::<Vec<_>>()
                .join("."),
            refusal,
        }
    }
}

/// The one value of a header, its name in any case.
fn single(headers: Option<&HeaderMap>, name: &str) -> Result<Option<String>, Refusal> {
    let Some(headers) = headers else {
        return Ok(None);
    };
    let mut values = headers
        .iter()
        .filter(|(n, _)| AsRef::<str>::as_ref(*n).eq_ignore_ascii_case(name))
        .flat_map(|(_, values)| values);
    let first = values.next().map(|v| v.as_str().to_owned());
    match values.next() {
        None => Ok(first),
        Some(_) => Err(Refusal::new(
            "bad_header",
            format!("{name} is given more than once"),
        )),
    }
}

fn key(headers: Option<&HeaderMap>, name: &str) -> Result<Option<String>, Refusal> {
    match single(headers, name)? {
        Some(value) if value.len() > MAX_KEY => Err(Refusal::new(
            "bad_header",
            format!("{name} is longer than {MAX_KEY} bytes"),
        )),
        other => Ok(other),
    }
}

fn rfc3339(text: &str) -> Result<UnixMs, Refusal> {
    text.trim()
        .parse::<jiff::Timestamp>()
        .map(jiff::Timestamp::as_millisecond)
        .map_err(|_| {
            Refusal::new(
                "bad_header",
                "Fed-Expires is not an RFC 3339 time such as 2027-01-31T12:00:00Z",
            )
        })
}

/// An id that no re-created or rolled-back stream can reuse: every part that tells two messages
/// apart, each with its length in front.
fn made_id(stored: &Stored<'_>, published: &str) -> String {
    let mut hash = Sha256::new();
    for part in [
        stored.stream.as_bytes(),
        &stored.sequence.to_be_bytes(),
        &stored.published_ns.to_be_bytes(),
        published.as_bytes(),
        &stored.payload,
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored<'a>(subject: &'a str, headers: Option<&'a HeaderMap>) -> Stored<'a> {
        Stored {
            prefix: "fed",
            stream: "FED_OUT",
            subject,
            headers,
            payload: Bytes::from_static(b"{}"),
            sequence: 7,
            published_ns: 1_700_000_000_123_456_789,
        }
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, *value);
        }
        map
    }

    #[test]
    fn a_stored_subject_reads_as_it_was_published() {
        let read = parse(stored("fed.outp.5.uam.beta_com:8443.message.text", None));
        assert_eq!(read.subject, "fed.out.uam.beta_com:8443.message.text");
        assert_eq!((read.protocol.as_str(), read.partition), ("uam", 5));
        let event = read.event.expect("a good message");
        assert_eq!(event.peer, "beta.com:8443");
        assert_eq!(event.event_type, "message.text");
        assert_eq!(
            (event.out_seq, event.broker_time_ms),
            (7, 1_700_000_000_123)
        );
    }

    #[test]
    fn reserved_peer_words_stay_literal() {
        for word in ["_all", "_to", "_room"] {
            let read = parse(stored(&format!("fed.outp.0.uam.{word}.m"), None));
            assert_eq!(read.event.expect("good").peer, word);
        }
    }

    #[test]
    fn a_prefix_of_several_tokens_works() {
        let mut message = stored("acme.fed.outp.1.uam.b_c.m", None);
        message.prefix = "acme.fed";
        assert_eq!(parse(message).subject, "acme.fed.out.uam.b_c.m");
    }

    #[test]
    fn a_subject_with_too_few_tokens_is_refused_with_what_could_be_read() {
        let read = parse(stored("fed.out.uam.beta_com", None));
        assert_eq!(read.protocol, "uam");
        let (refusal, event) = read.event.expect_err("too short");
        assert_eq!(refusal.code, "bad_subject");
        assert_eq!(event.peer, "beta_com");
    }

    #[test]
    fn a_peer_token_that_does_not_read_back_is_refused() {
        let (refusal, _) = parse(stored("fed.outp.0.uam.Beta.m", None))
            .event
            .expect_err("upper case");
        assert_eq!(refusal.code, "bad_subject");
    }

    #[test]
    fn the_backends_headers_are_read_whatever_their_case() {
        let map = headers(&[
            ("nats-msg-id", "m-1"),
            ("Fed-Order", "room 1"),
            ("FED-EXPIRES", "2027-01-31T13:00:00+01:00"),
            ("Fed-Hops", "2"),
            (
                "Traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
        ]);
        let event = parse(stored("fed.outp.0.uam.b_c.m", Some(&map)))
            .event
            .expect("good");
        assert_eq!(event.msg_id, "m-1");
        assert_eq!(event.order.as_deref(), Some("room 1"));
        assert_eq!(event.expires_ms, Some(1_801_396_800_000));
        assert_eq!(event.hops, Some(2));
        assert!(event.traceparent.is_some());
    }

    #[test]
    fn a_bad_header_is_refused_and_names_itself() {
        for (name, value) in [
            ("Fed-Expires", "tomorrow"),
            ("Fed-Expires", "2027-01-31T13:00:00"),
            ("Fed-Hops", "-1"),
        ] {
            let map = headers(&[(name, value)]);
            let (refusal, _) = parse(stored("fed.outp.0.uam.b_c.m", Some(&map)))
                .event
                .expect_err("bad header");
            assert_eq!(refusal.code, "bad_header");
            assert!(refusal.detail.contains(name), "{}", refusal.detail);
        }
        let map = headers(&[("Fed-Order", "a"), ("fed-order", "b")]);
        assert!(
            parse(stored("fed.outp.0.uam.b_c.m", Some(&map)))
                .event
                .is_err()
        );
    }

    #[test]
    fn a_malformed_trace_context_is_dropped_not_refused() {
        let map = headers(&[("traceparent", "00-xyz")]);
        let event = parse(stored("fed.outp.0.uam.b_c.m", Some(&map)))
            .event
            .expect("good");
        assert_eq!(event.traceparent, None);
    }

    #[test]
    fn a_made_id_differs_when_the_stream_was_made_again() {
        let id = |sequence, published_ns| {
            let mut message = stored("fed.outp.0.uam.b_c.m", None);
            message.sequence = sequence;
            message.published_ns = published_ns;
            parse(message).event.expect("good").msg_id
        };
        assert_eq!(id(1, 5), id(1, 5));
        assert_ne!(id(1, 5), id(1, 6));
        assert_ne!(id(1, 5), id(2, 5));
        assert_eq!(id(1, 5).len(), 64);
    }
}
