//! A plan written within one transaction: rows, outcomes, attempts, notices, arrivals,
//! acknowledgements, records, single operations, in this order.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use super::arrive::arrive;
use super::bulk::{Binds, Texts};
use super::checkpoint::Acked;
use super::db::Conn;
use super::ops::{Answer, Single};
use super::plan::{Plan, PlannedRow, outcome_columns};
use super::shapes::*;
use super::types::NewRow;
use super::writer::Answers;
use super::{checkpoint, held, leases, prune, room_events, single};
use crate::clock::UnixMs;
use crate::protocol::{ProtocolId, Record, RoomEvent};

/// Ledger numbers are reserved in the database this many ahead, so that a number handed out before a
/// crash is not handed out again after it.
pub(super) const AHEAD: i64 = 65_536;

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
    /// Inbound numbers are reserved this many ahead.
    pub ahead: i64,
    /// Several instances: the history of the streams that is in force.
    pub series: i64,
    /// Another instance mends the streams: nothing is taken in.
    pub shut: bool,
}

/// Writes all of a plan, within the transaction that is open on `conn`.
pub(super) async fn write(
    conn: &mut Conn,
    texts: &mut Texts,
    plan: &Plan<'_>,
    now_ms: UnixMs,
    marks: &mut Marks,
) -> Result<Answers, sqlx::Error> {
    let mut answers = Answers::default();
    leases::hold(conn, texts, &plan.leases).await?;

    let mut records: Vec<(ProtocolId, &Record)> = Vec::new();
    let mut kept: Vec<(ProtocolId, &RoomEvent)> = Vec::new();
    if !plan.rows.is_empty() {
        texts
            .execute(conn, &INSERT_BODIES, &plan.bodies, |b, (id, body)| {
                b.int(*id).blob(body);
            })
            .await?;
        for row in insert_rows(conn, texts, &plan.rows, now_ms).await? {
            records.extend(row.records.iter().map(|record| (row.protocol, record)));
            kept.extend(row.room_event.as_ref().map(|event| (row.protocol, event)));
        }
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
        answers.arrivals = arrive(conn, texts, &plan.arrivals, now_ms, marks, &mut kept).await?;
    }
    room_events::insert(conn, texts, &kept, now_ms).await?;
    let (acked, published) = in_force(plan, marks.series);
    texts
        .execute(conn, &PUBLISHED, &published, |b, id| {
            b.int(*id);
        })
        .await?;
    if !acked.is_empty() {
        checkpoint::note(conn, &acked).await?;
    }
    records.extend(&plan.records);
    put_records(conn, texts, &records).await?;
    for op in &plan.singles {
        answers.singles.push(match op {
            Single::ReleaseHeld(batch) => {
                Answer::Released(held::release(conn, batch, now_ms, marks).await?)
            }
            Single::Prune {
                now_ms,
                keep,
                wishes,
            } => {
                let rules = prune::Rules { keep, wishes };
                Answer::Number(prune::step(conn, texts, *now_ms, rules, marks).await?)
            }
            op => Answer::Number(single::run(conn, op, marks).await?),
        });
    }
    Ok(answers)
}

/// What was acknowledged, without that of a series that is over.
fn in_force<'a>(plan: &'a Plan<'_>, series: i64) -> (Vec<&'a Acked>, Cow<'a, [i64]>) {
    let stale = |acked: &Acked| acked.series.is_some_and(|of| of != series);
    if !plan.acked.iter().any(|acked| stale(acked)) {
        return (plan.acked.clone(), Cow::Borrowed(&plan.published));
    }
    let (old, acked): (Vec<&Acked>, _) = plan.acked.iter().partition(|acked| stale(acked));
    let old: HashSet<i64> = old.iter().flat_map(|acked| &acked.ids).copied().collect();
    let ids = plan.published.iter().filter(|id| !old.contains(id));
    (acked, ids.copied().collect())
}

/// Inserts rows, skipping those whose message is known; answers those that were new and bring more
/// than themselves.
async fn insert_rows<'a>(
    conn: &mut Conn,
    texts: &mut Texts,
    rows: &[PlannedRow<'a>],
    now_ms: UnixMs,
) -> Result<Vec<&'a NewRow>, sqlx::Error> {
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
    let alone = |row: &NewRow| row.records.is_empty() && row.room_event.is_none();
    if rows.iter().all(|r| alone(r.row)) {
        texts.execute(conn, &INSERT_ROWS, rows, bind).await?;
        return Ok(Vec::new());
    }
    let mut new = HashSet::new();
    for row in texts
        .fetch(conn, &INSERT_ROWS_TOLD, rows, false, bind)
        .await?
    {
        new.insert(row.get::<i64>(0)?);
    }
    let rows = rows.iter().map(|planned| planned.row);
    Ok(rows
        .filter(|row| !alone(row) && new.contains(&row.id))
        .collect())
}

/// Writes and deletes protocol records; of several for one key the last counts.
async fn put_records(
    conn: &mut Conn,
    texts: &mut Texts,
    records: &[(ProtocolId, &Record)],
) -> Result<(), sqlx::Error> {
    // In one order everywhere: instances that write the same ones never wait for each other.
    let mut last: BTreeMap<(&str, &str, &str), Option<&str>> = BTreeMap::new();
    for (protocol, r) in records {
        last.insert((*protocol, r.kind, &r.key), r.value.as_deref());
    }
    let mut puts = Vec::new();
    for ((protocol, kind, key), value) in last {
        match value {
            Some(value) => puts.push((protocol, kind, key, value)),
            None => {
                conn.query(
                    "DELETE FROM protocol_records WHERE protocol = $1 AND kind = $2 AND key = $3",
                )
                .bind(protocol)
                .bind(kind)
                .bind(key)
                .execute()
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
