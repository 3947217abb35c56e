//! The handle's methods for the outbound queue.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::leases::Lease;
use super::ops::{Answer, Single, Work};
use super::single::ROW_BLOCK;
use super::types::{
    AttemptRow, LaneSummary, Late, NewRow, QueueCounts, QueueRow, RowFilter, Settle, StoreError,
};
use super::{Commit, Store, closed, read};
use crate::protocol::{PeerName, ProtocolId};

impl Store {
    /// The next ledger numbers, `n` of them, ascending; never reused, never read from disk.
    pub fn reserve_rows(&self, n: usize) -> Range<i64> {
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        let first = self.inner.next_row.fetch_add(n, Ordering::AcqRel);
        first..first.saturating_add(n)
    }

    /// Which of these message ids (per protocol) have a row already, committed. Those that surely
    /// have none cost no look at the database.
    pub async fn known_messages(
        &self,
        protocol: ProtocolId,
        ids: Vec<String>,
    ) -> Result<HashSet<String>, StoreError> {
        let known = &self.inner.known;
        let ids: Vec<String> = ids
            .into_iter()
            .filter(|id| !known.is_new(protocol, id))
            .collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        self.read(move |db| read::known_messages(db, protocol, ids))
            .await
    }

    /// Which of these copies (message id and the peer that it is for) have a row already, committed.
    pub async fn known_copies(
        &self,
        protocol: ProtocolId,
        copies: Vec<(String, PeerName)>,
    ) -> Result<HashSet<(String, PeerName)>, StoreError> {
        if copies.is_empty() {
            return Ok(HashSet::new());
        }
        self.read(move |db| read::known_copies(db, protocol, copies))
            .await
    }

    /// Queues rows for insertion (waits for room, then returns); the inner future resolves at
    /// commit. A row whose (protocol, msg_id, peer) exists is skipped silently, with its records.
    /// Neighbouring rows of one message with equal bodies share one stored body.
    pub async fn enqueue(&self, rows: impl Into<Arc<[NewRow]>>) -> Result<Commit, StoreError> {
        self.enqueue_under(self.lease, rows, Late::new()).await
    }

    /// The same, written only while this lease is ours; else `Fenced`, and the rows are another's
    /// to make. `late`: those of them whose outcomes nothing should wait for.
    pub async fn enqueue_under(
        &self,
        lease: Option<Lease>,
        rows: impl Into<Arc<[NewRow]>>,
        late: Late,
    ) -> Result<Commit, StoreError> {
        let rows = rows.into();
        // Before they are handed in: what has a row is never taken for new.
        let ids = rows.iter().map(|row| (row.protocol, row.msg_id.as_str()));
        self.inner.known.add(ids);
        self.put_under(lease, Work::Insert(rows, late)).await
    }

    /// Records an outcome. If the row still waits to be inserted the two become one write. A row
    /// once delivered stays delivered; a row that does not exist is passed over.
    pub async fn settle(&self, settle: Settle) -> Result<Commit, StoreError> {
        self.put(Work::Settle(settle)).await
    }

    /// Records many outcomes; resolves when all of them are, to those that are not, each with the
    /// reason. At most 1,024 at once.
    pub async fn settle_all(
        &self,
        lease: Option<Lease>,
        settles: &[Settle],
    ) -> Result<Vec<(Settle, StoreError)>, StoreError> {
        if settles.is_empty() {
            return Ok(Vec::new());
        }
        let works = settles.iter().cloned().map(Work::Settle).collect();
        let failed = self.submit_all(lease, works).await?;
        let failed = failed.await.map_err(|_| closed())?;
        let named = |(number, error)| settles.get(number).map(|s: &Settle| (s.clone(), error));
        Ok(failed.into_iter().filter_map(named).collect())
    }

    /// The same, written only while this lease is ours; else `Fenced`, and the row is another's.
    pub async fn settle_under(
        &self,
        lease: Option<Lease>,
        settle: Settle,
    ) -> Result<Commit, StoreError> {
        self.put_under(lease, Work::Settle(settle)).await
    }

    /// Resolves when everything handed in before is written.
    pub async fn written(&self) -> Result<(), StoreError> {
        self.barrier().await
    }

    /// Row numbers above every number ever given: with it what a unit's new owner writes stands
    /// behind all that earlier owners wrote. Nothing to do for a store that is this process's own.
    pub async fn fresh_rows(&self) -> Result<(), StoreError> {
        self.more_rows(ROW_BLOCK).await
    }

    /// Sees to it that `n` row numbers can be reserved. Nothing to do for a store that is this
    /// process's own.
    pub async fn ensure_rows(&self, n: usize) -> Result<(), StoreError> {
        let n = i64::try_from(n)
            .unwrap_or(i64::MAX)
            .saturating_add(ROW_BLOCK / 2);
        let next = self.inner.next_row.load(Ordering::Acquire);
        if self
            .inner
            .row_end
            .load(Ordering::Acquire)
            .saturating_sub(next)
            >= n
        {
            return Ok(());
        }
        self.more_rows(n.saturating_add(ROW_BLOCK)).await
    }

