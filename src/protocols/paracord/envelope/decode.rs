//! Bodies read: what is no JSON told from what has the wrong shape, as the reference's framework
//! tells them (400 and 422).

use serde::de::DeserializeOwned;
use serde_json::error::Category;

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
