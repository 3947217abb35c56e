//! The rare operations and the counters in `meta`, each inside the writer's transaction.

use std::collections::BTreeSet;

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Row};

use super::apply::Marks;
use super::ops::Single;
use super::{checkpoint, held, manage, prune};

/// Runs one; answers its number (rows changed, or the value asked for).
pub(super) async fn run(
    conn: &mut SqliteConnection,
    op: &Single,
    marks: &mut Marks,
) -> Result<i64, sqlx::Error> {
    let done = match op {
        Single::PutPeer(p) => {
            let json = |e: serde_json::Error| sqlx::Error::Encode(Box::new(e));
            sqlx::query(
                "INSERT INTO known_relays (protocol, domain, federation_url, alternatives, public_key, \
                 discovered_via, last_verified_ms, ttl_ms, facts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) \
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
            .execute(conn)
            .await?
        }
        Single::PutHealth(h) => {
            sqlx::query(
                "INSERT INTO peer_health (protocol, peer, facts) VALUES (?, ?, ?) \
                 ON CONFLICT (protocol, peer) DO UPDATE SET facts = excluded.facts",
            )
            .bind(&h.protocol)
            .bind(&h.peer)
            .bind(&h.facts)
            .execute(conn)
            .await?
        }
        Single::PutTrust(t) => {
            sqlx::query(
                "INSERT INTO federation_trust (protocol, pattern, rule, reason, created_ms, ends_ms) \
                 VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (protocol, pattern, rule) DO UPDATE SET \
                 reason = excluded.reason, created_ms = excluded.created_ms, ends_ms = excluded.ends_ms",
            )
            .bind(&t.protocol)
            .bind(&t.pattern)
            .bind(&t.rule)
            .bind(&t.reason)
            .bind(t.created_ms)
            .bind(t.ends_ms)
            .execute(conn)
            .await?
        }
        Single::RemoveTrust {
            protocol,
            pattern,
            rule,
        } => {
            sqlx::query(
                "DELETE FROM federation_trust WHERE protocol = ? AND pattern = ? AND rule = ?",
            )
            .bind(protocol)
            .bind(pattern)
            .bind(rule)
            .execute(conn)
            .await?
        }
        Single::PutScore {
            protocol,
            peer,
            score,
            now_ms,
        } => {
            sqlx::query(
                "INSERT INTO relay_reputation (protocol, peer, score, updated_ms) VALUES (?, ?, ?, ?) \
                 ON CONFLICT (protocol, peer) DO UPDATE SET score = excluded.score, \
                 updated_ms = excluded.updated_ms",
            )
            .bind(protocol)
            .bind(peer)
            .bind(score)
            .bind(now_ms)
            .execute(conn)
            .await?
        }
        Single::PutServerKey {
            protocol,
            key_id,
            public_key_hex,
            now_ms,
        } => {
            sqlx::query(
                "INSERT INTO federation_server_keys (protocol, key_id, public_key, first_seen_ms) \
                 VALUES (?, ?, ?, ?) ON CONFLICT (protocol, key_id) DO UPDATE SET \
                 public_key = excluded.public_key",
            )
            .bind(protocol)
            .bind(key_id)
            .bind(public_key_hex)
            .bind(now_ms)
            .execute(conn)
            .await?
        }
        Single::NextEpoch => {
            let epoch = mark(conn, "epoch").await?.unwrap_or(0).saturating_add(1);
            put_mark(conn, "epoch", epoch).await?;
            return Ok(epoch);
        }
        Single::Rebase(to) => return checkpoint::rebase(conn, to).await,
        Single::ForgetCheckpoints(way, gone) => {
            return checkpoint::forget(conn, *way, gone).await;
        }
        Single::Stuck(ids) => return checkpoint::stick(conn, ids).await,
        Single::DropHeld(batch) => return held::discard(conn, batch, marks).await,
        // Answered by the writer itself: its answer is no number.
        Single::ReleaseHeld(_) => return Ok(0),
        Single::Redrive(ids) => return redrive(conn, ids).await,
        Single::Drop(ids) => return drop_rows(conn, ids).await,
        Single::MakeDue {
            protocol,
            peer,
            now_ms,
            limit,
        } => {
            sqlx::query(
                "UPDATE federation_queue SET next_at_ms = $1 WHERE id IN (SELECT id FROM \
                 federation_queue WHERE state = 'pending' AND protocol = $2 AND peer = $3 \
                 AND next_at_ms > $1 ORDER BY id LIMIT $4)",
            )
            .bind(*now_ms)
            .bind(protocol)
            .bind(peer)
            .bind(*limit)
            .execute(conn)
            .await?
        }
        Single::DueNow(ids) => return manage::due_now(conn, ids).await,
        Single::GiveUp {
            ids,
            now_ms,
            code,
            reason,
        } => return manage::give_up(conn, ids, *now_ms, code, reason).await,
        Single::Prune { now_ms } => return prune::step(conn, *now_ms, marks).await,
        Single::LimitSize(_) => {
            if let Some(pages) = page_limit(op) {
                limit_pages(conn, pages).await?;
            }
            return Ok(0);
        }
    };
    Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX))
}

