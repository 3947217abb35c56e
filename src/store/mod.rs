//! The ledger: SQL behind one group-commit writer.
//!
//! Every write is an operation handed to one writer, which gathers what waits into one transaction
//! (at once when idle, wider under load) and wakes each caller when *its* rows are fsynced.
//! Reads go through a small pool beside it.

pub mod types;
pub use types::*;

use std::path::Path;

use crate::clock::Clock;
use crate::protocol::{PeerName, PeerRecord, ProtocolId, Record, ReplayId};

/// Handle to the store; cloning shares it.
#[derive(Clone)]
pub struct Store {}

/// Resolves when the operation it came from is durable.
pub type Commit<T = ()> = futures_util::future::BoxFuture<'static, Result<T, StoreError>>;

#[allow(unused_variables)]
impl Store {
    /// Opens (creates, migrates) the SQLite file at `path`. A file another process has open for
    /// writing, or one newer than this binary, is refused.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        todo!()
    }

    /// Finishes what waits and closes. Later operations fail with `StoreErrorKind::Closed`.
    pub async fn close(&self) {
        todo!()
    }

    /// Identity of this database, made once; in consumer metadata.
    pub fn id(&self) -> &str {
        todo!()
    }

    /// Last commit succeeded (false: disk full, gone). For readiness.
    pub fn healthy(&self) -> bool {
        todo!()
    }

    // ---------------------------------------------------------------- outbound queue

    /// The next ledger numbers, `n` of them, ascending; never reused, never read from disk.
    pub fn reserve_rows(&self, n: usize) -> std::ops::Range<i64> {
        todo!()
    }

    /// Which of these message ids (per protocol) have a row already, committed.
    pub async fn known_messages(
        &self,
        protocol: ProtocolId,
        ids: &[String],
    ) -> Result<std::collections::HashSet<String>, StoreError> {
        todo!()
    }

    /// Queues rows for insertion (waits for room, then returns); the inner future resolves at
    /// commit. A row whose (protocol, msg_id, peer) exists is skipped silently.
    pub async fn enqueue(&self, rows: Vec<NewRow>) -> Result<Commit, StoreError> {
        todo!()
    }

    /// Records an outcome. If the row still waits to be inserted the two become one write.
    pub async fn settle(&self, settle: Settle) -> Result<Commit, StoreError> {
        todo!()
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
        todo!()
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
        todo!()
    }

    /// One row, whatever its state.
    pub async fn row(&self, id: i64) -> Result<Option<QueueRow>, StoreError> {
        todo!()
    }

    /// Every lane with pending rows: for arming timers at start.
    pub async fn lanes(&self) -> Result<Vec<LaneSummary>, StoreError> {
        todo!()
    }

    /// Rows for `queue list`, newest last.
    pub async fn list_rows(&self, filter: &RowFilter) -> Result<Vec<QueueRow>, StoreError> {
        todo!()
    }

    /// Pending rows past `expires_ms`, at most `limit`: to be settled dead.
    pub async fn expired(&self, now_ms: i64, limit: usize) -> Result<Vec<QueueRow>, StoreError> {
        todo!()
    }

    /// Dead rows whose notice on FED_DEAD is not acknowledged yet.
    pub async fn unnoticed_dead(&self, limit: usize) -> Result<Vec<QueueRow>, StoreError> {
        todo!()
    }

    /// Marks notices as sent.
    pub async fn noticed(&self, ids: Vec<i64>) -> Result<Commit, StoreError> {
        todo!()
    }

    // ---------------------------------------------------------------- inbound ledger

    /// Inserts event and replay ids in one commit. The outer future waits for room, the inner for
    /// the commit, and answers what was found.
    pub async fn accept(&self, event: NewInbound) -> Result<Commit<Accepted>, StoreError> {
        todo!()
    }

    /// Marks inbound events as acknowledged by JetStream.
    pub async fn published(&self, ids: Vec<i64>) -> Result<Commit, StoreError> {
        todo!()
    }

    /// Inbound events JetStream has not acknowledged, ledger order, `id > after`.
    pub async fn unpublished(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<InboundRow>, StoreError> {
        todo!()
    }

    /// Whether this dedupe key is in the ledger.
    pub async fn has_inbound(
        &self,
        protocol: ProtocolId,
        dedupe_key: &str,
    ) -> Result<bool, StoreError> {
        todo!()
    }

    /// Whether this replay id is known and not expired.
    pub async fn replay_seen(
        &self,
        protocol: ProtocolId,
        id: &ReplayId,
    ) -> Result<bool, StoreError> {
        todo!()
    }

    // ---------------------------------------------------------------- peers, trust, protocol rows

    /// `known_relays`.
    pub async fn peers(&self) -> Result<Vec<PeerRecord>, StoreError> {
        todo!()
    }
    /// Inserts or replaces one record.
    pub async fn put_peer(&self, peer: PeerRecord) -> Result<Commit, StoreError> {
        todo!()
    }
    /// Health facts of every peer.
    pub async fn health(&self) -> Result<Vec<HealthRow>, StoreError> {
        todo!()
    }
    /// Inserts or replaces one peer's facts.
    pub async fn put_health(&self, row: HealthRow) -> Result<Commit, StoreError> {
        todo!()
    }

    /// Trust rules, all.
    pub async fn trust_rules(&self) -> Result<Vec<TrustRow>, StoreError> {
        todo!()
    }
    /// Adds or replaces one rule; answers its row id.
    pub async fn put_trust(&self, row: TrustRow) -> Result<Commit, StoreError> {
        todo!()
    }
    /// Removes one rule; false when there was none.
    pub async fn remove_trust(
        &self,
        protocol: &str,
        pattern: &str,
        rule: &str,
    ) -> Result<Commit<bool>, StoreError> {
        todo!()
    }

    /// Reputation scores, all.
    pub async fn scores(&self) -> Result<Vec<(String, String, i64)>, StoreError> {
        todo!()
    }
    /// Writes one score (protocol, peer, score).
    pub async fn put_score(
        &self,
        protocol: ProtocolId,
        peer: &str,
        score: i64,
    ) -> Result<Commit, StoreError> {
        todo!()
    }

    /// A protocol's rows of one kind.
    pub async fn records(
        &self,
        protocol: ProtocolId,
        kind: &str,
    ) -> Result<Vec<(String, String)>, StoreError> {
        todo!()
    }
    /// One of them.
    pub async fn record(
        &self,
        protocol: ProtocolId,
        kind: &str,
        key: &str,
    ) -> Result<Option<String>, StoreError> {
        todo!()
    }
    /// Writes (value) or deletes (None) rows in one commit.
    pub async fn put_records(
        &self,
        protocol: ProtocolId,
        records: Vec<Record>,
    ) -> Result<Commit, StoreError> {
        todo!()
    }

    /// Our own signing keys as seen at earlier starts (`federation_server_keys`): (key_id, public key hex, first seen ms).
    pub async fn server_keys(
        &self,
        protocol: ProtocolId,
    ) -> Result<Vec<(String, String, i64)>, StoreError> {
        todo!()
    }
    /// Remembers one.
    pub async fn put_server_key(
        &self,
        protocol: ProtocolId,
        key_id: &str,
        public_key_hex: &str,
    ) -> Result<Commit, StoreError> {
        todo!()
    }

    /// The consumer epoch, incremented and committed.
    pub async fn next_epoch(&self) -> Result<i64, StoreError> {
        todo!()
    }

    /// Prunes in small steps what retention allows (outcomes older than a day, replay ids past
    /// their time, …); answers how many rows went.
    pub async fn prune(&self, now_ms: i64) -> Result<u64, StoreError> {
        todo!()
    }

    /// Counts for gauges: pending rows, oldest pending (ms since epoch), dead rows, by protocol.
    pub async fn queue_counts(&self) -> Result<Vec<QueueCounts>, StoreError> {
        todo!()
    }
}
