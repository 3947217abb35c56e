//! What operators and the command line ask of a running bridge, on the admin listener.
//!
//! | path | answer |
//! | --- | --- |
//! | `GET /healthz` | 200 while the main loop moves on, else 503: restart it |
//! | `GET /readyz` | 200 when every part works, else 503; `reasons` says which does not |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /api/v1/queue` | rows of the outbound queue; filters in [`query`] |
//! | `GET /api/v1/peers` | what is known of each peer, its health, standing and score |
//! | `GET /api/v1/keys` | our public keys |
//!
//! It only reads, and asks for no password: the configuration lets it listen on loopback alone. A
//! page in a local browser could still reach it under a name of its own that resolves to 127.0.0.1,
//! so requests whose `Host` is not a loopback name are refused.

mod api;
mod host;
mod probes;
mod query;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::ops::health::Health;
use crate::peers::Peers;
use crate::store::Store;
use crate::trust::Trust;

/// What the admin routes read.
#[derive(Clone)]
pub struct AdminState {
    pub store: Store,
    pub peers: Peers,
    pub trust: Trust,
    pub health: Health,
    pub clock: Clock,
    /// Our own keys, for `keys show`.
    pub keys: Vec<KeyInfo>,
}

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

/// The admin listener's routes.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .route("/api/v1/queue", get(api::queue))
        .route("/api/v1/peers", get(api::peers))
        .route("/api/v1/keys", get(api::keys))
        .fallback(|| async {
            failure(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is nothing under this path",
            )
        })
        .layer(axum::middleware::from_fn(host::only_loopback))
        .with_state(Arc::new(state))
}

/// A JSON answer that no cache keeps.
fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body.to_string()).into_response()
}

/// A refusal: a code and a sentence.
fn failure(status: StatusCode, code: &str, detail: &str) -> Response {
    answer(status, &json!({"error": code, "detail": detail}))
}
