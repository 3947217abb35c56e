//! `/api/v1/*`: lists as JSON objects, so that members can be added later.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::{AdminState, answer, failure, query};
use crate::identity::PublicKey;
use crate::identity::b64;
use crate::protocol::PeerRecord;
use crate::store::StoreError;
use crate::trust::Standing;

fn store_failure(error: &StoreError) -> Response {
    failure(
        StatusCode::SERVICE_UNAVAILABLE,
        "store_unavailable",
        &error.to_string(),
    )
}

/// `GET /api/v1/queue`: `rows` (oldest first), `counts` by protocol, and `next`, the `after` of the
/// page to come, when this one is full.
pub(super) async fn queue(
    State(state): State<Arc<AdminState>>,
    RawQuery(text): RawQuery,
) -> Response {
    let filter = match query::row_filter(text.as_deref().unwrap_or_default()) {
        Ok(filter) => filter,
        Err(detail) => return failure(StatusCode::BAD_REQUEST, "bad_filter", &detail),
    };
    let rows = match state.store.list_rows(&filter).await {
        Ok(rows) => rows,
        Err(error) => return store_failure(&error),
    };
    let counts = match state.store.queue_counts().await {
        Ok(counts) => counts,
        Err(error) => return store_failure(&error),
    };
    let next = rows
        .last()
        .filter(|_| rows.len() >= filter.limit)
        .map(|row| row.id);
    let body = json!({
        "now_ms": state.clock.now_ms(),
        "rows": rows,
        "counts": counts,
        "next": next,
    });
    answer(StatusCode::OK, &body)
}

/// `GET /api/v1/peers`: `peers`, by protocol and name.
pub(super) async fn peers(State(state): State<Arc<AdminState>>) -> Response {
    let health: HashMap<(String, String), Value> = match state.store.health().await {
        Ok(rows) => rows
            .into_iter()
            .map(|row| {
                let facts = serde_json::from_str(&row.facts).unwrap_or(Value::Null);
                ((row.protocol, row.peer), facts)
            })
            .collect(),
        Err(error) => return store_failure(&error),
    };
    let mut records = state.peers.all();
    records.sort_by(|a, b| (a.protocol, &a.name).cmp(&(b.protocol, &b.name)));
    let peers: Vec<Value> = records
        .iter()
        .map(|record| {
            let key = (record.protocol.to_owned(), record.name.to_string());
            peer(&state, record, health.get(&key))
        })
        .collect();
    let body = json!({"now_ms": state.clock.now_ms(), "peers": peers});
    answer(StatusCode::OK, &body)
}

fn peer(state: &AdminState, record: &PeerRecord, health: Option<&Value>) -> Value {
    let key = record.public_key.as_ref();
    let standing = match state.trust.standing(record.protocol, record.name.as_str()) {
        Standing::Blocked => "blocked",
        Standing::Allowed => "allowed",
        Standing::Quarantined => "quarantined",
        Standing::Ordinary => "ordinary",
    };
    json!({
        "protocol": record.protocol,
        "name": record.name.as_str(),
        "endpoint": record.endpoint,
        "alternatives": record.alternatives,
        "public_key": key.map(b64::encode),
        "fingerprint": key.and_then(|k| PublicKey::parse(k).ok()).map(|k| k.fingerprint()),
        "discovered_via": record.discovered_via,
        "last_verified_ms": record.last_verified_ms,
        "ttl_ms": record.ttl_ms,
        "facts": record.facts,
        "standing": standing,
        "score": state.trust.score(record.protocol, record.name.as_str()),
        "health": health,
    })
}

/// `GET /api/v1/keys`: `keys`.
pub(super) async fn keys(State(state): State<Arc<AdminState>>) -> Response {
    answer(StatusCode::OK, &json!({"keys": state.keys}))
}
