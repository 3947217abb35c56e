//! Relay messages (sheet, 7.1): read without touching the payload, written in the order of a push.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::ids;

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A peer's, without one of the three.
    Incomplete,
    Id,
    /// An operator's or a backend's, without one of the two.
    NoTypeOrPayload,
    Type,
    Keys,
}

impl Malformed {
    /// The protocol's words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Incomplete => "id, type, and payload are required",
            Self::Id => "Invalid relay id",
            Self::NoTypeOrPayload => "type and payload are required",
            Self::Type => "Invalid relay type",
            Self::Keys => "Invalid payload keys",
        }
    }
}

/// The members of a JSON object in their order, each value as it was written. Of two with one name
/// the later one counts.
#[derive(Debug, Default)]
pub struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Of an object; `None` for anything else.
    pub fn read(text: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// A member's value as it was written.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| *value)
    }

    /// A member's value, when it is no object or array.
    fn scalar(&self, name: &str) -> Option<Value> {
        let text = self.raw(name)?.get();
        let is_scalar = !text.starts_with(['{', '[']);
        is_scalar.then(|| serde_json::from_str(text).ok()).flatten()
    }

    /// A text that is not empty. `Err`: something that counts as given, and is no text.
    fn text(&self, name: &str) -> Result<Option<String>, ()> {
        if self.raw(name).is_none() {
            return Ok(None);
        }
        match self.scalar(name) {
            Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text)),
            Some(Value::Null | Value::Bool(false)) => Ok(None),
            Some(Value::Number(n)) if n.as_f64() == Some(0.0) => Ok(None),
            // Another type, or a text with half a character in it, which no id or type can be.
            Some(_) | None => Err(()),
        }
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
                // Ten mebibytes may hold a million names: each is looked up, not searched for.
                let mut places: HashMap<Cow<'de, str>, usize> = HashMap::new();
                while let Some(Key(key)) = map.next_key()? {
                    let value = map.next_value()?;
                    let known = places.get(&key).and_then(|at| members.get_mut(*at));
                    if let Some(member) = known {
                        member.1 = value;
                    } else {
                        places.insert(key.clone(), members.len());
                        members.push((key, value));
                    }
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Reader)
    }
}

/// A member's name, borrowed where it holds no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// A message as a peer sent it.
#[derive(Debug)]
pub struct Received {
    /// Unique for its sender, 1 to 160 characters.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// How many servers it has passed, by the sender's word; a mainline never says.
    pub hops: u32,
    /// The whole message with its origin as we know it.
    pub event: Bytes,
}

impl Received {
    /// Reads a message; its origin is `host` and `name`, whatever it says itself.
    pub fn read(members: &Members<'_>, host: &str, name: &str) -> Result<Self, Malformed> {
        let id = members.text("id");
        let kind = members.text("type");
        let (Some(payload), true, true) = (
            members.raw("payload"),
            !matches!(id, Ok(None)),
            !matches!(kind, Ok(None)),
        ) else {
            return Err(Malformed::Incomplete);
        };
        let id = id.ok().flatten().ok_or(Malformed::Id)?;
        let id = ids::id(&id).ok_or(Malformed::Id)?.to_owned();
        let kind = kind.ok().flatten().ok_or(Malformed::Type)?;
        if !ids::relay_type(&kind) {
            return Err(Malformed::Type);
        }
        if has_reserved_key(payload) {
            return Err(Malformed::Keys);
        }
        let hops = members.scalar("hops").and_then(|hops| hops.as_u64());
        Ok(Self {
            hops: u32::try_from(hops.unwrap_or(0)).unwrap_or(u32::MAX),
            event: with_origin(members, host, name),
            id,
            kind,
        })
    }
}

/// The members as they were, with this origin.
fn with_origin(members: &Members<'_>, host: &str, name: &str) -> Bytes {
    let (host, name) = (Value::from(host), Value::from(name));
    let mut text = String::with_capacity(256);
    let mut add = |key: &str, value: &str| {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(&Value::from(key).to_string());
        text.push(':');
        text.push_str(value);
    };
    for (key, value) in &members.0 {
        if !matches!(&**key, "fromHost" | "fromMainline" | "token" | "host") {
            add(key, value.get());
        }
    }
    add("fromHost", &host.to_string());
    add("fromMainline", &name.to_string());
    text.push('}');
    Bytes::from(text)
}

