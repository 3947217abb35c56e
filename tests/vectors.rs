//! The published test vectors, each answered by the real implementations of a protocol.
//!
//! Runs every `*.json` in `tests/vectors/` and, when `DRAWBRIDGE_EXTRA_VECTORS` names a folder, every
//! one there. What the reference did is in `expect`; where `bridge` is present it decides, member by
//! member. An unknown kind or member is a failure, never passed over: a vector that is not understood
//! has not been run.

mod support;
#[path = "support/uam_world.rs"]
mod uam_world;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use drawbridge::config::WireForms;
use drawbridge::identity::{PublicKey, SigningKey, b64, hex};
use drawbridge::protocols::uam::address::Address;
use drawbridge::protocols::uam::canonical::canonical;
use drawbridge::protocols::uam::envelope::Envelope;
use drawbridge::protocols::uam::relay_request::{Form, RelayRequest};
use drawbridge::protocols::uam::{json, payload, verify};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use support::nats::NatsServer;
use uam_world::{Outcome, State};

/// Deliveries run at once.
const AT_ONCE: usize = 8;
/// Kinds that are checked by pure functions.
const PURE: [&str; 6] = [
    "canonical",
    "address",
    "base64",
    "payload",
    "envelope_signature",
    "relay_signature",
];
/// Files of protocols that this version does not speak.
const OTHER_PROTOCOLS: [&str; 4] = ["asfp", "lama", "paracord", "voltchat"];

