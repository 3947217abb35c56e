//! `fed.do.paracord.<method>`: what a backend or an operator asks for.

use bytes::Bytes;

use super::Paracord;
use crate::protocol::Refusal;

/// Answers a call.
pub async fn call(_p: &Paracord, method: &str, _body: Bytes) -> Result<serde_json::Value, Refusal> {
    let why = format!("paracord has no method {method:?}");
    Err(Refusal::new("unknown_method", why))
}
