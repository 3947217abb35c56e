//! Liveness, readiness, metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use super::{AdminState, answer};
use crate::ops::metrics;

/// A scrape does not wait longer for the store's counts: it shows the last ones.
const COUNTS_TIMEOUT: Duration = Duration::from_secs(2);

fn reasons(state: &AdminState) -> BTreeMap<String, String> {
    let mut reasons = state.health.reasons();
    if !state.store.healthy() {
        reasons
            .entry("store".to_owned())
            .or_insert_with(|| "the last commit failed; see the log".to_owned());
    }
    reasons
}

/// `GET /healthz`
pub(super) async fn healthz(State(state): State<Arc<AdminState>>) -> Response {
    let idle = state.health.idle_for();
    let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
    // What the store knows of itself counts at once.
    let dead = state.health.dead().filter(|_| state.store.healthy());
    match dead {
        None => answer(
            StatusCode::OK,
            &json!({"status": "ok", "last_progress_ms": idle_ms}),
        ),
        Some(why) => answer(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"status": "stuck", "last_progress_ms": idle_ms, "reason": why}),
        ),
    }
}

/// `GET /readyz`
pub(super) async fn readyz(State(state): State<Arc<AdminState>>) -> Response {
    let reasons = reasons(&state);
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut body = json!({"ready": reasons.is_empty(), "reasons": reasons});
    if let Some(members) = body.as_object_mut() {
        members.extend(state.health.facts());
    }
    answer(status, &body)
}

/// `GET /metrics`
pub(super) async fn metrics(State(state): State<Arc<AdminState>>) -> Response {
    let counts = tokio::time::timeout(COUNTS_TIMEOUT, state.store.queue_counts()).await;
    if let Ok(Ok(counts)) = counts {
        let now = state.clock.now_ms();
        let age = |since: i64| {
            let ms = now.saturating_sub(since).max(0);
            Duration::from_millis(u64::try_from(ms).unwrap_or(0)).as_secs_f64()
        };
        let rows: Vec<_> = counts
            .into_iter()
            .map(|c| (c.protocol, c.pending, c.oldest_pending_ms.map_or(0.0, age)))
            .collect();
        metrics::queues(&rows);
    }
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    ([(header::CONTENT_TYPE, kind)], metrics::encode()).into_response()
}
