//! A plan written to SQLite in one transaction.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use super::bulk::{Binds, Shape, Texts};
use super::held::Admission;
use super::ops::{Answer, Arrival, Single};
use super::plan::{Plan, PlannedRow, outcome_columns};
use super::types::{Accepted, StoreError, StoreErrorKind};
use super::writer::{Answers, Backend};
use super::{checkpoint, held, single, sqlite};
use crate::clock::{Clock, UnixMs};
use crate::protocol::{ProtocolId, Record};

/// Ledger numbers are reserved in the file this many ahead, so that a number handed out before a
/// crash is not handed out again after it.
const AHEAD: i64 = 65_536;

const INSERT_ROWS: Shape = Shape {
    before: "INSERT INTO federation_queue (id, protocol, peer, msg_id, out_seq, event_id, event_type, \
             order_key, state, attempts, created_ms, first_failed_ms, next_at_ms, expires_ms, \
             peer_fault, reason_code, reason, traceparent, settled_ms, body_ref, body) VALUES ",
    columns: 21,
    after: " ON CONFLICT DO NOTHING",
};
/// The same, telling which rows were new.
const INSERT_ROWS_TOLD: Shape = Shape {
    before: "INSERT INTO federation_queue (id, protocol, peer, msg_id, out_seq, event_id, event_type, \
             order_key, state, attempts, created_ms, first_failed_ms, next_at_ms, expires_ms, \
             peer_fault, reason_code, reason, traceparent, settled_ms, body_ref, body) VALUES ",
    columns: 21,
    after: " ON CONFLICT DO NOTHING RETURNING id",
};
const INSERT_BODIES: Shape = Shape {
    before: "INSERT INTO federation_bodies (id, body) VALUES ",
    columns: 2,
    after: " ON CONFLICT DO NOTHING",
};
const UPDATE_ROWS: Shape = Shape {
    before: "WITH v (id, state, attempts, first_failed_ms, next_at_ms, peer_fault, reason_code, \
             reason, settled_ms) AS (VALUES ",
    columns: 9,
    after: ") UPDATE federation_queue SET state = v.state, attempts = v.attempts, \
            first_failed_ms = COALESCE(v.first_failed_ms, federation_queue.first_failed_ms), \
            next_at_ms = v.next_at_ms, peer_fault = v.peer_fault, reason_code = v.reason_code, \
            reason = v.reason, settled_ms = v.settled_ms, noticed = 0, \
            body_ref = CASE WHEN v.state = 'delivered' THEN NULL ELSE body_ref END, \
            body = CASE WHEN v.state = 'delivered' THEN NULL ELSE body END \
            FROM v WHERE federation_queue.id = v.id AND federation_queue.state <> 'delivered'",
};
const INSERT_ATTEMPTS: Shape = Shape {
    before: "INSERT INTO delivery_attempts (queue_id, number, at_ms, duration_ms, status, code, detail) VALUES ",
    columns: 7,
    after: "",
};
const NOTICED: Shape = Shape {
    before: "WITH v (id) AS (VALUES ",
    columns: 1,
    after: ") UPDATE federation_queue SET noticed = 1 WHERE id IN (SELECT id FROM v)",
};
const KNOWN_EVENTS: Shape = Shape {
    before: "WITH v (protocol, dedupe_key) AS (VALUES ",
    columns: 2,
    after: ") SELECT e.protocol, e.dedupe_key, e.id, e.payload_hash, u.id IS NULL \
            FROM v CROSS JOIN federation_events e LEFT JOIN federation_unpublished u ON u.id = e.id \
            WHERE e.protocol = v.protocol AND e.dedupe_key = v.dedupe_key",
};
const KNOWN_REPLAYS: Shape = Shape {
    before: "WITH v (protocol, scope, id) AS (VALUES ",
    columns: 3,
    after: ") SELECT r.protocol, r.scope, r.id, r.expires_ms FROM v CROSS JOIN federation_replay r \
            WHERE r.protocol = v.protocol AND r.scope = v.scope AND r.id = v.id",
};
const INSERT_EVENTS: Shape = Shape {
    before: "INSERT INTO federation_events (id, protocol, peer, dedupe_key, event_id, event_type, \
             subject, received_ms, payload_hash, headers, payload) VALUES ",
    columns: 11,
    after: "",
};
const INSERT_UNPUBLISHED: Shape = Shape {
    before: "INSERT INTO federation_unpublished (id) VALUES ",
    columns: 1,
    after: "",
};
const INSERT_REPLAYS: Shape = Shape {
    before: "INSERT INTO federation_replay (protocol, scope, id, expires_ms) VALUES ",
    columns: 4,
    after: " ON CONFLICT (protocol, scope, id) DO UPDATE SET expires_ms = excluded.expires_ms",
};
const PUBLISHED: Shape = Shape {
    before: "WITH v (id) AS (VALUES ",
    columns: 1,
    after: ") DELETE FROM federation_unpublished WHERE id IN (SELECT id FROM v)",
};
const PUT_RECORDS: Shape = Shape {
    before: "INSERT INTO protocol_records (protocol, kind, key, value) VALUES ",
    columns: 4,
    after: " ON CONFLICT (protocol, kind, key) DO UPDATE SET value = excluded.value",
};

