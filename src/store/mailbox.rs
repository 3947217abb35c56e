//! Rows that a peer fetches: what waits for it, and what was handed out.

use std::collections::BTreeSet;

use super::db::{Conn, Db};
use super::ops::{Single, Work};
use super::types::StoreError;
use super::{Commit, Store, queue, read};
use crate::clock::UnixMs;
use crate::protocol::{PeerName, ProtocolId};

/// A row that waits for a fetch, without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub id: i64,
    /// Bytes of its body.
    pub size: u64,
    /// When an answer that held it had left; `None`: none yet.
    pub handed_ms: Option<UnixMs>,
}

impl Store {
    /// The first rows that wait for a peer, oldest first, read after everything handed to the writer
    /// before this call is committed.
    pub async fn waiting_for(
        &self,
        protocol: ProtocolId,
        peer: &PeerName,
        limit: usize,
    ) -> Result<Vec<Waiting>, StoreError> {
        let peer = peer.clone();
        self.read_after(move |db| waiting(db, protocol, peer, limit))
            .await
    }

    /// Notes that an answer with these rows has left; those of an earlier one keep its time. Each
    /// counts as an attempt.
    pub async fn handed_out(
        &self,
        ids: Vec<i64>,
        now_ms: UnixMs,
    ) -> Result<Commit<u64>, StoreError> {
        let op = Single::HandedOut(ids.into_iter().collect(), now_ms);
        self.write(Work::Single(op), queue::number).await
    }

    /// Numbers of the rows that wait for a peer beyond the first `keep`, at most `limit`.
    pub async fn waiting_beyond(
        &self,
        protocol: ProtocolId,
        peer: &PeerName,
        keep: u64,
        limit: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let peer = peer.clone();
        self.read_after(move |db| beyond(db, protocol, peer, keep, limit))
            .await
    }
}

async fn waiting(
    db: Db,
    protocol: ProtocolId,
    peer: PeerName,
    most: usize,
) -> Result<Vec<Waiting>, sqlx::Error> {
    let rows = db
        .query(
            "SELECT q.id, CAST(COALESCE(LENGTH(q.body), LENGTH(b.body), 0) AS BIGINT), q.handed_ms \
             FROM federation_queue q LEFT JOIN federation_bodies b ON b.id = q.body_ref \
             WHERE q.state = 'pending' AND q.protocol = $1 AND q.peer = $2 ORDER BY q.id LIMIT $3",
        )
        .bind(protocol)
        .bind(peer.as_str())
        .bind(read::limit(most))
        .fetch_all()
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting {
                id: row.get(0)?,
                size: u64::try_from(row.get::<i64>(1)?).unwrap_or(0),
                handed_ms: row.get(2)?,
            })
        })
        .collect()
}

async fn beyond(
    db: Db,
    protocol: ProtocolId,
    peer: PeerName,
    keep: u64,
    most: usize,
) -> Result<Vec<i64>, sqlx::Error> {
    let rows = db
        .query(
            "SELECT id FROM federation_queue WHERE state = 'pending' AND protocol = $1 \
             AND peer = $2 ORDER BY id LIMIT $3 OFFSET $4",
        )
        .bind(protocol)
        .bind(peer.as_str())
        .bind(read::limit(most))
        .bind(i64::try_from(keep).unwrap_or(i64::MAX))
        .fetch_all()
        .await?;
    rows.iter().map(|row| row.get(0)).collect()
}

pub(super) async fn hand_out(
    conn: &mut Conn,
    ids: &BTreeSet<i64>,
    now_ms: UnixMs,
) -> Result<i64, sqlx::Error> {
    let mut changed = 0;
    for id in ids {
        changed += conn
            .query(
                "UPDATE federation_queue SET handed_ms = COALESCE(handed_ms, $1), \
                 attempts = attempts + 1 WHERE id = $2 AND state = 'pending'",
            )
            .bind(now_ms)
            .bind(id)
            .execute()
            .await?;
    }
    Ok(i64::try_from(changed).unwrap_or(i64::MAX))
}
