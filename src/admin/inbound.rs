//! Inbound events whose bodies the ledger still holds (a day, as a rule): for a replay of what the
//! stream no longer has.

use axum::extract::{RawQuery, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::params::Params;
use super::routes::{Route, get};
use super::{Access, Reply, Shared, ok};
use crate::store::InboundRow;

/// Events of one answer when `limit` is not given.
const DEFAULT_LIMIT: usize = 100;
/// And at most.
const MAX_LIMIT: i64 = 500;
/// Rows read at once.
const STEP: usize = 50;
/// Rows looked at for one answer.
const MAX_LOOKED: usize = 5_000;
/// An answer with this many bytes of bodies is full.
const MAX_BYTES: usize = 8 << 20;

pub(super) fn routes() -> Vec<Route> {
    vec![get("/api/v1/inbound", Access::Token, list)]
}

/// `GET /api/v1/inbound`: `events` in the order in which they went to `fed.in`; parameters `protocol`,
/// `peer`, `type`, `from_ms` (received at this time or later), `after` (a ledger number), `limit`.
/// What is held of a quarantined peer is not among them.
async fn list(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    let mut params = Params::read(query.as_deref())?;
    let protocol = params.text("protocol");
    let peer = params.text("peer").map(|name| name.to_ascii_lowercase());
    let kind = params.text("type");
    let from_ms = params.number("from_ms", 0, i64::MAX)?;
    let after = params.number("after", 0, i64::MAX)?;
    let limit = params.number("limit", 1, MAX_LIMIT)?;
    params.end()?;
    let limit = limit.map_or(DEFAULT_LIMIT, |n| usize::try_from(n).unwrap_or(1));
    let now_ms = state.clock.now_ms();
    let mut after = after.unwrap_or(0);
    if let Some(from_ms) = from_ms {
        match state.store.inbound_since(from_ms).await? {
            Some(first) => after = after.max(first - 1),
            None => return ok(&json!({"now_ms": now_ms, "events": [], "next": null})),
        }
    }
    let wanted = |row: &InboundRow| {
        let header = |name: &str| row.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        row.subject.split('.').nth(1) == Some("in")
            && protocol.as_ref().is_none_or(|p| *p == row.protocol)
            && peer.as_ref().is_none_or(|p| *p == row.peer)
            && (kind.is_none() || header("Fed-Type") == kind.as_ref())
    };
    let (mut events, mut bytes, mut looked) = (Vec::new(), 0, 0);
    let next = loop {
        let rows = state.store.inbound_after(after, STEP).await?;
        let full = rows.len() == STEP;
        looked += rows.len();
        for row in rows {
            after = row.id;
            if wanted(&row) {
                bytes += row.payload.len();
                events.push(shown(&row));
            }
            if events.len() >= limit || bytes >= MAX_BYTES {
                break;
            }
        }
        if events.len() >= limit || bytes >= MAX_BYTES || full && looked >= MAX_LOOKED {
            break Some(after);
        }
        if !full {
            break None;
        }
    };
    ok(&json!({"now_ms": now_ms, "events": events, "next": next}))
}

/// The payload exactly as it went out: as text, or in base64 where it is none.
fn shown(row: &InboundRow) -> Value {
    let text = std::str::from_utf8(&row.payload).ok();
    let base64 = text.is_none().then(|| STANDARD.encode(&row.payload));
    json!({
        "id": row.id,
        "protocol": row.protocol,
        "peer": row.peer,
        "event_id": row.event_id,
        "subject": row.subject,
        "headers": row.headers,
        "payload": text,
        "payload_base64": base64,
    })
}