/// Counters kept in `meta` and, between commits, in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// No queue row at or above this number was ever written.
    pub rows: i64,
    /// The next inbound ledger number.
    pub next_event: i64,
    /// No inbound event at or above this number was ever written.
    pub events: i64,
    /// Events held back from `fed.in`.
    pub held: i64,
    /// Bytes of inbound bodies kept.
    pub inbound_bytes: i64,
}

/// The writing side of one SQLite file.
pub(super) struct SqliteWriter {
    path: PathBuf,
    clock: Clock,
    /// `None` after it broke; made anew by the next write.
    conn: Option<SqliteConnection>,
    texts: Texts,
    marks: Marks,
    /// One past the highest number [`super::Store::reserve_rows`] gave, for a clean close.
    reserved: std::sync::Arc<std::sync::atomic::AtomicI64>,
    file: Option<(u64, u64)>,
    max_pages: Option<i64>,
    _lock: sqlite::Lock,
}

impl SqliteWriter {
    /// Over an opened connection whose `marks` were read (see [`single::load_marks`]).
    pub fn new(
        path: &Path,
        clock: Clock,
        conn: SqliteConnection,
        marks: Marks,
        reserved: std::sync::Arc<std::sync::atomic::AtomicI64>,
        lock: sqlite::Lock,
    ) -> Self {
        Self {
            path: path.into(),
            clock,
            conn: Some(conn),
            texts: Texts::default(),
            marks,
            reserved,
            file: sqlite::identity(path),
            max_pages: None,
            _lock: lock,
        }
    }

