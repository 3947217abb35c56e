//! Explains a saved request step by step: what the bridge checks, over which bytes, and where it fails.
//!
//! The checks are those of the delivery route, in its order, by the same functions; nothing is looked
//! up. After a failure the rest is looked at all the same, since a person who mends one fault wants to
//! know of the next. The last step says what the bridge would answer.

mod hints;
mod input;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::discover::DELIVER_PATH;
use super::envelope::{Envelope, MAX_SIZE};
use super::json::JsonError;
use super::relay_request::{Form, RelayRequest, SchemaError, is_json_content_type};
use super::verify::{self, Rejection};
use super::{address, time};
use crate::clock::UnixMs;
use crate::config::WireForms;
use crate::identity::{KeyError, PublicKey, b64, hex};
use crate::protocol::Step;
use input::{Head, Input};

/// What the checks need to know. What is `None` is not known, and its check is passed over.
#[derive(Clone, Debug)]
pub struct Context {
    /// When the request is taken to have arrived; `None`: at the time it names, so that an old file
    /// is not refused for its age alone.
    pub now_ms: Option<UnixMs>,
    pub own_domain: Option<String>,
    pub max_age_s: i64,
    pub max_hops: i64,
    pub forms: WireForms,
    /// Key of the relay that sent it.
    pub relay_key: Option<PublicKey>,
    /// Key of the agent that wrote the envelope.
    pub agent_key: Option<PublicKey>,
    /// Value of `X-UAM-Relay-Signature`, where only the body was saved.
    pub signature: Option<String>,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            now_ms: None,
            own_domain: None,
            max_age_s: 300,
            max_hops: 3,
            forms: WireForms::Both,
            relay_key: None,
            agent_key: None,
            signature: None,
        }
    }
}

/// Explains a saved HTTP request (with its headers), the body of one, or a bare envelope.
pub fn explain(input: &[u8], context: &Context) -> Vec<Step> {
    let mut report = Report::default();
    match input::read(input) {
        Input::Empty => report.fail("input", "the file is empty"),
        Input::Cut => report.fail(
            "input",
            "the file begins like an HTTP request but has no empty line after the headers, so there \
             is no body",
        ),
        Input::Request { head, body } => {
            report.info("input", "an HTTP request with its headers");
            let body = check_head(&mut report, &head, body);
            relay_request(&mut report, context, Some(&head), &body);
        }
        Input::Body(body) => {
            report.info(
                "input",
                "the body of a request, without its headers; give the value of \
                 X-UAM-Relay-Signature with it to have the relay's signature checked",
            );
            relay_request(&mut report, context, None, &body);
        }
        Input::Envelope(body) => {
            report.info("input", "a bare envelope, not wrapped by a relay");
            bare_envelope(&mut report, context, body);
        }
    }
    report.end()
}

/// The steps so far, and the first answer that refuses.
#[derive(Default)]
struct Report {
    steps: Vec<Step>,
    refused: Option<String>,
    failed: bool,
    open: Vec<&'static str>,
}

impl Report {
    fn push(&mut self, name: &str, ok: Option<bool>, detail: impl Into<String>) {
        self.failed |= ok == Some(false);
        self.steps.push(Step {
            name: name.to_owned(),
            ok,
            detail: detail.into(),
        });
    }

    fn info(&mut self, name: &str, detail: impl Into<String>) {
        self.push(name, None, detail);
    }

    fn pass(&mut self, name: &str, detail: impl Into<String>) {
        self.push(name, Some(true), detail);
    }

    fn fail(&mut self, name: &str, detail: impl Into<String>) {
        self.push(name, Some(false), detail);
    }

    /// What could not be checked for want of something.
    fn unknown(&mut self, name: &str, what: &'static str, detail: impl Into<String>) {
        self.open.push(what);
        self.info(name, detail);
    }

    /// A failed check with the answer it gives.
    fn refuse(&mut self, name: &str, rejection: &Rejection) {
        let answer = format!(
            "{} {} \"{}\"",
            rejection.status, rejection.error, rejection.detail
        );
        self.fail(name, format!("answered {answer}"));
        self.refused.get_or_insert(answer);
    }

