//! The agent's part: the envelope and its signature.

use bytes::Bytes;

use super::super::envelope::{Envelope, MAX_SIZE};
use super::super::relay_request::Form;
use super::super::{address, verify};
use super::{Context, Findings, hints, place, show_bytes, signature_bytes};
use crate::identity::PublicKey;

/// Checks 15 to 17.
pub(super) fn envelope(report: &mut Findings, context: &Context, envelope: &Envelope, form: Form) {
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
    report: &mut Findings,
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

pub(super) fn bare_envelope(report: &mut Findings, context: &Context, text: Bytes) {
    match Envelope::parse(text.clone()) {
        Ok(read) => envelope(report, context, &read, Form::Nonce),
        Err(error) => report.fail("envelope", place(&text, &error)),
    }
}
