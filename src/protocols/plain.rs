//! Any JSON that a stranger wrote, read as what it says.
//!
//! The reader of [`Value`] gives one member name a meaning of its own when the feature `raw_value` is
//! on (which we need elsewhere): an object with it is read as the JSON within its text, and that again,
//! each time as deep as one text may be. Half a megabyte then becomes two thousand levels, more than
//! the stack of a thread holds in a build that is not optimised. Nothing of that kind happens here: an
//! object is an object, and 128 levels are the most.

use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads a whole text.
pub(super) fn json(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(text).map(|Plain(value)| value)
}

/// The same, for `deserialize_with`.
pub(super) fn any_json<'de, D: Deserializer<'de>>(reader: D) -> Result<Value, D::Error> {
    let Plain(value) = serde::Deserialize::deserialize(reader)?;
    Ok(value)
}

struct Plain(Value);

impl<'de> serde::Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(AnyJson).map(Self)
    }
}

struct AnyJson;

impl<'de> Visitor<'de> for AnyJson {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Plain(value)) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, Plain(value))) = access.next_entry::<String, Plain>()? {
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as value;

    use super::*;

    #[test]
    fn a_text_within_a_text_stays_one_however_deep_it_goes() {
        let object = value!({"$serde_json::private::RawValue": "[1]"});
        assert_eq!(json(object.to_string().as_bytes()).unwrap(), object);
        let mut text = "0".to_owned();
        while text.len() < 256 * 1024 {
            let (open, close) = ("[".repeat(120), "]".repeat(120));
            let inner = Value::from(format!("{open}{text}{close}"));
            text = format!("{{\"$serde_json::private::RawValue\":{inner}}}");
        }
        let read = json(text.as_bytes()).unwrap();
        let members = read.as_object().unwrap();
        assert!(members.values().all(Value::is_string));
    }

    #[test]
    fn any_other_json_is_what_it_is_everywhere() {
        for text in [
            "null",
            "-0.5e3",
            "[1,[true,\"x\"],{}]",
            "{\"a\":{\"b\":18446744073709551615}}",
        ] {
            let usual: Value = serde_json::from_str(text).unwrap();
            assert_eq!(json(text.as_bytes()).unwrap(), usual, "{text}");
        }
        for text in ["", "{", "[1,]", "{\"a\":1}x", &"[".repeat(200)] {
            assert!(json(text.as_bytes()).is_err(), "{text}");
        }
    }
}
