//! Every question asked of the database, over the pool of readers.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite};

use super::plan::state_name;
use super::types::{
    AttemptRow, HealthRow, InboundRow, LaneSummary, QueueCounts, QueueRow, RowFilter, RowState,
    TrustRow,
};
use crate::clock::UnixMs;
use crate::protocol::{PeerName, PeerRecord, ProtocolId, ReplayId};

type Answer<T> = Result<T, sqlx::Error>;

/// Columns of a queue row; `body` says what stands for the body.
macro_rules! queue_columns {
    ($body:literal) => {
        concat!(
            "SELECT q.id, q.protocol, q.peer, q.msg_id, q.out_seq, q.event_id, q.event_type, \
             q.order_key, q.state, q.attempts, q.created_ms, q.first_failed_ms, q.next_at_ms, \
             q.expires_ms, q.peer_fault, q.reason_code, q.reason, q.traceparent, q.settled_ms, ",
            $body,
            " FROM federation_queue q "
        )
    };
}
/// With the body, wherever it stands.
macro_rules! with_body {
    ($rest:literal) => {
        concat!(
            queue_columns!("COALESCE(q.body, b.body)"),
            "LEFT JOIN federation_bodies b ON b.id = q.body_ref ",
            $rest
        )
    };
}
/// Without it.
macro_rules! without_body {
    ($rest:literal) => {
        concat!(queue_columns!("NULL"), $rest)
    };
}

fn queue_row(row: &SqliteRow) -> Answer<QueueRow> {
    let state: &str = row.try_get(8)?;
    Ok(QueueRow {
        id: row.try_get(0)?,
        protocol: row.try_get(1)?,
        peer: row.try_get(2)?,
        msg_id: row.try_get(3)?,
        out_seq: u64::try_from(row.try_get::<i64, _>(4)?).unwrap_or(0),
        event_id: row.try_get(5)?,
        event_type: row.try_get(6)?,
        order_key: row.try_get(7)?,
        state: state_of(state)?,
        attempts: u32::try_from(row.try_get::<i64, _>(9)?).unwrap_or(u32::MAX),
        created_ms: row.try_get(10)?,
        first_failed_ms: row.try_get(11)?,
        next_at_ms: row.try_get(12)?,
        expires_ms: row.try_get(13)?,
        peer_fault: row.try_get::<i64, _>(14)? != 0,
        reason_code: row.try_get(15)?,
        reason: row.try_get(16)?,
        traceparent: row.try_get(17)?,
        settled_ms: row.try_get(18)?,
        body: row
            .try_get::<Option<Vec<u8>>, _>(19)?
            .map_or_else(Bytes::new, Bytes::from),
    })
}

fn state_of(name: &str) -> Answer<RowState> {
    match name {
        "pending" => Ok(RowState::Pending),
        "delivered" => Ok(RowState::Delivered),
        "failed" => Ok(RowState::Failed),
        "held" => Ok(RowState::Held),
        other => Err(unreadable(format!("{other:?} is no state of a queue row"))),
    }
}

fn unreadable(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(why.into())
}

fn rows_of(rows: &[SqliteRow]) -> Answer<Vec<QueueRow>> {
    rows.iter().map(queue_row).collect()
}

pub(super) fn limit(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) async fn identity(db: SqlitePool) -> Answer<String> {
    sqlx::query("SELECT value FROM meta WHERE name = 'id'")
        .fetch_one(&db)
        .await?
        .try_get(0)
}

// -------------------------------------------------------------------------------- outbound queue