    /// The connection, taken out; a broken one is replaced.
    async fn take(&mut self) -> Result<SqliteConnection, StoreError> {
        if sqlite::identity(&self.path) != self.file || self.file.is_none() {
            return Err(StoreError {
                kind: StoreErrorKind::Unavailable,
                detail: format!(
                    "{} was moved or deleted while in use; put it back",
                    self.path.display()
                ),
            });
        }
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => {
                let options = sqlite::writer_options(&self.path);
                let mut conn = SqliteConnection::connect_with(&options)
                    .await
                    .map_err(sqlite::meaning)?;
                single::limit_pages(&mut conn, self.max_pages)
                    .await
                    .map_err(sqlite::meaning)?;
                Ok(conn)
            }
        }
    }

    /// Ends a transaction that failed; a connection that cannot even do that is given up.
    async fn undo(&mut self, mut conn: SqliteConnection) {
        // After a full disk SQLite may have rolled back by itself: then this statement fails and
        // the connection is as good as new, which the next BEGIN shows.
        let rolled_back = exec(&mut conn, "ROLLBACK").await;
        let usable = match rolled_back {
            Ok(()) => true,
            Err(_) => {
                exec(&mut conn, "BEGIN").await.is_ok() && exec(&mut conn, "ROLLBACK").await.is_ok()
            }
        };
        if usable {
            self.conn = Some(conn);
        } else {
            let _ = conn.close_hard().await;
        }
    }

    async fn write(
        &mut self,
        conn: &mut SqliteConnection,
        plan: &Plan<'_>,
        marks: &mut Marks,
    ) -> Result<Answers, sqlx::Error> {
        let now_ms = self.clock.now_ms();
        let mut answers = Answers::default();
        let texts = &mut self.texts;

        let mut records: Vec<(ProtocolId, &Record)> = Vec::new();
        if !plan.rows.is_empty() {
            texts
                .execute(conn, &INSERT_BODIES, &plan.bodies, |b, (id, body)| {
                    b.int(*id).blob(body);
                })
                .await?;
            records = insert_rows(conn, texts, &plan.rows, now_ms).await?;
            let top = plan.rows.iter().map(|r| r.row.id).max().unwrap_or(0);
            if top >= marks.rows {
                marks.rows = top.saturating_add(AHEAD);
                single::put_mark(conn, "rows", marks.rows).await?;
            }
        }
        texts
            .execute(conn, &UPDATE_ROWS, &plan.settles, |b, settle| {
                let c = outcome_columns(settle);
                b.int(settle.row)
                    .text(c.state)
                    .int(i64::from(c.attempts))
                    .opt_int(c.first_failed_ms)
                    .opt_int(c.next_at_ms)
                    .int(i64::from(c.peer_fault))
                    .opt_text(c.code)
                    .opt_text(c.reason)
                    .opt_int(c.settled_ms);
            })
            .await?;
        texts
            .execute(conn, &INSERT_ATTEMPTS, &plan.attempts, |b, a| {
                b.int(a.queue_id)
                    .int(i64::from(a.number))
                    .int(a.at_ms)
                    .int(i64::try_from(a.duration_ms).unwrap_or(i64::MAX))
                    .opt_int(a.status.map(i64::from))
                    .text(&a.code)
                    .text(&a.detail);
            })
            .await?;
        texts
            .execute(conn, &NOTICED, &plan.noticed, |b, id| {
                b.int(*id);
            })
            .await?;
        if !plan.arrivals.is_empty() {
            answers.arrivals = arrive(conn, texts, &plan.arrivals, now_ms, marks).await?;
        }
        texts
            .execute(conn, &PUBLISHED, &plan.published, |b, id| {
                b.int(*id);
            })
            .await?;
        if !plan.acked.is_empty() {
            checkpoint::note(conn, &plan.acked).await?;
        }
        records.extend(&plan.records);
        put_records(conn, texts, &records).await?;
        for op in &plan.singles {
            answers.singles.push(match op {
                Single::ReleaseHeld(batch) => {
                    Answer::Released(held::release(conn, batch, now_ms, marks).await?)
                }
                op => Answer::Number(single::run(conn, op, marks).await?),
            });
        }
        Ok(answers)
    }
}

impl Backend for SqliteWriter {
    async fn commit(&mut self, plan: &Plan<'_>) -> Result<Answers, StoreError> {
        let mut conn = self.take().await?;
        let mut marks = self.marks;
        let result = async {
            exec(&mut conn, "BEGIN IMMEDIATE").await?;
            let answers = self.write(&mut conn, plan, &mut marks).await?;
            if marks.inbound_bytes != self.marks.inbound_bytes {
                single::put_mark(&mut conn, "inbound_bytes", marks.inbound_bytes).await?;
            }
            exec(&mut conn, "COMMIT").await?;
            Ok(answers)
        }
        .await;
        match result {
            Ok(answers) => {
                self.conn = Some(conn);
                self.marks = marks;
                for op in &plan.singles {
                    if let Some(pages) = single::page_limit(op) {
                        self.max_pages = pages;
                    }
                }
                Ok(answers)
            }
            Err(e) => {
                // Numbers given to events of a transaction that failed are not given again: whether
                // it reached the disk all the same is not certain.
                self.marks.next_event = marks.next_event;
                self.undo(conn).await;
                Err(sqlite::meaning(e))
            }
        }
    }

    async fn probe(&mut self) -> Result<(), StoreError> {
        let mut conn = self.take().await?;
        let result = async {
            exec(&mut conn, "BEGIN IMMEDIATE").await?;
            single::try_room(&mut conn).await?;
            exec(&mut conn, "COMMIT").await
        }
        .await;
        match result {
            Ok(()) => {
                self.conn = Some(conn);
                Ok(())
            }
            Err(e) => {
                self.undo(conn).await;
                Err(sqlite::meaning(e))
            }
        }
    }

    async fn close(mut self) {
        let Ok(mut conn) = self.take().await else {
            return;
        };
        // A clean stop knows exactly which numbers are used: no gap at the next start.
        let rows = self.reserved.load(std::sync::atomic::Ordering::Acquire);
        let tidy = async {
            exec(&mut conn, "BEGIN IMMEDIATE").await?;
            single::put_mark(&mut conn, "rows", rows).await?;
            single::put_mark(&mut conn, "events", self.marks.next_event).await?;
            exec(&mut conn, "COMMIT").await
        }
        .await;
        if let Err(e) = tidy {
            tracing::warn!(error = %e, "closing the store: the last numbers were not noted, the next start skips some");
        }
        if let Err(e) = conn.close().await {
            tracing::warn!(error = %e, "closing the store's file failed; nothing committed is lost");
        }
    }
}

