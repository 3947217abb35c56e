//! Kinds that pure functions answer: those that live requests go through.

use std::collections::BTreeMap;

use drawbridge::identity::{PublicKey, SigningKey, hex};
use drawbridge::protocols::paracord::BASE;
use drawbridge::protocols::paracord::envelope::Envelope;
use drawbridge::protocols::paracord::hexes;
use drawbridge::protocols::paracord::ids::User;
use drawbridge::protocols::paracord::transport::{self, Claim};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Vector;
use crate::check::{read, same};

pub fn case(vector: &Vector) -> Result<(), String> {
    let members = &vector.members;
    match vector.kind.as_str() {
        "key" => key_case(read(members)?),
        "envelope_signature" => envelope_signature(read(members)?),
        "envelope_verify" => envelope_verify(read(members)?),
        "transport_signature" => transport_signature(read(members)?),
        "transport_verify" => transport_verify(read(members)?),
        "body_normal_form" => normal_form(read(members)?),
        "signed_path_from_url" => signed_path(read(members)?),
        "identity_parse" => identity(read(members)?),
        other => Err(format!("unknown kind {other:?}")),
    }
}

pub fn signing_key(seed_hex: &str) -> Result<SigningKey, String> {
    let seed = hexes::decode(seed_hex).ok_or_else(|| format!("no seed: {seed_hex:?}"))?;
    Ok(SigningKey::from_seed(seed))
}

/// A key as a bridge reads one; None: it takes it for none.
fn public_key(public_key_hex: &str) -> Option<PublicKey> {
    PublicKey::parse(&hexes::decode(public_key_hex)?).ok()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// Compares what the vector gives.
fn given<T: PartialEq + std::fmt::Debug>(
    what: &str,
    ours: T,
    theirs: Option<T>,
) -> Result<(), String> {
    theirs.map_or(Ok(()), |theirs| same(what, ours, theirs))
}

fn envelope(json: &Value) -> Result<Envelope, String> {
    Envelope::decode(json.to_string().as_bytes()).map_err(|error| error.to_string())
}

// --------------------------------------------------------------------------- keys and envelopes

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    seed_hex: String,
    public_key_hex: String,
}