/// Failed and held rows become pending as if never attempted; others are left alone.
async fn redrive(conn: &mut SqliteConnection, ids: &BTreeSet<i64>) -> Result<i64, sqlx::Error> {
    let mut changed = 0;
    for id in ids {
        changed += sqlx::query(
            "UPDATE federation_queue SET state = 'pending', attempts = 0, first_failed_ms = NULL, \
             next_at_ms = NULL, peer_fault = 0, reason_code = NULL, reason = NULL, \
             settled_ms = NULL, noticed = 0 WHERE id = ? AND state IN ('failed', 'held')",
        )
        .bind(id)
        .execute(&mut *conn)
        .await?
        .rows_affected();
    }
    Ok(i64::try_from(changed).unwrap_or(i64::MAX))
}

/// Removes failed and held rows; others are left alone. A repeat of the message
/// under the same id would be new again.
async fn drop_rows(conn: &mut SqliteConnection, ids: &BTreeSet<i64>) -> Result<i64, sqlx::Error> {
    let mut changed = 0;
    for id in ids {
        changed += sqlx::query(
            "DELETE FROM federation_queue WHERE id = ? AND state IN ('failed', 'held')",
        )
        .bind(id)
        .execute(&mut *conn)
        .await?
        .rows_affected();
        sqlx::query(
            "DELETE FROM delivery_attempts WHERE queue_id = ? \
             AND NOT EXISTS (SELECT 1 FROM federation_queue q WHERE q.id = queue_id)",
        )
        .bind(id)
        .execute(&mut *conn)
        .await?;
    }
    Ok(i64::try_from(changed).unwrap_or(i64::MAX))
}

/// A number kept in `meta`.
pub(super) async fn mark(
    conn: &mut SqliteConnection,
    name: &str,
) -> Result<Option<i64>, sqlx::Error> {
    let Some(row) = sqlx::query("SELECT value FROM meta WHERE name = ?")
        .bind(name)
        .fetch_optional(conn)
        .await?
    else {
        return Ok(None);
    };
    let text: String = row.try_get(0)?;
    text.parse()
        .map(Some)
        .map_err(|e| sqlx::Error::Decode(Box::new(e)))
}

/// Writes one.
pub(super) async fn put_mark(
    conn: &mut SqliteConnection,
    name: &str,
    value: i64,
) -> Result<(), sqlx::Error> {
    put_text(conn, name, &value.to_string()).await
}

async fn put_text(conn: &mut SqliteConnection, name: &str, value: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES (?, ?) \
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(name)
    .bind(value)
    .execute(conn)
    .await
    .map(drop)
}

/// The store's identity, made at its first opening.
pub(super) async fn identity(
    conn: &mut SqliteConnection,
    fresh: &str,
) -> Result<String, sqlx::Error> {
    sqlx::query("INSERT INTO meta (name, value) VALUES ('id', ?) ON CONFLICT DO NOTHING")
        .bind(fresh)
        .execute(&mut *conn)
        .await?;
    sqlx::query("SELECT value FROM meta WHERE name = 'id'")
        .fetch_one(conn)
        .await?
        .try_get(0)
}

/// The counters as they stand in the file. Numbers start past anything ever written.
pub(super) async fn load_marks(conn: &mut SqliteConnection) -> Result<Marks, sqlx::Error> {
    let rows_top: i64 = sqlx::query("SELECT COALESCE(MAX(id), 0) FROM federation_queue")
        .fetch_one(&mut *conn)
        .await?
        .try_get(0)?;
    let events_top: i64 = sqlx::query("SELECT COALESCE(MAX(id), 0) FROM federation_events")
        .fetch_one(&mut *conn)
        .await?
        .try_get(0)?;
    let rows = mark(conn, "rows").await?.unwrap_or(1).max(rows_top + 1);
    let events = mark(conn, "events").await?.unwrap_or(1).max(events_top + 1);
    Ok(Marks {
        rows,
        next_event: events,
        events,
        held: held::count(conn).await?,
        inbound_bytes: mark(conn, "inbound_bytes").await?.unwrap_or(0),
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
pub(super) async fn limit_pages(
    conn: &mut SqliteConnection,
    pages: Option<i64>,
) -> Result<(), sqlx::Error> {
    // A pragma takes no parameters; the value is a number.
    let sql = format!("PRAGMA max_page_count = {}", pages.unwrap_or(4_294_967_294));
    sqlx::query(AssertSqlSafe(sql))
        .fetch_all(conn)
        .await
        .map(drop)
}

/// Takes room on the disk and gives it back.
pub(super) async fn try_room(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    put_text(conn, "probe", &"-".repeat(256 * 1024)).await?;
    sqlx::query("DELETE FROM meta WHERE name = 'probe'")
        .execute(conn)
        .await
        .map(drop)
}
