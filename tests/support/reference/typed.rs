//! Bodies as the reference decodes them, and the normal form that it hashes (sheet, 3 and 4).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The event envelope in wire order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    pub event_id: String,
    pub room_id: String,
    pub event_type: String,
    pub sender: String,
    pub origin_server: String,
    pub origin_ts: i64,
    pub content: Value,
    pub depth: i64,
    pub state_key: Option<String>,
    pub signatures: Value,
}

impl Envelope {
    /// As a tree, members sorted: `GET /event/{id}` answers that.
    pub fn value(&self) -> Value {
        serde_json::to_value(self).expect("an envelope is JSON")
    }

    /// The first signature under the origin in key order, else the first of the flat form.
    pub fn signature(&self) -> Option<(String, String)> {
        let first = |entry: Option<&Value>| -> Option<(String, String)> {
            let mut entries = entry?.as_object()?.iter();
            entries.find_map(|(id, hex)| Some((id.clone(), hex.as_str()?.to_owned())))
        };
        first(self.signatures.get(&self.origin_server)).or_else(|| first(Some(&self.signatures)))
    }
}

/// `POST /invite`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invite {
    pub origin_server: String,
    pub room_id: String,
    pub sender: String,
    pub max_age_seconds: Option<i64>,
}

/// `POST /join` and `/leave`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    pub origin_server: String,
    pub room_id: String,
    pub user_id: String,
}

/// A body in its typed form, or the status of the body reader and its text.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, (u16, String)> {
    serde_json::from_slice(body).map_err(|e| {
        let status = if e.is_data() { 422 } else { 400 };
        (status, format!("Failed to read the request body: {e}"))
    })
}

/// What is hashed of a body: compact, members in the order of the type.
pub fn normal<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body).expect("a typed body is JSON")
}
