//! A case that is a request: its members, with the names of its bridge put in.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::check::read;

/// What is asked, how the request is made, and what is expected.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub method: String,
    pub path: String,
    pub given: Given,
    /// One [`Expected`], or a list of them, one for each time.
    pub expect: Value,
    #[serde(default = "once")]
    pub times: usize,
    // The body.
    pub event: Option<Map<String, Value>>,
    pub json: Option<Value>,
    pub raw_body: Option<Value>,
    pub after_signing: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "present")]
    pub content_type: Option<Option<String>>,
    pub event_signature: Option<String>,
    pub send_as: Option<String>,
    pub sign_over: Option<String>,
    // The transport.
    pub origin: Option<String>,
    pub key_id: Option<String>,
    pub sign_with: Option<String>,
    pub signed_path: Option<String>,
    pub signed_method: Option<String>,
    #[serde(default)]
    pub timestamp_offset_ms: i64,
    pub timestamp_ms: Option<Value>,
    #[serde(default)]
    pub omit_headers: Vec<String>,
    #[serde(default)]
    pub header_rewrite: BTreeMap<String, String>,
    #[serde(default)]
    pub second_header_rewrite: BTreeMap<String, String>,
    #[serde(default)]
    pub unsigned: bool,
}

fn once() -> usize {
    1
}

/// A member that may be null, and one that is absent.
fn present<'de, D: serde::Deserializer<'de>>(
    reader: D,
) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(reader).map(Some)
}

/// The state that a fresh bridge is put in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    pub now_ms: i64,
    #[serde(default = "yes")]
    pub enabled: bool,
    pub names: BTreeMap<String, String>,
    #[serde(default)]
    pub peers: Vec<GivenPeer>,
    #[serde(default)]
    pub rooms: Vec<GivenRoom>,
}

fn yes() -> bool {
    true
}

impl Given {
    /// The name that stands for `{WORD}`.
    pub fn name(&self, word: &str) -> &str {
        let name = self.names.get(word);
        name.unwrap_or_else(|| panic!("not understood: no name {word}"))
    }
}

/// A server that the bridge knows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenPeer {
    pub server_name: String,
    pub domain: String,
    #[serde(default = "yes")]
    pub trusted: bool,
    #[serde(default)]
    pub keys: Vec<GivenKey>,
}

/// One of its keys. The seed signs its requests.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenKey {
    pub key_id: String,
    pub seed_hex: Option<String>,
    pub public_key_hex: Option<String>,
}

/// A room that the bridge has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenRoom {
    pub room_id: String,
    #[serde(default)]
    pub allowed: bool,
    #[serde(default)]
    pub public: bool,
    #[serde(default)]
    pub members: Vec<String>,
}

/// An answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    pub status: Value,
    pub code: Option<String>,
    pub message: Option<String>,
    pub plain_text: Option<String>,
    pub inserted: Option<bool>,
    pub accepted: Option<bool>,
    pub joined: Option<bool>,
    pub left: Option<bool>,
    pub expires_in_seconds: Option<i64>,
}

impl Case {
    /// Reads the members; `{SERVER_NAME}` and its like are replaced, abbreviations written out.
    pub fn of(members: &Value) -> Result<Self, String> {
        let names: BTreeMap<String, String> = match members["given"].get("names") {
            Some(names) => read(names)?,
            None => return Err("not understood: no given.names".into()),
        };
        read(&written_out(members, &names)?)
    }

    /// What is expected the n-th time.
    pub fn expected(&self) -> Result<Vec<Expected>, String> {
        let all: Vec<Expected> = match &self.expect {
            Value::Array(_) => read(&self.expect)?,
            one => vec![read(one)?],
        };
        match all.len() {
            n if n == self.times => Ok(all),
            // One answer for every time.
            1 => Ok(vec![all[0].clone(); self.times]),
            n => Err(format!(
                "{n} answers are expected of {} requests",
                self.times
            )),
        }
    }

