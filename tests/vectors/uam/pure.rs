//! Kinds that pure functions answer: what is read, signed and encoded.

use bytes::Bytes;
use drawbridge::config::WireForms;
use drawbridge::identity::{PublicKey, SigningKey, b64, hex};
use drawbridge::protocols::uam::address::Address;
use drawbridge::protocols::uam::canonical::canonical;
use drawbridge::protocols::uam::envelope::Envelope;
use drawbridge::protocols::uam::relay_request::{Form, RelayRequest};
use drawbridge::protocols::uam::{json, payload, verify};
use serde::Deserialize;
use serde_json::Value;

use super::{Vector, forms};
use crate::check::{read, same, unhex};

/// Kinds that are checked here.
pub const KINDS: [&str; 6] = [
    "canonical",
    "address",
    "base64",
    "payload",
    "envelope_signature",
    "relay_signature",
];

pub fn case(vector: &Vector) -> Result<(), String> {
    let members = &vector.members;
    match vector.kind.as_str() {
        "canonical" => canonical_case(read(members)?),
        "address" => address_case(read(members)?),
        "base64" => base64_case(read(members)?),
        "payload" => payload_case(read(members)?),
        "envelope_signature" => envelope_case(read(members)?),
        "relay_signature" => relay_case(read(members)?),
        other => Err(format!("unknown kind {other:?}")),
    }
}
/// The canonical bytes in both spellings, where the vector has them.
fn same_canonical(ours: &str, text: Option<&str>, bytes: Option<&str>) -> Result<(), String> {
    if let Some(text) = text {
        same("canonical", ours, text)?;
    }
    match bytes {
        Some(bytes) => same("canonical_hex", hex(ours.as_bytes()).as_str(), bytes),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CanonicalCase {
    input: Option<String>,
    input_hex: Option<String>,
    #[serde(default)]
    may_reject: bool,
    expect: CanonicalExpect,
    bridge: Option<CanonicalBridge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CanonicalExpect {
    canonical: Option<String>,
    canonical_hex: Option<String>,
    parse_error: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CanonicalBridge {
    refused: bool,
    #[serde(rename = "why")]
    _why: String,
}

fn canonical_case(case: CanonicalCase) -> Result<(), String> {
    let input = match (case.input, case.input_hex) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => unhex(&text)?,
        _ => return Err("one of input and input_hex is wanted".into()),
    };
    let ours = json::parse(&input)
        .ok()
        .and_then(|tree| tree.as_object().map(canonical));
    let parse_error = case
        .expect
        .parse_error
        .is_some_and(|value| value != Value::Bool(false));
    let refuse = case.bridge.map_or(parse_error, |bridge| bridge.refused);
    match ours {
        _ if refuse => same("canonical", ours, None),
        None if case.may_reject => Ok(()),
        None => Err("refused".into()),
        Some(ours) => same_canonical(
            &ours,
            case.expect.canonical.as_deref(),
            case.expect.canonical_hex.as_deref(),
        ),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddressCase {
    input: String,
    #[serde(default)]
    may_reject: bool,
    expect: AddressExpect,
    bridge: Option<ValidBridge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddressExpect {
    valid: bool,
    agent: Option<String>,
    domain: Option<String>,
    full: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValidBridge {
    valid: bool,
    #[serde(rename = "reason")]
    _reason: Option<String>,
    #[serde(rename = "why")]
    _why: String,
}

fn address_case(case: AddressCase) -> Result<(), String> {
    let ours = Address::parse(&case.input).ok();
    let decided = case.bridge.is_some();
    let valid = case.bridge.map_or(case.expect.valid, |bridge| bridge.valid);
    match ours {
        None if case.may_reject && !decided => Ok(()),
        None => same("valid", false, valid),
        Some(_) if !valid => Err("taken".into()),
        Some(ours) => {
            let expect = case.expect;
            same("agent", Some(ours.agent()), expect.agent.as_deref())?;
            same("domain", Some(ours.domain()), expect.domain.as_deref())?;
            same("full", Some(ours.as_str()), expect.full.as_deref())
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64Case {
    input: String,
    #[serde(default)]
    may_reject: bool,
    expect: Base64Expect,
    bridge: Option<Base64Bridge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64Expect {
    decoded_hex: Option<String>,
    reencoded: Option<String>,
    #[serde(default)]
    error: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64Bridge {
    error: bool,
    #[serde(rename = "why")]
    _why: String,
}

fn base64_case(case: Base64Case) -> Result<(), String> {
    let ours = b64::decode(&case.input).ok();
    let decided = case.bridge.is_some();
    let error = case.bridge.map_or(case.expect.error, |bridge| bridge.error);
    match ours {
        None if case.may_reject && !decided => Ok(()),
        None => same("error", true, error),
        Some(_) if error => Err("taken".into()),
        Some(ours) => {
            let expect = case.expect;
            same("decoded", Some(hex(&ours)), expect.decoded_hex)?;
            same("reencoded", Some(b64::encode(&ours)), expect.reencoded)
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PayloadCase {
    scheme: String,
    payload: String,
    recipient_seed: String,
    recipient_public_key: Option<String>,
    sender_public_key: Option<String>,
    expect: PayloadExpect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PayloadExpect {
    ok: bool,
    plaintext_hex: Option<String>,
}

fn payload_case(case: PayloadCase) -> Result<(), String> {
    let seed = b64::decode_array(&case.recipient_seed).map_err(|e| e.to_string())?;
    let recipient = SigningKey::from_seed(seed);
    if let Some(public) = case.recipient_public_key {
        same(
            "recipient_public_key",
            recipient.public().to_base64(),
            public,
        )?;
    }
    let opened = match case.scheme.as_str() {
        "box" => {
            let sender = case.sender_public_key.unwrap_or_default();
            let sender = PublicKey::from_base64(&sender).map_err(|e| e.to_string())?;
            payload::open_box(&case.payload, &recipient, &sender)
        }
        "sealed" => payload::open_anonymous(&case.payload, &recipient),
        other => return Err(format!("unknown scheme {other:?}")),
    };
    let expected = case.expect.plaintext_hex.filter(|_| case.expect.ok);
    same("plaintext", opened.ok().map(|bytes| hex(&bytes)), expected)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeCase {
    dialect: String,
    envelope: String,
    sender_public_key: String,
    #[serde(default)]
    may_reject: bool,
    expect: EnvelopeExpect,
    bridge: Option<ValidBridge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeExpect {
    valid: bool,
    canonical: Option<String>,
    canonical_hex: Option<String>,
    #[serde(rename = "reason")]
    _reason: Option<String>,
    #[serde(rename = "error")]
    _error: Option<String>,
    #[serde(rename = "message")]
    _message: Option<String>,
}

fn envelope_case(case: EnvelopeCase) -> Result<(), String> {
    let decided = case.bridge.is_some();
    let valid = case.bridge.map_or(case.expect.valid, |bridge| bridge.valid);
    for form in forms(&case.dialect)? {
        let envelope = Envelope::parse(Bytes::from(case.envelope.clone())).ok();
        let ours = envelope.as_ref().is_some_and(|envelope| {
            verify::check_envelope(envelope, *form).is_ok()
                && PublicKey::from_base64(&case.sender_public_key)
                    .is_ok_and(|key| verify::check_agent_signature(envelope, &key).is_ok())
        });
        let excused = !ours && valid && case.may_reject && !decided;
        if !excused {
            same("valid", ours, valid)?;
        }
        if let Some(envelope) = envelope.filter(|_| !decided || valid) {
            same_canonical(
                &envelope.signing_bytes(),
                case.expect.canonical.as_deref(),
                case.expect.canonical_hex.as_deref(),
            )?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelayCase {
    dialect: String,
    body: String,
    signature: String,
    relay_public_key: String,
    #[serde(default)]
    may_reject: bool,
    expect: RelayExpect,
    bridge: Option<RelayBridge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelayExpect {
    schema_ok: bool,
    valid: bool,
    canonical: Option<String>,
    canonical_hex: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelayBridge {
    schema_ok: Option<bool>,
    valid: Option<bool>,
    #[serde(rename = "why")]
    _why: String,
}

fn relay_case(case: RelayCase) -> Result<(), String> {
    let decided = case.bridge.as_ref();
    let schema_ok = decided
        .and_then(|bridge| bridge.schema_ok)
        .unwrap_or(case.expect.schema_ok);
    let valid = decided
        .and_then(|bridge| bridge.valid)
        .unwrap_or(case.expect.valid);
    let refused = decided.is_some() && !(schema_ok && valid);
    for form in forms(&case.dialect)? {
        let forms = wire_forms(*form);
        let body = Bytes::from(case.body.clone());
        let request = match RelayRequest::parse(&body, forms) {
            Ok(request) => request,
            Err(_) if case.may_reject && decided.is_none() => continue,
            Err(error) => {
                same("schema_ok", false, schema_ok).map_err(|e| format!("{e} ({error})"))?;
                same("valid", false, valid)?;
                continue;
            }
        };
        same("schema_ok", true, schema_ok)?;
        let signed = request.signing_bytes();
        let ours = PublicKey::from_base64(&case.relay_public_key)
            .is_ok_and(|key| verify::check_relay_signature(&signed, &case.signature, &key).is_ok());
        if ours || !(case.may_reject && decided.is_none()) {
            same("valid", ours, valid)?;
        }
        if !refused {
            same_canonical(
                &signed,
                case.expect.canonical.as_deref(),
                case.expect.canonical_hex.as_deref(),
            )?;
        }
    }
    Ok(())
}

fn wire_forms(form: Form) -> WireForms {
    match form {
        Form::Legacy => WireForms::Legacy,
        Form::Nonce => WireForms::Nonce,
    }
}
