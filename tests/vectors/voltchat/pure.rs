//! Groups that pure functions answer.

use drawbridge::identity::hex;
use drawbridge::identity::hmac::SharedSecret;
use drawbridge::protocols::voltchat::allow::AllowList;
use drawbridge::protocols::voltchat::text::{cut, integer, trim, units};
use drawbridge::protocols::voltchat::token::{self, Name};
use drawbridge::protocols::voltchat::{host, ids};
use serde::Deserialize;
use serde_json::Value;

use super::Case;
use crate::check::{read, same};

/// Groups that are checked here.
pub const GROUPS: [&str; 10] = [
    "token_generate",
    "token_verify",
    "host",
    "url",
    "allowlist",
    "trim",
    "cut",
    "bounded_integer",
    "ids",
    "relay_types",
];

pub fn case(case: &Case) -> Result<(), String> {
    let members = &Value::Object(case.members.clone());
    match case.group.as_str() {
        "token_generate" => generate(read(members)?),
        "token_verify" => verify(read(members)?),
        "host" => host_case(read(members)?),
        "url" => url_case(read(members)?),
        "allowlist" => allow_case(read(members)?),
        "trim" => trim_case(read(members)?),
        "cut" => cut_case(read(members)?),
        "bounded_integer" => integer_case(read(members)?),
        "ids" => {
            let case: Plain = read(members)?;
            let ours = case.input.as_str().is_some_and(|id| ids::id(id).is_some());
            fits(Value::Bool(ours), &case.expected)
        }
        "relay_types" => {
            let case: Plain = read(members)?;
            let ours = case.input.as_str().is_some_and(ids::relay_type);
            fits(Value::Bool(ours), &case.expected)
        }
        other => Err(format!("unknown group {other:?}")),
    }
}

/// `either`: both answers are right.
fn fits(ours: Value, expected: &Value) -> Result<(), String> {
    if expected == "either" {
        return Ok(());
    }
    same("expected", &ours, expected)
}

/// A member that may be null, and one that is absent.
fn present<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(reader).map(Some)
}

