//! Host and token of a request.

use serde_json::Value;

use super::super::token::{self, MAX_AGE_MS, MAX_AHEAD_MS, Why};
use super::super::{host, text};
use super::{Context, Findings};
use crate::clock::UnixMs;
use crate::identity::b64;
use crate::protocol::PeerName;
use crate::protocols::plain;

/// What every wrong credential is answered with.
const WRONG: &str = "Missing or invalid federation credentials";

/// Checks the credentials as the routes do.
pub(super) fn check(
    report: &mut Findings,
    context: &Context,
    token: Option<&str>,
    claimed: Option<&str>,
) {
    let Some(token) = token else {
        report.deny_for(
            "token",
            "there is none: not as x-federation-token, not as token in the body",
            401,
            WRONG,
        );
        return;
    };
    let claims = shown(report, token);
    let in_token = token::claimed_host(token);
    let claimed = match claimed.map(host::normal).or_else(|| in_token.clone()) {
        Some(claimed) => claimed,
        None => {
            report.deny_for(
                "host",
                "none is claimed: not as x-federation-host, not as host in the body",
                401,
                WRONG,
            );
            return;
        }
    };
    match PeerName::parse(&claimed) {
        Ok(_) => report.pass("host", format!("claims to be {claimed}")),
        Err(error) => report.deny_for("host", &error.to_string(), 401, WRONG),
    }
    let stamp = claims
        .as_ref()
        .and_then(|claims| claims["timestamp"].as_f64());
    let now_ms = context.now_ms.or_else(|| stamp.map(|at| at as UnixMs));
    signature(report, context, token, &claimed, now_ms.unwrap_or_default());
    match in_token {
        Some(host) if host == claimed => report.pass("host in the token", host),
        Some(host) => {
            let why = format!("the token was made by {host}, the request claims {claimed}");
            report.deny_for("host in the token", &why, 401, WRONG);
        }
        None => {}
    }
    time(report, context.now_ms, stamp);
    policy(report, context, &claimed);
}

/// The token's own members; the signature apart.
fn shown(report: &mut Findings, token: &str) -> Option<Value> {
    let text = match b64::decode(token).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => {
            report.info("token", "base64url, but not of UTF-8 text");
            return None;
        }
        Err(_) => {
            let hint = if token.contains(['+', '/']) {
                "; it is written in the other alphabet, with + and /"
            } else if token.contains('%') {
                "; it looks percent-encoded"
            } else {
                ""
            };
            report.info("token", format!("it is not base64url{hint}"));
            return None;
        }
    };
    let Ok(mut claims @ Value::Object(_)) = plain::json(text.as_bytes()) else {
        // Half a surrogate pair in a name is no fault, and nothing we can show.
        report.info("token", "its members cannot be shown");
        return None;
    };
    let signature = claims
        .as_object_mut()
        .and_then(|members| members.remove("signature"));
    let said = if signature.is_some() {
        ""
    } else {
        " (without a signature)"
    };
    report.info("token", format!("says{said} {claims}"));
    Some(claims)
}

/// The check itself, by the function that the routes use.
fn signature(report: &mut Findings, context: &Context, token: &str, claimed: &str, now_ms: UnixMs) {
    let Some(secret) = &context.secret else {
        report.unknown(
            "signature",
            "the signature",
            format!("no secret is known for {claimed} here (--secret-file gives one)"),
        );
        return;
    };
    match token::verify(Some(secret), claimed, token, now_ms) {
        Ok(accepted) => {
            let id = accepted.peer_id.unwrap_or_else(|| "none".into());
            report.pass(
                "signature",
                format!("made with the secret we share; its id for us is {id}"),
            );
        }
        Err(Why::Mismatch) => report.deny_for(
            "signature",
            &format!(
                "{}: it has forgotten the peering or was set up anew, or the file was changed on its \
                 way (a mainline cuts `on...=` out of bodies, so a token there must not be padded)",
                Why::Mismatch
            ),
            401,
            WRONG,
        ),
        // Told by steps of their own.
        Err(Why::OtherHost | Why::Expired | Why::Ahead | Why::NoTimestamp) => {
            report.pass("signature", "made with the secret we share");
        }
        Err(why) => report.deny_for("signature", &why.to_string(), 401, WRONG),
    }
}

fn time(report: &mut Findings, now_ms: Option<UnixMs>, stamp: Option<f64>) {
    let Some(stamp) = stamp else {
        report.deny_for("time", &Why::NoTimestamp.to_string(), 401, WRONG);
        return;
    };
    let at = text::iso(stamp as UnixMs);
    let Some(now_ms) = now_ms else {
        report.info("time", format!("made {at}; its age is not judged (--at)"));
        return;
    };
    let age = now_ms as f64 - stamp;
    let apart = format!("made {at}, {:.1} s before it is looked at", age / 1000.0);
    if age > MAX_AGE_MS as f64 {
        report.deny_for("time", &format!("{apart}: {}", Why::Expired), 401, WRONG);
    } else if age < -(MAX_AHEAD_MS as f64) {
        report.deny_for("time", &format!("{apart}: {}", Why::Ahead), 401, WRONG);
    } else {
        report.pass("time", apart);
    }
}

/// What the configuration and the peering say of the host.
fn policy(report: &mut Findings, context: &Context, claimed: &str) {
    if context.allow.admits(claimed) {
        report.pass("allowed_servers", format!("admits {claimed}"));
    } else {
        let why = if host::is_private(claimed) {
            format!("{claimed} is a private host, which needs its exact entry")
        } else {
            format!("no entry admits {claimed}")
        };
        report.deny_for("allowed_servers", &why, 401, WRONG);
    }
    match context.accepted {
        Some(true) => report.pass("peering", "accepted"),
        Some(false) => report.deny_for(
            "peering",
            "it is not accepted: only accepted peers exchange data (a ping is also taken from one \
             that we asked)",
            401,
            WRONG,
        ),
        None => report.unknown("peering", "the peering", "it is not known here"),
    }
}
