//! What a server's answers say. Pure readings.

use serde_json::Value;

use super::super::handshake::OTHER_SECRET_THERE;
use super::super::record::{Peer, Status};
use super::super::token::{MAX_AGE_MS, MAX_AHEAD_MS};
use super::super::{host, text};
use crate::protocol::{Answer, PeerName, TransportError};
use crate::protocols::examine::Found;
use crate::protocols::plain;

/// How a mainline as published answers every push.
const NO_PUSH: &str = "Access token required";
/// Foreign text shown at most, characters.
const MAX_SHOWN: usize = 140;

/// What one answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Held(String),
    Note(String),
    Fault(Found),
}

fn blocks(code: &'static str, detail: impl Into<String>) -> Reading {
    Reading::Fault(Found::blocks(code, detail))
}

/// Reads `GET /info`: what it says, and what is odd about it.
pub(super) fn info(
    url: &str,
    name: &PeerName,
    answer: &Answer,
) -> Result<(String, Vec<Found>), Found> {
    let status = answer.status;
    let found = |code, what: &str| Err(Found::blocks(code, format!("{url} {what}")));
    match status {
        200 => {}
        300..=399 => {
            return found(
                "redirect",
                &format!(
                    "redirects (status {status}), and secrets are never sent after a redirect"
                ),
            );
        }
        403 => {
            return found(
                "access_denied",
                &format!(
                    "answers 403 {}: the server keeps our address or our name out",
                    error(answer)
                ),
            );
        }
        404 | 405 => {
            return found(
                "no_server",
                &format!("answers {status}: no VoltChat server stands there"),
            );
        }
        429 => {
            return found(
                "throttled",
                "answers 429: too many requests from our address",
            );
        }
        _ => {
            return found("no_server", &format!("answers {status} {}", error(answer)));
        }
    }
    let Ok(Value::Object(said)) = plain::json(&answer.body) else {
        return found(
            "no_server",
            "answers something that is no JSON object: another program stands there",
        );
    };
    let member = |name: &str| text::field(said.get(name), MAX_SHOWN).map(|text| shown(&text));
    let mut faults = Vec::new();
    if said.get("federationEnabled") == Some(&Value::Bool(false)) {
        let detail = format!("{name} says that its federation is switched off");
        faults.push(Found::blocks("federation_disabled", detail));
    }
    if let Some(own) = member("host").filter(|own| host::normal(own) != name.as_str()) {
        let detail = format!(
            "the server calls itself {own:?}, not {name}: its tokens are made for that host and ours \
             are refused; peer with {own} instead, or its operator corrects server.url"
        );
        faults.push(Found::hurts("other_host", detail));
    }
    let seen = format!(
        "{} at {}",
        member("name").map_or_else(|| "without a name".into(), |name| format!("{name:?}")),
        member("host").unwrap_or_else(|| "a host it does not name".into())
    );
    Ok((seen, faults))
}

/// Reads how far its clock is from ours, seconds.
pub(super) fn clocks(skew_s: Option<i64>) -> Reading {
    let Some(skew) = skew_s else {
        return Reading::Note("the answer has no Date header to compare with".into());
    };
    let (late, early) = (MAX_AGE_MS / 1000, MAX_AHEAD_MS / 1000);
    let apart = skew.unsigned_abs();
    if skew > early {
        blocks(
            "clock_skew",
            format!(
                "its clock is {apart} s ahead of ours, and we refuse tokens more than {early} s ahead; \
                 compare both with a time server"
            ),
        )
    } else if skew < -late {
        blocks(
            "clock_skew",
            format!(
                "its clock is {apart} s behind ours, and we refuse tokens older than {late} s; compare \
                 both with a time server"
            ),
        )
    } else if skew < -early {
        Reading::Fault(Found::hurts(
            "clock_skew",
            format!(
                "its clock is {apart} s behind ours: a mainline takes our tokens all the same, another \
                 bridge refuses what is more than {early} s ahead; compare both with a time server"
            ),
        ))
    } else if apart <= 1 {
        Reading::Held("the same as ours".into())
    } else {
        let side = if skew < 0 { "behind" } else { "ahead of" };
        Reading::Held(format!("{apart} s {side} ours"))
    }
}

/// Reads the answer to a ping under the secret we share.
pub(super) fn ping(peer: &Peer, answer: &Result<Answer, TransportError>) -> Reading {
    let host = &peer.host;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return blocks(error.kind.code(), format!("the ping failed: {error}")),
    };
    match answer.status {
        200..=299 => Reading::Held("taken: it has accepted us and knows our secret".into()),
        401 if peer.last_error.as_deref() == Some(OTHER_SECRET_THERE) => blocks(
            "dangling_peer",
            format!(
                "{host} holds an entry for us with another secret (a dangling peer: somebody there \
                 followed a cross-host invite of ours, or we were a peer before): a moderator there \
                 must delete it, then `drawbridge peers add --again voltchat {host}`"
            ),
        ),
        401 if peer.status == Status::Requested => Reading::Fault(Found::hurts(
            "not_accepted",
            format!("{host} has not accepted us yet (401): its moderator must"),
        )),
        401 => blocks(
            "forgotten",
            format!(
                "{host} refuses the secret we share (401): it has forgotten us (some mainlines keep \
                 their peers in memory only) or took us off its list; `drawbridge peers add --again \
                 voltchat {host}` asks it again under the same secret"
            ),
        ),
        403 => blocks(
            "federation_disabled",
            format!("{host} answers 403 {}", error(answer)),
        ),
        status => blocks(
            "ping_failed",
            format!("{host} answers a ping with {status} {}", error(answer)),
        ),
    }
}