    /// The peer of this server name; else the first, which is nobody when there is none.
    pub fn peer(&self, server_name: &str) -> Option<&GivenPeer> {
        let peers = &self.given.peers;
        let found = peers.iter().find(|peer| peer.server_name == server_name);
        found.or_else(|| peers.first())
    }
}

/// The value with names put in and abbreviations written out.
fn written_out(value: &Value, names: &BTreeMap<String, String>) -> Result<Value, String> {
    let text = |text: &str| {
        names.iter().fold(text.to_owned(), |text, (word, name)| {
            text.replace(&format!("{{{word}}}"), name)
        })
    };
    Ok(match value {
        Value::String(s) => text(s).into(),
        Value::Array(list) => {
            let list = list.iter().map(|one| written_out(one, names));
            list.collect::<Result<Vec<_>, _>>()?.into()
        }
        Value::Object(members) => {
            let number = |name: &str| {
                let n = members.get(name).and_then(Value::as_u64);
                let n = n.and_then(|n| usize::try_from(n).ok());
                n.ok_or_else(|| format!("not understood: {name} in {value}"))
            };
            let has = |wanted: &[&str]| {
                members.len() == wanted.len()
                    && wanted.iter().all(|name| members.contains_key(*name))
            };
            if has(&["repeat", "times"]) {
                let times = number("times")?;
                match written_out(&members["repeat"], names)? {
                    Value::String(text) => text.repeat(times).into(),
                    Value::Array(list) => {
                        let all = std::iter::repeat_n(list, times).flatten();
                        all.collect::<Vec<Value>>().into()
                    }
                    // A list of n times the same.
                    other => vec![other; times].into(),
                }
            } else if has(&["nested_objects"]) {
                let levels = number("nested_objects")?;
                (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }))
            } else {
                let each = members.iter().map(|(name, one)| {
                    let one = written_out(one, names)?;
                    Ok((text(name), one))
                });
                Value::Object(each.collect::<Result<Map<_, _>, String>>()?)
            }
        }
        other => other.clone(),
    })
}

#[test]
fn abbreviations_and_names_are_written_out_wherever_they_stand() {
    let names = BTreeMap::from([("DOMAIN".to_owned(), "x.example".to_owned())]);
    let out = |value: Value| written_out(&value, &names).expect("understood");
    assert_eq!(
        out(json!(["!1:{DOMAIN}", "{}"])),
        json!(["!1:x.example", "{}"])
    );
    assert_eq!(
        out(json!({"a": {"repeat": "ab", "times": 3}})),
        json!({"a": "ababab"})
    );
    assert_eq!(out(json!({"repeat": 1, "times": 2})), json!([1, 1]));
    assert_eq!(out(json!({"repeat": [1], "times": 2})), json!([1, 1]));
    assert_eq!(out(json!({"nested_objects": 3})), json!({"a": {"a": {}}}));
    let wrong = json!({"repeat": "x", "times": "many"});
    assert!(written_out(&wrong, &names).is_err());
}

#[test]
fn a_member_or_a_word_that_is_not_known_is_a_failure() {
    let case = |with: Value| {
        let mut members = json!({"method": "GET", "path": "/", "expect": {"status": 200},
            "given": {"now_ms": 1, "names": {}}});
        let with = with.as_object().expect("an object").clone();
        members.as_object_mut().expect("an object").extend(with);
        Case::of(&members)
    };
    assert!(case(json!({})).is_ok());
    for with in [
        json!({"sent_as": "x"}),
        json!({"given": {"now_ms": 1, "names": {}, "tokens": []}}),
        json!({"given": {"now_ms": 1}}),
    ] {
        assert!(case(with.clone()).is_err(), "{with}");
    }
    let more = case(json!({"expect": {"status": 200, "body": 1}})).expect("read");
    assert!(more.expected().is_err());
    let twice = case(json!({"times": 3, "expect": [{"status": 1}, {"status": 2}]}));
    assert!(twice.expect("read").expected().is_err());
}
