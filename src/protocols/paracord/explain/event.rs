//! An envelope: limits, signature, origin, sender.

use super::super::answer::Fail;
use super::super::envelope::Envelope;
use super::super::event::{MAX_NAME, names};
use super::super::{content, ids::User};
use super::proof::{keys, server};
use super::{Context, Findings, Known, hints, shown};
use crate::identity::PublicKey;

/// Checks an envelope as the door does.
pub(super) fn check(report: &mut Findings, context: &Context, envelope: &Envelope) {
    limits(report, envelope);
    report.info(
        "event",
        format!(
            "{} {} in {}",
            envelope.event_type, envelope.event_id, envelope.room_id
        ),
    );
    let Some(offered) = envelope.signature() else {
        let why = format!(
            "nothing in signatures is by {:?}, nor in the flat form",
            envelope.origin_server
        );
        report.denied("event signature", &why, &Fail::unauthorized());
        return;
    };
    let origin = envelope.origin_server.as_str();
    if context.own.as_ref().is_some_and(|own| own.is(origin)) {
        let text = format!("{origin} is ourselves: it is taken for known if we made it, else 403");
        report.unknown("event origin", "whether we made it", text);
        return;
    }
    let known = server(report, context, "event origin", origin);
    report.info("bytes of the event signed", shown(&envelope.canonical()));
    match &offered.bytes {
        None => report.denied(
            "event signature",
            "it is not 128 hex digits",
            &Fail::forbidden(),
        ),
        Some(bytes) => signature(report, context, envelope, &offered.key_id, bytes, known),
    }
    sender(report, envelope, known);
}

fn limits(report: &mut Findings, envelope: &Envelope) {
    match content::within_limits(&envelope.content) {
        Ok(()) => report.pass("content", "within size, width and depth"),
        Err(why) => report.denied("content", &why, &Fail::bad_request(&why)),
    }
    for (name, text) in names(envelope) {
        if text.len() > MAX_NAME {
            let why = format!("{name} exceeds {MAX_NAME} bytes");
            report.denied(name, &why, &Fail::bad_request(&why));
        }
    }
}

fn signature(
    report: &mut Findings,
    context: &Context,
    envelope: &Envelope,
    key_id: &str,
    signature: &[u8; 64],
    known: Option<&Known>,
) {
    const STEP: &str = "event signature";
    let now = context.now_ms.unwrap_or(envelope.origin_ts);
    let given = context.event_key.as_ref();
    // A server that brings its own event has one key for both.
    let given = given.or(context.key.as_ref().filter(|_| known.is_none()));
    let Some(keys) = keys(report, STEP, given, known, key_id, now) else {
        return;
    };
    for key in &keys {
        if let Ok(proven) = envelope.check(key, signature) {
            let by = format!("holds under the key with fingerprint {}", key.fingerprint());
            let text = match proven.attachments_covered {
                true => by,
                false => format!(
                    "{by}, but only without content.attachments: they were added after signing, and \
                     are marked unauthenticated"
                ),
            };
            report.pass(STEP, text);
            return;
        }
    }
    let why = format!("{key_id:?} of the origin did not sign it as it came");
    report.denied(STEP, &why, &Fail::forbidden());
    let all = known.iter().flat_map(|known| &known.peer.keys);
    let all: Vec<PublicKey> = keys
        .into_iter()
        .chain(all.map(|key| key.public.clone()))
        .collect();
    report.info("hint", hints::event(envelope, signature, &all));
}

fn sender(report: &mut Findings, envelope: &Envelope, known: Option<&Known>) {
    let sender = &envelope.sender;
    let Some(known) = known else {
        let text = format!("{sender:?}; what its server's domain is is not known here");
        report.unknown("sender", "whose user it is", text);
        return;
    };
    let peer = &known.peer;
    let own = User::parse(sender).is_some_and(|user| peer.speaks_for(user.server));
    match own {
        true => report.pass("sender", sender),
        false => {
            let why = format!(
                "{sender:?} is no user of {} (domain {})",
                peer.name, peer.domain
            );
            report.denied("sender", &why, &Fail::forbidden());
        }
    }
}