    /// A check that passes or has its answer.
    fn check(&mut self, name: &str, result: Result<(), Rejection>, passed: impl Into<String>) {
        match result {
            Ok(()) => self.pass(name, passed),
            Err(rejection) => self.refuse(name, &rejection),
        }
    }

    fn end(mut self) -> Vec<Step> {
        let (ok, text) = match (self.refused.take(), self.failed, self.open.is_empty()) {
            (Some(answer), _, _) => (Some(false), format!("the bridge answers {answer}")),
            (None, true, _) => (Some(false), "it cannot be read as a request".to_owned()),
            (None, false, true) => (Some(true), "everything that was checked holds".to_owned()),
            (None, false, false) => (
                None,
                format!(
                    "nothing is wrong so far; not checked: {}",
                    self.open.join(", ")
                ),
            ),
        };
        self.push("verdict", ok, text);
        self.steps
    }
}

/// Request line and headers; answers the body as a server reads it.
fn check_head(report: &mut Report, head: &Head, body: Bytes) -> Bytes {
    let path = head.target.split('?').next().unwrap_or_default();
    let path = match path.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => path,
    };
    if head.method == "POST" && path == DELIVER_PATH {
        report.pass("route", format!("POST {DELIVER_PATH}"));
    } else {
        report.fail(
            "route",
            format!(
                "{} {} is not POST {DELIVER_PATH}; if a proxy in front changes the path, it must hand \
                 this one on",
                head.method, head.target
            ),
        );
    }
    if let Some(host) = head.one("host") {
        report.info(
            "host",
            format!(
                "{host} (not signed: a proxy may rewrite it; the body's envelope.to says who is meant)"
            ),
        );
    }
    match head.one("content-type") {
        Some(kind) if is_json_content_type(kind) => report.pass("content type", kind),
        other => {
            report.info("content type", format!("{:?}", other.unwrap_or("missing")));
            report.refuse("content type", &Rejection::content_type());
        }
    }
    if let Some(encoding) = head.one("content-encoding") {
        report.fail(
            "content encoding",
            format!("{encoding}: bodies are read as they are, never unpacked"),
        );
    }
    let body = match head.one("transfer-encoding") {
        Some(coding) if coding.eq_ignore_ascii_case("chunked") => {
            if let Some(whole) = input::dechunk(&body) {
                report.info("body", format!("sent in chunks; {} bytes", whole.len()));
                whole
            } else {
                report.info("body", "said to be chunked, but saved without its chunks");
                body
            }
        }
        _ => body,
    };
    match head.one("content-length").map(str::parse::<usize>) {
        None => body,
        Some(Ok(length)) if length == body.len() => {
            report.pass("content length", format!("{length} bytes"));
            body
        }
        Some(Ok(length)) if length < body.len() => {
            let rest = &body[length..];
            if rest.trim_ascii().is_empty() {
                report.pass(
                    "content length",
                    format!("{length} bytes, and a line end added by whatever saved the file"),
                );
            } else {
                report.fail(
                    "content length",
                    format!(
                        "{length} bytes are announced, the file holds {}",
                        body.len()
                    ),
                );
            }
            body.slice(..length)
        }
        Some(Ok(length)) => {
            report.fail(
                "content length",
                format!(
                    "{length} bytes are announced, the file holds {}: it was cut, or saved as text \
                     with its characters converted",
                    body.len()
                ),
            );
            body
        }
        Some(Err(_)) => {
            report.fail("content length", "is no number");
            body
        }
    }
}

/// Everything from the body on.
fn relay_request(report: &mut Report, context: &Context, head: Option<&Head>, body: &Bytes) {
    let request = match RelayRequest::parse(body, context.forms) {
        Ok(request) => request,
        Err(error) => {
            if let SchemaError::Json(at) | SchemaError::Unreadable(at) = &error {
                report.info("body", place(body, at));
            }
            report.refuse("body", &Rejection::schema(&error));
            return;
        }
    };
    let form = request.form();
    report.pass(
        "body",
        match form {
            Form::Nonce => "the form with nonce (relays of 1.0): six fields are signed",
            Form::Legacy => {
                "the form without nonce (relays of 0.2 and 0.3): five fields are signed"
            }
        },
    );
    if let Some(said) = head.and_then(|head| head.one("x-uam-relay-domain"))
        && said != request.from_relay
    {
        report.info(
            "relay",
            format!(
                "X-UAM-Relay-Domain says {said:?}, the body {:?}; the body counts",
                request.from_relay
            ),
        );
    } else {
        report.info("relay", format!("from_relay {:?}", request.from_relay));
    }
    claims(report, context, &request);
    relay_signature(report, context, head, body, &request);
    envelope(report, context, &request.envelope, form);
}

