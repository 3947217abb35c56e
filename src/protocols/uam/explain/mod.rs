//! Explains a saved request step by step: what the bridge checks, over which bytes, and where it fails.
//!
//! The checks are those of the delivery route, in its order, by the same functions; nothing is looked
//! up. After a failure the rest is looked at all the same, since a person who mends one fault wants to
//! know of the next. The last step says what the bridge would answer.

mod envelope;
mod head;
mod hints;
mod input;
mod request;

use sha2::{Digest, Sha256};

use super::json::JsonError;
use super::verify::Rejection;
use crate::clock::UnixMs;
use crate::config::WireForms;
use crate::identity::{KeyError, PublicKey, b64, hex};
use crate::protocol::Step;
use crate::protocols::examine::Findings;
use input::Input;

/// What the checks need to know. What is `None` is not known, and its check is passed over.
#[derive(Clone, Debug)]
pub struct Context {
    /// When the request is taken to have arrived; `None`: at the time it names, so that an old file
    /// is not refused for its age alone.
    pub now_ms: Option<UnixMs>,
    pub own_domain: Option<String>,
    /// Host of our public URL, where it is another than the domain.
    pub public_host: Option<String>,
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
            public_host: None,
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
    let mut report = Findings::default();
    match input::read(input) {
        Input::Empty => report.fail("input", "the file is empty"),
        Input::Cut => report.fail(
            "input",
            "the file begins like an HTTP request but has no empty line after the headers, so there \
             is no body",
        ),
        Input::Request { head, body } => {
            report.info("input", "an HTTP request with its headers");
            let body = head::check(&mut report, context, &head, body);
            request::relay_request(&mut report, context, Some(&head), &body);
        }
        Input::Body(body) => {
            report.info(
                "input",
                "the body of a request, without its headers; give the value of \
                 X-UAM-Relay-Signature with it to have the relay's signature checked",
            );
            request::relay_request(&mut report, context, None, &body);
        }
        Input::Envelope(body) => {
            report.info("input", "a bare envelope, not wrapped by a relay");
            envelope::bare_envelope(&mut report, context, body);
        }
    }
    report.end(HELD)
}

impl Findings {
    /// A failed check with the answer it gives.
    pub(super) fn refuse(&mut self, name: &str, rejection: &Rejection) {
        let answer = format!(
            "{} {} \"{}\"",
            rejection.status, rejection.error, rejection.detail
        );
        self.refused(name, format!("answered {answer}"), answer);
    }

    /// A check that passes or has its answer.
    pub(super) fn check(
        &mut self,
        name: &str,
        result: Result<(), Rejection>,
        passed: impl Into<String>,
    ) {
        match result {
            Ok(()) => self.pass(name, passed),
            Err(rejection) => self.refuse(name, &rejection),
        }
    }
}

/// The sentence when nothing was found.
const HELD: &str = "everything that was checked holds";

/// The canonical text with its length and hash, to compare with the sender's.
fn show_bytes(report: &mut Findings, name: &str, signed: &str) {
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
fn signature_bytes(report: &mut Findings, name: &str, text: &str) -> Option<Vec<u8>> {
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
    let (before, rest) = text.split_at_checked(error.at).unwrap_or((text, &[]));
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.len()
        - before
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |n| n + 1)
        + 1;
    let after = rest.get(..24).unwrap_or(rest);
    format!(
        "{} at line {line}, byte {column}: {:?}",
        error.kind,
        String::from_utf8_lossy(after)
    )
}

#[cfg(test)]
mod tests;
