//! What a relay's answer to a delivery means: a pure function of the answer, following section 13 of
//! the protocol sheet.
//!
//! A real relay retries everything alike for hours. We do not repeat what cannot get better (400,
//! 403, 413, and 422 in both wire forms), and we do repeat what a relay's own faults cause (500 after
//! it stored the message; the repeat is then answered `duplicate`).

use std::time::Duration;

use ::http::HeaderMap;
use jiff::fmt::rfc2822;

use crate::clock::UnixMs;
use crate::protocol::{
    Answer, Fault, Judgement, Learned, PeerRecord, Refusal, TransportError, TransportKind, Try,
    Verdict,
};

use super::relay_request::Form;

/// Name of the fact that says which wire form a peer speaks.
pub const DIALECT: &str = "dialect";
/// Longest piece of a peer's own words in a reason, characters.
const MAX_WORDS: usize = 300;

/// What a peer speaks. Unknown: legacy, because the wrong guess then costs a 422 and no reputation.
pub fn form_of(peer: &PeerRecord) -> Form {
    peer.facts
        .get(DIALECT)
        .and_then(|fact| fact.as_str())
        .and_then(Form::from_name)
        .unwrap_or(Form::Legacy)
}

/// A form as a fact to remember.
fn learned(form: Form) -> Learned {
    Learned {
        key: DIALECT,
        value: form.name().into(),
    }
}

/// The verdict on one attempt.
pub fn judge(
    answer: Result<&Answer, &TransportError>,
    peer: &PeerRecord,
    attempt: &Try,
) -> Judgement {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return transport(error),
    };
    let words = words(answer);
    let reason = |code: &'static str, what: &str| {
        let detail = if words.is_empty() {
            format!("{what} (status {})", answer.status)
        } else {
            format!("{what} (status {}): {words}", answer.status)
        };
        Refusal::new(code, detail)
    };
    let after = retry_after(&answer.headers, attempt.now_ms);
    match answer.status {
        200 | 201 => success(answer),
        // A relay says what it refuses as JSON; a web server or a parked domain shows a page.
        400 | 401 | 403 | 409 | 422 if !is_object(answer) => plain(Verdict::Rediscover {
            fault: Fault::Peer,
            reason: reason(
                "not_uam",
                "something else than a UAM relay answers at this address",
            ),
        }),
        400 => plain(Verdict::Refused(reason(
            "refused_400",
            "the relay refused the message",
        ))),
        401 => unauthorized(peer, reason),
        403 => plain(Verdict::Refused(reason(
            "forbidden",
            "the relay does not take messages from us or this sender",
        ))),
        404 | 405 | 410 | 421 => plain(Verdict::Rediscover {
            fault: Fault::Peer,
            reason: reason(
                "no_such_route",
                "there is no federation endpoint at this address",
            ),
        }),
        409 if attempt.again == 0 => plain(Verdict::Again),
        409 => plain(retry(
            Fault::Message,
            reason("conflict", "the relay says our nonce was used before"),
            after,
        )),
        413 => plain(Verdict::Refused(reason(
            "too_large",
            "the message is too large for the relay",
        ))),
        422 => unprocessable(peer, attempt, reason),
        429 => plain(Verdict::Throttled {
            reason: reason("rate_limited", "the relay asks us to slow down"),
            after,
        }),
        501 => plain(retry(
            Fault::Peer,
            reason(
                "federation_disabled",
                "the relay has federation switched off",
            ),
            after,
        )),
        503 => plain(retry(
            Fault::Peer,
            reason("unavailable", "the relay cannot take messages now"),
            after,
        )),
        500..=599 => plain(retry(
            Fault::Peer,
            reason("server_error", "the relay failed"),
            after,
        )),
        300..=399 => plain(retry(
            Fault::Peer,
            reason("redirect", "the endpoint redirects, which is not followed"),
            None,
        )),
        status if (400..500).contains(&status) => plain(retry(
            if is_object(answer) {
                Fault::Message
            } else {
                Fault::Peer
            },
            reason(
                "unexpected_status",
                "the relay's answer is none of the protocol",
            ),
            after,
        )),
        _ => plain(retry(
            Fault::Peer,
            reason("not_uam", "the answer is none of the protocol"),
            after,
        )),
    }
}

/// 200 means something only in the relay's own words: a parked domain answers 200 as well.
fn success(answer: &Answer) -> Judgement {
    let body = serde_json::from_slice::<serde_json::Value>(&answer.body).ok();
    let status = body
        .as_ref()
        .and_then(|body| body.get("status"))
        .and_then(|status| status.as_str());
    plain(match status {
        Some("delivered") => Verdict::Delivered,
        Some("duplicate") => Verdict::Duplicate,
        _ => retry(
            Fault::Peer,
            Refusal::new(
                "not_uam",
                format!(
                    "status {} without a relay's answer in it; something else than a UAM relay \
                     answers at this address",
                    answer.status
                ),
            ),
            None,
        ),
    })
}