/// Whether a payload has a member that no payload may have.
pub fn has_reserved_key(payload: &RawValue) -> bool {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = bool;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<bool, M::Error> {
            let mut found = false;
            while let Some(Key(key)) = map.next_key()? {
                found |= ids::RESERVED.contains(&&*key);
                map.next_value::<IgnoredAny>()?;
            }
            Ok(found)
        }
    }
    let text = payload.get();
    // A name with half a character in it is none of these, and ends the reading of a name only.
    text.starts_with('{')
        && serde_json::Deserializer::from_str(text)
            .deserialize_map(Keys)
            .unwrap_or(false)
}

/// What a backend or an operator wants sent: `{type?, payload}`.
#[derive(Debug)]
pub struct Draft<'a> {
    pub kind: Option<String>,
    pub payload: &'a RawValue,
    /// The peer an event came from that is passed on as it was received.
    pub from_host: Option<String>,
}

impl<'a> Draft<'a> {
    /// Reads it; `kind`: the type where it names none itself.
    pub fn read(members: &Members<'a>) -> Result<Self, Malformed> {
        let payload = members.raw("payload").ok_or(Malformed::NoTypeOrPayload)?;
        let kind = members.text("type").map_err(|()| Malformed::Type)?;
        if kind.as_deref().is_some_and(|kind| !ids::relay_type(kind)) {
            return Err(Malformed::Type);
        }
        if has_reserved_key(payload) {
            return Err(Malformed::Keys);
        }
        Ok(Self {
            kind,
            payload,
            from_host: members.text("fromHost").ok().flatten(),
        })
    }
}

/// A message of ours, its members in the order of a push.
#[derive(Serialize)]
pub struct Outgoing<'a> {
    pub id: &'a str,
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    #[serde(rename = "type")]
    pub kind: &'a str,
    pub payload: &'a RawValue,
    pub timestamp: &'a str,
    #[serde(rename = "fromHost")]
    pub from_host: &'a str,
    #[serde(rename = "fromMainline")]
    pub from_mainline: &'a str,
    /// Ours alone: bridges count on where a message has already passed another one.
    #[serde(skip_serializing_if = "is_zero")]
    pub hops: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(text: &str) -> Result<Received, Malformed> {
        let members = Members::read(text.as_bytes()).expect("an object");
        Received::read(&members, "volt-b.example", "B")
    }

    #[test]
    fn very_many_names_are_read_in_one_go_and_the_later_of_two_counts() {
        let many: String = (0..100_000).map(|n| format!("\"k{n}\":{n},")).collect();
        let text = format!("{{{many}\"id\":\"a\",\"k7\":8,{many}\"id\":\"b\"}}");
        let members = Members::read(text.as_bytes()).unwrap();
        assert_eq!(members.raw("id").unwrap().get(), "\"b\"");
        assert_eq!(members.0.len(), 100_001);
    }

    #[test]
    fn a_payload_passes_to_the_byte_and_the_origin_is_the_proven_one() {
        let text = r#"{"id":"a","type":"x","payload":{"b":1.50, "a":"\ud800"},"fromHost":"evil.example","more":[ 1]}"#;
        let read = received(text).unwrap();
        assert_eq!(
            read.event,
            r#"{"id":"a","type":"x","payload":{"b":1.50, "a":"\ud800"},"more":[ 1],"fromHost":"volt-b.example","fromMainline":"B"}"#
        );
        assert_eq!((read.id.as_str(), read.hops), ("a", 0));
    }

    #[test]
    fn a_payload_may_be_null_and_not_absent() {
        assert!(received(r#"{"id":"a","type":"x","payload":null}"#).is_ok());
        for text in [
            r#"{"id":"a","type":"x"}"#,
            r#"{"id":"","type":"x","payload":1}"#,
            r#"{"id":"a","type":null,"payload":1}"#,
            r#"{"type":"x","payload":1}"#,
        ] {
            assert_eq!(received(text).unwrap_err(), Malformed::Incomplete, "{text}");
        }
    }

    #[test]
    fn ids_types_and_payload_keys_are_held_to_their_limits() {
        for (text, why) in [
            (r#"{"id":7,"type":"x","payload":1}"#, Malformed::Id),
            (r#"{"id":"a b","type":"x","payload":1}"#, Malformed::Id),
            (r#"{"id":"\ud800","type":"x","payload":1}"#, Malformed::Id),
            (r#"{"id":"a","type":"x.y","payload":1}"#, Malformed::Type),
            (r#"{"id":"a","type":["x"],"payload":1}"#, Malformed::Type),
            (
                r#"{"id":"a","type":"x","payload":{"\u005f_proto__":1}}"#,
                Malformed::Keys,
            ),
        ] {
            assert_eq!(received(text).unwrap_err(), why, "{text}");
        }
    }
}
