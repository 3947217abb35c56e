//! Comparing what we did with what was expected, in sentences.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The members of a case; one that is not known is an error.
pub fn read<T: DeserializeOwned>(members: &Value) -> Result<T, String> {
    T::deserialize(members).map_err(|e| format!("not understood: {e}"))
}

/// An error that shows both, unless they are equal.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs {
        Ok(())
    } else {
        Err(format!("{what}: ours {ours:?}, expected {theirs:?}"))
    }
}

/// The bytes of a hex text.
pub fn unhex(text: &str) -> Result<Vec<u8>, String> {
    (0..text.len())
        .step_by(2)
        .map(|i| {
            text.get(i..i + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| format!("not hex: {text:?}"))
        })
        .collect()
}

/// A number, `"4xx"`, or a list of which any is right.
pub fn status_fits(status: u16, expected: &Value) -> Result<bool, String> {
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
