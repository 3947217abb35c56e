//! A body's JSON, read so that it cannot swell: its top level becomes values, what is nested deeply or
//! at length stays text.

use std::borrow::Cow;

use crate::protocols::plain;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Members of a body that are looked at.
const MAX_MEMBERS: usize = 256;
/// Largest JSON of all members that are objects or arrays together that become values, bytes.
const MAX_NESTED: usize = 256 * 1024;

/// The members of a JSON object, an empty array for an array; `None`: neither.
pub fn members(raw: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Top>(raw).ok().map(|top| top.0)
}

/// The top level of a body.
struct Top(Value);

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Look;
        impl<'de> Visitor<'de> for Look {
            type Value = Top;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object or array")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Top, A::Error> {
                let mut found = Map::new();
                let mut nested = 0usize;
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    let raw: &'de RawValue = map.next_value()?;
                    let value = shallow(raw.get(), &mut nested);
                    // The last of one name counts, as it does there.
                    if let Some(known) = found.get_mut(name.as_ref()) {
                        *known = value;
                    } else if found.len() < MAX_MEMBERS {
                        found.insert(name.into_owned(), value);
                    }
                }
                Ok(Top(Value::Object(found)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Top, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Top(Value::Array(Vec::new())))
            }
        }
        deserializer.deserialize_any(Look)
    }
}

/// A member as a value; null where it is too large or cannot be one.
fn shallow(raw: &str, nested: &mut usize) -> Value {
    match raw.as_bytes().first() {
        Some(b'"') => lenient_text(raw).map_or(Value::Null, Value::String),
        Some(b'{' | b'[') => {
            *nested = nested.saturating_add(raw.len());
            if *nested > MAX_NESTED {
                return Value::Null;
            }
            plain::json(raw.as_bytes()).unwrap_or_default()
        }
        _ => plain::json(raw.as_bytes()).unwrap_or_default(),
    }
}

/// A JSON text; half a surrogate pair, which the other side may hold and we cannot, becomes U+FFFD.
fn lenient_text(raw: &str) -> Option<String> {
    if let Ok(text) = serde_json::from_str(raw) {
        return Some(text);
    }
    struct Text;
    impl Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON text")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
            Ok(from_wtf8(bytes))
        }
    }
    let mut reader = serde_json::Deserializer::from_str(raw);
    (&mut reader).deserialize_bytes(Text).ok()
}

/// UTF-8 in which a lone surrogate stands as three bytes from ED A0 on.
fn from_wtf8(mut bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    loop {
        match std::str::from_utf8(bytes) {
            Ok(rest) => {
                text.push_str(rest);
                return text;
            }
            Err(error) => {
                let (good, bad) = bytes.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(good));
                text.push('\u{fffd}');
                let lone = bad.first() == Some(&0xed) && bad.len() >= 3;
                bytes = bad.get(if lone { 3 } else { 1 }..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_members_with_one_name_the_last_counts() {
        let r = members(br#"{"a":1,"b":{"c":[2]},"a":"x"}"#).unwrap();
        assert_eq!(r, serde_json::json!({"a": "x", "b": {"c": [2]}}));
    }

    #[test]
    fn half_a_surrogate_pair_becomes_the_replacement_character() {
        let r = members(br#"{"name":"a\ud800b \ude00","ok":"\ud83d\ude42"}"#).unwrap();
        assert_eq!(r["name"], "a\u{fffd}b \u{fffd}");
        assert_eq!(r["ok"], "\u{1f642}");
    }

    #[test]
    fn a_body_made_to_swell_in_memory_is_not_taken_apart() {
        let many = format!(
            "{{\"x\":[{}0],\"token\":\"t\",\"y\":{{}}}}",
            "[0],".repeat(200_000)
        );
        let r = members(many.as_bytes()).unwrap();
        assert_eq!(r["x"], Value::Null);
        assert_eq!(r["token"], "t");
        let wide: String = (0..50_000).map(|n| format!("\"k{n}\":0,")).collect();
        let r = members(format!("{{{wide}\"z\":1}}").as_bytes()).unwrap();
        assert_eq!(r.as_object().unwrap().len(), MAX_MEMBERS);
        let deep = format!(
            "{{\"x\":{}{},\"id\":\"i\"}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let r = members(deep.as_bytes()).unwrap();
        assert_eq!(r["id"], "i");
    }
}
