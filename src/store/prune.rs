//! What may go, in steps small enough not to be felt by a commit.
//!
//! | what | goes |
//! | --- | --- |
//! | delivered rows | a day after the outcome |
//! | failed rows and their attempts | 30 days after it |
//! | bodies of acknowledged inbound events | after 24 h, or, oldest first, beyond 10 GiB; never before 10 min |
//! | ids of acknowledged inbound events | after 8 days |
//! | replay ids | past their time |
//!
//! Pending and held rows, held events and events JetStream has not acknowledged stay, however old.

use super::apply::Marks;
use super::db::Conn;
use crate::clock::UnixMs;

/// Rows of one kind in one step.
const STEP: i64 = 256;
const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;
/// Bytes of inbound bodies held at most (while older than ten minutes).
const BODIES: i64 = 10 << 30;

/// One step; answers how many rows went or lost their body. 0: nothing left to do now.
pub(super) async fn step(
    conn: &mut Conn,
    now_ms: UnixMs,
    marks: &mut Marks,
) -> Result<i64, sqlx::Error> {
    let mut gone = 0;
    for (sql, before) in [
        (
            "DELETE FROM federation_queue WHERE id IN (SELECT id FROM federation_queue \
             WHERE state = 'delivered' AND settled_ms < $1 ORDER BY settled_ms LIMIT $2) RETURNING id",
            now_ms - DAY,
        ),
        (
            "DELETE FROM federation_queue WHERE id IN (SELECT id FROM federation_queue \
             WHERE state = 'failed' AND settled_ms < $1 ORDER BY settled_ms LIMIT $2) RETURNING id",
            now_ms - 30 * DAY,
        ),
    ] {
        let rows = conn.query(sql).bind(before).bind(STEP).fetch_all().await?;
        for row in &rows {
            conn.query("DELETE FROM delivery_attempts WHERE queue_id = $1")
                .bind(row.get::<i64>(0)?)
                .execute()
                .await?;
        }
        gone += count(rows.len());
    }
    // Attempts whose row was a duplicate and never inserted.
    gone += execute(
        conn,
        "DELETE FROM delivery_attempts WHERE at_ms < $1 AND id IN (SELECT id FROM delivery_attempts \
         ORDER BY id LIMIT $2) AND NOT EXISTS (SELECT 1 FROM federation_queue q WHERE q.id = queue_id)",
        now_ms - DAY,
    )
    .await?;
    gone += shared_bodies(conn).await?;
    gone += inbound_bodies(conn, now_ms - DAY, marks).await?;
    if marks.inbound_bytes > BODIES {
        gone += inbound_bodies(conn, now_ms - 10 * MINUTE, marks).await?;
    }
    gone += execute(
        conn,
        "DELETE FROM federation_events WHERE id IN (SELECT id FROM federation_events \
         WHERE payload IS NULL AND received_ms < $1 ORDER BY received_ms LIMIT $2)",
        now_ms - 8 * DAY,
    )
    .await?;
    gone += execute(
        conn,
        "DELETE FROM federation_replay WHERE (protocol, scope, id) IN (SELECT protocol, scope, id \
         FROM federation_replay WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2)",
        now_ms,
    )
    .await?;
    Ok(gone)
}

/// Shared bodies no row refers to any more. A cursor walks them, some each step; those still
/// referred to are passed over.
async fn shared_bodies(conn: &mut Conn) -> Result<i64, sqlx::Error> {
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
    let mut gone = 0;
    let mut next = 0;
    for row in &rows {
        let id: i64 = row.get(0)?;
        if !row.get::<bool>(1)? {
            gone += i64::try_from(
                conn.query("DELETE FROM federation_bodies WHERE id = $1")
                    .bind(id)
                    .execute()
                    .await?,
            )
            .unwrap_or(0);
        }
        next = id;
    }
    if count(rows.len()) < STEP {
        next = 0;
    }
    if next != after {
        super::single::put_mark(conn, "bodies_cursor", next).await?;
    }
    Ok(gone)
}

/// Drops bodies (and headers) of acknowledged events received before `before`.
async fn inbound_bodies(
    conn: &mut Conn,
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
    for row in &rows {
        conn.query("UPDATE federation_events SET payload = NULL, headers = NULL WHERE id = $1")
            .bind(row.get::<i64>(0)?)
            .execute()
            .await?;
        marks.inbound_bytes = (marks.inbound_bytes - row.get::<i64>(1)?).max(0);
    }
    Ok(count(rows.len()))
}

async fn execute(conn: &mut Conn, sql: &'static str, before: UnixMs) -> Result<i64, sqlx::Error> {
    let done = conn.query(sql).bind(before).bind(STEP).execute().await?;
    Ok(i64::try_from(done).unwrap_or(0))
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
