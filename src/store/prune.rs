//! What may go, in steps small enough not to be felt by a commit.
//!
//! | what | goes (by default) |
//! | --- | --- |
//! | delivered rows | a day after the outcome |
//! | failed rows and their attempts | 30 days after it, once `FED_DEAD` has the notice |
//! | bodies of acknowledged inbound events | after 24 h, or, oldest first, beyond 10 GiB; never before 10 min |
//! | ids of acknowledged inbound events | after 8 days; those of a protocol that keeps them stay |
//! | envelopes of room events | never, or after the time the protocol names; their ids stay |
//! | replay ids | past their time |
//! | what was found out about a peer | 90 days after it was last verified; never while messages wait for it, or when the configuration names it |
//!
//! Pending and held rows, held events and events JetStream has not acknowledged stay, however old.

use super::apply::Marks;
use super::bulk::{Shape, Texts};
use super::db::Conn;
use super::room_events;
use super::shapes::{DELETE_ATTEMPTS, DELETE_BODIES, DELETE_ROWS, DROP_PAYLOADS};
use super::types::Keeping;
use crate::clock::UnixMs;
use crate::config::Retention;

/// Rows of one kind in one step.
const STEP: i64 = 256;
const MINUTE: i64 = 60_000;
/// A time so long ago.
fn before(now_ms: UnixMs, age: std::time::Duration) -> UnixMs {
    now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

/// What stays how long.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub keep: &'a Retention,
    pub wishes: &'a [Keeping],
}

/// One step; answers how many rows went or lost their body. 0: nothing left to do now.
pub(super) async fn step(
    conn: &mut Conn,
    texts: &mut Texts,
    now_ms: UnixMs,
    rules: Rules<'_>,
    marks: &mut Marks,
) -> Result<i64, sqlx::Error> {
    let Rules { keep, wishes } = rules;
    let mut gone = 0;
    for (sql, before) in [
        (
            "SELECT id FROM federation_queue WHERE state = 'delivered' AND settled_ms < $1 \
             ORDER BY settled_ms LIMIT $2",
            before(now_ms, keep.delivered),
        ),
        (
            "SELECT id FROM federation_queue WHERE state = 'failed' AND settled_ms < $1 \
             AND noticed = 1 ORDER BY settled_ms LIMIT $2",
            before(now_ms, keep.failed),
        ),
    ] {
        let rows = conn.query(sql).bind(before).bind(STEP).fetch_all().await?;
        let ids = rows.iter().map(|row| row.get(0));
        let ids = ids.collect::<Result<Vec<i64>, _>>()?;
        each(conn, texts, &DELETE_ROWS, &ids).await?;
        each(conn, texts, &DELETE_ATTEMPTS, &ids).await?;
        gone += count(ids.len());
    }
    // Attempts whose row was a duplicate and never inserted.
    gone += execute(
        conn,
        "DELETE FROM delivery_attempts WHERE at_ms < $1 AND id IN (SELECT id FROM delivery_attempts \
         ORDER BY id LIMIT $2) AND NOT EXISTS (SELECT 1 FROM federation_queue q WHERE q.id = queue_id)",
        before(now_ms, keep.delivered),
    )
    .await?;
    gone += shared_bodies(conn, texts).await?;
    gone += inbound_bodies(conn, texts, before(now_ms, keep.bodies), marks).await?;
    if marks.inbound_bytes > i64::try_from(keep.bodies_bytes).unwrap_or(i64::MAX) {
        gone += inbound_bodies(conn, texts, now_ms - 10 * MINUTE, marks).await?;
    }
    gone += old_ids(conn, wishes, before(now_ms, keep.ids)).await?;
    for wish in wishes {
        if let Some(age) = wish.room_events {
            let before = before(now_ms, age);
            gone += room_events::drop_envelopes(conn, wish.protocol, before, STEP).await?;
        }
    }
    gone += execute(
        conn,
        "DELETE FROM federation_replay WHERE (protocol, scope, id) IN (SELECT protocol, scope, id \
         FROM federation_replay WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2)",
        now_ms,
    )
    .await?;
    gone += execute(
        conn,
        "DELETE FROM known_relays WHERE (protocol, domain) IN (SELECT k.protocol, k.domain \
         FROM known_relays k WHERE k.last_verified_ms < $1 AND k.discovered_via <> 'config' \
         AND NOT EXISTS (SELECT 1 FROM federation_queue q WHERE q.state = 'pending' \
         AND q.protocol = k.protocol AND q.peer = k.domain) ORDER BY k.last_verified_ms LIMIT $2)",
        before(now_ms, keep.peers),
    )
    .await?;
    Ok(gone)
}

