//! The rare operations and the counters in `meta`, each inside the writer's transaction.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;

use super::apply::{AHEAD, Marks};
use super::db::{Conn, Kind};
use super::ops::{Single, Statement};
use super::{checkpoint, common, held, mailbox, manage};

/// Runs one; answers its number (rows changed, or the value asked for).
pub(super) async fn run(
    conn: &mut Conn,
    op: &Single,
    marks: &mut Marks,
) -> Result<i64, sqlx::Error> {
    let done = match op {
        Single::PutPeer(p) => {
            let json = |e: serde_json::Error| sqlx::Error::Encode(Box::new(e));
            conn.query(
                "INSERT INTO known_relays (protocol, domain, federation_url, alternatives, public_key, \
                 discovered_via, last_verified_ms, ttl_ms, facts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (protocol, domain) DO UPDATE SET federation_url = excluded.federation_url, \
                 alternatives = excluded.alternatives, public_key = excluded.public_key, \
                 discovered_via = excluded.discovered_via, last_verified_ms = excluded.last_verified_ms, \
                 ttl_ms = excluded.ttl_ms, facts = excluded.facts",
            )
            .bind(p.protocol)
            .bind(p.name.as_str())
            .bind(&p.endpoint)
            .bind(serde_json::to_string(&p.alternatives).map_err(json)?)
            .bind(p.public_key.as_ref().map(|k| k.to_vec()))
            .bind(&p.discovered_via)
            .bind(p.last_verified_ms)
            .bind(p.ttl_ms)
            .bind(serde_json::to_string(&p.facts).map_err(json)?)
            .execute()
            .await?
        }
        Single::NextEpoch => {
            return next(conn, "epoch").await;
        }
        Single::RowBlock { floor, size } => return row_block(conn, *floor, *size).await,
        Single::Mend(wish) => return common::mend(conn, marks, wish).await,
        Single::Lead(wish) => return common::lead(conn, wish).await,
        Single::Rebase(to) => return checkpoint::rebase(conn, to, marks.series).await,
        Single::ForgetCheckpoints(way, gone) => {
            return checkpoint::forget(conn, *way, gone).await;
        }
        Single::Stuck(ids) => return checkpoint::stick(conn, ids).await,
        Single::DropHeld(batch) => return held::discard(conn, batch, marks).await,
        // Run by the writer itself.
        Single::ReleaseHeld(_) | Single::Prune { .. } => return Ok(0),
        Single::Redrive(ids) => return redrive(conn, ids).await,
        Single::Drop(ids) => return drop_rows(conn, ids).await,
        Single::MakeDue {
            protocol,
            peer,
            now_ms,
            limit,
        } => {
            conn.query(
                "UPDATE federation_queue SET next_at_ms = $1 WHERE id IN (SELECT id FROM \
                 federation_queue WHERE state = 'pending' AND protocol = $2 AND peer = $3 \
                 AND next_at_ms > $1 ORDER BY id LIMIT $4)",
            )
            .bind(*now_ms)
            .bind(protocol)
            .bind(peer)
            .bind(*limit)
            .execute()
            .await?
        }
        Single::HandedOut(ids, now_ms) => return mailbox::hand_out(conn, ids, *now_ms).await,
        Single::DueNow(ids) => return manage::due_now(conn, ids).await,
        Single::GiveUp {
            ids,
            now_ms,
            code,
            reason,
        } => return manage::give_up(conn, ids, *now_ms, code, reason).await,
        Single::Execute(statements) => return execute(conn, statements).await,
        Single::LimitSize(_) => {
            if conn.kind() == Kind::Postgres {
                return Err(sqlx::Error::InvalidArgument(
                    "only an SQLite file can be limited in size".into(),
                ));
            }
            if let Some(pages) = page_limit(op) {
                limit_pages(conn, pages).await?;
            }
            return Ok(0);
        }
    };
    Ok(i64::try_from(done).unwrap_or(i64::MAX))
}

/// Runs statements one after the other; answers the rows the last of them changed.
async fn execute(conn: &mut Conn, statements: &[Statement]) -> Result<i64, sqlx::Error> {
    let mut changed = 0;
    for statement in statements {
        let mut query = conn.query(statement.sql);
        for value in &statement.values {
            query = query.bind(value);
        }
        changed = query.execute().await?;
    }
    Ok(i64::try_from(changed).unwrap_or(i64::MAX))
}

/// Failed and held rows become pending as if never attempted; others are left alone.
async fn redrive(conn: &mut Conn, ids: &BTreeSet<i64>) -> Result<i64, sqlx::Error> {
    let mut changed = 0;
    for id in ids {
        changed += conn.query(
            "UPDATE federation_queue SET state = 'pending', attempts = 0, first_failed_ms = NULL, \
             next_at_ms = NULL, peer_fault = 0, reason_code = NULL, reason = NULL, \
             settled_ms = NULL, handed_ms = NULL, noticed = 0 WHERE id = $1 AND state IN ('failed', 'held')",
        )
        .bind(id)
        .execute()
        .await?;
    }
    Ok(i64::try_from(changed).unwrap_or(i64::MAX))
}

