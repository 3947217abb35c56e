//! What a server's answer to a push means, and what it teaches.
//!
//! Taken is an event only where the answer is a success in the protocol's own shape (sheet, 7). A 403
//! says that the server does not trust us, does not know our key or refuses this event: it never
//! looks our key up by itself, so no trying again helps before an operator did something.

use ::http::HeaderMap;
use serde::Deserialize;
use serde_json::json;

use super::answer::POLICY;
use crate::protocol::{
    Answer, Fault, Judgement, Learned, PeerRecord, Refusal, TransportError, Try, Verdict,
};
use crate::protocols::plain;
use crate::protocols::wire;

/// Fact: events a minute that the server takes, as its answers say.
const PER_MINUTE: &str = "events_per_minute";
/// Greater than any server means it.
const MAX_PER_MINUTE: u64 = 10_000_000;

/// A server's word that it has the event.
#[derive(Deserialize)]
struct Taken {
    #[serde(rename = "event_id")]
    _event_id: String,
    inserted: bool,
}

/// Judges.
pub fn judge(
    answer: Result<&Answer, &TransportError>,
    peer: &PeerRecord,
    attempt: &Try,
) -> Judgement {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return peer_fails(error.kind.code(), error.detail.clone()),
    };
    let learned = learned(&answer.headers, peer);
    let verdict = verdict(answer, peer, attempt);
    Judgement { verdict, learned }
}

fn verdict(answer: &Answer, peer: &PeerRecord, attempt: &Try) -> Verdict {
    let words = said(answer).map_or(String::new(), |words| format!(": {words}"));
    let reason = |code: &'static str| Refusal::new(code, format!("HTTP {}{words}", answer.status));
    let retry = |fault, reason, after| Verdict::Retry {
        fault,
        reason,
        after,
    };
    match answer.status {
        200..=299 => match serde_json::from_slice::<Taken>(&answer.body) {
            Ok(taken) if taken.inserted => Verdict::Delivered,
            Ok(_) => Verdict::Duplicate,
            Err(_) => {
                let why = "a success without event_id and inserted: is this a Paracord server?";
                let reason = Refusal::new("unexpected_answer", why);
                retry(Fault::Peer, reason, None)
            }
        },
        // A time out of bounds, or headers that were lost on the way.
        401 => {
            let why = format!(
                "HTTP 401{words}: the server's clock and ours may be more than 60 seconds apart, or \
                 something between us removes headers"
            );
            retry(Fault::Peer, Refusal::new("unauthorized", why), None)
        }
        403 => Verdict::Hold(Refusal::new(
            "forbidden",
            format!(
                "HTTP 403{words}: {} does not trust us, does not know our key, or refuses this event; \
                 after its operator has mended that, or ours, `drawbridge queue retry` sends it",
                peer.name
            ),
        )),
        // This very request was there before: a fresh one says how it ended.
        409 => Verdict::Again,
        400 | 413 | 415 | 422 => Verdict::Refused(reason("refused")),
        429 => Verdict::Throttled {
            reason: reason("throttled"),
            after: wire::retry_after(&answer.headers, attempt.now_ms),
        },
        404 | 405 => Verdict::Rediscover {
            fault: Fault::Peer,
            reason: reason("no_route"),
        },
        503 => {
            let after = wire::retry_after(&answer.headers, attempt.now_ms);
            retry(Fault::Peer, reason("unavailable"), after)
        }
        300..=399 => retry(Fault::Peer, reason("redirected"), None),
        500..=599 => retry(Fault::Peer, reason("server_error"), None),
        _ => retry(Fault::Peer, reason("unexpected_answer"), None),
    }
}

fn peer_fails(code: &'static str, why: String) -> Judgement {
    Judgement {
        verdict: Verdict::Retry {
            fault: Fault::Peer,
            reason: Refusal::new(code, why),
            after: None,
        },
        learned: Vec::new(),
    }
}

/// How many events a minute this server takes, as far as it said so.
pub fn per_minute(peer: Option<&PeerRecord>) -> Option<u32> {
    let said = peer?.facts.get(PER_MINUTE)?.as_u64()?;
    u32::try_from(said).ok()
}

/// What is remembered of an answer's headers.
fn learned(headers: &HeaderMap, peer: &PeerRecord) -> Vec<Learned> {
    let said = headers.get(&POLICY).and_then(|value| value.to_str().ok());
    let Some(said) = said.and_then(policy) else {
        return Vec::new();
    };
    if per_minute(Some(peer)).map(u64::from) == Some(said) {
        return Vec::new();
    }
    vec![Learned {
        key: PER_MINUTE,
        value: json!(said),
    }]
}

