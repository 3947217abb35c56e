//! What an operator does to rows of the outbound queue, and how many each peer has.
//!
//! Every change asks for the state it is meant for in the same statement, so a row that was
//! delivered or settled in between is left alone.

use std::collections::{BTreeSet, HashMap};

use super::db::{Conn, Db};
use super::ops::{Answer, Single, Work};
use super::types::{PeerCounts, StoreError};
use super::{Commit, Store, read};
use crate::clock::UnixMs;

impl Store {
    /// Pending rows are due now; answers how many of them were pending. Their attempts and the end
    /// of their schedule stay as they are.
    pub async fn due_now(&self, ids: Vec<i64>) -> Result<Commit<u64>, StoreError> {
        let op = Single::DueNow(ids.into_iter().collect());
        self.write(Work::Single(op), count).await
    }

    /// Pending and held rows are dead, for this reason, to be noticed on `FED_DEAD`; answers how
    /// many there were.
    pub async fn give_up(
        &self,
        ids: Vec<i64>,
        code: &'static str,
        reason: &str,
    ) -> Result<Commit<u64>, StoreError> {
        let op = Single::GiveUp {
            ids: ids.into_iter().collect(),
            now_ms: self.inner.clock.now_ms(),
            code,
            reason: reason.to_owned(),
        };
        self.write(Work::Single(op), count).await
    }

    /// The ledger number of the first inbound event received at or after a time whose body is still
    /// held; `None`: there is none.
    pub async fn inbound_since(&self, time_ms: UnixMs) -> Result<Option<i64>, StoreError> {
        self.read_after(move |db| inbound_since(db, time_ms)).await
    }

    /// Pending, dead and held rows of every peer that has any, by protocol and peer. Reads without
    /// waiting for the writer.
    pub async fn peer_counts(&self) -> Result<Vec<PeerCounts>, StoreError> {
        self.read(peer_counts).await
    }
}

/// A count of rows.
fn count(answer: Answer) -> u64 {
    match answer {
        Answer::Number(n) => u64::try_from(n).unwrap_or(0),
        Answer::Done | Answer::Accepted(_) | Answer::Released(_) => 0,
    }
}

pub(super) async fn due_now(conn: &mut Conn, ids: &BTreeSet<i64>) -> Result<i64, sqlx::Error> {
    let mut changed = 0;
    for id in ids {
        changed += conn
            .query(
                "UPDATE federation_queue SET next_at_ms = NULL WHERE id = $1 AND state = 'pending'",
            )
            .bind(id)
            .execute()
            .await?;
    }
    Ok(i64::try_from(changed).unwrap_or(i64::MAX))
}

pub(super) async fn give_up(
    conn: &mut Conn,
    ids: &BTreeSet<i64>,
    now_ms: UnixMs,
    code: &str,
    reason: &str,
) -> Result<i64, sqlx::Error> {
    let mut changed = 0;
    for id in ids {
        changed += conn
            .query(
                "UPDATE federation_queue SET state = 'failed', next_at_ms = NULL, peer_fault = 0, \
             reason_code = $1, reason = $2, settled_ms = $3, noticed = 0 \
             WHERE id = $4 AND state IN ('pending', 'held')",
            )
            .bind(code)
            .bind(reason)
            .bind(now_ms)
            .bind(id)
            .execute()
            .await?;
    }
    Ok(i64::try_from(changed).unwrap_or(i64::MAX))
}

async fn inbound_since(db: Db, time_ms: UnixMs) -> Result<Option<i64>, sqlx::Error> {
    let row = db
        .query(
            "SELECT id FROM federation_events WHERE payload IS NOT NULL AND received_ms >= $1 \
             ORDER BY received_ms, id LIMIT 1",
        )
        .bind(time_ms)
        .fetch_optional()
        .await?;
    row.map(|row| row.get(0)).transpose()
}

async fn peer_counts(db: Db) -> Result<Vec<PeerCounts>, sqlx::Error> {
    let mut counts: HashMap<(String, String), PeerCounts> = HashMap::new();
    for lane in read::lanes(db.clone()).await? {
        let of = entry(&mut counts, lane.protocol, lane.peer);
        of.pending = lane.rows;
        of.first_pending = Some(lane.first_id);
    }
    for (sql, failed) in [
        (
            "SELECT protocol, peer, COUNT(*) FROM federation_queue WHERE state = 'failed' \
             GROUP BY protocol, peer",
            true,
        ),
        (
            "SELECT protocol, peer, COUNT(*) FROM federation_queue WHERE state = 'held' \
             GROUP BY protocol, peer",
            false,
        ),
    ] {
        for row in db.query(sql).fetch_all().await? {
            let of = entry(&mut counts, row.get(0)?, row.get(1)?);
            let n = u64::try_from(row.get::<i64>(2)?).unwrap_or(0);
            *(if failed { &mut of.failed } else { &mut of.held }) = n;
        }
    }
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_by(|a, b| (&a.protocol, &a.peer).cmp(&(&b.protocol, &b.peer)));
    Ok(counts)
}

fn entry(
    counts: &mut HashMap<(String, String), PeerCounts>,
    protocol: String,
    peer: String,
) -> &mut PeerCounts {
    counts
        .entry((protocol.clone(), peer.clone()))
        .or_insert_with(|| PeerCounts {
            protocol,
            peer,
            ..PeerCounts::default()
        })
}
