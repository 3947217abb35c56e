//! The handle's methods for peers, trust, protocols' own rows, and the store's housekeeping.

use std::collections::HashMap;
use std::sync::Arc;

use super::ops::{Answer, Single, Statement, Work};
use super::types::{Common, HealthRow, Keeping, Lead, StoreError, TrustRow};
use super::{Commit, Store, common, read};
use crate::protocol::{PeerRecord, ProtocolId, Record};

/// The topic of the trust rules.
pub const TRUST: &str = "trust";
/// Steps of one call of `prune`; each is an operation of its own, so that commits go in between.
const PRUNE_STEPS: usize = 64;

impl Store {
    /// `known_relays`.
    pub async fn peers(&self) -> Result<Vec<PeerRecord>, StoreError> {
        self.read_after(read::peers).await
    }

    /// Inserts or replaces one record.
    pub async fn put_peer(&self, peer: PeerRecord) -> Result<Commit, StoreError> {
        self.put(Work::Single(Single::PutPeer(peer))).await
    }

    /// Health facts of every peer.
    pub async fn health(&self) -> Result<Vec<HealthRow>, StoreError> {
        self.read_after(read::health).await
    }

    /// Inserts or replaces one peer's facts.
    pub async fn put_health(&self, row: HealthRow) -> Result<Commit, StoreError> {
        let put = Statement::new(
            "INSERT INTO peer_health (protocol, peer, facts) VALUES ($1, $2, $3) \
             ON CONFLICT (protocol, peer) DO UPDATE SET facts = excluded.facts",
        );
        let put = put.bind(row.protocol).bind(row.peer).bind(row.facts);
        self.put(Work::Single(Single::Execute(vec![put]))).await
    }

    /// Trust rules, all.
    pub async fn trust_rules(&self) -> Result<Vec<TrustRow>, StoreError> {
        self.read_after(read::trust_rules).await
    }

    /// Adds a rule, or replaces the one of the same protocol, pattern and rule.
    pub async fn put_trust(&self, row: TrustRow) -> Result<Commit, StoreError> {
        let put = Statement::new(
            "INSERT INTO federation_trust (protocol, pattern, rule, reason, created_ms, ends_ms) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (protocol, pattern, rule) DO UPDATE SET \
             reason = excluded.reason, created_ms = excluded.created_ms, ends_ms = excluded.ends_ms",
        );
        let put = put.bind(row.protocol).bind(row.pattern).bind(row.rule);
        let put = put.bind(row.reason).bind(row.created_ms).bind(row.ends_ms);
        let statements = self.told(TRUST).chain([put]).collect();
        self.put(Work::Single(Single::Execute(statements))).await
    }

    /// Removes one rule; false when there was none.
    pub async fn remove_trust(
        &self,
        protocol: &str,
        pattern: &str,
        rule: &str,
    ) -> Result<Commit<bool>, StoreError> {
        let remove = Statement::new(
            "DELETE FROM federation_trust WHERE protocol = $1 AND pattern = $2 AND rule = $3",
        );
        let remove = remove.bind(protocol).bind(pattern).bind(rule);
        self.write(
            Work::Single(Single::Execute(self.told(TRUST).chain([remove]).collect())),
            |answer| matches!(answer, Answer::Number(n) if n > 0),
        )
        .await
    }

    /// Reputation scores, all.
    pub async fn scores(&self) -> Result<Vec<(String, String, i64)>, StoreError> {
        self.read_after(read::scores).await
    }

    /// Writes one score (protocol, peer, score).
    pub async fn put_score(
        &self,
        protocol: ProtocolId,
        peer: &str,
        score: i64,
    ) -> Result<Commit, StoreError> {
        let put = Statement::new(
            "INSERT INTO relay_reputation (protocol, peer, score, updated_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (protocol, peer) DO UPDATE SET score = excluded.score, \
             updated_ms = excluded.updated_ms",
        );
        let now_ms = self.inner.clock.now_ms();
        let put = put.bind(protocol).bind(peer).bind(score).bind(now_ms);
        self.put(Work::Single(Single::Execute(vec![put]))).await
    }

    /// A protocol's rows of one kind.
    pub async fn records(
        &self,
        protocol: ProtocolId,
        kind: &str,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let kind = kind.to_owned();
        self.read_after(move |db| read::records(db, protocol, kind))
            .await
    }

    /// One of them.
    pub async fn record(
        &self,
        protocol: ProtocolId,
        kind: &str,
        key: &str,
    ) -> Result<Option<String>, StoreError> {
        let (kind, key) = (kind.to_owned(), key.to_owned());
        self.read_after(move |db| read::record(db, protocol, kind, key))
            .await
    }

    /// Those of these keys that are there, by key.
    pub async fn records_of(
        &self,
        protocol: ProtocolId,
        kind: &'static str,
        keys: Vec<String>,
    ) -> Result<HashMap<String, String>, StoreError> {
        self.read_after(move |db| read::records_of(db, protocol, kind, keys))
            .await
    }

    /// Writes (value) or deletes (None) rows in one commit.
    pub async fn put_records(
        &self,
        protocol: ProtocolId,
        records: Vec<Record>,
    ) -> Result<Commit, StoreError> {
        self.put(Work::Records(protocol, records)).await
    }

