//! What a backend asks with `fed.do.<protocol>.<method>`, for operators and the command line.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::routes::{Route, post};
use super::{Fail, Reply, Shared, body, ok};
use crate::protocol::Refusal;

pub(super) fn routes() -> Vec<Route> {
    vec![post("/api/v1/protocols/{protocol}/call/{method}", call)]
}

/// `POST /api/v1/protocols/{protocol}/call/{method}`: the body is the method's own JSON (none: an
/// object without members), `result` its answer.
async fn call(
    State(state): Shared,
    Path((protocol, method)): Path<(String, String)>,
    bytes: Bytes,
) -> Reply {
    let name = state.protocol(Some(&protocol))?;
    let speaker = state.speakers.iter().find(|p| p.id() == name);
    let speaker = speaker
        .ok_or_else(|| Fail::unknown("unknown_protocol", format!("{name} takes no calls here")))?;
    let asked: Value = body(&bytes)?;
    let result = speaker
        .call(&method, Bytes::from(asked.to_string()))
        .await
        .map_err(|refusal| Fail {
            status: status(&refusal),
            code: refusal.code,
            detail: refusal.detail,
        })?;
    ok(&json!({"result": result}))
}

/// The status of a protocol's refusal, by what its code begins or ends with: protocols name their
/// codes as this API does.
fn status(refusal: &Refusal) -> StatusCode {
    match refusal.code {
        code if code.starts_with("unknown_")
            || code.starts_with("no_such_")
            || code.ends_with("not_found") =>
        {
            StatusCode::NOT_FOUND
        }
        code if code.starts_with("bad_") || code.starts_with("invalid_") => StatusCode::BAD_REQUEST,
        code if code.ends_with("unavailable") || matches!(code, "timeout" | "stopping") => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::CONFLICT,
    }
}