/// The policy on events, per minute. None: it speaks of something else, or of no number.
fn policy(text: &str) -> Option<u64> {
    let item = text
        .split(',')
        .map(str::trim)
        .find(|item| item.starts_with("\"events\""))?;
    let member = |name: &str| -> Option<u64> {
        let mut members = item.split(';').map(str::trim);
        members.find_map(|m| m.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    let (quota, window) = (member("q")?, member("w")?);
    if quota == 0 || window == 0 {
        return None;
    }
    Some((quota.saturating_mul(60) / window).clamp(1, MAX_PER_MINUTE))
}

/// The message of an answer in the protocol's shape, cut for a sentence.
pub(super) fn said(answer: &Answer) -> Option<String> {
    let body = plain::json(&answer.body).ok()?;
    let words = body
        .get("message")
        .or_else(|| body.get("error"))?
        .as_str()?;
    let words = words.chars().filter(|c| !c.is_control()).take(200);
    Some(words.collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::PeerName;

    fn peer() -> PeerRecord {
        PeerRecord {
            protocol: super::super::ID,
            name: PeerName::parse("b.example").unwrap(),
            endpoint: String::new(),
            alternatives: Vec::new(),
            public_key: None,
            discovered_via: String::new(),
            last_verified_ms: 0,
            ttl_ms: None,
            facts: serde_json::Map::new(),
        }
    }

    fn judged(status: u16, body: &str, headers: &[(&str, &str)]) -> Judgement {
        let headers = headers.iter().map(|(name, value)| {
            (
                name.parse::<::http::HeaderName>().unwrap(),
                value.parse().unwrap(),
            )
        });
        let answer = Answer {
            status,
            headers: headers.collect(),
            body: body.to_owned().into(),
            elapsed: Duration::ZERO,
        };
        let attempt = Try {
            number: 1,
            now_ms: 0,
            again: 0,
            traceparent: None,
        };
        judge(Ok(&answer), &peer(), &attempt)
    }

    fn verdict(status: u16, body: &str) -> Verdict {
        judged(status, body, &[]).verdict
    }

    #[test]
    fn only_an_answer_in_the_protocols_shape_means_that_the_event_is_there() {
        let new = r#"{"event_id":"$1:a","inserted":true}"#;
        assert_eq!(verdict(202, new), Verdict::Delivered);
        assert_eq!(verdict(200, new), Verdict::Delivered);
        let again = r#"{"event_id":"$1:a","inserted":false}"#;
        assert_eq!(verdict(202, again), Verdict::Duplicate);
        for body in ["", "{}", "<html>", r#"{"event_id":"$1:a"}"#] {
            assert!(
                matches!(verdict(202, body), Verdict::Retry { .. }),
                "{body}"
            );
        }
    }

    #[test]
    fn a_403_waits_for_an_operator_and_says_so() {
        let Verdict::Hold(why) = verdict(403, r#"{"code":"FORBIDDEN","message":"forbidden"}"#)
        else {
            panic!("not held");
        };
        assert_eq!(why.code, "forbidden");
        assert!(why.detail.contains("forbidden") && why.detail.contains("operator"));
    }

    #[test]
    fn what_no_trying_again_mends_is_refused_and_the_rest_is_tried_again() {
        for status in [400, 413, 415, 422] {
            assert!(
                matches!(verdict(status, ""), Verdict::Refused(_)),
                "{status}"
            );
        }
        for status in [301, 401, 418, 500, 502, 503] {
            let verdict = verdict(status, "");
            assert!(matches!(verdict, Verdict::Retry { .. }), "{status}");
        }
        assert_eq!(verdict(409, ""), Verdict::Again);
        assert!(matches!(verdict(404, ""), Verdict::Rediscover { .. }));
    }

    #[test]
    fn patience_that_a_server_asks_for_is_heeded() {
        let throttled = judged(429, "", &[("retry-after", "7")]).verdict;
        let Verdict::Throttled { after, .. } = throttled else {
            panic!("{throttled:?}");
        };
        assert_eq!(after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_server_that_takes_more_is_remembered_for_it() {
        let said = "\"events\";q=6000;w=60";
        let taught = judged(202, "{}", &[(POLICY.as_str(), said)]).learned;
        assert_eq!(taught[0].value, json!(6000));
        assert_eq!(policy(r#""reads";q=1;w=1, "events";q=10;w=1"#), Some(600));
        for none in [
            "",
            "\"events\"",
            "\"events\";q=x;w=60",
            "\"events\";q=0;w=60",
        ] {
            assert_eq!(policy(none), None, "{none}");
        }
        let any = "\"events\";q=18446744073709551615;w=1";
        assert_eq!(policy(any), Some(MAX_PER_MINUTE));
    }
}