/// Checks 6 to 11, one by one.
fn claims(report: &mut Report, context: &Context, request: &RelayRequest) {
    let said = time::parse_ms(&request.timestamp);
    let (now, as_of) = match (context.now_ms, &said) {
        (Some(now), _) => (now, "the time given"),
        (None, Ok(at)) => (*at, "its own time; give a time to have its age checked"),
        (None, Err(_)) => (0, "no time"),
    };
    report.check(
        "timestamp",
        verify::check_age(&request.timestamp, now, context.max_age_s),
        format!("{} (checked against {as_of})", request.timestamp),
    );
    report.check(
        "hops",
        verify::check_hops(request.hop_count, context.max_hops),
        format!("{} of fewer than {}", request.hop_count, context.max_hops),
    );
    let Some(own) = &context.own_domain else {
        report.unknown(
            "loop and destination",
            "loop and destination (no own domain given)",
            format!(
                "via {:?}, to {:?}; without the own domain neither can be judged",
                request.via,
                request.envelope.to()
            ),
        );
        return;
    };
    report.check(
        "loop",
        verify::check_loop(&request.via, own),
        format!("{own} is not in via {:?}", request.via),
    );
    report.check(
        "destination",
        verify::check_destination(&request.envelope, own),
        format!("{:?} is ours", request.envelope.to().unwrap_or_default()),
    );
}

/// Checks 12 and 13.
fn relay_signature(
    report: &mut Report,
    context: &Context,
    head: Option<&Head>,
    body: &Bytes,
    request: &RelayRequest,
) {
    let signed = request.signing_bytes();
    show_bytes(report, "bytes the relay signs", &signed);
    let signature = match (head, &context.signature) {
        (_, Some(given)) => given.clone(),
        (None, None) => {
            report.unknown(
                "relay signature",
                "the relay's signature (no header value given)",
                "no headers were saved, so there is none to check",
            );
            return;
        }
        (Some(head), None) => {
            let values = head.all("x-uam-relay-signature");
            match verify::check_signature_header(values.map(str::as_bytes)) {
                Ok(value) => value.to_owned(),
                Err(rejection) => {
                    report.refuse("relay signature", &rejection);
                    return;
                }
            }
        }
    };
    let Some(raw) = signature_bytes(report, "relay signature", &signature) else {
        report.refuse("relay signature", &Rejection::relay_signature());
        return;
    };
    let Some(key) = &context.relay_key else {
        report.unknown(
            "relay signature",
            "the relay's signature (no key given)",
            format!(
                "no key to check it with; it is public_key in \
                 https://{}/.well-known/uam-relay.json",
                request.from_relay
            ),
        );
        return;
    };
    let by = format!(
        "key {} (fingerprint {})",
        key.to_base64(),
        key.fingerprint()
    );
    if key.verify(signed.as_bytes(), &raw).is_ok() {
        report.pass("relay signature", format!("holds under {by}"));
    } else {
        report.refuse("relay signature", &Rejection::relay_signature());
        report.info("relay signature", format!("tried {by}"));
        let other = context.agent_key.as_ref();
        report.info("hint", hints::relay(request, body, key, other, &raw));
    }
}