#[test]
fn what_is_read_signed_and_encoded_is_what_the_reference_reads_signs_and_encodes() {
    let mut wrong = Vec::new();
    let mut run = 0;
    for vector in vectors().into_iter().filter(|v| v.kind != "deliver") {
        run += 1;
        if let Err(why) = pure(&vector) {
            wrong.push(format!("{}: {why}", vector.name));
        }
    }
    assert!(run > 0, "no vectors found");
    assert!(
        wrong.is_empty(),
        "{} of {run} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_delivery_is_answered_charged_and_published_as_decided() {
    let cases: Vec<Vector> = vectors()
        .into_iter()
        .filter(|v| v.kind == "deliver")
        .collect();
    let run = cases.len();
    assert!(run > 0, "no vectors found");
    let nats = NatsServer::start().await;
    let wrong: Vec<String> = stream::iter(cases.into_iter().enumerate())
        .map(|(n, vector)| {
            let nats = &nats;
            async move {
                let result = deliver(nats, n, &vector).await;
                result.err().map(|why| format!("{}: {why}", vector.name))
            }
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(
        wrong.is_empty(),
        "{} of {run} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

// --------------------------------------------------------------------------------- the files

/// One vector: where it stands, its kind, and its members without what says nothing.
struct Vector {
    name: String,
    kind: String,
    members: Value,
}

fn vectors() -> Vec<Vector> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut folders = vec![own];
    if let Some(extra) = std::env::var_os("DRAWBRIDGE_EXTRA_VECTORS") {
        folders.push(PathBuf::from(extra));
    }
    folders
        .iter()
        .flat_map(|folder| of_folder(folder))
        .collect()
}

fn of_folder(folder: &Path) -> Vec<Vector> {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("the vectors in {} cannot be listed: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files.iter().flat_map(|file| of_file(file)).collect()
}

fn of_file(path: &Path) -> Vec<Vector> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if let Some(other) = OTHER_PROTOCOLS.iter().find(|p| stem.starts_with(**p)) {
        println!("{}: {other} is not spoken yet", path.display());
        return Vec::new();
    }
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file: File =
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if let Some(count) = file.count {
        assert_eq!(file.vectors.len(), count, "{}", path.display());
    }
    file.vectors
        .into_iter()
        .filter_map(|value| vector(path, value))
        .collect()
}

/// `None`: the vector says itself that no bridge can be asked.
fn vector(path: &Path, value: Value) -> Option<Vector> {
    let Value::Object(mut members) = value else {
        panic!("{}: a vector is no object", path.display());
    };
    let mut text = |key: &str| match members.remove(key) {
        Some(Value::String(text)) => Some(text),
        None => None,
        Some(other) => panic!("{}: {key} is {other}", path.display()),
    };
    let id = text("id").unwrap_or_default();
    let kind = text("kind").unwrap_or_default();
    text("note");
    let skip = text("skip").is_some();
    let name = format!("{} {id}", path.file_name()?.to_string_lossy());
    assert!(
        kind == "deliver" || PURE.contains(&kind.as_str()),
        "{name}: unknown kind {kind:?}"
    );
    (!skip).then_some(Vector {
        name,
        kind,
        members: Value::Object(members),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "about")]
    _about: Option<Value>,
    count: Option<usize>,
    #[serde(rename = "keys")]
    _keys: Option<Value>,
    vectors: Vec<Value>,
}

fn read<T: DeserializeOwned>(members: &Value) -> Result<T, String> {
    T::deserialize(members).map_err(|e| format!("not understood: {e}"))
}

// --------------------------------------------------------------------------------- pure kinds

fn pure(vector: &Vector) -> Result<(), String> {
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

fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs {
        Ok(())
    } else {
        Err(format!("{what}: ours {ours:?}, expected {theirs:?}"))
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

fn unhex(text: &str) -> Result<Vec<u8>, String> {
    (0..text.len())
        .step_by(2)
        .map(|i| {
            text.get(i..i + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| format!("not hex: {text:?}"))
        })
        .collect()
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

/// `both` means that the versions agree, so both forms must answer as said.
fn forms(dialect: &str) -> Result<&'static [Form], String> {
    match dialect {
        "legacy" => Ok(&[Form::Legacy]),
        "nonce" => Ok(&[Form::Nonce]),
        "both" => Ok(&[Form::Legacy, Form::Nonce]),
        other => Err(format!("unknown dialect {other:?}")),
    }
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

// ---------------------------------------------------------------------------------- deliveries

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeliverCase {
    dialect: String,
    method: String,
    path: String,
    headers: std::collections::BTreeMap<String, String>,
    body: String,
    state: Map<String, Value>,
    #[serde(default)]
    given: Map<String, Value>,
    #[serde(default)]
    may_reject: bool,
    expect: Map<String, Value>,
    #[serde(default)]
    bridge: Map<String, Value>,
}

/// What counts of an answer, once `bridge` has replaced what it names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeliverExpect {
    status: Value,
    json: Option<Value>,
    score_after: Option<i64>,
    inbox_message_ids: Option<Value>,
    messages_stored: Option<usize>,
    #[serde(default)]
    detail_text_not_fixed: bool,
    #[serde(default)]
    has_request_id: bool,
    #[serde(rename = "text")]
    _text: Option<Value>,
    #[serde(rename = "fetched")]
    _fetched: Option<Value>,
    #[serde(rename = "reference_crash")]
    _reference_crash: Option<Value>,
}

/// How much of the answer's body counts.
enum Body {
    Whole(Value),
    /// Its `error` only.
    Error(Value),
    Free,
}

const BRIDGE_MEMBERS: [&str; 7] = [
    "status",
    "json",
    "score_after",
    "inbox_message_ids",
    "messages_stored",
    "detail_text_not_fixed",
    "why",
];

async fn deliver(nats: &NatsServer, n: usize, vector: &Vector) -> Result<(), String> {
    let case: DeliverCase = read(&vector.members)?;
    if let Some(unknown) = case
        .bridge
        .keys()
        .find(|k| !BRIDGE_MEMBERS.contains(&k.as_str()))
    {
        return Err(format!("not understood: bridge.{unknown}"));
    }
    let mut expect = case.expect.clone();
    expect.extend(case.bridge.clone());
    expect.remove("why");
    let expect: DeliverExpect = read(&Value::Object(expect))?;
    let body = expected_body(&case.bridge, &expect);

    let mut state = case.state;
    state.extend(case.given);
    let state: State = read(&Value::Object(state))?;
    let agents: Vec<String> = state.agents.keys().cloned().collect();
    let [form] = forms(&case.dialect)? else {
        return Err("a delivery has one dialect".into());
    };
    let request = uam_world::Request {
        method: case.method,
        path: case.path,
        headers: case.headers.into_iter().collect(),
        body: case.body,
    };
    let outcome = uam_world::deliver_case(nats, n, *form, state, request).await;
    if case.may_reject && case.bridge.is_empty() && (400..500).contains(&outcome.status) {
        return Ok(());
    }
    judge(&expect, body, &agents, outcome)
}

fn expected_body(bridge: &Map<String, Value>, expect: &DeliverExpect) -> Body {
    let Some(json) = &expect.json else {
        return Body::Free;
    };
    if bridge.contains_key("status") && !bridge.contains_key("json") {
        return Body::Free;
    }
    if expect.detail_text_not_fixed {
        return match json.get("error") {
            Some(error) => Body::Error(error.clone()),
            None => Body::Free,
        };
    }
    Body::Whole(json.clone())
}

fn judge(
    expect: &DeliverExpect,
    body: Body,
    agents: &[String],
    outcome: Outcome,
) -> Result<(), String> {
    if !status_fits(outcome.status, &expect.status)? {
        return Err(format!(
            "status {} ({:?}), expected {}",
            outcome.status, outcome.json, expect.status
        ));
    }
    match body {
        Body::Free => {}
        Body::Error(error) => {
            let ours = outcome.json.as_ref().and_then(|json| json.get("error"));
            same("error", ours, Some(&error))?;
        }
        Body::Whole(expected) => {
            let mut ours = outcome.json.ok_or("the answer is no JSON")?;
            if expect.has_request_id {
                let id = ours.as_object_mut().and_then(|o| o.remove("request_id"));
                if !matches!(id, Some(Value::String(_))) {
                    return Err("the answer has no request_id".into());
                }
            }
            same("json", ours, expected)?;
        }
    }
    if let Some(score) = expect.score_after {
        same("score_after", outcome.score_after, Some(score))?;
    }
    if let Some(stored) = expect.messages_stored {
        same("messages_stored", outcome.published.len(), stored)?;
    }
    if let Some(inbox) = &expect.inbox_message_ids {
        let ours: Map<String, Value> = agents
            .iter()
            .map(|agent| {
                let ids = outcome.published.iter().filter(|(to, _)| to == agent);
                (agent.clone(), ids.map(|(_, id)| id.as_str()).collect())
            })
            .collect();
        same("inbox_message_ids", &Value::Object(ours), inbox)?;
    }
    Ok(())
}

/// A number, `"4xx"`, or a list of which any is right.
fn status_fits(status: u16, expected: &Value) -> Result<bool, String> {
    match expected {
        Value::Number(n) => Ok(n.as_u64() == Some(status.into())),
        Value::String(class) if class == "4xx" => Ok((400..500).contains(&status)),
        Value::Array(any) => {
            for one in any {
                if status_fits(status, one)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => Err(format!("not understood: status {other}")),
    }
}