// ------------------------------------------------------------------------------------- tokens

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generate {
    input: GenerateInput,
    expected: Generated,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GenerateInput {
    peer_id: String,
    host: Option<String>,
    #[serde(rename = "server_url")]
    server_url: Option<String>,
    #[serde(default, deserialize_with = "present")]
    name: Option<Value>,
    #[serde(rename = "name_utf16")]
    name_utf16: Option<Vec<u16>>,
    #[serde(rename = "name_absent", default)]
    name_absent: bool,
    timestamp: i64,
    nonce: String,
    secret: Option<String>,
    #[serde(rename = "secret_utf16")]
    secret_utf16: Option<Vec<u16>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generated {
    signed_text: String,
    signed_bytes_utf8_hex: String,
    signature: String,
    token: String,
}

fn generate(case: Generate) -> Result<(), String> {
    let input = case.input;
    let secret = match (input.secret, input.secret_utf16) {
        (Some(text), None) => text,
        // Half a pair is U+FFFD once it is bytes.
        (None, Some(units)) => String::from_utf16_lossy(&units),
        _ => return Err("one of secret and secret_utf16 is wanted".into()),
    };
    let secret = SharedSecret::stored(&secret);
    let own = match (&input.host, &input.server_url) {
        (_, Some(url)) => host::lenient(url),
        (Some(host), None) => host.clone(),
        (None, None) => return Err("one of host and server_url is wanted".into()),
    };
    if let Some(host) = &input.host {
        same("host", &own, host)?;
    }
    let units: Vec<u16>;
    let name = match (&input.name, &input.name_utf16, input.name_absent) {
        (None | Some(Value::Null), None, true) | (None, None, false) => Name::Absent,
        (Some(Value::Null), None, false) => Name::Null,
        (Some(Value::String(text)), None, false) => {
            units = text.encode_utf16().collect();
            Name::Units(&units)
        }
        (None, Some(utf16), false) => Name::Units(utf16),
        (name, ..) => return Err(format!("not understood: name {name:?}")),
    };
    let expected = case.expected;
    let text = token::signed_text(&input.peer_id, &own, name, input.timestamp, &input.nonce);
    same("signed_text", text.as_str(), expected.signed_text.as_str())?;
    let bytes = hex(text.as_bytes());
    same("signed_bytes", bytes, expected.signed_bytes_utf8_hex)?;
    let signature = hex(&secret.mac(text.as_bytes()));
    same("signature", signature, expected.signature)?;
    let ours = token::sealed(&secret, &text);
    same("token", &ours, &expected.token)?;
    // What a bridge itself calls, whose own name is always a text.
    let Some(Value::String(name)) = &input.name else {
        return Ok(());
    };
    let from = token::Sender {
        peer_id: &input.peer_id,
        host: &own,
        name,
    };
    let made = token::make(&secret, &from, input.timestamp, &input.nonce);
    same("token made", made, expected.token)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Verify {
    input: VerifyInput,
    #[serde(rename = "token_text")]
    _token_text: Option<Value>,
    peer_host: Option<String>,
    expected: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyInput {
    secret: String,
    claimed_host: Option<Value>,
    now_ms: i64,
    token: Value,
}

fn verify(case: Verify) -> Result<(), String> {
    let input = case.input;
    let known = [
        ("volt-b.example", input.secret),
        ("volt-c.example", "fedcba9876543210".repeat(4)),
    ];
    let token = input.token.as_str().unwrap_or("");
    let claimed = match &input.claimed_host {
        Some(claimed) => claimed.as_str().map(host::normal),
        None => token::claimed_host(token),
    };
    let claimed = claimed.unwrap_or_default();
    let secret = known
        .iter()
        .find(|(host, _)| *host == claimed)
        .map(|(_, secret)| SharedSecret::stored(secret));
    let ours = token::verify(secret.as_ref(), &claimed, token, input.now_ms);
    match case.expected.as_str() {
        "either" => Ok(()),
        "reject" => match ours {
            Ok(_) => Err("accepted".into()),
            Err(_) => Ok(()),
        },
        "accept" => {
            ours.map_err(|why| format!("refused: {why}"))?;
            match case.peer_host {
                Some(host) => same("peer_host", claimed, host),
                None => Ok(()),
            }
        }
        other => Err(format!("not understood: expected {other:?}")),
    }
}

// ------------------------------------------------------------------------------ hosts and lists

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    input: Value,
    strict: Option<String>,
    lenient: Option<String>,
    private: bool,
}

fn host_case(case: Host) -> Result<(), String> {
    let text = case.input.as_str().unwrap_or("");
    same("strict", host::strict(text), case.strict)?;
    // Nothing left of a host is none.
    let lenient = case.lenient.unwrap_or_default();
    same("lenient", host::lenient(text), lenient)?;
    same("private", host::is_private(text), case.private)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Url {
    input: UrlInput,
    expected: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UrlInput {
    value: Value,
    expected_host: Option<String>,
    require_https: bool,
}

fn url_case(case: Url) -> Result<(), String> {
    let input = case.input;
    let value = input.value.as_str().unwrap_or("");
    let ours = host::normal_url(value, input.expected_host.as_deref(), input.require_https);
    fits(ours.into(), &case.expected)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    input: AllowInput,
    expected: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AllowInput {
    #[serde(default, deserialize_with = "present")]
    allowed_servers: Option<Value>,
    host: Value,
}

fn allow_case(case: Allow) -> Result<(), String> {
    let list = match &case.input.allowed_servers {
        Some(list) => AllowList::from_json(list),
        None => Ok(AllowList::default()),
    };
    let host = case.input.host.as_str().unwrap_or("");
    // A list that cannot be read ends the start, so nobody may ask.
    let ours = list.is_ok_and(|list| list.admits(host));
    fits(Value::Bool(ours), &case.expected)
}

// ----------------------------------------------------------------------------- texts and numbers

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    input: Value,
    expected: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Trim {
    input: String,
    expected: String,
    bounded_1: Option<String>,
}

fn trim_case(case: Trim) -> Result<(), String> {
    same("expected", trim(&case.input), case.expected.as_str())?;
    match case.bounded_1 {
        Some(bounded) => same("bounded_1", cut(&case.input, 1), bounded),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cut {
    input: String,
    limit: usize,
    expected_units: usize,
    expected_utf8_hex: String,
}

fn cut_case(case: Cut) -> Result<(), String> {
    let ours = cut(&case.input, case.limit);
    same("expected_units", units(&ours), case.expected_units)?;
    same(
        "expected_utf8",
        hex(ours.as_bytes()),
        case.expected_utf8_hex,
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Integer {
    input: Value,
    min: i64,
    max: i64,
    expected: Value,
}

fn integer_case(case: Integer) -> Result<(), String> {
    fits(
        integer(&case.input, case.min, case.max).into(),
        &case.expected,
    )
}