pub(super) async fn known_messages(
    db: SqlitePool,
    protocol: ProtocolId,
    ids: Vec<String>,
) -> Answer<HashSet<String>> {
    let mut known = HashSet::new();
    for some in ids.chunks(256) {
        // Padded to a power of two with the last id, so that few statements serve every length.
        let padded = some.len().next_power_of_two();
        let marks = vec!["?"; padded].join(",");
        let sql = format!(
            "SELECT DISTINCT msg_id FROM federation_queue WHERE protocol = ? AND msg_id IN ({marks})"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(protocol);
        for id in some.iter().chain(std::iter::repeat_n(
            &some[some.len() - 1],
            padded - some.len(),
        )) {
            query = query.bind(id.as_str());
        }
        for row in query.fetch_all(&db).await? {
            known.insert(row.try_get(0)?);
        }
    }
    Ok(known)
}

pub(super) async fn pending(
    db: SqlitePool,
    protocol: ProtocolId,
    peer: PeerName,
    after: i64,
    most: usize,
) -> Answer<Vec<QueueRow>> {
    let rows = sqlx::query(with_body!(
        "WHERE q.state = 'pending' AND q.protocol = ? AND q.peer = ? AND q.id > ? \
         ORDER BY q.id LIMIT ?"
    ))
    .bind(protocol)
    .bind(peer.as_str())
    .bind(after)
    .bind(limit(most))
    .fetch_all(&db)
    .await?;
    rows_of(&rows)
}

pub(super) async fn pending_of_key(
    db: SqlitePool,
    protocol: ProtocolId,
    peer: PeerName,
    key: String,
    from: i64,
    most: usize,
) -> Answer<Vec<QueueRow>> {
    let rows = sqlx::query(with_body!(
        "WHERE q.state = 'pending' AND q.protocol = ? AND q.peer = ? AND q.order_key = ? \
         AND q.id >= ? ORDER BY q.id LIMIT ?"
    ))
    .bind(protocol)
    .bind(peer.as_str())
    .bind(key)
    .bind(from)
    .bind(limit(most))
    .fetch_all(&db)
    .await?;
    rows_of(&rows)
}

pub(super) async fn row(db: SqlitePool, id: i64) -> Answer<Option<QueueRow>> {
    sqlx::query(with_body!("WHERE q.id = ?"))
        .bind(id)
        .fetch_optional(&db)
        .await?
        .as_ref()
        .map(queue_row)
        .transpose()
}

pub(super) async fn attempts_of(db: SqlitePool, row: i64) -> Answer<Vec<AttemptRow>> {
    let rows = sqlx::query(
        "SELECT queue_id, number, at_ms, duration_ms, status, code, detail FROM delivery_attempts \
         WHERE queue_id = ? ORDER BY id LIMIT 1000",
    )
    .bind(row)
    .fetch_all(&db)
    .await?;
    rows.iter()
        .map(|r| {
            Ok(AttemptRow {
                queue_id: r.try_get(0)?,
                number: u32::try_from(r.try_get::<i64, _>(1)?).unwrap_or(u32::MAX),
                at_ms: r.try_get(2)?,
                duration_ms: u64::try_from(r.try_get::<i64, _>(3)?).unwrap_or(0),
                status: r
                    .try_get::<Option<i64>, _>(4)?
                    .and_then(|s| u16::try_from(s).ok()),
                code: r.try_get(5)?,
                detail: r.try_get(6)?,
            })
        })
        .collect()
}

pub(super) async fn lanes(db: SqlitePool) -> Answer<Vec<LaneSummary>> {
    // One pass over the lanes' own index, which holds all that is asked. By name: without
    // statistics the planner may take the other one, and then reads every row.
    let rows = sqlx::query(
        "SELECT protocol, peer, MIN(id), COUNT(*), MIN(COALESCE(next_at_ms, 0)) \
         FROM federation_queue INDEXED BY federation_queue_lane WHERE state = 'pending' \
         GROUP BY protocol, peer",
    )
    .fetch_all(&db)
    .await?;
    rows.iter()
        .map(|r| {
            Ok(LaneSummary {
                protocol: r.try_get(0)?,
                peer: r.try_get(1)?,
                first_id: r.try_get(2)?,
                rows: u64::try_from(r.try_get::<i64, _>(3)?).unwrap_or(0),
                next_at_ms: r.try_get(4)?,
            })
        })
        .collect()
}

pub(super) async fn list_rows(db: SqlitePool, filter: RowFilter) -> Answer<Vec<QueueRow>> {
    let mut sql = QueryBuilder::<Sqlite>::new(without_body!("WHERE q.id > "));
    sql.push_bind(filter.after);
    for (column, value) in [
        (" AND q.protocol = ", filter.protocol),
        (" AND q.peer = ", filter.peer),
        (" AND q.event_type = ", filter.event_type),
        (" AND q.reason_code = ", filter.reason_code),
        (" AND q.msg_id = ", filter.msg_id),
    ] {
        if let Some(value) = value {
            sql.push(column).push_bind(value);
        }
    }
    for (column, time) in [
        (" AND q.created_ms >= ", filter.created_from_ms),
        (" AND q.created_ms <= ", filter.created_to_ms),
    ] {
        if let Some(time) = time {
            sql.push(column).push_bind(time);
        }
    }
    if let Some((first, rest)) = filter.ids.split_first() {
        sql.push(" AND q.id IN (").push_bind(*first);
        for id in rest {
            sql.push(", ").push_bind(*id);
        }
        sql.push(")");
    }
    // Written out, not bound: a literal is what lets the partial indexes serve.
    let mut states = filter.states.iter().map(|s| state_name(*s));
    if let Some(first) = states.next() {
        sql.push(" AND (q.state = '").push(first).push("'");
        for state in states {
            sql.push(" OR q.state = '").push(state).push("'");
        }
        sql.push(")");
    }
    let most = if filter.limit == 0 { 100 } else { filter.limit };
    sql.push(" ORDER BY q.id LIMIT ").push_bind(limit(most));
    let rows = sql.build().fetch_all(&db).await?;
    rows_of(&rows)
}

pub(super) async fn expired(db: SqlitePool, now_ms: UnixMs, most: usize) -> Answer<Vec<QueueRow>> {
    let rows = sqlx::query(without_body!(
        "WHERE q.state = 'pending' AND q.expires_ms IS NOT NULL AND q.expires_ms <= ? \
         ORDER BY q.expires_ms LIMIT ?"
    ))
    .bind(now_ms)
    .bind(limit(most))
    .fetch_all(&db)
    .await?;
    rows_of(&rows)
}

pub(super) async fn unnoticed_dead(db: SqlitePool, most: usize) -> Answer<Vec<QueueRow>> {
    let rows = sqlx::query(with_body!(
        "WHERE q.state = 'failed' AND q.noticed = 0 ORDER BY q.id LIMIT ?"
    ))
    .bind(limit(most))
    .fetch_all(&db)
    .await?;
    rows_of(&rows)
}

pub(super) async fn queue_counts(db: SqlitePool) -> Answer<Vec<QueueCounts>> {
    let mut counts: HashMap<String, QueueCounts> = HashMap::new();
    let entry = |counts: &mut HashMap<String, QueueCounts>, protocol: String| {
        counts.entry(protocol.clone()).or_insert(QueueCounts {
            protocol,
            pending: 0,
            oldest_pending_ms: None,
            failed: 0,
            held: 0,
        });
    };
    let mut first: HashMap<String, i64> = HashMap::new();
    for lane in lanes(db.clone()).await? {
        let lowest = first.entry(lane.protocol.clone()).or_insert(lane.first_id);
        *lowest = lane.first_id.min(*lowest);
        entry(&mut counts, lane.protocol.clone());
        if let Some(c) = counts.get_mut(&lane.protocol) {
            c.pending += lane.rows;
        }
    }
    // Numbers ascend with time, so the oldest row is the one with the lowest number.
    for (protocol, id) in first {
        let created = sqlx::query_scalar("SELECT created_ms FROM federation_queue WHERE id = ?");
        if let Some(c) = counts.get_mut(&protocol) {
            c.oldest_pending_ms = created.bind(id).fetch_optional(&db).await?;
        }
    }
    for (sql, failed) in [
        (
            "SELECT protocol, COUNT(*) FROM federation_queue INDEXED BY federation_queue_failed \
             WHERE state = 'failed' GROUP BY protocol",
            true,
        ),
        (
            "SELECT protocol, COUNT(*) FROM federation_queue INDEXED BY federation_queue_held \
             WHERE state = 'held' GROUP BY protocol",
            false,
        ),
    ] {
        for row in sqlx::query(sql).fetch_all(&db).await? {
            let protocol: String = row.try_get(0)?;
            let n = u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or(0);
            entry(&mut counts, protocol.clone());
            if let Some(c) = counts.get_mut(&protocol) {
                *(if failed { &mut c.failed } else { &mut c.held }) = n;
            }
        }
    }
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_by(|a, b| a.protocol.cmp(&b.protocol));
    Ok(counts)
}

// -------------------------------------------------------------------------------- inbound ledger

pub(super) fn inbound_row(row: &SqliteRow) -> Answer<InboundRow> {
    let headers: &str = row.try_get::<Option<&str>, _>(5)?.unwrap_or("[]");
    Ok(InboundRow {
        id: row.try_get(0)?,
        protocol: row.try_get(1)?,
        peer: row.try_get(2)?,
        event_id: row.try_get(3)?,
        subject: row.try_get(4)?,
        headers: serde_json::from_str(headers).map_err(unreadable)?,
        payload: Bytes::from(row.try_get::<Vec<u8>, _>(6)?),
    })
}

pub(super) async fn unpublished(
    db: SqlitePool,
    after: i64,
    most: usize,
) -> Answer<Vec<InboundRow>> {
    let rows = sqlx::query(
        "SELECT e.id, e.protocol, e.peer, e.event_id, e.subject, e.headers, e.payload \
         FROM federation_unpublished u JOIN federation_events e ON e.id = u.id \
         WHERE u.id > ? AND e.payload IS NOT NULL ORDER BY u.id LIMIT ?",
    )
    .bind(after)
    .bind(limit(most))
    .fetch_all(&db)
    .await?;
    rows.iter().map(inbound_row).collect()
}

pub(super) async fn inbound_after(
    db: SqlitePool,
    after: i64,
    most: usize,
) -> Answer<Vec<InboundRow>> {
    let rows = sqlx::query(
        "SELECT id, protocol, peer, event_id, subject, headers, payload FROM federation_events \
         WHERE id > ? AND payload IS NOT NULL ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(limit(most))
    .fetch_all(&db)
    .await?;
    rows.iter().map(inbound_row).collect()
}

pub(super) async fn has_inbound(db: SqlitePool, protocol: ProtocolId, key: String) -> Answer<bool> {
    let row = sqlx::query("SELECT 1 FROM federation_events WHERE protocol = ? AND dedupe_key = ?")
        .bind(protocol)
        .bind(key)
        .fetch_optional(&db)
        .await?;
    Ok(row.is_some())
}

pub(super) async fn replay_seen(
    db: SqlitePool,
    protocol: ProtocolId,
    id: ReplayId,
    now_ms: UnixMs,
) -> Answer<bool> {
    let row = sqlx::query(
        "SELECT 1 FROM federation_replay WHERE protocol = ? AND scope = ? AND id = ? \
         AND expires_ms > ?",
    )
    .bind(protocol)
    .bind(id.scope)
    .bind(id.id)
    .bind(now_ms)
    .fetch_optional(&db)
    .await?;
    Ok(row.is_some())
}

// ------------------------------------------------------------------ peers, trust, protocols' rows

/// A protocol's name as the `&'static str` it is elsewhere. Each name is kept once for the life of
/// the process; there are as many as protocols were ever switched on.
pub(super) fn protocol_id(name: &str) -> ProtocolId {
    static NAMES: OnceLock<Mutex<HashSet<&'static str>>> = OnceLock::new();
    let mut names = NAMES
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match names.get(name) {
        Some(known) => known,
        None => {
            let kept: &'static str = Box::leak(name.into());
            names.insert(kept);
            kept
        }
    }
}

pub(super) async fn peers(db: SqlitePool) -> Answer<Vec<PeerRecord>> {
    let rows = sqlx::query(
        "SELECT protocol, domain, federation_url, alternatives, public_key, discovered_via, \
         last_verified_ms, ttl_ms, facts FROM known_relays WHERE status = 'active' \
         ORDER BY protocol, domain",
    )
    .fetch_all(&db)
    .await?;
    rows.iter()
        .map(|r| {
            let key: Option<&[u8]> = r.try_get(4)?;
            Ok(PeerRecord {
                protocol: protocol_id(r.try_get(0)?),
                name: PeerName::parse(r.try_get(1)?).map_err(unreadable)?,
                endpoint: r.try_get(2)?,
                alternatives: serde_json::from_str(r.try_get(3)?).map_err(unreadable)?,
                public_key: key
                    .map(<[u8; 32]>::try_from)
                    .transpose()
                    .map_err(unreadable)?,
                discovered_via: r.try_get(5)?,
                last_verified_ms: r.try_get(6)?,
                ttl_ms: r.try_get(7)?,
                facts: serde_json::from_str(r.try_get(8)?).map_err(unreadable)?,
            })
        })
        .collect()
}

pub(super) async fn health(db: SqlitePool) -> Answer<Vec<HealthRow>> {
    let rows = sqlx::query("SELECT protocol, peer, facts FROM peer_health ORDER BY protocol, peer")
        .fetch_all(&db)
        .await?;
    rows.iter()
        .map(|r| {
            Ok(HealthRow {
                protocol: r.try_get(0)?,
                peer: r.try_get(1)?,
                facts: r.try_get(2)?,
            })
        })
        .collect()
}

pub(super) async fn trust_rules(db: SqlitePool) -> Answer<Vec<TrustRow>> {
    let rows = sqlx::query(
        "SELECT id, protocol, pattern, rule, reason, created_ms, ends_ms FROM federation_trust \
         ORDER BY id",
    )
    .fetch_all(&db)
    .await?;
    rows.iter()
        .map(|r| {
            Ok(TrustRow {
                id: r.try_get(0)?,
                protocol: r.try_get(1)?,
                pattern: r.try_get(2)?,
                rule: r.try_get(3)?,
                reason: r.try_get(4)?,
                created_ms: r.try_get(5)?,
                ends_ms: r.try_get(6)?,
            })
        })
        .collect()
}

pub(super) async fn scores(db: SqlitePool) -> Answer<Vec<(String, String, i64)>> {
    sqlx::query_as("SELECT protocol, peer, score FROM relay_reputation ORDER BY protocol, peer")
        .fetch_all(&db)
        .await
}

pub(super) async fn records(
    db: SqlitePool,
    protocol: ProtocolId,
    kind: String,
) -> Answer<Vec<(String, String)>> {
    sqlx::query_as(
        "SELECT key, value FROM protocol_records WHERE protocol = ? AND kind = ? ORDER BY key",
    )
    .bind(protocol)
    .bind(kind)
    .fetch_all(&db)
    .await
}

pub(super) async fn record(
    db: SqlitePool,
    protocol: ProtocolId,
    kind: String,
    key: String,
) -> Answer<Option<String>> {
    sqlx::query_scalar(
        "SELECT value FROM protocol_records WHERE protocol = ? AND kind = ? AND key = ?",
    )
    .bind(protocol)
    .bind(kind)
    .bind(key)
    .fetch_optional(&db)
    .await
}

pub(super) async fn server_keys(
    db: SqlitePool,
    protocol: ProtocolId,
) -> Answer<Vec<(String, String, i64)>> {
    sqlx::query_as(
        "SELECT key_id, public_key, first_seen_ms FROM federation_server_keys \
         WHERE protocol = ? ORDER BY first_seen_ms, key_id",
    )
    .bind(protocol)
    .fetch_all(&db)
    .await
}