/// A relay of the other wire form answers 422; one of ours does so for what it will never take.
fn unprocessable(
    peer: &PeerRecord,
    attempt: &Try,
    reason: impl Fn(&'static str, &str) -> Refusal,
) -> Judgement {
    let other = match form_of(peer) {
        Form::Legacy => Form::Nonce,
        Form::Nonce => Form::Legacy,
    };
    let verdict = if attempt.again == 0 {
        Verdict::Again
    } else {
        // Both forms were refused. Going back to the first one keeps what was known.
        Verdict::Refused(reason(
            "validation_error",
            "the relay refuses the request in both wire forms",
        ))
    };
    Judgement {
        verdict,
        learned: vec![learned(other)],
    }
}

/// An older relay answers 401 to the form with nonce. Forgetting what it speaks makes the next attempt
/// one without, whose wrong guess costs a 422 and no reputation.
fn unauthorized(peer: &PeerRecord, reason: impl Fn(&'static str, &str) -> Refusal) -> Judgement {
    let learned = match form_of(peer) {
        Form::Legacy => Vec::new(),
        Form::Nonce => vec![Learned {
            key: DIALECT,
            value: serde_json::Value::Null,
        }],
    };
    Judgement {
        verdict: Verdict::Rediscover {
            fault: Fault::Message,
            reason: reason("unauthorized", "the relay did not accept our signature"),
        },
        learned,
    }
}

fn transport(error: &TransportError) -> Judgement {
    let reason = Refusal::new(error.kind.code(), error.detail.clone());
    plain(match error.kind {
        // What cannot even be built will not be built later either, unless the endpoint changes.
        TransportKind::Invalid => Verdict::Rediscover {
            fault: Fault::Peer,
            reason,
        },
        TransportKind::Dns
        | TransportKind::Forbidden
        | TransportKind::Connect
        | TransportKind::Tls
        | TransportKind::Timeout
        | TransportKind::Broken
        | TransportKind::TooLarge
        | TransportKind::Discovery => retry(Fault::Peer, reason, None),
    })
}

fn retry(fault: Fault, reason: Refusal, after: Option<Duration>) -> Verdict {
    Verdict::Retry {
        fault,
        reason,
        after,
    }
}

fn plain(verdict: Verdict) -> Judgement {
    Judgement {
        verdict,
        learned: Vec::new(),
    }
}

/// Whether the body is a JSON object, as all of a relay's own answers are.
fn is_object(answer: &Answer) -> bool {
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&answer.body).is_ok()
}

/// The relay's own explanation, printable and bounded.
fn words(answer: &Answer) -> String {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(&answer.body) else {
        return String::new();
    };
    let text = match body.get("detail") {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Null) | None => return String::new(),
        Some(other) => other.to_string(),
    };
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_WORDS)
        .collect()
}