/// Removes failed and held rows; others are left alone. A repeat of the message
/// under the same id would be new again.
async fn drop_rows(conn: &mut Conn, ids: &BTreeSet<i64>) -> Result<i64, sqlx::Error> {
    let mut changed = 0;
    for id in ids {
        changed += conn
            .query("DELETE FROM federation_queue WHERE id = $1 AND state IN ('failed', 'held')")
            .bind(id)
            .execute()
            .await?;
        conn.query(
            "DELETE FROM delivery_attempts WHERE queue_id = $1 \
             AND NOT EXISTS (SELECT 1 FROM federation_queue q WHERE q.id = queue_id)",
        )
        .bind(id)
        .execute()
        .await?;
    }
    Ok(i64::try_from(changed).unwrap_or(i64::MAX))
}

/// A number kept in `meta`, one higher than it was, whoever counts at the same time.
async fn next(conn: &mut Conn, name: &str) -> Result<i64, sqlx::Error> {
    let value: String = conn
        .query(
            "INSERT INTO meta (name, value) VALUES ($1, '1') ON CONFLICT (name) DO UPDATE SET \
             value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT) RETURNING value",
        )
        .bind(name)
        .scalar()
        .await?;
    value.parse().map_err(|e| sqlx::Error::Decode(Box::new(e)))
}

/// Row numbers an instance takes at once from a database it shares.
pub(super) const ROW_BLOCK: i64 = 1 << 24;

/// Takes so many row numbers for one instance, none below `floor`; answers the first.
pub(super) async fn row_block(conn: &mut Conn, floor: i64, size: i64) -> Result<i64, sqlx::Error> {
    let end: String = conn
        .query(
            "INSERT INTO meta (name, value) VALUES ('rows', ($1::bigint + $2::bigint)::text) \
             ON CONFLICT (name) DO UPDATE SET \
             value = (GREATEST(meta.value::bigint, $1::bigint) + $2::bigint)::text RETURNING value",
        )
        .bind(floor)
        .bind(size)
        .scalar()
        .await?;
    let end: i64 = end.parse().map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
    Ok(end.saturating_sub(size))
}

/// A number kept in `meta`.
pub(super) async fn mark(conn: &mut Conn, name: &str) -> Result<Option<i64>, sqlx::Error> {
    let Some(row) = conn
        .query("SELECT value FROM meta WHERE name = $1")
        .bind(name)
        .fetch_optional()
        .await?
    else {
        return Ok(None);
    };
    let text: String = row.get(0)?;
    text.parse()
        .map(Some)
        .map_err(|e| sqlx::Error::Decode(Box::new(e)))
}

/// Writes one.
pub(super) async fn put_mark(conn: &mut Conn, name: &str, value: i64) -> Result<(), sqlx::Error> {
    put_text(conn, name, &value.to_string()).await
}

pub(super) async fn put_text(conn: &mut Conn, name: &str, value: &str) -> Result<(), sqlx::Error> {
    conn.query(
        "INSERT INTO meta (name, value) VALUES ($1, $2) \
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(name)
    .bind(value)
    .execute()
    .await
    .map(drop)
}

/// The store's identity, made at its first opening.
pub(super) async fn identity(conn: &mut Conn, fresh: &str) -> Result<String, sqlx::Error> {
    conn.query("INSERT INTO meta (name, value) VALUES ('id', $1) ON CONFLICT DO NOTHING")
        .bind(fresh)
        .execute()
        .await?;
    conn.query("SELECT value FROM meta WHERE name = 'id'")
        .fetch_one()
        .await?
        .get(0)
}

/// The counters as they stand in the file. Numbers start past anything ever written.
pub(super) async fn load_marks(conn: &mut Conn) -> Result<Marks, sqlx::Error> {
    let rows_top: i64 = conn
        .query("SELECT COALESCE(MAX(id), 0) FROM federation_queue")
        .fetch_one()
        .await?
        .get(0)?;
    let events_top: i64 = conn
        .query("SELECT COALESCE(MAX(id), 0) FROM federation_events")
        .fetch_one()
        .await?
        .get(0)?;
    let rows = mark(conn, "rows").await?.unwrap_or(1).max(rows_top + 1);
    let events = mark(conn, "events").await?.unwrap_or(1).max(events_top + 1);
    Ok(Marks {
        rows,
        next_event: events,
        events,
        held: held::count(conn).await?,
        inbound_bytes: mark(conn, "inbound_bytes").await?.unwrap_or(0),
        ahead: AHEAD,
        series: 0,
        shut: false,
    })
}

/// For a size limit: the pages it allows. `None`: another operation.
pub(super) fn page_limit(op: &Single) -> Option<Option<i64>> {
    match op {
        Single::LimitSize(bytes) => Some(bytes.map(|b| {
            i64::try_from(b / 4096)
                .unwrap_or(i64::MAX)
                .clamp(1, 4_294_967_294)
        })),
        _ => None,
    }
}

/// Caps the file; `None` is SQLite's own limit.
pub(super) async fn limit_pages(conn: &mut Conn, pages: Option<i64>) -> Result<(), sqlx::Error> {
    // A pragma takes no parameters; the value is a number.
    let sql = format!("PRAGMA max_page_count = {}", pages.unwrap_or(4_294_967_294));
    conn.query(AssertSqlSafe(sql)).fetch_all().await.map(drop)
}

/// Takes room on the disk and gives it back.
pub(super) async fn try_room(conn: &mut Conn) -> Result<(), sqlx::Error> {
    put_text(conn, "probe", &"-".repeat(256 * 1024)).await?;
    conn.query("DELETE FROM meta WHERE name = 'probe'")
        .execute()
        .await
        .map(drop)
}