/// Runs one fixed statement.
pub(super) async fn exec(
    conn: &mut SqliteConnection,
    sql: &'static str,
) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(conn).await.map(drop)
}

/// Inserts rows, skipping those whose message is known; answers the records of those that were new.
async fn insert_rows<'a>(
    conn: &mut SqliteConnection,
    texts: &mut Texts,
    rows: &[PlannedRow<'a>],
    now_ms: UnixMs,
) -> Result<Vec<(ProtocolId, &'a Record)>, sqlx::Error> {
    let bind = |b: &mut Binds, planned: &PlannedRow<'_>| {
        let (row, c) = (planned.row, planned.columns(now_ms));
        let body = (planned.body_ref.is_none() && planned.keeps_body()).then_some(&*row.body);
        b.int(row.id)
            .text(row.protocol)
            .text(&row.peer)
            .text(&row.msg_id)
            .int(i64::try_from(row.out_seq).unwrap_or(i64::MAX))
            .text(&row.event_id)
            .text(&row.event_type)
            .text(&row.order_key)
            .text(c.state)
            .int(i64::from(c.attempts))
            .int(row.created_ms)
            .opt_int(c.first_failed_ms)
            .opt_int(c.next_at_ms)
            .opt_int(row.expires_ms)
            .int(i64::from(c.peer_fault))
            .opt_text(c.code)
            .opt_text(c.reason)
            .opt_text(row.traceparent.as_deref())
            .opt_int(c.settled_ms)
            .opt_int(planned.body_ref)
            .opt_blob(body);
    };
    if rows.iter().all(|r| r.row.records.is_empty()) {
        texts.execute(conn, &INSERT_ROWS, rows, bind).await?;
        return Ok(Vec::new());
    }
    let mut new = HashSet::new();
    for row in texts
        .fetch(conn, &INSERT_ROWS_TOLD, rows, false, bind)
        .await?
    {
        new.insert(row.try_get::<i64, _>(0)?);
    }
    Ok(rows
        .iter()
        .filter(|r| new.contains(&r.row.id))
        .flat_map(|r| r.row.records.iter().map(|record| (r.row.protocol, record)))
        .collect())
}

