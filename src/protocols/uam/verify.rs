//! The checks of a delivery, each a pure function with the answer it gives when it fails.
//!
//! The numbers are those of the protocol sheet's table; the first that fails answers. Until check 13
//! the sender is a mere claim, so nothing before it costs the named relay its reputation: anybody
//! could have written that name.

use super::address;
use super::envelope::{Envelope, REQUIRED};
use super::json::Json;
use super::python::{self, repr, repr_list};
pub use super::rejection::{Charge, Rejection, error_code};
use super::relay_request::{Form, RelayRequest};
use super::time;
use crate::clock::UnixMs;
use crate::identity::{KeyError, Proof, PublicKey, b64};

/// What checks 6 to 11 need to know.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    pub own_domain: &'a str,
    pub now_ms: UnixMs,
    /// Largest age in seconds, past and future alike.
    pub max_age_s: i64,
    pub max_hops: i64,
}

/// Checks 6 to 11, in their order: what can be said before the relay is proven.
pub fn check_claims(request: &RelayRequest, limits: &Limits<'_>) -> Result<(), Rejection> {
    check_age(&request.timestamp, limits.now_ms, limits.max_age_s)?;
    check_hops(request.hop_count, limits.max_hops)?;
    check_loop(&request.via, limits.own_domain)?;
    check_destination(&request.envelope, limits.own_domain)
}

/// Checks 6 and 7: the timestamp is RFC 3339 and not over `max_age_s` old or ahead.
pub fn check_age(timestamp: &str, now_ms: UnixMs, max_age_s: i64) -> Result<(), Rejection> {
    let at = time::parse_micros(timestamp).map_err(|e| {
        Rejection::new(
            400,
            Charge::Client,
            format!("Invalid timestamp format: {e}"),
        )
    })?;
    let age = now_ms
        .saturating_mul(1000)
        .saturating_sub(at)
        .saturating_abs();
    if age > max_age_s.saturating_mul(1_000_000) {
        return Err(Rejection::new(
            400,
            Charge::Client,
            format!(
                "Federation request too old ({}s > {max_age_s}s)",
                age / 1_000_000
            ),
        ));
    }
    Ok(())
}

/// Check 8: refused at the maximum.
pub fn check_hops(hop_count: u64, max_hops: i64) -> Result<(), Rejection> {
    if i64::try_from(hop_count).is_ok_and(|hops| hops < max_hops) {
        Ok(())
    } else {
        Err(Rejection::new(
            400,
            Charge::Client,
            format!("Hop count {hop_count} exceeds maximum {max_hops}"),
        ))
    }
}

/// Check 9, by exact text.
pub fn check_loop(via: &[String], own_domain: &str) -> Result<(), Rejection> {
    if via.iter().any(|hop| hop == own_domain) {
        return Err(Rejection::new(
            400,
            Charge::Client,
            format!(
                "Loop detected: {own_domain} already in via chain {}",
                repr_list(via)
            ),
        ));
    }
    Ok(())
}

/// Checks 10 and 11: `to` is exactly `NAME::DOMAIN` and the domain is ours, byte for byte.
pub fn check_destination(envelope: &Envelope, own_domain: &str) -> Result<(), Rejection> {
    match envelope.recipient() {
        None => Err(Rejection::new(
            400,
            Charge::Client,
            "Invalid to_address in envelope",
        )),
        Some((_, domain)) if domain == own_domain => Ok(()),
        Some((_, domain)) => Err(Rejection::new(
            400,
            Charge::Client,
            format!(
                "Destination domain mismatch: envelope to '{domain}' but this relay is '{own_domain}'"
            ),
        )),
    }
}

/// Check 12: the one value of `X-UAM-Relay-Signature`, given all that the request has.
pub fn check_signature_header<'a>(
    mut values: impl Iterator<Item = &'a [u8]>,
) -> Result<&'a str, Rejection> {
    let first = values.next().unwrap_or_default();
    if values.next().is_some() {
        return Err(Rejection::new(
            400,
            Charge::Client,
            "X-UAM-Relay-Signature header given more than once",
        ));
    }
    if first.is_empty() {
        return Err(Rejection::new(
            401,
            Charge::Client,
            "Missing X-UAM-Relay-Signature header",
        ));
    }
    std::str::from_utf8(first).map_err(|_| Rejection::relay_signature())
}

/// Check 13 with one key: the header's value against the request's signing bytes
/// ([`RelayRequest::signing_bytes`], made once however many keys are tried).
pub fn check_relay_signature(
    signing_bytes: &str,
    signature: &str,
    key: &PublicKey,
) -> Result<Proof, Rejection> {
    verify(signing_bytes, signature, key).map_err(|_| Rejection::relay_signature())
}

/// Checks 15 and 16: the version (form with nonce only) and the fields of the envelope.
pub fn check_envelope(envelope: &Envelope, form: Form) -> Result<(), Rejection> {
    if form == Form::Nonce {
        check_version(envelope)?;
    }
    check_fields(envelope)
}