/// Ids of inbound events older than `before`, protocol by protocol.
async fn old_ids(conn: &mut Conn, wishes: &[Keeping], before: UnixMs) -> Result<i64, sqlx::Error> {
    let mut gone = 0;
    let mut after = String::new();
    loop {
        let next = conn
            .query("SELECT MIN(protocol) FROM federation_events WHERE protocol > $1")
            .bind(after.as_str())
            .scalar::<Option<String>>()
            .await?;
        let Some(protocol) = next else {
            return Ok(gone);
        };
        if !wishes.iter().any(|w| w.protocol == protocol && w.ids) {
            let done = conn
                .query(
                    "DELETE FROM federation_events WHERE id IN (SELECT id FROM federation_events \
                     WHERE protocol = $1 AND payload IS NULL AND received_ms < $2 \
                     ORDER BY received_ms LIMIT $3)",
                )
                .bind(protocol.as_str())
                .bind(before)
                .bind(STEP)
                .execute()
                .await?;
            gone += i64::try_from(done).unwrap_or(0);
        }
        after = protocol;
    }
}

/// Runs a statement over many numbers.
async fn each(
    conn: &mut Conn,
    texts: &mut Texts,
    shape: &Shape,
    ids: &[i64],
) -> Result<u64, sqlx::Error> {
    texts
        .execute(conn, shape, ids, |b, id| {
            b.int(*id);
        })
        .await
}

/// Shared bodies no row refers to any more. A cursor walks them, some each step; those still
/// referred to are passed over.
async fn shared_bodies(conn: &mut Conn, texts: &mut Texts) -> Result<i64, sqlx::Error> {
    let after = super::single::mark(conn, "bodies_cursor")
        .await?
        .unwrap_or(0);
    let rows = conn
        .query(
            "SELECT b.id, EXISTS (SELECT 1 FROM federation_queue q WHERE q.body_ref = b.id) \
             FROM federation_bodies b WHERE b.id > $1 ORDER BY b.id LIMIT $2",
        )
        .bind(after)
        .bind(STEP)
        .fetch_all()
        .await?;
    let mut unused = Vec::new();
    let mut next = 0;
    for row in &rows {
        next = row.get(0)?;
        if !row.get::<bool>(1)? {
            unused.push(next);
        }
    }
    each(conn, texts, &DELETE_BODIES, &unused).await?;
    if count(rows.len()) < STEP {
        next = 0;
    }
    if next != after {
        super::single::put_mark(conn, "bodies_cursor", next).await?;
    }
    Ok(count(unused.len()))
}

/// Drops bodies (and headers) of acknowledged events received before `before`.
async fn inbound_bodies(
    conn: &mut Conn,
    texts: &mut Texts,
    before: UnixMs,
    marks: &mut Marks,
) -> Result<i64, sqlx::Error> {
    let rows = conn
        .query(
            "SELECT e.id, LENGTH(e.payload) FROM federation_events e \
             WHERE e.payload IS NOT NULL AND e.received_ms < $1 \
             AND NOT EXISTS (SELECT 1 FROM federation_unpublished u WHERE u.id = e.id) \
             AND NOT EXISTS (SELECT 1 FROM federation_held h WHERE h.id = e.id) \
             ORDER BY e.received_ms LIMIT $2",
        )
        .bind(before)
        .bind(STEP)
        .fetch_all()
        .await?;
    let mut ids = Vec::with_capacity(rows.len());
    for row in &rows {
        ids.push(row.get::<i64>(0)?);
        marks.inbound_bytes = (marks.inbound_bytes - row.get::<i64>(1)?).max(0);
    }
    each(conn, texts, &DROP_PAYLOADS, &ids).await?;
    Ok(count(ids.len()))
}

async fn execute(conn: &mut Conn, sql: &'static str, before: UnixMs) -> Result<i64, sqlx::Error> {
    let done = conn.query(sql).bind(before).bind(STEP).execute().await?;
    Ok(i64::try_from(done).unwrap_or(0))
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
