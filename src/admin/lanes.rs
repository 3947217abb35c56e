//! Orders to one peer's lane: pause, resume, probe, reset, flush.
//!
//! Each answers `outlook`, how the lane stands then; a flush says in `rows` how many messages it made
//! due, a probe in `probed` whether there was one to try the peer with.

use axum::body::Bytes;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::routes::{Route, post};
use super::{AdminState, Fail, Reply, Shared, body, end, ok, peer_name};
use crate::outbound::Control;
use crate::protocol::{PeerName, ProtocolId};

/// Longest reason, characters.
const MAX_REASON: usize = 500;

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/api/v1/peers/{protocol}/{name}/pause", pause),
        post("/api/v1/peers/{protocol}/{name}/resume", resume),
        post("/api/v1/peers/{protocol}/{name}/probe", probe),
        post("/api/v1/peers/{protocol}/{name}/reset", reset),
        post("/api/v1/peers/{protocol}/{name}/flush", flush),
    ]
}

type Whose = Path<(String, String)>;

/// The lanes, and the one that the path names.
fn whose(state: &AdminState, path: Whose) -> Result<(&Control, ProtocolId, PeerName), Fail> {
    let Path((protocol, name)) = path;
    let protocol = state.protocol(Some(&protocol))?;
    let name = peer_name(&name)?;
    let lanes = state.lanes.as_ref().ok_or_else(|| {
        let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
        Fail::new(status, "nothing_is_sent", "this bridge does not send")
    })?;
    Ok((lanes, protocol, name))
}

async fn outcome(
    lanes: &Control,
    protocol: ProtocolId,
    name: &PeerName,
    more: (&str, Value),
) -> Reply {
    let outlook = lanes.look(protocol, name).await?;
    let mut body = json!({"outlook": outlook});
    if let (Value::Object(members), false) = (&mut body, more.0.is_empty()) {
        members.insert(more.0.to_owned(), more.1);
    }
    ok(&body)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pause {
    reason: Option<String>,
    /// RFC 3339.
    until: Option<String>,
    /// A duration such as `2h`.
    #[serde(rename = "for")]
    lasting: Option<String>,
}

/// `POST …/pause`: nothing is attempted until it is resumed, or until the end given.
async fn pause(State(state): Shared, path: Whose, bytes: Bytes) -> Reply {
    let wanted: Pause = body(&bytes)?;
    let (lanes, protocol, name) = whose(&state, path)?;
    let now = state.clock.now_ms();
    let until_ms = end::at(wanted.until.as_deref(), wanted.lasting.as_deref(), now)?;
    let reason = wanted.reason.map(|text| {
        let plain = text.chars().filter(|c| !c.is_control());
        plain.take(MAX_REASON).collect()
    });
    lanes.pause(protocol, &name, reason, until_ms).await?;
    outcome(lanes, protocol, &name, ("", Value::Null)).await
}

/// `POST …/resume`: ends a pause.
async fn resume(State(state): Shared, path: Whose) -> Reply {
    let (lanes, protocol, name) = whose(&state, path)?;
    lanes.resume(protocol, &name).await?;
    outcome(lanes, protocol, &name, ("", Value::Null)).await
}

/// `POST …/probe`: one attempt now, even while the peer is backing off.
async fn probe(State(state): Shared, path: Whose) -> Reply {
    let (lanes, protocol, name) = whose(&state, path)?;
    let probed = lanes.probe(protocol, &name).await?;
    outcome(lanes, protocol, &name, ("probed", json!(probed))).await
}

/// `POST …/reset`: its failures are forgotten.
async fn reset(State(state): Shared, path: Whose) -> Reply {
    let (lanes, protocol, name) = whose(&state, path)?;
    lanes.reset(protocol, &name).await?;
    outcome(lanes, protocol, &name, ("", Value::Null)).await
}

/// `POST …/flush`: everything that waits for a retry is due now.
async fn flush(State(state): Shared, path: Whose) -> Reply {
    let (lanes, protocol, name) = whose(&state, path)?;
    let rows = lanes.flush(protocol, &name).await?;
    outcome(lanes, protocol, &name, ("rows", json!(rows))).await
}