/// Check 15: `MAJOR.MINOR` in ASCII digits, `MAJOR` 0.
pub fn check_version(envelope: &Envelope) -> Result<(), Rejection> {
    let version = match envelope.tree().get("uam_version") {
        None => {
            return Err(invalid_envelope(
                "Missing required field: 'uam_version'".into(),
            ));
        }
        Some(Json::String(version)) => version,
        Some(other) => {
            return Err(invalid_version(format!(
                "version must be str, got {}",
                python::type_name(other)
            )));
        }
    };
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    match version.split_once('.') {
        Some((major, minor)) if number(major) && number(minor) => {
            if major == "0" {
                Ok(())
            } else {
                Err(Rejection {
                    error: "incompatible_version",
                    with_request_id: true,
                    ..Rejection::new(
                        400,
                        Charge::Nobody,
                        format!(
                            "unsupported uam_version {}; supported: ('0',)",
                            repr(version)
                        ),
                    )
                })
            }
        }
        _ => Err(invalid_version(format!(
            "invalid version shape: {}",
            repr(version)
        ))),
    }
}

fn invalid_version(detail: String) -> Rejection {
    Rejection {
        error: "validation_error",
        with_request_id: true,
        ..Rejection::new(400, Charge::Nobody, detail)
    }
}

/// Check 16: every required field is there and not null, and every known field has its type.
pub fn check_fields(envelope: &Envelope) -> Result<(), Rejection> {
    // Absent ones first, as the reference lists them; it does not look at nulls.
    let absent = |field: &&str| !envelope.tree().contains_key(*field);
    let null = |field: &&str| envelope.get(field).is_none();
    let mut missing: Vec<&str> = REQUIRED.into_iter().filter(absent).collect();
    if missing.is_empty() {
        missing = REQUIRED.into_iter().filter(null).collect();
    }
    if !missing.is_empty() {
        return Err(invalid_envelope(format!(
            "Missing required fields: {}",
            repr_list(&missing)
        )));
    }
    let optional = [
        "thread_id",
        "reply_to",
        "expires",
        "media_type",
        "sender_key",
    ];
    for field in REQUIRED.into_iter().chain(optional) {
        match envelope.get(field) {
            None | Some(Json::String(_)) => {}
            Some(other) => return Err(wrong_type(field, "a string", other)),
        }
    }
    match envelope.get("metadata") {
        None | Some(Json::Object(_)) => {}
        Some(other) => return Err(wrong_type("metadata", "an object", other)),
    }
    match envelope.get("attachments") {
        None | Some(Json::Array(_)) => Ok(()),
        Some(other) => Err(wrong_type("attachments", "a list", other)),
    }
}

/// Check 17, before the signature: a `sender_key` in the envelope is the home relay's, by its bytes.
pub fn check_sender_key(envelope: &Envelope, home: &PublicKey) -> Result<(), Rejection> {
    match envelope.sender_key() {
        // Empty is how the relays say that there is none.
        None | Some("") => Ok(()),
        Some(text) if b64::decode_array(text) == Ok(home.to_bytes()) => Ok(()),
        Some(_) => Err(Rejection::new(
            403,
            Charge::Relay,
            "Envelope sender_key does not match home-relay record",
        )),
    }
}

/// Check 17: the agent's signature.
pub fn check_agent_signature(envelope: &Envelope, key: &PublicKey) -> Result<Proof, Rejection> {
    verify(
        &envelope.signing_bytes(),
        envelope.signature().unwrap_or_default(),
        key,
    )
    .map_err(|_| {
        Rejection::new(
            400,
            Charge::Relay,
            "Invalid agent envelope signature: Signature was forged or corrupt",
        )
    })
}

/// Whether an envelope of our own backend may be sent: fields, version, both addresses, size.
/// The answer is a sentence.
pub fn check_outbound(envelope: &Envelope) -> Result<(), String> {
    check_envelope(envelope, Form::Nonce).map_err(|e| e.detail)?;
    for (field, value) in [("from", envelope.from()), ("to", envelope.to())] {
        if value.and_then(address::split_recipient).is_none() {
            return Err(format!("the envelope's {field:?} is not NAME::DOMAIN"));
        }
    }
    if let Some(size) = envelope.excess() {
        return Err(format!(
            "the envelope has {size} bytes as compact ASCII JSON, relays take at most {}",
            super::envelope::MAX_SIZE
        ));
    }
    Ok(())
}

fn verify(message: &str, signature: &str, key: &PublicKey) -> Result<Proof, KeyError> {
    let signature = b64::decode(signature).map_err(|_| KeyError::BadLength)?;
    key.verify(message.as_bytes(), &signature)
}

fn invalid_envelope(what: String) -> Rejection {
    Rejection::new(400, Charge::Relay, format!("Invalid envelope: {what}"))
}

fn wrong_type(field: &str, expected: &str, found: &Json) -> Rejection {
    invalid_envelope(format!(
        "Field {} must be {expected}, not {}",
        repr(field),
        found.kind()
    ))
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
