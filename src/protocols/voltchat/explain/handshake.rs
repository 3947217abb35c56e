//! A handshake: what it says, and what it would be answered.

use serde_json::Value;

use super::super::{handshake, host, text};
use super::{Context, Findings};
use crate::identity::hmac::SharedSecret;

const MAX_NAME: usize = 140;
const MAX_HOST: usize = 255;
const MAX_URL: usize = 2048;

/// Checks a handshake in the order of its route.
pub(super) fn check(report: &mut Findings, context: &Context, body: &Value) {
    let member = |name: &str, limit: usize| text::field(body.get(name), limit);
    let given = [
        ("name", MAX_NAME),
        ("host", MAX_HOST),
        ("url", MAX_URL),
        ("sharedSecret", SharedSecret::MAX_UNITS),
    ];
    let missing: Vec<&str> = given
        .iter()
        .filter(|(name, limit)| member(name, *limit).is_none())
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        report.deny_for(
            "members",
            &format!("missing, blank or no text: {}", missing.join(", ")),
            400,
            "Missing required fields",
        );
        return;
    }
    report.pass("members", "name, host, url and sharedSecret are there");
    let secret = member("sharedSecret", SharedSecret::MAX_UNITS).unwrap_or_default();
    let offered = SharedSecret::new(&secret);
    match &offered {
        Some(_) => report.pass(
            "secret",
            format!("{} characters long, not shown", text::units(&secret)),
        ),
        None => report.deny_for(
            "secret",
            &format!("shorter than {} characters", SharedSecret::MIN_UNITS),
            400,
            "Invalid sharedSecret",
        ),
    }
    let said = member("host", MAX_HOST).unwrap_or_default();
    let Some(claimed) = handshake::named(&said).map(|name| name.to_string()) else {
        report.deny_for(
            "host",
            &format!("{said:?} is no host name that reads back as itself"),
            400,
            "Invalid host",
        );
        return;
    };
    report.pass("host", &claimed);
    if context.allow.admits(&claimed) {
        report.pass("allowed_servers", format!("admits {claimed}"));
    } else {
        report.deny_for(
            "allowed_servers",
            &format!("no entry admits {claimed}"),
            403,
            "Peer host is not allowed by federation policy",
        );
    }
    let url = member("url", MAX_URL).unwrap_or_default();
    let tls = !context.plain_hosts.contains(&claimed);
    match host::normal_url(&url, claimed.as_str(), tls) {
        Some(url) => report.pass("url", url),
        None => report.deny_for(
            "url",
            &format!("{url:?} is not https://{claimed} and nothing else"),
            400,
            "Invalid URL (HTTPS required)",
        ),
    }
    match (&context.secret, &offered) {
        (Some(ours), Some(offered)) if ours.same(offered.as_text()) => {
            report.pass("known peer", "it offers the secret we share already");
        }
        (Some(_), Some(_)) => report.deny_for(
            "known peer",
            "we share another secret with this host: it has forgotten us, or somebody else asks in \
             its name; `drawbridge peers remove` ends the old peering, if its operator confirms that",
            401,
            "Handshake credentials rejected",
        ),
        _ => report.unknown(
            "known peer",
            "whether we share another secret with it",
            "no secret is known for it here; a new peer waits for an operator",
        ),
    }
}
