//! Questions about the inbound ledger.

use bytes::Bytes;

use super::{Answer, limit, unreadable};
use crate::clock::UnixMs;
use crate::protocol::{ProtocolId, ReplayId};
use crate::store::db::{Db, Row};
use crate::store::types::InboundRow;

pub(in crate::store) fn inbound_row(row: &Row) -> Answer<InboundRow> {
    let headers: Option<String> = row.get(5)?;
    let headers = headers.as_deref().unwrap_or("[]");
    Ok(InboundRow {
        id: row.get(0)?,
        protocol: row.get(1)?,
        peer: row.get(2)?,
        event_id: row.get(3)?,
        subject: row.get(4)?,
        headers: serde_json::from_str(headers).map_err(unreadable)?,
        payload: Bytes::from(row.get::<Vec<u8>>(6)?),
    })
}

pub(in crate::store) async fn unpublished(
    db: Db,
    after: i64,
    most: usize,
) -> Answer<Vec<InboundRow>> {
    let rows = db
        .query(
            "SELECT e.id, e.protocol, e.peer, e.event_id, e.subject, e.headers, e.payload \
         FROM federation_unpublished u JOIN federation_events e ON e.id = u.id \
         WHERE u.id > $1 AND e.payload IS NOT NULL ORDER BY u.id LIMIT $2",
        )
        .bind(after)
        .bind(limit(most))
        .fetch_all()
        .await?;
    rows.iter().map(inbound_row).collect()
}

pub(in crate::store) async fn inbound_after(
    db: Db,
    after: i64,
    most: usize,
) -> Answer<Vec<InboundRow>> {
    let rows = db
        .query(
            "SELECT id, protocol, peer, event_id, subject, headers, payload FROM federation_events \
         WHERE id > $1 AND payload IS NOT NULL ORDER BY id LIMIT $2",
        )
        .bind(after)
        .bind(limit(most))
        .fetch_all()
        .await?;
    rows.iter().map(inbound_row).collect()
}

pub(in crate::store) async fn has_inbound(
    db: Db,
    protocol: ProtocolId,
    key: String,
) -> Answer<bool> {
    let row = db
        .query("SELECT 1 FROM federation_events WHERE protocol = $1 AND dedupe_key = $2")
        .bind(protocol)
        .bind(key)
        .fetch_optional()
        .await?;
    Ok(row.is_some())
}

pub(in crate::store) async fn replay_seen(
    db: Db,
    protocol: ProtocolId,
    id: ReplayId,
    now_ms: UnixMs,
) -> Answer<bool> {
    let row = db
        .query(
            "SELECT 1 FROM federation_replay WHERE protocol = $1 AND scope = $2 AND id = $3 \
         AND expires_ms > $4",
        )
        .bind(protocol)
        .bind(id.scope)
        .bind(id.id)
        .bind(now_ms)
        .fetch_optional()
        .await?;
    Ok(row.is_some())
}