/// Reads the answer to a push that holds no message.
pub(super) fn push(answer: &Result<Answer, TransportError>) -> Reading {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let detail = format!("an empty push failed: {error}");
            return Reading::Fault(Found::hurts(error.kind.code(), detail));
        }
    };
    match (answer.status, error(answer)) {
        (400, _) => Reading::Held("it takes pushes".into()),
        (401, said) if said.contains(NO_PUSH) => Reading::Note(
            "it takes no pushes, as mainlines are published; it fetches its messages from us every \
             15 s, so this is no fault"
                .into(),
        ),
        (status, said) => Reading::Fault(Found::hurts(
            "push_refused",
            format!(
                "it answers an empty push with {status} {said}; its messages wait until it fetches them"
            ),
        )),
    }
}

/// The error text of an answer, fit to be shown.
fn error(answer: &Answer) -> String {
    let body = plain::json(&answer.body).unwrap_or_default();
    match text::field(body.get("error"), MAX_SHOWN) {
        Some(said) => format!("{:?}", shown(&said)),
        None => String::new(),
    }
}

fn shown(text: &str) -> String {
    let printable = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    printable.take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use serde_json::{Map, json};

    use super::*;
    use crate::identity::hmac::SharedSecret;
    use crate::protocols::voltchat::record::Direction;

    fn answer(status: u16, body: &Value) -> Answer {
        Answer {
            status,
            headers: ::http::HeaderMap::new(),
            body: Bytes::from(body.to_string()),
            elapsed: Duration::ZERO,
        }
    }

    fn peer(status: Status, last_error: Option<&str>) -> Peer {
        Peer {
            id: "peer_1".into(),
            name: "Chat".into(),
            host: PeerName::parse("chat.example.org").unwrap(),
            url: "https://chat.example.org".into(),
            secret: SharedSecret::new("0123456789abcdef").unwrap(),
            status,
            direction: Direction::Outgoing,
            features: Map::new(),
            last_seen_ms: None,
            last_synced_ms: None,
            last_error: last_error.map(ToOwned::to_owned),
            remote_peer_id: None,
            created_ms: 0,
            updated_ms: 0,
            candidates: Vec::new(),
            resend: false,
            refused_secret_ms: None,
        }
    }

    fn code(reading: &Reading) -> &'static str {
        match reading {
            Reading::Fault(found) => found.refusal.code,
            Reading::Held(_) => "held",
            Reading::Note(_) => "note",
        }
    }

    #[test]
    fn what_stands_there_is_named() {
        let name = PeerName::parse("chat.example.org").unwrap();
        let read = |status, body: Value| info("u", &name, &answer(status, &body));
        let good =
            json!({"name": "Chat\u{1b}", "host": "chat.example.org", "federationEnabled": true});
        let (seen, faults) = read(200, good).unwrap();
        assert_eq!(seen, "\"Chat\u{fffd}\" at chat.example.org");
        assert!(faults.is_empty());
        for (body, code) in [
            (json!({"federationEnabled": false}), "federation_disabled"),
            (json!({"host": "other.example.org"}), "other_host"),
        ] {
            assert_eq!(read(200, body).unwrap().1[0].refusal.code, code);
        }
        for (status, body, code) in [
            (200, json!([]), "no_server"),
            (301, json!({}), "redirect"),
            (403, json!({"error": "Access denied"}), "access_denied"),
            (404, json!({}), "no_server"),
            (502, json!({}), "no_server"),
        ] {
            assert_eq!(
                read(status, body).unwrap_err().refusal.code,
                code,
                "{status}"
            );
        }
    }

    #[test]
    fn a_clock_may_be_late_and_hardly_early() {
        for (skew, expected) in [
            (None, "note"),
            (Some(0), "held"),
            (Some(60), "held"),
            (Some(61), "clock_skew"),
            (Some(-60), "held"),
            (Some(-61), "clock_skew"),
            (Some(i64::MIN), "clock_skew"),
        ] {
            assert_eq!(code(&clocks(skew)), expected, "{skew:?}");
        }
    }

    #[test]
    fn a_refused_ping_says_who_must_do_what() {
        let refused = Ok(answer(
            401,
            &json!({"error": "Missing or invalid federation credentials"}),
        ));
        for (peer, expected) in [
            (peer(Status::Requested, None), "not_accepted"),
            (
                peer(Status::Requested, Some(OTHER_SECRET_THERE)),
                "dangling_peer",
            ),
            (peer(Status::Error, Some("x")), "forgotten"),
            (peer(Status::Connected, None), "forgotten"),
        ] {
            assert_eq!(code(&ping(&peer, &refused)), expected);
        }
        let known = peer(Status::Connected, None);
        assert_eq!(code(&ping(&known, &Ok(answer(200, &json!({}))))), "held");
        let off = Ok(answer(403, &json!({"error": "Federation is not enabled"})));
        assert_eq!(code(&ping(&known, &off)), "federation_disabled");
    }

    #[test]
    fn a_mainline_that_takes_no_pushes_is_no_fault() {
        for (status, said, expected) in [
            (401, NO_PUSH, "note"),
            (400, "id, type, and payload are required", "held"),
            (
                401,
                "Missing or invalid federation credentials",
                "push_refused",
            ),
        ] {
            let answer = Ok(answer(status, &json!({"error": said})));
            assert_eq!(code(&push(&answer)), expected, "{said}");
        }
    }
}
