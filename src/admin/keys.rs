//! Our keys, and changing them.

use axum::body::Bytes;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::routes::{Route, get, post};
use super::{Access, Fail, Reply, Shared, body, ok};
use crate::protocol::{OwnKey, Rotation};

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/api/v1/keys", Access::Token, list),
        post("/api/v1/keys/rotate", rotate),
    ]
}

/// `GET /api/v1/keys`: `keys` of every protocol.
async fn list(State(state): Shared) -> Reply {
    let keys: Vec<OwnKey> = state.speakers.iter().flat_map(|p| p.keys()).collect();
    ok(&json!({"keys": keys}))
}

/// What is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Turn {
    protocol: Option<String>,
    #[serde(default)]
    mode: Mode,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    #[default]
    Plan,
    Prepare,
    Switch,
    Replace,
}

/// `POST /api/v1/keys/rotate`: by itself only the plan.
async fn rotate(State(state): Shared, bytes: Bytes) -> Reply {
    let turn: Turn = body(&bytes)?;
    let name = state.protocol(turn.protocol.as_deref())?;
    let speaker = state
        .speakers
        .iter()
        .find(|p| p.id() == name)
        .ok_or_else(|| Fail::unknown("unknown_protocol", format!("{name} has no keys here")))?;
    let wanted = match turn.mode {
        Mode::Plan => Rotation::Plan,
        Mode::Prepare => Rotation::Prepare,
        Mode::Switch => Rotation::Switch,
        Mode::Replace => Rotation::Replace,
    };
    let answer: Value = speaker
        .rotate(wanted)
        .await
        .map_err(|refusal| Fail::conflict(refusal.code, refusal.detail))?;
    ok(&answer)
}