    /// Our own signing keys as seen at earlier starts (`federation_server_keys`): (key_id, public key hex, first seen ms).
    pub async fn server_keys(
        &self,
        protocol: ProtocolId,
    ) -> Result<Vec<(String, String, i64)>, StoreError> {
        self.read_after(move |db| read::server_keys(db, protocol))
            .await
    }

    /// Remembers one.
    pub async fn put_server_key(
        &self,
        protocol: ProtocolId,
        key_id: &str,
        public_key_hex: &str,
    ) -> Result<Commit, StoreError> {
        let put = Statement::new(
            "INSERT INTO federation_server_keys (protocol, key_id, public_key, first_seen_ms) \
             VALUES ($1, $2, $3, $4) ON CONFLICT (protocol, key_id) DO UPDATE SET \
             public_key = excluded.public_key",
        );
        let now_ms = self.inner.clock.now_ms();
        let put = put.bind(protocol).bind(key_id).bind(public_key_hex);
        let put = put.bind(now_ms);
        self.put(Work::Single(Single::Execute(vec![put]))).await
    }

    /// The consumer epoch, incremented and committed.
    pub async fn next_epoch(&self) -> Result<i64, StoreError> {
        self.count(Single::NextEpoch).await
    }

    /// Says that something which every instance keeps in memory was changed, for the others to read
    /// it anew; nothing when there are no others. A topic is `trust`, or a protocol's id.
    pub async fn changed(&self, topic: &str) -> Result<(), StoreError> {
        let told: Vec<_> = self.told(topic).collect();
        match told.is_empty() {
            true => Ok(()),
            false => self.count(Single::Execute(told)).await.map(drop),
        }
    }

    /// The statement that tells the others, to stand before others in one transaction.
    fn told(&self, topic: &str) -> impl Iterator<Item = Statement> + use<> {
        self.shared()
            .then(|| common::count_change(topic))
            .into_iter()
    }

    /// Writes (value) or deletes (None) one of a protocol's rows that every instance keeps in memory.
    pub async fn put_known(
        &self,
        protocol: ProtocolId,
        record: Record,
    ) -> Result<Commit, StoreError> {
        if !self.shared() {
            return self.put_records(protocol, vec![record]).await;
        }
        let change = match record.value {
            Some(value) => Statement::new(
                "INSERT INTO protocol_records (protocol, kind, key, value) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (protocol, kind, key) DO UPDATE SET value = excluded.value",
            )
            .bind(protocol)
            .bind(record.kind)
            .bind(record.key)
            .bind(value),
            None => Statement::new(
                "DELETE FROM protocol_records WHERE protocol = $1 AND kind = $2 AND key = $3",
            )
            .bind(protocol)
            .bind(record.kind)
            .bind(record.key),
        };
        let statements = self.told(protocol).chain([change]).collect();
        self.put(Work::Single(Single::Execute(statements))).await
    }

    /// Takes or keeps a part that one instance plays for all, for so long; true where there are no
    /// others.
    pub async fn lead(
        &self,
        what: &'static str,
        lasts: std::time::Duration,
    ) -> Result<bool, StoreError> {
        if !self.shared() {
            return Ok(true);
        }
        let by = self.instance().to_owned();
        let lead = Single::Lead(Lead { what, by, lasts });
        self.count(lead).await.map(|n| n > 0)
    }

    /// How often what instances that share this database know, and the streams' history, has
    /// changed so far.
    pub async fn common(&self) -> Result<Common, StoreError> {
        self.read(super::common::read).await
    }

    /// What protocols want kept otherwise than retention says, from now on.
    pub fn keep(&self, wishes: Vec<Keeping>) {
        self.inner.wishes.store(Arc::new(wishes));
    }

    /// Prunes in small steps what retention allows (see the table in `prune.rs`); answers how many
    /// rows went. Takes its time: after each step it leaves the writer to others for as long again.
    /// Stops after a number of steps, so a large arrear takes several calls.
    pub async fn prune(&self, now_ms: i64) -> Result<u64, StoreError> {
        let mut gone: u64 = 0;
        for _ in 0..PRUNE_STEPS {
            let begun = std::time::Instant::now();
            let keep = Box::new(self.inner.retention.clone());
            let wishes = self.inner.wishes.load_full();
            let prune = Single::Prune {
                now_ms,
                keep,
                wishes,
            };
            let step = self.count(prune).await?;
            gone = gone.saturating_add(u64::try_from(step).unwrap_or(0));
            if step == 0 {
                break;
            }
            tokio::time::sleep(begun.elapsed()).await;
        }
        Ok(gone)
    }

    /// Caps the size of the database file, bytes; writes that would need more fail as on a full
    /// disk. `None`: no cap. Not remembered over a restart.
    pub async fn limit_size(&self, bytes: Option<u64>) -> Result<(), StoreError> {
        self.count(Single::LimitSize(bytes)).await.map(drop)
    }

    async fn count(&self, op: Single) -> Result<i64, StoreError> {
        self.write(Work::Single(op), |answer| match answer {
            Answer::Number(n) => n,
            Answer::Done | Answer::Accepted(_) | Answer::Released(_) => 0,
        })
        .await?
        .await
    }
}
