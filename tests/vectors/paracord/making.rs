//! From a case to the requests it means: the body and how it is written, who signs what.

use drawbridge::identity::{SigningKey, hex};
use drawbridge::protocols::paracord::envelope::Envelope;
use drawbridge::protocols::paracord::transport;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::case::{Case, GivenPeer};
use super::pure::signing_key;

/// Seed of a key that nobody knows.
const UNKNOWN: [u8; 32] = [0x5a; 32];

/// A request as it goes out.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The id of the event in it.
    pub event_id: Option<String>,
}

/// The requests of a case, in order.
pub fn requests(case: &Case) -> Result<Vec<Ask>, String> {
    let first = first(case)?;
    let mut all = vec![first; case.times];
    if !case.second_header_rewrite.is_empty() {
        let second = all.get_mut(1).ok_or("not understood: there is no second")?;
        rewrite(&mut second.headers, &case.second_header_rewrite)?;
    }
    Ok(all)
}

fn first(case: &Case) -> Result<Ask, String> {
    let Body {
        sent,
        normal,
        event_id,
    } = body(case)?;
    // A client writes a URL as one; what stands in it already stays as it is.
    let path = match case.path.parse::<http::Uri>() {
        Ok(_) => case.path.clone(),
        Err(_) => transport::signed_path(&format!("http://bridge.test{}", case.path))
            .ok_or_else(|| format!("not understood: path {:?}", case.path))?,
    };
    let mut headers = Vec::new();
    if !case.unsigned {
        let over = match case.sign_over.as_deref() {
            None => &sent,
            Some("normal_form") => normal.as_ref().ok_or("not understood: no normal form")?,
            Some(other) => return Err(format!("not understood: sign_over {other:?}")),
        };
        headers = signed(case, &path, over)?;
    }
    match &case.content_type {
        Some(None) => {}
        Some(Some(other)) => headers.push(("Content-Type".into(), other.clone())),
        None if case.method == "GET" => {}
        None => headers.push(("Content-Type".into(), "application/json".into())),
    }
    headers.retain(|(name, _)| {
        let mut omitted = case.omit_headers.iter();
        !omitted.any(|omitted| omitted.eq_ignore_ascii_case(name))
    });
    rewrite(&mut headers, &case.header_rewrite)?;
    Ok(Ask {
        method: case.method.clone(),
        path,
        headers,
        body: sent,
        event_id,
    })
}

