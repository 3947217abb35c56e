//! From a backend's envelope to a signed request.
//!
//! The envelope passes unchanged, as its own text: the agent's signature is in it. What is the relay's
//! (via, hop count, timestamp, nonce, signature) is made anew for each attempt.

use ::http::{HeaderMap, HeaderValue, Method, header};
use bytes::Bytes;

use crate::identity::b64;
use crate::protocol::{OutEvent, PeerName, PeerRecord, Refusal, Request, Sealed, Targets, Try};

use super::envelope::Envelope;
use super::judge::form_of;
use super::relay_request::{Attempt, Form, sign_relay_request};
use super::{Uam, time, verify};

/// Length of a fresh nonce, bytes (22 characters on the wire).
const NONCE: usize = 16;

/// The relay of the envelope's recipient.
pub fn targets(uam: &Uam, event: &OutEvent) -> Result<Targets, Refusal> {
    targets_of(uam, event, &read(event)?)
}

/// [`targets`] and [`seal`] with one reading of the envelope.
pub fn prepare(uam: &Uam, event: &OutEvent) -> Result<(Targets, Sealed), Refusal> {
    let envelope = read(event)?;
    Ok((
        targets_of(uam, event, &envelope)?,
        seal_of(uam, event, &envelope)?,
    ))
}

fn targets_of(uam: &Uam, event: &OutEvent, envelope: &Envelope) -> Result<Targets, Refusal> {
    let domain = recipient_domain(envelope)?;
    if domain == uam.domain {
        return Err(Refusal::new(
            "own_domain",
            format!(
                "the envelope's to is of this relay's own domain {domain}; nothing leaves for it"
            ),
        ));
    }
    match event.peer.as_str() {
        "_to" => {}
        "_all" | "_room" => {
            return Err(Refusal::new(
                "no_such_target",
                "an envelope has one recipient: publish to its domain, or to _to",
            ));
        }
        name if name == domain.as_str() => {}
        name => {
            return Err(Refusal::new(
                "destination_mismatch",
                format!("the subject names {name}, the envelope's to is of {domain}"),
            ));
        }
    }
    Ok(Targets::Peers(vec![domain]))
}

/// Final id, lasting bytes, order key.
pub fn seal(uam: &Uam, event: &OutEvent) -> Result<Sealed, Refusal> {
    seal_of(uam, event, &read(event)?)
}

fn seal_of(uam: &Uam, event: &OutEvent, envelope: &Envelope) -> Result<Sealed, Refusal> {
    let hops = i64::from(event.hops.unwrap_or(0));
    if hops.saturating_add(1) > uam.config.max_hops {
        return Err(Refusal::new(
            "hop_limit",
            format!(
                "Fed-Hops {hops} leaves none of the {} hops",
                uam.config.max_hops
            ),
        ));
    }
    let order_key = match &event.order {
        Some(key) => key.clone(),
        None => format!(
            "{} {}",
            envelope.from().unwrap_or_default(),
            envelope.to().unwrap_or_default()
        ),
    };
    Ok(Sealed {
        event_id: envelope.message_id().unwrap_or_default().to_owned(),
        body: event.payload.clone(),
        order_key,
        expires_ms: event.expires_ms,
        records: Vec::new(),
        room_event: None,
        state: None,
    })
}

/// Signs one attempt in the wire form that the peer speaks.
pub fn dress(
    uam: &Uam,
    sealed: &Sealed,
    peer: &PeerRecord,
    attempt: &Try,
) -> Result<Request, Refusal> {
    let envelope = parse(&sealed.body)?;
    let nonce = match form_of(peer) {
        Form::Legacy => None,
        Form::Nonce => Some(fresh_nonce()?),
    };
    let keys = uam.keys.current();
    let via = [uam.domain().to_owned()];
    let timestamp = time::format_ms(attempt.now_ms);
    let signed = sign_relay_request(
        &envelope,
        &Attempt {
            via: &via,
            hop_count: 1,
            timestamp: &timestamp,
            from_relay: uam.domain(),
            nonce: nonce.as_deref(),
        },
        keys.for_peer(peer, attempt.now_ms),
    );
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert("x-uam-relay-signature", value(&signed.signature)?);
    headers.insert("x-uam-relay-domain", value(uam.domain())?);
    if let Some(span) = &attempt.traceparent {
        headers.insert("traceparent", value(span)?);
    }
    Ok(Request {
        method: Method::POST,
        url: peer.endpoint.clone(),
        headers,
        body: signed.body,
    })
}

/// Shape, size and poison.
fn read(event: &OutEvent) -> Result<Envelope, Refusal> {
    let envelope = parse(&event.payload)?;
    verify::check_outbound(&envelope).map_err(|detail| Refusal::new("bad_envelope", detail))?;
    Ok(envelope)
}

fn parse(text: &Bytes) -> Result<Envelope, Refusal> {
    Envelope::parse(text.clone()).map_err(|error| {
        Refusal::new(
            "bad_envelope",
            format!("the body is no envelope that a relay could read: {error}"),
        )
    })
}

fn recipient_domain(envelope: &Envelope) -> Result<PeerName, Refusal> {
    let domain = envelope.recipient().map_or("", |(_, domain)| domain);
    PeerName::parse(domain).map_err(|error| {
        Refusal::new(
            "bad_envelope",
            format!("the domain of the envelope's to: {error}"),
        )
    })
}

fn fresh_nonce() -> Result<String, Refusal> {
    let mut bytes = [0u8; NONCE];
    getrandom::fill(&mut bytes).map_err(|error| {
        Refusal::new(
            "no_randomness",
            format!("the system gives no random bytes: {error}"),
        )
    })?;
    Ok(b64::encode(bytes))
}

fn value(text: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(text)
        .map_err(|_| Refusal::new("bad_header", "a header value is not printable"))
}