/// Takes events in: what is known is looked up for all of them at once, decided in order in memory,
/// and the new ones inserted together.
async fn arrive(
    conn: &mut SqliteConnection,
    texts: &mut Texts,
    arrivals: &[&Arrival],
    now_ms: UnixMs,
    marks: &mut Marks,
) -> Result<Vec<Answer>, sqlx::Error> {
    let mut known: HashMap<(String, String), (i64, Vec<u8>, bool)> = HashMap::new();
    for row in texts
        .fetch(conn, &KNOWN_EVENTS, arrivals, true, |b, a| {
            b.text(a.event.protocol).text(&a.event.dedupe_key);
        })
        .await?
    {
        known.insert(
            (row.try_get(0)?, row.try_get(1)?),
            (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?),
        );
    }
    let ids: Vec<_> = arrivals
        .iter()
        .flat_map(|a| a.event.replay.iter().map(|id| (a.event.protocol, id)))
        .collect();
    let mut replayed: HashSet<(String, String, Vec<u8>)> = HashSet::new();
    for row in texts
        .fetch(conn, &KNOWN_REPLAYS, &ids, true, |b, (protocol, id)| {
            b.text(protocol).text(&id.scope).blob(&id.id);
        })
        .await?
    {
        if row.try_get::<i64, _>(3)? > now_ms {
            replayed.insert((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        }
    }

    let mut rooms = held::Rooms::load(conn, texts, arrivals, marks).await?;
    let mut kept_back: Vec<(i64, &Arrival)> = Vec::new();
    let mut answers = Vec::with_capacity(arrivals.len());
    let mut new: Vec<(i64, &Arrival, String)> = Vec::new();
    let mut new_ids = Vec::new();
    for arrival in arrivals {
        let event = &arrival.event;
        let key = (event.protocol.to_owned(), event.dedupe_key.clone());
        if let Some((id, hash, published)) = known.get(&key) {
            answers.push(Answer::Accepted(Accepted::Duplicate {
                id: *id,
                published: *published,
                same: hash[..] == arrival.hash,
            }));
            continue;
        }
        let id_key = |id: &crate::protocol::ReplayId| {
            (event.protocol.to_owned(), id.scope.clone(), id.id.clone())
        };
        if event.replay.iter().any(|id| replayed.contains(&id_key(id))) {
            answers.push(Answer::Accepted(Accepted::Replayed));
            continue;
        }
        let admission = rooms.admit(arrival);
        if admission == Admission::Full {
            answers.push(Answer::Accepted(Accepted::HeldFull));
            continue;
        }
        let id = marks.next_event;
        marks.next_event = id.saturating_add(1);
        answers.push(Answer::Accepted(match admission {
            Admission::Held => {
                kept_back.push((id, *arrival));
                Accepted::Held(id)
            }
            _ => Accepted::New(id),
        }));
        known.insert(key, (id, arrival.hash.to_vec(), false));
        for replay in &event.replay {
            // An id named twice by one event is one id.
            if replayed.insert(id_key(replay)) {
                new_ids.push((event.protocol, replay));
            }
        }
        marks.inbound_bytes += i64::try_from(event.payload.len()).unwrap_or(i64::MAX);
        let headers =
            serde_json::to_string(&event.headers).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
        new.push((id, arrival, headers));
    }
    reserve_numbers(conn, marks).await?;
    texts
        .execute(conn, &INSERT_EVENTS, &new, |b, (id, a, headers)| {
            b.int(*id)
                .text(a.event.protocol)
                .text(a.event.peer.as_str())
                .text(&a.event.dedupe_key)
                .text(&a.event.event_id)
                .text(&a.event.event_type)
                .text(&a.event.subject)
                .int(a.event.received_ms)
                .blob(&a.hash)
                .text(headers)
                .blob(&a.event.payload);
        })
        .await?;
    texts
        .execute(conn, &INSERT_UNPUBLISHED, &new, |b, (id, _, _)| {
            b.int(*id);
        })
        .await?;
    if !kept_back.is_empty() {
        held::insert(conn, texts, &kept_back, marks).await?;
    }
    texts
        .execute(conn, &INSERT_REPLAYS, &new_ids, |b, (protocol, id)| {
            b.text(protocol)
                .text(&id.scope)
                .blob(&id.id)
                .int(id.expires_ms);
        })
        .await?;
    Ok(answers)
}

/// Takes the next inbound ledger numbers; answers the first.
pub(super) async fn take_numbers(
    conn: &mut SqliteConnection,
    marks: &mut Marks,
    count: i64,
) -> Result<i64, sqlx::Error> {
    let first = marks.next_event;
    marks.next_event = first.saturating_add(count);
    reserve_numbers(conn, marks).await?;
    Ok(first)
}

/// Keeps the reservation in the file ahead of the numbers taken.
async fn reserve_numbers(
    conn: &mut SqliteConnection,
    marks: &mut Marks,
) -> Result<(), sqlx::Error> {
    if marks.next_event > marks.events {
        marks.events = marks.next_event.saturating_add(AHEAD);
        single::put_mark(conn, "events", marks.events).await?;
    }
    Ok(())
}

/// Writes and deletes protocol records; of several for one key the last counts.
async fn put_records(
    conn: &mut SqliteConnection,
    texts: &mut Texts,
    records: &[(ProtocolId, &Record)],
) -> Result<(), sqlx::Error> {
    let mut last: HashMap<(&str, &str, &str), Option<&str>> = HashMap::new();
    for (protocol, r) in records {
        last.insert((*protocol, r.kind, &r.key), r.value.as_deref());
    }
    let mut puts = Vec::new();
    for ((protocol, kind, key), value) in last {
        match value {
            Some(value) => puts.push((protocol, kind, key, value)),
            None => {
                sqlx::query(
                    "DELETE FROM protocol_records WHERE protocol = ? AND kind = ? AND key = ?",
                )
                .bind(protocol)
                .bind(kind)
                .bind(key)
                .execute(&mut *conn)
                .await?;
            }
        }
    }
    texts
        .execute(conn, &PUT_RECORDS, &puts, |b, (p, k, key, value)| {
            b.text(p).text(k).text(key).text(value);
        })
        .await
        .map(drop)
}