fn key_case(case: Key) -> Result<(), String> {
    let public = signing_key(&case.seed_hex)?.public();
    same(
        "public_key_hex",
        hex(&public.to_bytes()),
        case.public_key_hex,
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    envelope: Value,
    seed_hex: String,
    public_key_hex: String,
    canonical_utf8: Option<String>,
    canonical_hex: Option<String>,
    canonical_sha256_hex: Option<String>,
    signature_hex: String,
    signed_envelope_wire_utf8: Option<String>,
    wire_sha256_hex: Option<String>,
    expect_valid: bool,
}

fn envelope_signature(case: EnvelopeSignature) -> Result<(), String> {
    let key = signing_key(&case.seed_hex)?;
    let mut ours = envelope(&case.envelope)?;
    let canonical = ours.canonical();
    given(
        "canonical_sha256",
        sha256(&canonical),
        case.canonical_sha256_hex,
    )?;
    given("canonical_hex", hex(&canonical), case.canonical_hex)?;
    given("canonical", text(canonical.clone())?, case.canonical_utf8)?;
    same(
        "signature",
        hex(&key.sign(&canonical)),
        case.signature_hex.clone(),
    )?;
    if let Some(wire) = &case.signed_envelope_wire_utf8 {
        let signed = Envelope::decode(wire.as_bytes()).map_err(|error| error.to_string())?;
        let offered = signed.signature().ok_or("the wire has no signature")?;
        ours.sign(&key, &offered.key_id);
    }
    let wire = ours.wire();
    given("wire_sha256", sha256(&wire), case.wire_sha256_hex)?;
    given("wire", text(wire)?, case.signed_envelope_wire_utf8)?;
    let valid = covers(&ours, &case.public_key_hex, &case.signature_hex);
    same("valid", valid, case.expect_valid)
}

/// Whether the signature holds for the whole envelope.
fn covers(envelope: &Envelope, public_key_hex: &str, signature_hex: &str) -> bool {
    let verdict = || {
        let key = public_key(public_key_hex)?;
        let signature = hexes::decode(signature_hex)?;
        envelope.check(&key, &signature).ok()
    };
    verdict().is_some_and(|proven| proven.attachments_covered)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeVerify {
    envelope: Value,
    canonical_utf8: Option<String>,
    public_key_hex: String,
    signature_hex: String,
    expect_valid: bool,
}

fn envelope_verify(case: EnvelopeVerify) -> Result<(), String> {
    let ours = match envelope(&case.envelope) {
        Ok(ours) => ours,
        Err(_) if !case.expect_valid => return Ok(()),
        Err(why) => return Err(why),
    };
    let valid = covers(&ours, &case.public_key_hex, &case.signature_hex);
    same("valid", valid, case.expect_valid)?;
    given("canonical", text(ours.canonical())?, case.canonical_utf8)
}

// ------------------------------------------------------------------------------------ transport

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransportSignature {
    method: String,
    path: String,
    timestamp_ms: i64,
    body_utf8: String,
    seed_hex: String,
    public_key_hex: String,
    body_sha256_hex: Option<String>,
    string_to_sign: Option<String>,
    string_to_sign_hex: Option<String>,
    signature_hex: String,
    headers: BTreeMap<String, String>,
    expect_valid: bool,
}

fn transport_signature(case: TransportSignature) -> Result<(), String> {
    let key = signing_key(&case.seed_hex)?;
    let (method, path, body) = (&case.method, &case.path, case.body_utf8.as_bytes());
    let signed = transport::string_to_sign(method, path, case.timestamp_ms, body);
    given("body_sha256", sha256(body), case.body_sha256_hex)?;
    given(
        "string_to_sign_hex",
        hex(signed.as_bytes()),
        case.string_to_sign_hex,
    )?;
    given("string_to_sign", signed, case.string_to_sign)?;
    let header = |name: &http::HeaderName| {
        let mut all = case.headers.iter();
        let found = all.find(|(header, _)| header.eq_ignore_ascii_case(name.as_str()));
        found.map_or("", |(_, value)| value.as_str())
    };
    let headers = transport::headers(
        header(&transport::ORIGIN),
        header(&transport::KEY_ID),
        &key,
        method,
        path,
        case.timestamp_ms,
        body,
    );
    for (name, value) in &case.headers {
        let ours = headers.get(name).and_then(|value| value.to_str().ok());
        same(name, ours, Some(value.as_str()))?;
    }
    same("headers", headers.len(), case.headers.len())?;
    same(
        "signature",
        header(&transport::SIGNATURE),
        case.signature_hex.as_str(),
    )?;
    let claim = Claim::read(&headers).map_err(|header| format!("no {header}"))?;
    let proof = public_key(&case.public_key_hex)
        .and_then(|key| claim.proves(&key, method, path, body, None));
    same("valid", proof.is_some(), case.expect_valid)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransportVerify {
    method: String,
    path: String,
    timestamp_ms: i64,
    body_utf8: String,
    sent_body_utf8: Option<String>,
    public_key_hex: String,
    signature_hex: String,
    string_to_sign: Option<String>,
    expect_valid: bool,
}

fn transport_verify(case: TransportVerify) -> Result<(), String> {
    let (method, path, hashed) = (&case.method, &case.path, case.body_utf8.as_bytes());
    let signed = transport::string_to_sign(method, path, case.timestamp_ms, hashed);
    given("string_to_sign", signed, case.string_to_sign)?;
    let sent = case.sent_body_utf8.as_deref().unwrap_or(&case.body_utf8);
    if case.sent_body_utf8.is_some() && *path == format!("{BASE}/event") {
        let ours = Envelope::decode(sent.as_bytes()).map_err(|error| error.to_string())?;
        same("normal form", text(ours.wire())?, case.body_utf8.clone())?;
    }
    let claim = Claim {
        origin: "any.example".into(),
        key_id: "any".into(),
        timestamp_ms: case.timestamp_ms,
        signature: hexes::decode(&case.signature_hex),
    };
    let proof = public_key(&case.public_key_hex)
        .and_then(|key| claim.proves(&key, method, path, sent.as_bytes(), Some(hashed)));
    same("valid", proof.is_some(), case.expect_valid)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedPath {
    url: String,
    signed_path: Option<String>,
}

fn signed_path(case: SignedPath) -> Result<(), String> {
    same(
        "signed_path",
        transport::signed_path(&case.url),
        case.signed_path,
    )
}

// ---------------------------------------------------------------------------- bodies and names

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NormalForm {
    sent_body_utf8: String,
    accepted: bool,
    normal_body_utf8: Option<String>,
    canonical_utf8: Option<String>,
    same_bytes: Option<bool>,
    sent_body_sha256_hex: Option<String>,
    normal_body_sha256_hex: Option<String>,
    #[serde(rename = "decode_error_class")]
    _decode_error_class: Option<Value>,
}

fn normal_form(case: NormalForm) -> Result<(), String> {
    let sent = case.sent_body_utf8.as_bytes();
    given("sent_body_sha256", sha256(sent), case.sent_body_sha256_hex)?;
    let ours = match (Envelope::decode(sent), case.accepted) {
        (Ok(ours), true) => ours,
        (Err(_), false) => return Ok(()),
        (ours, accepted) => return Err(format!("ours {ours:?}, expected accepted: {accepted}")),
    };
    let wire = ours.wire();
    given("same_bytes", wire == sent, case.same_bytes)?;
    given(
        "normal_body_sha256",
        sha256(&wire),
        case.normal_body_sha256_hex,
    )?;
    given("normal_body", text(wire)?, case.normal_body_utf8)?;
    given("canonical", text(ours.canonical())?, case.canonical_utf8)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    input: String,
    ok: bool,
    localpart: Option<String>,
    server: Option<String>,
}

fn identity(case: Identity) -> Result<(), String> {
    let ours = User::parse(&case.input);
    same("ok", ours.is_some(), case.ok)?;
    if let Some(user) = ours {
        given("localpart", user.localpart.to_owned(), case.localpart)?;
        given("server", user.server.to_owned(), case.server)?;
    }
    Ok(())
}
