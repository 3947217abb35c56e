//! What a peer's answer to a push means, and what it teaches.
//!
//! A published mainline takes no pushes: it answers 401 `Access token required` and fetches instead
//! (sheet, fact 1). That is no fault of anybody, so the message waits to be fetched.

use serde_json::{Value, json};

use crate::clock::UnixMs;
use crate::protocol::{
    Answer, Fault, Judgement, Learned, PeerRecord, Refusal, TransportError, Try, Verdict, Via,
};
use crate::protocols::plain;
use crate::protocols::wire;

/// Fact: until when the peer is taken to fetch (milliseconds since the epoch).
const FETCHES_UNTIL: &str = "fetches_until";
/// Fact: how pushes fare: `taken`, or since when they fail (milliseconds since the epoch).
const PUSH: &str = "push";

/// A peer that refuses pushes is asked again after this.
const REFUSED_MS: i64 = 24 * 3_600_000;
/// Pushes that fail for so long, while the peer fetches, mean that it cannot be reached from here: one
/// that was restarted takes them again sooner.
const GIVEN_TIME_MS: i64 = 60_000;
/// A peer that cannot be reached and fetches is asked again after this.
const UNREACHED_MS: i64 = 10 * 60_000;
/// Attempts of a message that its receiver does not come to terms with in its own time limit.
const STUCK_ATTEMPTS: u32 = 3;
/// The words of a mainline that has no route for pushes.
pub(super) const NO_PUSHES: &str = "Access token required";

/// How messages for this peer leave.
pub fn via(record: Option<&PeerRecord>, now: UnixMs) -> Via {
    let until = record.and_then(|r| r.facts.get(FETCHES_UNTIL)?.as_i64());
    match until {
        Some(until_ms) if until_ms > now => Via::Held { until_ms },
        _ => Via::Post,
    }
}

/// What a fetch of this peer is answered with.
#[derive(Clone, Debug, PartialEq)]
pub enum Serving {
    /// Nothing: it takes pushes.
    Nothing,
    /// Its mailbox; and where pushes fail, that it fetches, to be remembered.
    Mailbox(Vec<Learned>),
}

/// Whether a peer that fetches is given what waits for it.
pub fn serving(record: Option<&PeerRecord>, now: UnixMs) -> Serving {
    if matches!(via(record, now), Via::Held { .. }) {
        return Serving::Mailbox(Vec::new());
    }
    match record.and_then(|r| r.facts.get(PUSH)) {
        None => Serving::Mailbox(Vec::new()),
        Some(how) => match how.as_i64() {
            Some(since) if now.saturating_sub(since) >= GIVEN_TIME_MS => {
                Serving::Mailbox(vec![fetches_until(now.saturating_add(UNREACHED_MS))])
            }
            _ => Serving::Nothing,
        },
    }
}

/// Nothing is known of how the peer takes its messages.
pub(super) fn nothing() -> Vec<Learned> {
    let forgotten = Learned {
        key: FETCHES_UNTIL,
        value: Value::Null,
    };
    vec![push(Value::Null), forgotten]
}

fn fetches_until(at: UnixMs) -> Learned {
    Learned {
        key: FETCHES_UNTIL,
        value: json!(at),
    }
}

fn push(how: Value) -> Learned {
    Learned {
        key: PUSH,
        value: how,
    }
}

/// Judges.
pub fn judge(
    answer: Result<&Answer, &TransportError>,
    peer: &PeerRecord,
    attempt: &Try,
) -> Judgement {
    let since = peer.facts.get(PUSH).and_then(Value::as_i64);
    let failing = || vec![push(since.unwrap_or(attempt.now_ms).into())];
    let taken = || {
        let forgotten = Learned {
            key: FETCHES_UNTIL,
            value: Value::Null,
        };
        vec![push("taken".into()), forgotten]
    };
    let peer_fails = |reason: Refusal| Judgement {
        verdict: Verdict::Retry {
            fault: Fault::Peer,
            reason,
            after: None,
        },
        learned: failing(),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return peer_fails(Refusal::new(error.kind.code(), error.detail.clone())),
    };
    let words = said(answer);
    let reason = |code: &'static str| {
        let words = words.as_deref().map_or(String::new(), |w| format!(": {w}"));
        Refusal::new(code, format!("HTTP {}{words}", answer.status))
    };
    let ours = words.is_some();
    match answer.status {
        200 if succeeded(answer) => Judgement {
            verdict: Verdict::Delivered,
            learned: taken(),
        },
        401 if words.as_deref() == Some(NO_PUSHES) => Judgement {
            verdict: Verdict::Mailbox(Refusal::new(
                "push_unsupported",
                "the peer takes no pushes; the message waits until it fetches",
            )),
            learned: vec![
                fetches_until(attempt.now_ms.saturating_add(REFUSED_MS)),
                push(Value::Null),
            ],
        },
        401 => peer_fails(reason("not_accepted")),
        403 if ours => peer_fails(reason("federation_off")),
        400 | 422 if ours => Judgement {
            verdict: Verdict::Refused(reason("refused")),
            learned: taken(),
        },
        413 => Judgement {
            verdict: Verdict::Refused(reason("too_large")),
            learned: Vec::new(),
        },
        429 => Judgement {
            verdict: Verdict::Throttled {
                reason: reason("throttled"),
                after: wire::retry_after(&answer.headers, attempt.now_ms),
            },
            learned: Vec::new(),
        },
        // It took the message in hand and did not come to an end with it: others may fare better.
        503 if words.as_deref() == Some("Request timeout") => Judgement {
            verdict: if attempt.number >= STUCK_ATTEMPTS {
                Verdict::Refused(reason("peer_timeout"))
            } else {
                Verdict::Retry {
                    fault: Fault::Message,
                    reason: reason("peer_timeout"),
                    after: None,
                }
            },
            learned: Vec::new(),
        },
        503 => Judgement {
            verdict: Verdict::Retry {
                fault: Fault::Peer,
                reason: reason("unavailable"),
                after: wire::retry_after(&answer.headers, attempt.now_ms),
            },
            learned: failing(),
        },
        500..=599 => peer_fails(reason("server_error")),
        300..=399 => peer_fails(reason("redirected")),
        _ => peer_fails(reason("unexpected_answer")),
    }
}

