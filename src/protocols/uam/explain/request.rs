//! The relay's part of a delivery: the body, its claims, its signature.

use bytes::Bytes;

use super::super::relay_request::{Form, RelayRequest, SchemaError};
use super::super::time;
use super::super::verify::{self, Rejection};
use super::input::Head;
use super::{Context, Findings, envelope, hints, place, show_bytes, signature_bytes};

/// Everything from the body on.
pub(super) fn relay_request(
    report: &mut Findings,
    context: &Context,
    head: Option<&Head>,
    body: &Bytes,
) {
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
    envelope::envelope(report, context, &request.envelope, form);
}

/// Checks 6 to 11, one by one.
fn claims(report: &mut Findings, context: &Context, request: &RelayRequest) {
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
    report: &mut Findings,
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
