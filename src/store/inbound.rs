//! The handle's methods for the inbound ledger.

use super::checkpoint::Acked;
use super::ops::{Answer, Arrival, Work};
use super::types::{Accepted, InboundRow, NewInbound, StoreError};
use super::{Commit, Store, read};
use crate::protocol::{ProtocolId, ReplayId};

impl Store {
    /// Inserts event and replay ids in one commit. The outer future waits for room, the inner for
    /// the commit, and answers what was found. A known dedupe key is a duplicate whatever its
    /// replay ids; nothing is written unless the answer is `New`.
    pub async fn accept(&self, event: NewInbound) -> Result<Commit<Accepted>, StoreError> {
        let arrival = Box::new(Arrival::new(event));
        self.write(Work::Accept(arrival), |answer| match answer {
            Answer::Accepted(accepted) => accepted,
            // The writer answers an arrival with nothing else; if it did, the sender may repeat.
            Answer::Done | Answer::Number(_) | Answer::Released(_) => Accepted::Replayed,
        })
        .await
    }

    /// Marks inbound events as acknowledged by JetStream.
    pub async fn published(&self, ids: Vec<i64>) -> Result<Commit, StoreError> {
        self.put(Work::Published(Acked {
            ids,
            ..Acked::default()
        }))
        .await
    }

    /// Inbound events JetStream has not acknowledged, ledger order, `id > after`.
    pub async fn unpublished(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<InboundRow>, StoreError> {
        self.read_after(move |db| read::unpublished(db, after, limit))
            .await
    }

    /// Inbound events whose body is still held, published or not, ledger order, `id > after`: what
    /// a repair may republish.
    pub async fn inbound_after(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<InboundRow>, StoreError> {
        self.read_after(move |db| read::inbound_after(db, after, limit))
            .await
    }

    /// Whether this dedupe key is in the ledger.
    pub async fn has_inbound(
        &self,
        protocol: ProtocolId,
        dedupe_key: &str,
    ) -> Result<bool, StoreError> {
        let key = dedupe_key.to_owned();
        self.read(move |db| read::has_inbound(db, protocol, key))
            .await
    }

    /// Whether this replay id is known and not expired.
    pub async fn replay_seen(
        &self,
        protocol: ProtocolId,
        id: &ReplayId,
    ) -> Result<bool, StoreError> {
        let (id, now_ms) = (id.clone(), self.inner.clock.now_ms());
        self.read(move |db| read::replay_seen(db, protocol, id, now_ms))
            .await
    }
}
