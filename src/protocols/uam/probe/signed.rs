//! A request with our real signature that delivers nothing.
//!
//! The receiver checks the relay's signature (check 13) before it looks at the envelope. So an
//! envelope that nobody may take proves the signature by the *way* it is refused: 401 when it does not
//! hold, a refusal of the envelope when it does.
//!
//! - A relay of the newer form refuses a major version it does not know (check 15), the one refusal
//!   after the signature that costs no reputation. The envelope has neither payload nor agent's
//!   signature besides, so it cannot be delivered even by a relay that looks at no version.
//! - A relay of the older form has no such check: every refusal after the signature costs five points.
//!   There it is done only on request; the next five messages earn the points back.

use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, header};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::identity::b64;
use crate::protocol::{Answer, PeerName, Request};
use crate::protocols::plain;

use super::super::discover::WELL_KNOWN_PATH;
use super::super::envelope::Envelope;
use super::super::relay_request::{Attempt, Form, sign_relay_request};
use super::super::time;
use super::page::Page;
use super::{Found, Own, Probe, Report, shown_key};

const STEP: &str = "signed request";
/// Some relays of 1.0 take half a minute for a refusal.
const PATIENCE: Duration = Duration::from_secs(40);
/// Largest answer, bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// A version that no relay knows, in the right shape.
const VERSION: &str = "99.0";

/// What an answer says of our signature.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    /// It holds.
    Held(String),
    /// It was not believed.
    NotBelieved(String),
    /// It was not looked at, or the answer says nothing.
    Unknown(Found),
}

impl Probe {
    pub(super) async fn signed(
        &self,
        name: &PeerName,
        endpoint: &str,
        page: &Page,
        form: Option<Form>,
        report: &mut Report<'_>,
    ) {
        let Some(own) = &self.own else {
            report.info(
                STEP,
                "not tried: it needs our domain (uam.domain) and our key file",
            );
            return;
        };
        if own.domain == *name {
            report.info(STEP, "not tried: this is our own domain");
            return;
        }
        match form {
            Some(Form::Nonce) => {}
            Some(Form::Legacy) if self.spend => {}
            Some(Form::Legacy) => {
                report.info(
                    STEP,
                    "not tried: a relay of the older form can only prove it by a refusal that costs \
                     us 5 points of reputation there (--spend does it all the same)",
                );
                return;
            }
            None => {
                report.info(STEP, "not tried: the wire form is not known");
                return;
            }
        }
        let form = form.unwrap_or(Form::Nonce);
        let to = page.domain.as_deref().unwrap_or(name.as_str());
        let Some(request) = request(own, to, endpoint, form, self.clock.now_ms()) else {
            report.info(STEP, "not tried: the request could not be made");
            return;
        };
        let reading = match self.client.send(request, PATIENCE, MAX_ANSWER).await {
            Ok(answer) => read(&answer),
            Err(error) => Reading::Unknown(Found::blocks(error.kind.code(), error.detail)),
        };
        match reading {
            Reading::Held(said) => report.pass(STEP, said),
            Reading::Unknown(found) => report.fault(STEP, found),
            Reading::NotBelieved(said) => {
                let why = self.own_page(own).await;
                let found = Found::blocks(
                    "signature_refused",
                    format!("the relay does not believe our signature ({said}): {why}"),
                );
                report.fault(STEP, found);
            }
        }
    }

    /// What a relay finds that looks for our key.
    async fn own_page(&self, own: &Own) -> String {
        let base = format!("https://{}", own.domain);
        let url = format!("{base}{WELL_KNOWN_PATH}");
        let ours = own.key.public();
        match shown_key(&self.client, &base, &own.domain, self.clock.now_ms()).await {
            Ok(key) if key == ours => format!(
                "{url} shows the right key from here; the relay cannot get there, or has pinned \
                 another one than {}",
                ours.fingerprint()
            ),
            Ok(key) => format!(
                "{url} shows key {}, but we sign with {}",
                key.fingerprint(),
                ours.fingerprint()
            ),
            Err(why) => format!("relays look for our key where we do not find it either: {why}"),
        }
    }
}