/// Checks 15 to 17.
fn envelope(report: &mut Report, context: &Context, envelope: &Envelope, form: Form) {
    report.info(
        "envelope",
        format!(
            "{} from {:?} to {:?}, message_id {:?}",
            envelope.kind().unwrap_or("(no type)"),
            envelope.from().unwrap_or_default(),
            envelope.to().unwrap_or_default(),
            envelope.message_id().unwrap_or_default(),
        ),
    );
    let size = envelope.size();
    if size > MAX_SIZE {
        report.info(
            "size",
            format!(
                "{size} bytes as compact ASCII JSON: relays of 1.0 take {MAX_SIZE} at most, older \
                 ones do not look"
            ),
        );
    } else {
        report.pass("size", format!("{size} of {MAX_SIZE} bytes"));
    }
    report.check(
        "envelope fields",
        verify::check_envelope(envelope, form),
        "every required field is there and has its type",
    );
    let signed = envelope.signing_bytes();
    show_bytes(report, "bytes the agent signs", &signed);
    let Some(raw) = envelope
        .signature()
        .and_then(|text| signature_bytes(report, "agent signature", text))
    else {
        report.fail("agent signature", "there is none that can be read");
        return;
    };
    agent_signature(report, context, envelope, &signed, &raw);
}

fn agent_signature(
    report: &mut Report,
    context: &Context,
    envelope: &Envelope,
    signed: &str,
    raw: &[u8],
) {
    let own_word = envelope
        .sender_key()
        .and_then(|text| PublicKey::from_base64(text).ok());
    if let Some(key) = &context.agent_key {
        report.check(
            "sender_key",
            verify::check_sender_key(envelope, key),
            match envelope.sender_key() {
                Some(_) => "the envelope names the same key",
                None => "the envelope names none",
            },
        );
        let by = format!(
            "key {} (fingerprint {})",
            key.to_base64(),
            key.fingerprint()
        );
        match verify::check_agent_signature(envelope, key) {
            Ok(_) => report.pass("agent signature", format!("holds under {by}")),
            Err(rejection) => {
                report.refuse("agent signature", &rejection);
                report.info("agent signature", format!("tried {by}"));
                report.info("hint", hints::agent(envelope, key, own_word.as_ref(), raw));
            }
        }
        return;
    }
    let home = envelope
        .from()
        .and_then(address::split_recipient)
        .map_or_else(String::new, |(_, domain)| {
            format!(
                "; it is public_key in https://{domain}/api/v1/agents/{}/public-key",
                envelope.from().unwrap_or_default()
            )
        });
    match own_word {
        Some(key) if key.verify(signed.as_bytes(), raw).is_ok() => report.unknown(
            "agent signature",
            "whether sender_key is the agent's (no key given)",
            format!(
                "holds under the envelope's own sender_key, which proves nothing: the bridge takes \
                 the home relay's{home}"
            ),
        ),
        Some(key) => {
            report.fail(
                "agent signature",
                "does not even hold under the envelope's own sender_key",
            );
            report.info("hint", hints::agent(envelope, &key, None, raw));
        }
        None => report.unknown(
            "agent signature",
            "the agent's signature (no key given)",
            format!("no key to check it with{home}"),
        ),
    }
}

fn bare_envelope(report: &mut Report, context: &Context, text: Bytes) {
    match Envelope::parse(text.clone()) {
        Ok(read) => envelope(report, context, &read, Form::Nonce),
        Err(error) => report.fail("envelope", place(&text, &error)),
    }
}

/// The canonical text with its length and hash, to compare with the sender's.
fn show_bytes(report: &mut Report, name: &str, signed: &str) {
    report.info(
        name,
        format!(
            "{} bytes, sha256 {}\n{signed}",
            signed.len(),
            hex(&Sha256::digest(signed.as_bytes()))
        ),
    );
}

/// The signature's bytes; a failure is reported.
fn signature_bytes(report: &mut Report, name: &str, text: &str) -> Option<Vec<u8>> {
    match b64::decode(text) {
        Ok(raw) if raw.len() == 64 => Some(raw),
        Ok(raw) => {
            report.fail(
                name,
                format!("{}: it has {}", KeyError::BadLength, raw.len()),
            );
            None
        }
        Err(error) => {
            report.fail(name, format!("{error}"));
            None
        }
    }
}

/// Where a text stops being readable, with what stands there.
fn place(text: &[u8], error: &JsonError) -> String {
    let before = &text[..error.at.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.len()
        - before
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |n| n + 1)
        + 1;
    let after = &text[before.len()..text.len().min(before.len() + 24)];
    format!(
        "{} at line {line}, byte {column}: {:?}",
        error.kind,
        String::from_utf8_lossy(after)
    )
}

#[cfg(test)]
mod tests;
