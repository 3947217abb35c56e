//! Bodies read: what is no JSON told from what has the wrong shape, as the reference's framework
//! tells them (400 and 422).

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Number, Value};

/// Why a body is none of its type. The text is for the sender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecoded {
    /// No JSON, or nested deeper than 128: 400.
    #[error("the body is no JSON: {0}")]
    Syntax(String),
    /// Another shape: a member is missing, stands twice, or is of another type: 422.
    #[error("the body has another shape: {0}")]
    Shape(String),
}

/// Reads a body. Its normal form is `serde_json::to_vec` of what comes back.
pub fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, Undecoded> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => Undecoded::Shape(error.to_string()),
        Category::Syntax | Category::Eof | Category::Io => Undecoded::Syntax(error.to_string()),
    })
}

/// Reads any JSON, for `deserialize_with`. [`Value`]'s own reader gives one member name a meaning of its own when the feature
/// `raw_value` is on (which we need elsewhere): an object with it would be read as the JSON within
/// its text, to any depth. Nothing of that kind happens here.
pub fn any_json<'de, D: Deserializer<'de>>(reader: D) -> Result<Value, D::Error> {
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