/// The request: true in everything a relay checks before the envelope, and in nothing after.
fn request(own: &Own, to: &str, endpoint: &str, form: Form, now_ms: i64) -> Option<Request> {
    let random = |length: usize| {
        let mut bytes = vec![0u8; length];
        getrandom::fill(&mut bytes).ok()?;
        Some(b64::encode(bytes))
    };
    let timestamp = time::format_ms(now_ms);
    let envelope = json!({
        "uam_version": VERSION,
        "message_id": format!("probe-{}", random(16)?),
        "from": format!("drawbridge-probe::{}", own.domain),
        "to": format!("drawbridge-probe::{to}"),
        "timestamp": timestamp,
        "type": "probe",
        "nonce": random(24)?,
    });
    let envelope = Envelope::parse(Bytes::from(envelope.to_string())).ok()?;
    let nonce = match form {
        Form::Nonce => Some(random(16)?),
        Form::Legacy => None,
    };
    let signed = sign_relay_request(
        &envelope,
        &Attempt {
            via: &[own.domain.to_string()],
            hop_count: 1,
            timestamp: &timestamp,
            from_relay: own.domain.as_str(),
            nonce: nonce.as_deref(),
        },
        &own.key,
    );
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    for (name, value) in [
        ("x-uam-relay-signature", signed.signature.as_str()),
        ("x-uam-relay-domain", own.domain.as_str()),
    ] {
        headers.insert(name, HeaderValue::from_str(value).ok()?);
    }
    Some(Request {
        method: Method::POST,
        url: endpoint.to_owned(),
        headers,
        body: signed.body,
    })
}

/// Reads the answer by the receiver's order of checks.
fn read(answer: &Answer) -> Reading {
    let body = plain::json(&answer.body).unwrap_or_default();
    let text = |member: &str| body.get(member).and_then(Value::as_str);
    let error = text("error").unwrap_or_default();
    let detail: String = text("detail")
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    let said = format!("{} {error} {detail:?}", answer.status);
    let blocks =
        |code, what: &str| Reading::Unknown(Found::blocks(code, format!("{what}: {said}")));
    let hurts = |code, what: &str| Reading::Unknown(Found::hurts(code, format!("{what}: {said}")));
    match answer.status {
        400 if error == "incompatible_version" => Reading::Held(
            "the relay believes our signature: it refused the made-up version only, at no cost; \
             nothing was delivered"
                .into(),
        ),
        400 if detail.starts_with("Invalid envelope") => Reading::Held(format!(
            "the relay believes our signature: it refused the empty envelope only, which cost us 5 \
             points of reputation; nothing was delivered ({detail})"
        )),
        400 if detail.starts_with("Federation request too old") => blocks(
            "clock_skew",
            "the relay finds our time too far from its own",
        ),
        400 if detail.starts_with("Destination domain mismatch") => {
            blocks("other_domain", "the relay serves another domain")
        }
        400 if detail.starts_with("Loop detected") => {
            blocks("loop", "the relay takes our domain for its own")
        }
        400 => blocks("refused_400", "the relay refuses the request"),
        401 => Reading::NotBelieved(said),
        403 => blocks("blocked_there", "the relay does not take requests from us"),
        404 | 405 => blocks("no_such_route", "there is no federation endpoint"),
        409 => hurts("conflict", "the relay says that our fresh nonce was used"),
        422 => blocks("validation_error", "the relay does not read this wire form"),
        429 => hurts("rate_limited", "the relay asks us to slow down"),
        501 => blocks("federation_disabled", "federation is switched off there"),
        503 => hurts("unavailable", "the relay takes nothing just now"),
        500 => hurts(
            "server_error",
            "the relay failed; one of 1.0 on SQLite does so after it believed the signature (a wrong \
             one is answered 401)",
        ),
        200 | 201 if text("status").is_some() => hurts(
            "too_lax",
            "the relay took an envelope without payload and signature",
        ),
        200..=299 => blocks("not_uam", "something else than a relay answers there"),
        300..=399 => blocks("redirect", "the endpoint redirects, which is not followed"),
        _ => blocks("not_uam", "the answer is none of the protocol"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            elapsed: Duration::ZERO,
        }
    }

    #[test]
    fn the_way_of_the_refusal_says_whether_the_signature_held() {
        let version = r#"{"error":"incompatible_version","detail":"unsupported"}"#;
        assert!(matches!(read(&answer(400, version)), Reading::Held(_)));
        let fields = r#"{"error":"bad_request","detail":"Invalid envelope: Missing"}"#;
        assert!(matches!(read(&answer(400, fields)), Reading::Held(_)));
        let signature = r#"{"error":"unauthorized","detail":"Invalid relay signature"}"#;
        assert!(matches!(
            read(&answer(401, signature)),
            Reading::NotBelieved(_)
        ));
        let code = |status, body: &str| match read(&answer(status, body)) {
            Reading::Unknown(found) => found.refusal.code,
            other => panic!("{other:?}"),
        };
        let old = r#"{"error":"bad_request","detail":"Federation request too old (9s > 5s)"}"#;
        assert_eq!(code(400, old), "clock_skew");
        assert_eq!(code(200, "<html>"), "not_uam");
        assert_eq!(code(200, r#"{"status":"delivered"}"#), "too_lax");
    }
}
