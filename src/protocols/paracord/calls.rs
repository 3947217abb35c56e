//! `fed.do.paracord.<method>`: what a backend or an operator asks for.

use bytes::Bytes;

use super::{Paracord, rooms};
use crate::protocol::Refusal;

/// Answers a call.
pub async fn call(p: &Paracord, method: &str, body: Bytes) -> Result<serde_json::Value, Refusal> {
    if let Some(answer) = rooms::calls::call(p, method, &body).await {
        return answer;
    }
    let why = format!("paracord has no method {method:?}");
    Err(Refusal::new("unknown_method", why))
}