/// `{"success":true}`: a page of something else is not taken for it.
fn succeeded(answer: &Answer) -> bool {
    plain::json(&answer.body).is_ok_and(|body| body.get("success") == Some(&Value::Bool(true)))
}

/// The `error` of an answer in the protocol's shape, cut for a sentence.
pub(super) fn said(answer: &Answer) -> Option<String> {
    let body = plain::json(&answer.body).ok()?;
    let words = body.get("error")?.as_str()?;
    Some(
        words
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::TransportKind;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            headers: Default::default(),
            body: body.to_owned().into(),
            elapsed: Duration::ZERO,
        }
    }

    fn attempt(number: u32) -> Try {
        Try {
            number,
            now_ms: 1_000,
            again: 0,
            traceparent: None,
        }
    }

    fn peer(learned: Vec<Learned>) -> PeerRecord {
        let facts = learned
            .into_iter()
            .map(|fact| (fact.key.into(), fact.value));
        PeerRecord {
            protocol: "voltchat",
            name: crate::protocol::PeerName::parse("m.example").unwrap(),
            endpoint: String::new(),
            alternatives: vec![],
            public_key: None,
            discovered_via: String::new(),
            last_verified_ms: 0,
            ttl_ms: None,
            facts: facts.collect(),
        }
    }

    fn judged(answer: &Answer, number: u32) -> Judgement {
        judge(Ok(answer), &peer(vec![]), &attempt(number))
    }

    fn verdict(status: u16, body: &str) -> Verdict {
        judged(&answer(status, body), 1).verdict
    }

    #[test]
    fn a_peer_that_takes_no_pushes_is_not_in_trouble_and_fetches_for_a_day() {
        let judged = judged(&answer(401, r#"{"error":"Access token required"}"#), 1);
        assert!(matches!(judged.verdict, Verdict::Mailbox(_)));
        let record = peer(judged.learned);
        assert!(matches!(via(Some(&record), 1_001), Via::Held { .. }));
        assert_eq!(via(Some(&record), 1_000 + REFUSED_MS), Via::Post);
        assert_eq!(via(None, 0), Via::Post);
    }

    #[test]
    fn a_message_that_is_refused_leaves_and_a_peer_that_fails_is_tried_again() {
        assert!(matches!(
            verdict(400, r#"{"error":"Invalid relay type"}"#),
            Verdict::Refused(_)
        ));
        for (status, body) in [
            (400, "<html>"),
            (
                401,
                r#"{"error":"Missing or invalid federation credentials"}"#,
            ),
            (403, r#"{"error":"Federation is not enabled"}"#),
            (200, "<html>welcome</html>"),
            (404, ""),
            (302, ""),
            (502, ""),
        ] {
            let Verdict::Retry { fault, .. } = verdict(status, body) else {
                panic!("{status} {body}");
            };
            assert_eq!(fault, Fault::Peer, "{status}");
        }
    }

    #[test]
    fn a_message_that_hangs_its_receiver_does_not_block_the_others_for_ever() {
        let hangs = answer(503, r#"{"error":"Request timeout"}"#);
        let after = |n| judged(&hangs, n).verdict;
        assert!(matches!(
            after(1),
            Verdict::Retry {
                fault: Fault::Message,
                ..
            }
        ));
        assert!(matches!(after(STUCK_ATTEMPTS), Verdict::Refused(_)));
    }

    #[test]
    fn a_peer_that_cannot_be_reached_for_a_minute_and_fetches_is_given_its_mailbox() {
        let error = TransportError {
            kind: TransportKind::Connect,
            detail: "refused".into(),
        };
        let first = judge(Err(&error), &peer(vec![]), &attempt(1));
        let failing = peer(first.learned.clone());
        let later = Try {
            now_ms: 30_000,
            ..attempt(2)
        };
        let second = judge(Err(&error), &failing, &later);
        assert_eq!(first.learned, second.learned, "since the first failure");
        assert_eq!(serving(Some(&failing), 60_999), Serving::Nothing);
        let Serving::Mailbox(learned) = serving(Some(&failing), 61_000) else {
            panic!("it is served");
        };
        assert!(matches!(
            via(Some(&peer(learned)), 61_001),
            Via::Held { .. }
        ));
    }

    #[test]
    fn a_peer_that_takes_pushes_is_given_nothing_when_it_fetches() {
        let taken = judged(&answer(200, r#"{"success":true}"#), 1);
        assert_eq!(taken.verdict, Verdict::Delivered);
        assert_eq!(serving(Some(&peer(taken.learned)), 0), Serving::Nothing);
        let unknown = Serving::Mailbox(Vec::new());
        assert_eq!(serving(None, 0), unknown, "before the first push");
    }
}