/// The four headers, over this body.
fn signed(case: &Case, path: &str, over: &[u8]) -> Result<Vec<(String, String)>, String> {
    let known = case.peer(case.origin.as_deref().unwrap_or_default());
    let (known_id, key) = key_of(known, case.key_id.as_deref())?;
    let key = match case.sign_with.as_deref() {
        None => key,
        Some("unknown") => SigningKey::from_seed(UNKNOWN),
        Some(other) => return Err(format!("not understood: sign_with {other:?}")),
    };
    let origin = match (&case.origin, known) {
        (Some(origin), _) => origin.as_str(),
        (None, Some(peer)) => &peer.server_name,
        (None, None) => "bridge.example",
    };
    let timestamp = timestamp(case)?;
    let method = case.signed_method.as_deref().unwrap_or(&case.method);
    let path = case.signed_path.as_deref().unwrap_or(path);
    // A method in lower case is signed so, which no live request does.
    let text = transport::string_to_sign(method, path, timestamp, over);
    let lines = text.split_once('\n').map_or("", |(_, lines)| lines);
    let signature = hex(&key.sign(format!("{method}\n{lines}").as_bytes()));
    let key_id = case.key_id.clone().unwrap_or(known_id);
    Ok([
        ("X-Paracord-Origin", origin.to_owned()),
        ("X-Paracord-Key-Id", key_id),
        ("X-Paracord-Timestamp", timestamp.to_string()),
        ("X-Paracord-Signature", signature),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}

fn timestamp(case: &Case) -> Result<i64, String> {
    let now = case.given.now_ms;
    let wrong = |other: &Value| Err(format!("not understood: timestamp_ms {other}"));
    let at = match &case.timestamp_ms {
        None => now,
        Some(Value::String(text)) if text == "now/1000" => now / 1000,
        Some(other) => match other.as_i64().or_else(|| other.as_str()?.parse().ok()) {
            Some(at) => at,
            None => return wrong(other),
        },
    };
    Ok(at.saturating_add(case.timestamp_offset_ms))
}

/// A peer's key with its id: that of this id, else its first, else one that nobody knows.
fn key_of(peer: Option<&GivenPeer>, key_id: Option<&str>) -> Result<(String, SigningKey), String> {
    let keys = peer.map_or(&[][..], |peer| &peer.keys);
    let named = key_id.and_then(|id| keys.iter().find(|key| key.key_id == id));
    let Some(key) = named.or_else(|| keys.first()) else {
        return Ok(("ed25519:auto".into(), SigningKey::from_seed(UNKNOWN)));
    };
    let signing = match &key.seed_hex {
        Some(seed) => signing_key(seed)?,
        None => SigningKey::from_seed(UNKNOWN),
    };
    Ok((key.key_id.clone(), signing))
}

/// Puts other values in headers: `{}` is the value that is there, `UPPER` it in capitals.
fn rewrite(
    headers: &mut Vec<(String, String)>,
    rewrites: &std::collections::BTreeMap<String, String>,
) -> Result<(), String> {
    for (name, form) in rewrites {
        let known = headers
            .iter_mut()
            .find(|(header, _)| header.eq_ignore_ascii_case(name));
        match known {
            Some((_, value)) if form == "UPPER" => *value = value.to_uppercase(),
            Some((_, value)) => *value = form.replace("{}", value),
            None if form.contains("{}") || form == "UPPER" => {
                return Err(format!("not understood: there is no header {name}"));
            }
            None => headers.push((name.clone(), form.clone())),
        }
    }
    Ok(())
}

// ----------------------------------------------------------------------------------------- bodies

struct Body {
    sent: Vec<u8>,
    /// What a reference receiver makes of it.
    normal: Option<Vec<u8>>,
    event_id: Option<String>,
}

fn body(case: &Case) -> Result<Body, String> {
    if case.event.is_none() && (case.event_signature.is_some() || case.after_signing.is_some()) {
        return Err("not understood: how an event is signed, and no event".into());
    }
    let plain = |sent: Vec<u8>| Body {
        sent,
        normal: None,
        event_id: None,
    };
    match (&case.event, &case.json, &case.raw_body) {
        (None, None, None) => Ok(plain(Vec::new())),
        (None, None, Some(Value::String(raw))) => Ok(plain(raw.clone().into_bytes())),
        (None, Some(Value::Object(members)), None) => {
            let normal = normal_members(case, members);
            Ok(Body {
                sent: written(case, &in_order(members, &REQUEST), &normal)?,
                normal: Some(compact(&Members(&normal))),
                event_id: None,
            })
        }
        (None, Some(other), None) => Ok(plain(compact(other))),
        (Some(changes), None, None) => event(case, changes),
        _ => Err("not understood: one of event, json and raw_body is wanted".into()),
    }
}

/// Members in the order in which they are written.
type Ordered = Vec<(String, Value)>;

/// The order of an envelope.
const WIRE: [&str; 10] = [
    "event_id",
    "room_id",
    "event_type",
    "sender",
    "origin_server",
    "origin_ts",
    "content",
    "depth",
    "state_key",
    "signatures",
];

/// The order of invites, joins and leaves.
const REQUEST: [&str; 5] = [
    "origin_server",
    "room_id",
    "sender",
    "user_id",
    "max_age_seconds",
];

/// Members of the order first, all others behind them.
fn in_order(members: &Map<String, Value>, order: &[&str]) -> Ordered {
    let known = order.iter().filter_map(|name| members.get_key_value(*name));
    let others = members
        .iter()
        .filter(|(name, _)| !order.contains(&name.as_str()));
    let all = known.chain(others);
    all.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Without members of no meaning; what may be absent is null.
fn normal_members(case: &Case, members: &Map<String, Value>) -> Ordered {
    let mut members = members.clone();
    members.retain(|name, _| REQUEST.contains(&name.as_str()));
    if case.path.ends_with("/invite") {
        members.entry("max_age_seconds").or_insert(Value::Null);
    }
    in_order(&members, &REQUEST)
}

fn event(case: &Case, changes: &Map<String, Value>) -> Result<Body, String> {
    let now = case.given.now_ms;
    let mut members = json!({
        "event_id": format!("${now}1:bridge.example"),
        "room_id": "!7010:bridge.example",
        "event_type": "m.message",
        "sender": "@alice:bridge.example",
        "origin_server": "bridge.example",
        "origin_ts": now,
        "content": {
            "body": "a message",
            "msgtype": "m.text",
            "guild_id": "7010",
            "channel_id": "7020",
            "message_id": format!("{now}1"),
        },
        "depth": now,
        "state_key": null,
    });
    let members = members.as_object_mut().ok_or("an object")?;
    members.extend(changes.clone());
    if !changes.contains_key("signatures") {
        let signatures = signatures(case, members)?;
        members.insert("signatures".into(), signatures);
    }
    if let Some(changes) = &case.after_signing {
        let content = members.get_mut("content").and_then(Value::as_object_mut);
        let content = content.ok_or("not understood: after_signing without content")?;
        content.extend(changes.clone());
    }
    let normal = in_order(members, &WIRE);
    let event_id = members.get("event_id").and_then(Value::as_str);
    Ok(Body {
        sent: written(case, &normal, &normal)?,
        normal: Envelope::decode(&compact(&Members(&normal)))
            .map(|envelope| envelope.wire())
            .ok(),
        event_id: event_id.map(str::to_owned),
    })
}

/// The member `signatures`, of the nine others.
fn signatures(case: &Case, members: &Map<String, Value>) -> Result<Value, String> {
    let origin = members.get("origin_server").and_then(Value::as_str);
    let origin = origin.unwrap_or_default().to_owned();
    let (key_id, mut key) = key_of(case.peer(&origin), None)?;
    let how = case.event_signature.as_deref();
    let mut covered = members.clone();
    covered.remove("signatures");
    let bytes = match how {
        Some("wire_order") => compact(&Members(&in_order(&covered, &WIRE))),
        Some("no_state_key") => {
            covered.remove("state_key");
            compact(&covered)
        }
        _ => {
            covered.entry("state_key").or_insert(Value::Null);
            compact(&covered)
        }
    };
    if how == Some("wrong_key") {
        key = SigningKey::from_seed(UNKNOWN);
    }
    let mut signature = hex(&key.sign(&bytes));
    if how == Some("upper") {
        signature = signature.to_uppercase();
    }
    let mut own = json!({ key_id.clone(): signature });
    match how {
        Some("empty") => return Ok(json!({})),
        Some("null") => return Ok(Value::Null),
        Some("other_server") => return Ok(json!({ "elsewhere.example": own })),
        Some("flat") => return Ok(own),
        Some("unknown_first") => own[before(&key_id)] = signature.into(),
        Some("unknown_last") => own[format!("{key_id}~")] = signature.into(),
        Some("nonstring_first") => own[before(&key_id)] = 7.into(),
        None | Some("wrong_key" | "wire_order" | "no_state_key" | "upper") => {}
        Some(other) => return Err(format!("not understood: event_signature {other:?}")),
    }
    Ok(json!({ origin: own }))
}

/// A key id that sorts before this one.
fn before(key_id: &str) -> String {
    format!("!{key_id}")
}

/// The body as the case wants it written.
fn written(case: &Case, members: &Ordered, normal: &Ordered) -> Result<Vec<u8>, String> {
    let mut members = members.clone();
    Ok(match case.send_as.as_deref() {
        None => compact(&Members(&members)),
        Some("indented") => serde_json::to_vec_pretty(&Members(&members)).expect("JSON"),
        Some("sorted") => compact(&members.into_iter().collect::<Map<_, _>>()),
        Some("without_state_key") => {
            members.retain(|(name, _)| name != "state_key");
            compact(&Members(&members))
        }
        Some("extra_member") => {
            members.push(("extra_member".into(), json!({"of": ["no", "meaning"]})));
            compact(&Members(&members))
        }
        Some("ascii_escapes") => {
            let text = compact(&Members(normal));
            ascii(std::str::from_utf8(&text).map_err(|error| error.to_string())?)
        }
        Some(other) => return Err(format!("not understood: send_as {other:?}")),
    })
}

/// The same JSON without a character outside of ASCII.
fn ascii(text: &str) -> Vec<u8> {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out.into_bytes()
}

struct Members<'a>(&'a Ordered);

impl Serialize for Members<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

fn compact(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}