    async fn more_rows(&self, size: i64) -> Result<(), StoreError> {
        if !self.inner.shared {
            return Ok(());
        }
        let op = Single::RowBlock { floor: 0, size };
        let first = self.write(Work::Single(op), number).await?.await?;
        let first = i64::try_from(first).unwrap_or(i64::MAX);
        // The end first: whoever reserves in between has the old block still before it. Blocks only
        // ascend, so of two that come at once the later stands.
        self.inner
            .row_end
            .fetch_max(first.saturating_add(size), Ordering::AcqRel);
        self.inner.next_row.fetch_max(first, Ordering::AcqRel);
        Ok(())
    }

    /// Pending rows of one lane with `id > after`, ascending, at most `limit`, read after everything
    /// handed to the writer before this call is committed.
    pub async fn pending(
        &self,
        protocol: ProtocolId,
        peer: &PeerName,
        after: i64,
        limit: usize,
    ) -> Result<Vec<QueueRow>, StoreError> {
        let peer = peer.clone();
        self.read_after(move |db| read::pending(db, protocol, peer, after, limit))
            .await
    }

    /// The same for one order key of the lane, `id >= from`.
    pub async fn pending_of_key(
        &self,
        protocol: ProtocolId,
        peer: &PeerName,
        key: &str,
        from: i64,
        limit: usize,
    ) -> Result<Vec<QueueRow>, StoreError> {
        let (peer, key) = (peer.clone(), key.to_owned());
        self.read_after(move |db| read::pending_of_key(db, protocol, peer, key, from, limit))
            .await
    }

    /// One row, whatever its state.
    pub async fn row(&self, id: i64) -> Result<Option<QueueRow>, StoreError> {
        self.read_after(move |db| read::row(db, id)).await
    }

    /// The attempts noted for one row, oldest first, at most 1,000.
    pub async fn attempts_of(&self, row: i64) -> Result<Vec<AttemptRow>, StoreError> {
        self.read_after(move |db| read::attempts_of(db, row)).await
    }

    /// Every lane with pending rows: for arming timers at start.
    pub async fn lanes(&self) -> Result<Vec<LaneSummary>, StoreError> {
        self.read_after(read::lanes).await
    }

    /// The same of one protocol.
    pub async fn lanes_of(&self, protocol: ProtocolId) -> Result<Vec<LaneSummary>, StoreError> {
        self.read_after(move |db| read::lanes_of(db, protocol))
            .await
    }

    /// Rows for `queue list`, newest last, without their bodies.
    pub async fn list_rows(&self, filter: &RowFilter) -> Result<Vec<QueueRow>, StoreError> {
        let filter = filter.clone();
        self.read_after(move |db| read::list_rows(db, filter)).await
    }

    /// Pending rows of these protocols past `expires_ms`, at most `limit`, without their bodies: to be
    /// settled dead. Those of a protocol that is switched off stay.
    pub async fn expired(
        &self,
        now_ms: i64,
        protocols: &[ProtocolId],
        limit: usize,
    ) -> Result<Vec<QueueRow>, StoreError> {
        let protocols = protocols.to_vec();
        self.read_after(move |db| read::expired(db, now_ms, protocols, limit))
            .await
    }

    /// Dead rows behind the row `after` whose notice on FED_DEAD is not acknowledged yet, oldest first.
    pub async fn unnoticed_dead(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<QueueRow>, StoreError> {
        self.read_after(move |db| read::unnoticed_dead(db, after, limit))
            .await
    }

    /// Marks notices as sent.
    pub async fn noticed(&self, ids: Vec<i64>) -> Result<Commit, StoreError> {
        self.put(Work::Noticed(ids)).await
    }

    /// Makes failed and held rows pending again as if never attempted; answers how many there were.
    pub async fn redrive(&self, ids: Vec<i64>) -> Result<Commit<u64>, StoreError> {
        let op = Single::Redrive(ids.into_iter().collect());
        self.write(Work::Single(op), number).await
    }

    /// Removes failed and held rows; answers how many there were.
    pub async fn drop_rows(&self, ids: Vec<i64>) -> Result<Commit<u64>, StoreError> {
        let op = Single::Drop(ids.into_iter().collect());
        self.write(Work::Single(op), number).await
    }

    /// Counts for gauges: pending rows, oldest pending (ms since epoch), dead rows, by protocol.
    /// Reads without waiting for the writer.
    pub async fn queue_counts(&self) -> Result<Vec<QueueCounts>, StoreError> {
        self.read(read::queue_counts).await
    }
}

/// A count of rows.
pub(super) fn number(answer: Answer) -> u64 {
    match answer {
        Answer::Number(n) => u64::try_from(n).unwrap_or(0),
        Answer::Done | Answer::Accepted(_) | Answer::Released(_) => 0,
    }
}
