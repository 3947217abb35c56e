//! Our public keys.

use axum::extract::State;
use serde::Serialize;
use serde_json::json;

use super::routes::{Route, get};
use super::{Access, Reply, Shared, ok};

/// One of our public keys.
#[derive(Clone, Debug, Serialize)]
pub struct KeyInfo {
    /// Which protocol signs with it.
    pub protocol: String,
    /// Whom it speaks for: our domain in that protocol.
    pub name: String,
    /// Hex SHA-256 of the 32 key bytes.
    pub fingerprint: String,
    /// The key as the protocol publishes it.
    pub public_key: String,
}

pub(super) fn routes() -> Vec<Route> {
    vec![get("/api/v1/keys", Access::Token, list)]
}

/// `GET /api/v1/keys`: `keys`.
async fn list(State(state): Shared) -> Reply {
    ok(&json!({"keys": state.keys}))
}
