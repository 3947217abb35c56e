//! Questions about the outbound queue.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sqlx::AssertSqlSafe;

use super::{Answer, limit, unreadable};
use crate::clock::UnixMs;
use crate::protocol::{PeerName, ProtocolId};
use crate::store::db::{Db, Row};
use crate::store::plan::state_name;
use crate::store::types::{AttemptRow, LaneSummary, QueueCounts, QueueRow, RowFilter, RowState};
use crate::store::value::Value;

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

/// A count that an index answers alone. SQLite is told which: without statistics its planner may take
/// another, and then reads every row.
macro_rules! by_index {
    ($db:expr, $what:literal, $index:literal, $rest:literal) => {
        $db.either(
            concat!(
                $what,
                " FROM federation_queue INDEXED BY ",
                $index,
                " ",
                $rest
            ),
            concat!($what, " FROM federation_queue ", $rest),
        )
    };
}

fn queue_row(row: &Row) -> Answer<QueueRow> {
    let state: String = row.get(8)?;
    Ok(QueueRow {
        id: row.get(0)?,
        protocol: row.get(1)?,
        peer: row.get(2)?,
        msg_id: row.get(3)?,
        out_seq: u64::try_from(row.get::<i64>(4)?).unwrap_or(0),
        event_id: row.get(5)?,
        event_type: row.get(6)?,
        order_key: row.get(7)?,
        state: state_of(&state)?,
        attempts: u32::try_from(row.get::<i64>(9)?).unwrap_or(u32::MAX),
        created_ms: row.get(10)?,
        first_failed_ms: row.get(11)?,
        next_at_ms: row.get(12)?,
        expires_ms: row.get(13)?,
        peer_fault: row.get::<i64>(14)? != 0,
        reason_code: row.get(15)?,
        reason: row.get(16)?,
        traceparent: row.get(17)?,
        settled_ms: row.get(18)?,
        body: row
            .get::<Option<Vec<u8>>>(19)?
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

fn rows_of(rows: &[Row]) -> Answer<Vec<QueueRow>> {
    rows.iter().map(queue_row).collect()
}

/// What a row is unique by.
#[derive(Clone, Debug)]
pub(in crate::store) struct RowName {
    pub protocol: String,
    pub msg_id: String,
    peer: String,
}

/// The names of rows behind this one, by an index that holds them whole; none: there are no more.
pub(in crate::store) async fn ids_after(db: Db, after: Option<RowName>) -> Answer<Vec<RowName>> {
    let (protocol, msg_id, peer) =
        after.map_or_else(Default::default, |a| (a.protocol, a.msg_id, a.peer));
    let rows = db
        .query(
            "SELECT protocol, msg_id, peer FROM federation_queue \
         WHERE (protocol, msg_id, peer) > ($1, $2, $3) ORDER BY protocol, msg_id, peer LIMIT 1000",
        )
        .bind(protocol.as_str())
        .bind(msg_id.as_str())
        .bind(peer.as_str())
        .fetch_all()
        .await?;
    rows.iter()
        .map(|row| {
            Ok(RowName {
                protocol: row.get(0)?,
                msg_id: row.get(1)?,
                peer: row.get(2)?,
            })
        })
        .collect()
}

/// The question after so many ids, a power of two up to 256; each text is made once. A look into the
/// index for each id, and so written that no planner does it otherwise: for `IN` with `DISTINCT`
/// PostgreSQL read the whole index of the protocol.
fn known_sql(ids: usize) -> Arc<str> {
    static TEXTS: [OnceLock<Arc<str>>; 9] = [const { OnceLock::new() }; 9];
    let make = || {
        let marks: Vec<_> = (0..ids).map(|n| format!("(${})", n + 2)).collect();
        format!(
            "WITH wanted (id) AS (VALUES {}) SELECT id FROM wanted WHERE \
             (SELECT 1 FROM federation_queue q \
             WHERE q.protocol = $1 AND q.msg_id = wanted.id LIMIT 1) = 1",
            marks.join(",")
        )
        .into()
    };
    let at = usize::try_from(ids.trailing_zeros()).unwrap_or(usize::MAX);
    TEXTS
        .get(at)
        .map_or_else(make, |text| text.get_or_init(make).clone())
}

pub(in crate::store) async fn known_messages(
    db: Db,
    protocol: ProtocolId,
    ids: Vec<String>,
) -> Answer<HashSet<String>> {
    let mut known = HashSet::new();
    for some in ids.chunks(256) {
        // Padded to a power of two with the last id, so that few statements serve every length.
        let padded = some.len().next_power_of_two();
        let mut query = db.query(AssertSqlSafe(known_sql(padded))).bind(protocol);
        let Some(last) = some.last() else { continue };
        for id in some.iter().chain(std::iter::repeat(last)).take(padded) {
            query = query.bind(id.as_str());
        }
        for row in query.fetch_all().await? {
            known.insert(row.get(0)?);
        }
    }
    Ok(known)
}

/// Copies asked about at once.
const COPIES: usize = 128;

pub(in crate::store) async fn known_copies(
    db: Db,
    protocol: ProtocolId,
    copies: Vec<(String, PeerName)>,
) -> Answer<HashSet<(String, PeerName)>> {
    let mut known = HashSet::new();
    for some in copies.chunks(COPIES) {
        let padded = some.len().next_power_of_two();
        let marks: Vec<_> = (0..padded)
            .map(|n| format!("(${}, ${})", n * 2 + 2, n * 2 + 3))
            .collect();
        let text = format!(
            "WITH wanted (id, peer) AS (VALUES {}) SELECT id, peer FROM wanted WHERE \
             (SELECT 1 FROM federation_queue q WHERE q.protocol = $1 \
             AND q.msg_id = wanted.id AND q.peer = wanted.peer LIMIT 1) = 1",
            marks.join(",")
        );
        let mut query = db.query(AssertSqlSafe(text)).bind(protocol);
        let Some(last) = some.last() else { continue };
        for (id, peer) in some.iter().chain(std::iter::repeat(last)).take(padded) {
            query = query.bind(id.as_str()).bind(peer.as_str());
        }
        for row in query.fetch_all().await? {
            // The names come back as they were asked for.
            if let Ok(peer) = PeerName::parse(&row.get::<String>(1)?) {
                known.insert((row.get(0)?, peer));
            }
        }
    }
    Ok(known)
}

pub(in crate::store) async fn pending(
    db: Db,
    protocol: ProtocolId,
    peer: PeerName,
    after: i64,
    most: usize,
) -> Answer<Vec<QueueRow>> {
    let rows = db
        .query(with_body!(
            "WHERE q.state = 'pending' AND q.protocol = $1 AND q.peer = $2 AND q.id > $3 \
         ORDER BY q.id LIMIT $4"
        ))
        .bind(protocol)
        .bind(peer.as_str())
        .bind(after)
        .bind(limit(most))
        .fetch_all()
        .await?;
    rows_of(&rows)
}

pub(in crate::store) async fn pending_of_key(
    db: Db,
    protocol: ProtocolId,
    peer: PeerName,
    key: String,
    from: i64,
    most: usize,
) -> Answer<Vec<QueueRow>> {
    let rows = db
        .query(with_body!(
            "WHERE q.state = 'pending' AND q.protocol = $1 AND q.peer = $2 AND q.order_key = $3 \
         AND q.id >= $4 ORDER BY q.id LIMIT $5"
        ))
        .bind(protocol)
        .bind(peer.as_str())
        .bind(key)
        .bind(from)
        .bind(limit(most))
        .fetch_all()
        .await?;
    rows_of(&rows)
}

pub(in crate::store) async fn row(db: Db, id: i64) -> Answer<Option<QueueRow>> {
    db.query(with_body!("WHERE q.id = $1"))
        .bind(id)
        .fetch_optional()
        .await?
        .as_ref()
        .map(queue_row)
        .transpose()
}

pub(in crate::store) async fn attempts_of(db: Db, row: i64) -> Answer<Vec<AttemptRow>> {
    let rows = db.query(
        "SELECT queue_id, number, at_ms, duration_ms, status, code, detail FROM delivery_attempts \
         WHERE queue_id = $1 ORDER BY id LIMIT 1000",
    )
    .bind(row)
    .fetch_all()
    .await?;
    rows.iter()
        .map(|r| {
            Ok(AttemptRow {
                queue_id: r.get(0)?,
                number: u32::try_from(r.get::<i64>(1)?).unwrap_or(u32::MAX),
                at_ms: r.get(2)?,
                duration_ms: u64::try_from(r.get::<i64>(3)?).unwrap_or(0),
                status: r.get::<Option<i64>>(4)?.and_then(|s| u16::try_from(s).ok()),
                code: r.get(5)?,
                detail: r.get(6)?,
            })
        })
        .collect()
}

pub(in crate::store) async fn lanes(db: Db) -> Answer<Vec<LaneSummary>> {
    // One pass over the lanes' own index, which holds all that is asked. By name: without
    // statistics the planner may take the other one, and then reads every row.
    let rows = db
        .query(by_index!(
            &db,
            "SELECT protocol, peer, MIN(id), COUNT(*), MIN(COALESCE(next_at_ms, 0))",
            "federation_queue_lane",
            "WHERE state = 'pending' GROUP BY protocol, peer"
        ))
        .fetch_all()
        .await?;
    summaries(&rows)
}

pub(in crate::store) async fn lanes_of(db: Db, protocol: ProtocolId) -> Answer<Vec<LaneSummary>> {
    let rows = db
        .query(by_index!(
            &db,
            "SELECT protocol, peer, MIN(id), COUNT(*), MIN(COALESCE(next_at_ms, 0))",
            "federation_queue_lane",
            "WHERE state = 'pending' AND protocol = $1 GROUP BY protocol, peer"
        ))
        .bind(protocol)
        .fetch_all()
        .await?;
    summaries(&rows)
}

fn summaries(rows: &[Row]) -> Answer<Vec<LaneSummary>> {
    rows.iter()
        .map(|r| {
            Ok(LaneSummary {
                protocol: r.get(0)?,
                peer: r.get(1)?,
                first_id: r.get(2)?,
                rows: u64::try_from(r.get::<i64>(3)?).unwrap_or(0),
                next_at_ms: r.get(4)?,
            })
        })
        .collect()
}

pub(in crate::store) async fn list_rows(db: Db, filter: RowFilter) -> Answer<Vec<QueueRow>> {
    let mut sql = String::from(without_body!("WHERE q.id > $1"));
    let mut values = vec![Value::from(filter.after)];
    for (column, value) in [
        ("q.protocol", filter.protocol),
        ("q.peer", filter.peer),
        ("q.event_type", filter.event_type),
        ("q.reason_code", filter.reason_code),
        ("q.msg_id", filter.msg_id),
    ] {
        if let Some(value) = value {
            values.push(value.into());
            sql.push_str(&format!(" AND {column} = ${}", values.len()));
        }
    }
    for (bound, time) in [
        ("q.created_ms >=", filter.created_from_ms),
        ("q.created_ms <=", filter.created_to_ms),
    ] {
        if let Some(time) = time {
            values.push(time.into());
            sql.push_str(&format!(" AND {bound} ${}", values.len()));
        }
    }
    if !filter.ids.is_empty() {
        let first = values.len() + 1;
        values.extend(filter.ids.iter().map(|id| Value::from(*id)));
        let marks: Vec<_> = (first..=values.len()).map(|n| format!("${n}")).collect();
        sql.push_str(&format!(" AND q.id IN ({})", marks.join(", ")));
    }
    // Written out, not bound: a literal is what lets the partial indexes serve.
    let states: Vec<_> = filter
        .states
        .iter()
        .map(|s| format!("q.state = '{}'", state_name(*s)))
        .collect();
    if !states.is_empty() {
        sql.push_str(&format!(" AND ({})", states.join(" OR ")));
    }
    let most = if filter.limit == 0 { 100 } else { filter.limit };
    values.push(limit(most).into());
    sql.push_str(&format!(" ORDER BY q.id LIMIT ${}", values.len()));
    // Put together from the pieces above; what the caller gave is bound.
    let mut query = db.query(AssertSqlSafe(sql));
    for value in values {
        query = query.bind(value);
    }
    rows_of(&query.fetch_all().await?)
}

pub(in crate::store) async fn expired(
    db: Db,
    now_ms: UnixMs,
    protocols: Vec<ProtocolId>,
    most: usize,
) -> Answer<Vec<QueueRow>> {
    let mut found = Vec::new();
    for protocol in protocols {
        let rows = db
            .query(without_body!(
                "WHERE q.state = 'pending' AND q.expires_ms IS NOT NULL AND q.protocol = $1 \
                 AND q.expires_ms <= $2 ORDER BY q.expires_ms LIMIT $3"
            ))
            .bind(protocol)
            .bind(now_ms)
            .bind(limit(most - found.len()))
            .fetch_all()
            .await?;
        found.extend(rows_of(&rows)?);
        if found.len() >= most {
            break;
        }
    }
    Ok(found)
}

pub(in crate::store) async fn unnoticed_dead(
    db: Db,
    after: i64,
    most: usize,
) -> Answer<Vec<QueueRow>> {
    let rows = db
        .query(with_body!(
            "WHERE q.state = 'failed' AND q.noticed = 0 AND q.id > $1 ORDER BY q.id LIMIT $2"
        ))
        .bind(after)
        .bind(limit(most))
        .fetch_all()
        .await?;
    rows_of(&rows)
}

pub(in crate::store) async fn queue_counts(db: Db) -> Answer<Vec<QueueCounts>> {
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
        let created = db
            .query("SELECT created_ms FROM federation_queue WHERE id = $1")
            .bind(id)
            .fetch_optional()
            .await?;
        if let (Some(c), Some(row)) = (counts.get_mut(&protocol), created) {
            c.oldest_pending_ms = row.get(0)?;
        }
    }
    for (sql, failed) in [
        (
            by_index!(
                &db,
                "SELECT protocol, COUNT(*)",
                "federation_queue_failed",
                "WHERE state = 'failed' GROUP BY protocol"
            ),
            true,
        ),
        (
            by_index!(
                &db,
                "SELECT protocol, COUNT(*)",
                "federation_queue_held",
                "WHERE state = 'held' GROUP BY protocol"
            ),
            false,
        ),
    ] {
        for row in db.query(sql).fetch_all().await? {
            let protocol: String = row.get(0)?;
            let n = u64::try_from(row.get::<i64>(1)?).unwrap_or(0);
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