/// `Retry-After`, in seconds or as a date.
fn retry_after(headers: &HeaderMap, now_ms: UnixMs) -> Option<Duration> {
    let text = headers
        .get(::http::header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let wait = at.as_millisecond().saturating_sub(now_ms).max(0);
    Some(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PeerName;
    use bytes::Bytes;

    fn peer(dialect: Option<&str>) -> PeerRecord {
        let mut facts = serde_json::Map::new();
        if let Some(dialect) = dialect {
            facts.insert(DIALECT.into(), dialect.into());
        }
        PeerRecord {
            protocol: "uam",
            name: PeerName::parse("beta.test").unwrap(),
            endpoint: "https://beta.test/api/v1/federation/deliver".into(),
            alternatives: vec![],
            public_key: None,
            discovered_via: "well-known".into(),
            last_verified_ms: 0,
            ttl_ms: None,
            facts,
        }
    }

    fn attempt(again: u32) -> Try {
        Try {
            number: 1,
            now_ms: 1_777_636_800_000,
            again,
            traceparent: None,
        }
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            elapsed: Duration::ZERO,
        }
    }

    fn verdict(status: u16, body: &str) -> Verdict {
        judge(Ok(&answer(status, body)), &peer(None), &attempt(0)).verdict
    }

    #[test]
    fn only_a_relays_own_word_is_a_success() {
        assert_eq!(
            verdict(200, r#"{"status":"delivered","detail":null}"#),
            Verdict::Delivered
        );
        assert_eq!(
            verdict(201, r#"{"status":"delivered"}"#),
            Verdict::Delivered
        );
        assert_eq!(
            verdict(200, r#"{"status":"duplicate","detail":"x"}"#),
            Verdict::Duplicate
        );
        for body in [
            "<html>for sale</html>",
            "",
            "[]",
            "{}",
            r#"{"status":1}"#,
            "null",
        ] {
            let found = verdict(200, body);
            assert!(
                matches!(&found, Verdict::Retry { fault: Fault::Peer, reason, .. } if reason.code == "not_uam"),
                "{body}: {found:?}"
            );
        }
    }

    #[test]
    fn what_cannot_get_better_is_not_repeated_and_says_why() {
        for (status, code) in [(400, "refused_400"), (403, "forbidden"), (413, "too_large")] {
            let Verdict::Refused(reason) =
                verdict(status, r#"{"error":"x","detail":"because\nof this"}"#)
            else {
                panic!("{status} is final");
            };
            assert_eq!(reason.code, code);
            assert!(
                reason.detail.ends_with("because of this"),
                "{}",
                reason.detail
            );
        }
    }

    #[test]
    fn a_relays_own_faults_are_repeated() {
        for status in [500, 501, 502, 503, 504, 302, 100] {
            let found = verdict(status, "Internal Server Error");
            assert!(
                matches!(
                    found,
                    Verdict::Retry {
                        fault: Fault::Peer,
                        ..
                    }
                ),
                "{status}: {found:?}"
            );
        }
    }

    #[test]
    fn a_422_switches_the_wire_form_once_and_is_then_final() {
        let first = judge(Ok(&answer(422, "{}")), &peer(None), &attempt(0));
        assert_eq!(first.verdict, Verdict::Again);
        assert_eq!(first.learned, vec![learned(Form::Nonce)]);
        let second = judge(Ok(&answer(422, "{}")), &peer(Some("nonce")), &attempt(1));
        assert!(matches!(second.verdict, Verdict::Refused(_)));
        assert_eq!(second.learned, vec![learned(Form::Legacy)]);
    }

    #[test]
    fn a_reused_nonce_is_made_anew_once() {
        assert_eq!(verdict(409, "{}"), Verdict::Again);
        let second = judge(Ok(&answer(409, "{}")), &peer(None), &attempt(1));
        assert!(matches!(
            second.verdict,
            Verdict::Retry {
                fault: Fault::Message,
                ..
            }
        ));
    }

    #[test]
    fn a_401_looks_form_and_key_up_again() {
        let answer = answer(401, "{}");
        let found = judge(Ok(&answer), &peer(Some("nonce")), &attempt(0));
        assert!(rediscovers(&found, Fault::Message));
        assert_eq!(found.learned[0].value, serde_json::Value::Null);
        let found = judge(Ok(&answer), &peer(Some("legacy")), &attempt(0));
        assert!(rediscovers(&found, Fault::Message) && found.learned.is_empty());
    }

    fn rediscovers(found: &Judgement, whose: Fault) -> bool {
        matches!(found.verdict, Verdict::Rediscover { fault, .. } if fault == whose)
    }

    #[test]
    fn a_page_of_a_web_server_is_the_whole_peers_fault_and_condemns_no_message() {
        for status in [400, 401, 403, 404, 405, 409, 410, 421, 422] {
            for page in ["<html>for sale</html>", "", "\"text\""] {
                let found = judge(Ok(&answer(status, page)), &peer(None), &attempt(0));
                assert!(rediscovers(&found, Fault::Peer), "{status}: {found:?}");
            }
        }
        assert!(matches!(
            verdict(418, "<html>"),
            Verdict::Retry {
                fault: Fault::Peer,
                ..
            }
        ));
        let found = judge(
            Ok(&answer(404, r#"{"detail":"Not Found"}"#)),
            &peer(None),
            &attempt(0),
        );
        assert!(rediscovers(&found, Fault::Peer));
    }

    #[test]
    fn retry_after_is_read_in_both_spellings() {
        let mut slow = answer(429, "{}");
        slow.headers.insert("retry-after", "17".parse().unwrap());
        let found = judge(Ok(&slow), &peer(None), &attempt(0)).verdict;
        assert!(
            matches!(found, Verdict::Throttled { after: Some(d), .. } if d == Duration::from_secs(17))
        );
        let mut later = answer(503, "{}");
        let date = "Fri, 01 May 2026 12:01:00 GMT".parse().unwrap();
        later.headers.insert("retry-after", date);
        let found = judge(Ok(&later), &peer(None), &attempt(0)).verdict;
        assert!(
            matches!(found, Verdict::Retry { after: Some(d), .. } if d == Duration::from_secs(60)),
            "{found:?}"
        );
        let mut odd = answer(429, "{}");
        odd.headers.insert("retry-after", "soon".parse().unwrap());
        let found = judge(Ok(&odd), &peer(None), &attempt(0)).verdict;
        assert!(matches!(found, Verdict::Throttled { after: None, .. }));
    }

    #[test]
    fn no_answer_is_the_peers_fault_and_carries_its_kind() {
        let error = TransportError {
            kind: TransportKind::Timeout,
            detail: "no answer within 30 s".into(),
        };
        let found = judge(Err(&error), &peer(None), &attempt(0)).verdict;
        assert!(
            matches!(found, Verdict::Retry { fault: Fault::Peer, reason, .. } if reason.code == "timeout")
        );
    }

    #[test]
    fn a_peers_words_are_bounded() {
        let body = format!(r#"{{"detail":"{}"}}"#, "x".repeat(100_000));
        let Verdict::Refused(reason) = verdict(400, &body) else {
            panic!("400 is final");
        };
        assert!(reason.detail.len() < 400);
    }
}
