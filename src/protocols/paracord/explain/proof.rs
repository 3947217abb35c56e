//! Who sent a request: headers, clock, server, key, signature.

use super::super::answer::Fail;
use super::super::record::Peer;
use super::super::transport::{
    Claim, KEY_ID, MAX_SKEW_MS, ORIGIN, SIGNATURE, TIMESTAMP, string_to_sign,
};
use super::{Context, Findings, Known, headers, hints, shown};
use crate::clock::UnixMs;
use crate::identity::PublicKey;
use crate::protocols::examine::saved::Head;
use crate::trust::Standing;

/// A request, read.
pub(super) struct Request<'a> {
    pub head: &'a Head,
    /// The path that is signed.
    pub path: &'a str,
    pub received: &'a [u8],
    /// The body's normal form, where it has one.
    pub normal: Option<Vec<u8>>,
    /// The server the body names, where that must be the one that signs.
    pub origin: Option<&'a str>,
}

/// Checks who sent it as the routes do; the server, where it is known.
pub(super) fn check<'c>(
    report: &mut Findings,
    context: &'c Context,
    request: &Request<'_>,
) -> Option<&'c Known> {
    let names = [ORIGIN, KEY_ID, TIMESTAMP, SIGNATURE];
    let claim = match Claim::read(&headers(request.head, &names)) {
        Ok(claim) => claim,
        Err(name) => {
            let why = format!("{name} is missing, empty or no number");
            report.denied("headers", &why, &Fail::unauthorized());
            return None;
        }
    };
    report.pass(
        "headers",
        format!("signed by {:?} with key {:?}", claim.origin, claim.key_id),
    );
    if let Some(origin) = request.origin
        && origin != claim.origin
    {
        let why = format!("the body names {origin:?}, the headers {:?}", claim.origin);
        report.denied("origin_server", &why, &Fail::forbidden());
    }
    time(report, context, &claim);
    let known = server(report, context, "server", &claim.origin);
    signature(report, context, request, &claim, known);
    known
}

fn time(report: &mut Findings, context: &Context, claim: &Claim) {
    let Some(now) = context.now_ms else {
        let text = format!("{} ms; its age is not judged (--at)", claim.timestamp_ms);
        report.info("time", text);
        return;
    };
    let apart = now.abs_diff(claim.timestamp_ms);
    let text = format!("{apart} ms from the time it is looked at; {MAX_SKEW_MS} are allowed");
    if claim.in_time(now) {
        report.pass("time", text);
        return;
    }
    let hint = match apart_in_ms(claim.timestamp_ms, now) {
        true => " (it looks like seconds; milliseconds are meant)",
        false => "",
    };
    report.denied("time", &format!("{text}{hint}"), &Fail::unauthorized());
}

/// Whether a time is one in seconds, near the other in milliseconds.
fn apart_in_ms(at: UnixMs, now: UnixMs) -> bool {
    at.saturating_mul(1000).abs_diff(now) <= 24 * 3_600_000
}

/// What is known of a server: that it is trusted, and that no rule keeps it out.
pub(super) fn server<'c>(
    report: &mut Findings,
    context: &'c Context,
    step: &str,
    name: &str,
) -> Option<&'c Known> {
    let forbidden = Fail::forbidden();
    let Some(servers) = &context.servers else {
        let text = format!("{name:?}; there is no ledger to look it up in");
        report.unknown(step, "whether the server is trusted", text);
        return None;
    };
    let Some(known) = context.server(name) else {
        let alike = servers.iter().find(|known| known.peer.speaks_for(name));
        let why = match alike {
            Some(known) => format!(
                "{name:?} is not the name we know it by, {:?}; names are compared byte for byte",
                known.peer.name
            ),
            None => format!("{name:?} is no server we know"),
        };
        report.denied(step, &why, &forbidden);
        return None;
    };
    let peer = &known.peer;
    let status = peer.status.name();
    if !peer.is_trusted() {
        report.denied(step, &format!("{name} is {status}"), &forbidden);
    } else if known.standing == Standing::Blocked {
        report.denied(step, &format!("{name} is blocked by a rule"), &forbidden);
    } else if known.standing == Standing::Quarantined {
        let text = format!(
            "{name} is under quarantine: its events are held back, anything else is answered 403"
        );
        report.info(step, text);
    } else {
        report.pass(
            step,
            format!("{name} is trusted, its domain is {}", peer.domain),
        );
    }
    Some(known)
}

/// The keys to try: the one given, else those the server has under the id; `None`: nothing is known.
pub(super) fn keys(
    report: &mut Findings,
    step: &str,
    given: Option<&PublicKey>,
    known: Option<&Known>,
    key_id: &str,
    now: UnixMs,
) -> Option<Vec<PublicKey>> {
    if let Some(key) = given {
        return Some(vec![key.clone()]);
    }
    let Some(known) = known else {
        let text = "no key is known to check it with (--key, --event-key)";
        report.unknown(step, "the signature", text);
        return None;
    };
    let usable = known.peer.usable_keys(key_id, now);
    if usable.is_empty() {
        let why = format!("{} {}", known.peer.name, why_none(&known.peer, key_id));
        report.denied(step, &why, &Fail::forbidden());
        return None;
    }
    Some(usable)
}

fn why_none(peer: &Peer, key_id: &str) -> String {
    let ids: Vec<&str> = peer.keys.iter().map(|key| key.key_id.as_str()).collect();
    match ids.contains(&key_id) {
        true => format!("lists the key {key_id:?} no longer, and it has expired"),
        false => format!("has no key {key_id:?}; it has {ids:?}. The bridge fetches them again"),
    }
}

fn signature(
    report: &mut Findings,
    context: &Context,
    request: &Request<'_>,
    claim: &Claim,
    known: Option<&Known>,
) {
    let forbidden = Fail::forbidden();
    let method = request.head.method.as_str();
    let text = |body: &[u8]| string_to_sign(method, request.path, claim.timestamp_ms, body);
    report.info("text signed", shown(text(request.received).as_bytes()));
    let normal = request.normal.as_deref();
    if let Some(normal) = normal.filter(|normal| *normal != request.received) {
        report.info(
            "text signed over the normal form",
            shown(text(normal).as_bytes()),
        );
    }
    if claim.signature.is_none() {
        let why = "X-Paracord-Signature is not 128 hex digits";
        report.denied("signature", why, &forbidden);
        return;
    }
    let now = context.now_ms.unwrap_or(claim.timestamp_ms);
    let given = context.key.as_ref();
    let Some(keys) = keys(report, "signature", given, known, &claim.key_id, now) else {
        return;
    };
    let holds = |key: &PublicKey, body| claim.proves(key, method, request.path, body, None);
    for key in &keys {
        let by = format!("holds under the key with fingerprint {}", key.fingerprint());
        if holds(key, request.received).is_some() {
            report.pass("signature", format!("{by}, over the bytes received"));
            return;
        }
        if normal.is_some_and(|normal| holds(key, normal).is_some()) {
            report.pass("signature", format!("{by}, over the normal form"));
            return;
        }
    }
    let why = format!("it holds under none of {} keys", keys.len());
    report.denied("signature", &why, &forbidden);
    let all = known.iter().flat_map(|known| &known.peer.keys);
    let all: Vec<PublicKey> = keys
        .into_iter()
        .chain(all.map(|key| key.public.clone()))
        .collect();
    report.info("hint", hints::request(request, claim, &all));
}
