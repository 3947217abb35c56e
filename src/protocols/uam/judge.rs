//! What a relay's answer to a delivery means: a pure function of the answer, following section 13 of
//! the protocol sheet.
//!
//! A real relay retries everything alike for hours. We do not repeat what cannot get better (400,
//! 403, 413, and 422 in both wire forms), and we do repeat what a relay's own faults cause (500 after
//! it stored the message; the repeat is then answered `duplicate`).

use std::time::Duration;

use crate::protocol::{
    Answer, Fault, Judgement, Learned, PeerRecord, Refusal, TransportError, TransportKind, Try,
    Verdict,
};
use crate::protocols::plain;
use crate::protocols::wire;

use super::keys::InForce;
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
pub(super) fn judge(
    answer: Result<&Answer, &TransportError>,
    peer: &PeerRecord,
    attempt: &Try,
    keys: &InForce,
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
    let after = wire::retry_after(&answer.headers, attempt.now_ms);
    match answer.status {
        200 | 201 => success(answer, keys.taken(peer, attempt)),
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
        401 => keys
            .refused(peer, attempt)
            .unwrap_or_else(|| unauthorized(peer, reason)),
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
fn success(answer: &Answer, noticed: Option<Learned>) -> Judgement {
    let body = plain::json(&answer.body).ok();
    let status = body
        .as_ref()
        .and_then(|body| body.get("status"))
        .and_then(|status| status.as_str());
    let verdict = match status {
        Some("delivered") => Verdict::Delivered,
        Some("duplicate") => Verdict::Duplicate,
        _ => {
            return plain(retry(
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
            ));
        }
    };
    Judgement {
        verdict,
        learned: noticed.into_iter().collect(),
    }
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
    plain::json(&answer.body).is_ok_and(|said| said.is_object())
}

/// The relay's own explanation, printable and bounded.
fn words(answer: &Answer) -> String {
    let Ok(body) = plain::json(&answer.body) else {
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

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
