//! Explains a saved request, or a token alone, step by step: what the bridge checks and where it fails.
//!
//! The checks are those of the routes, by the same functions; nothing is looked up. Whether a token
//! was used before only the running bridge knows. No secret is ever shown. The last step says what the
//! bridge would answer.

mod credentials;
mod handshake;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde_json::Value;

use super::BASE;
use super::allow::AllowList;
use super::send::{HOST_HEADER, TOKEN_HEADER};
use crate::clock::UnixMs;
use crate::identity::hmac::SharedSecret;
use crate::protocol::Step;
use crate::protocols::examine::Findings;
use crate::protocols::examine::saved::{self, Head, Saved, dechunk};
use crate::protocols::plain;

/// What the checks need to know.
#[derive(Clone, Debug)]
pub struct Context {
    /// When the request is taken to have arrived; `None`: at the time in its token, so that an old
    /// file is not refused for its age alone.
    pub now_ms: Option<UnixMs>,
    /// The host it claims to come from, where the file does not say.
    pub host: Option<String>,
    /// What we share with that host; `None`: it is not known here, and the signature is passed over.
    pub secret: Option<SharedSecret>,
    /// Whether that host's peering lets it exchange data; `None`: not known here.
    pub accepted: Option<bool>,
    /// Hosts that may be peers.
    pub allow: AllowList,
    /// Hosts that may be spoken to without TLS.
    pub plain_hosts: Vec<String>,
    /// Whether federation is switched on.
    pub enabled: bool,
}

/// Explains a saved HTTP request (with its headers), the body of one, or a bare token.
pub fn explain(input: &[u8], context: &Context) -> Vec<Step> {
    let mut report = Findings::default();
    match saved::read(input) {
        Saved::Empty => report.fail("input", "the file is empty"),
        Saved::Cut => report.fail(
            "input",
            "the file begins like an HTTP request but has no empty line after the headers",
        ),
        Saved::Request { head, body } => {
            report.info("input", format!("{} {}", head.method, head.target));
            request(&mut report, context, &head, body);
        }
        Saved::Other(text) => match plain::json(&text) {
            Ok(body @ Value::Object(_)) => {
                report.info("input", "the body of a request, without its headers");
                judge(&mut report, context, None, &body);
            }
            _ => {
                report.info("input", "a token alone");
                let token = String::from_utf8_lossy(&text).trim().to_owned();
                let claimed = context.host.as_deref();
                enabled(&mut report, context);
                credentials::check(&mut report, context, Some(&token), claimed);
            }
        },
    }
    report.end(HELD)
}

fn request(report: &mut Findings, context: &Context, head: &Head, body: Bytes) {
    let path = head.target.split('?').next().unwrap_or_default();
    let path = path.trim_end_matches('/').to_ascii_lowercase();
    match path.strip_prefix(BASE) {
        Some(_) => report.pass("route", format!("below {BASE}")),
        None => report.fail(
            "route",
            format!("{path:?} is not below {BASE}: did a proxy rewrite it?"),
        ),
    }
    let chunked = head
        .one("transfer-encoding")
        .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    let body = match chunked.then(|| dechunk(&body)).flatten() {
        Some(whole) => whole,
        None => body,
    };
    let written = matches!(head.method.as_str(), "POST" | "PUT" | "PATCH");
    match head.one("content-type") {
        None if written && !body.trim_ascii().is_empty() => {
            report.deny("content type", 415, "Content-Type header required");
        }
        Some(kind) => report.info("content type", kind),
        None => {}
    }
    let value = if body.trim_ascii().is_empty() {
        Value::Null
    } else {
        match plain::json(&body) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => {
                report.pass("body", format!("JSON, {} bytes", body.len()));
                value
            }
            _ => {
                report.deny("body", 400, "no JSON object or array");
                return;
            }
        }
    };
    if path.strip_prefix(BASE) == Some("/handshake") {
        enabled(report, context);
        handshake::check(report, context, &value);
    } else {
        judge(report, context, Some(head), &value);
    }
}

/// A request whose credentials stand in its head or its body.
fn judge(report: &mut Findings, context: &Context, head: Option<&Head>, body: &Value) {
    enabled(report, context);
    if head.is_none() && body.get("sharedSecret").is_some() {
        return handshake::check(report, context, body);
    }
    let in_head = |name| {
        head.and_then(|head| head.one(name))
            .filter(|v| !v.is_empty())
    };
    let in_body = |name: &str| {
        body.get(name)
            .and_then(Value::as_str)
            .filter(|v| !v.is_empty())
    };
    let token = in_head(TOKEN_HEADER).or_else(|| in_body("token"));
    let host = in_head(HOST_HEADER)
        .or_else(|| in_body("host"))
        .or_else(|| in_body("fromHost"))
        .or(context.host.as_deref());
    let token = token.map(ToOwned::to_owned);
    credentials::check(report, context, token.as_deref(), host);
}

fn enabled(report: &mut Findings, context: &Context) {
    if !context.enabled {
        report.deny("switched on", 403, "Federation is not enabled");
    }
}

/// The host a file claims to come from, for whoever looks its secret up.
pub fn claimed_host(input: &[u8]) -> Option<String> {
    let (head, body) = match saved::read(input) {
        Saved::Request { head, body } => (Some(head), body),
        Saved::Other(text) => (None, text),
        Saved::Empty | Saved::Cut => return None,
    };
    let value = plain::json(&body).unwrap_or_default();
    let in_head = head.as_ref().and_then(|head| head.one(HOST_HEADER));
    let said = in_head
        .or_else(|| value.get("host").and_then(Value::as_str))
        .or_else(|| value.get("fromHost").and_then(Value::as_str));
    match said.filter(|host| !host.is_empty()) {
        Some(host) => Some(super::host::normal(host)),
        None => super::token::claimed_host(std::str::from_utf8(&body).ok()?.trim()),
    }
}

impl Findings {
    /// A failed check with the answer it gives.
    pub(super) fn deny(&mut self, name: &str, status: u16, error: &str) {
        self.deny_for(name, error, status, error);
    }

    /// The same where the answer says less than we do.
    pub(super) fn deny_for(&mut self, name: &str, why: &str, status: u16, error: &str) {
        self.refused(name, why, format!("{status} {error:?}"));
    }
}

/// The sentence when nothing was found.
const HELD: &str = "everything that was checked holds; that it is used a first time only the running \
                    bridge can tell";
