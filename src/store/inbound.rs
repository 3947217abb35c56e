//! The handle's methods for the inbound ledger.

use std::sync::Arc;

use futures_util::FutureExt;

use super::checkpoint::Acked;
use super::ops::{Answer, Arrival, Work};
use super::types::{Accepted, InboundRow, NewInbound, StoreError};
use super::{Commit, Reply, Store, closed, read};
use crate::protocol::{ProtocolId, ReplayId};

impl Store {
    /// Inserts event and replay ids in one commit. The outer future waits for room, the inner for
    /// the commit, and answers what was found. A known dedupe key is a duplicate whatever its
    /// replay ids; nothing is written unless the answer is `New`.
    pub async fn accept(
        &self,
        event: impl Into<Arc<NewInbound>>,
    ) -> Result<Commit<Accepted>, StoreError> {
        let arrival = Box::new(Arrival::new(event.into()));
        self.write(Work::Accept(arrival), accepted).await
    }

    /// The same for many at once, in this order: one hand-over, an answer each.
    pub async fn accept_all(
        &self,
        events: impl ExactSizeIterator<Item = Arc<NewInbound>>,
    ) -> Result<Vec<Commit<Accepted>>, StoreError> {
        let works = events.map(|event| Work::Accept(Box::new(Arrival::new(event))));
        let answers = self.submit_each(works.collect()).await?;
        let told = |answer: Reply| {
            answer
                .map(|result| result.map_err(|_| closed())?.map(accepted))
                .boxed()
        };
        Ok(answers.into_iter().map(told).collect())
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

fn accepted(answer: Answer) -> Accepted {
    match answer {
        Answer::Accepted(accepted) => accepted,
        // The writer answers an arrival with nothing else; if it did, the sender may repeat.
        Answer::Done | Answer::Number(_) | Answer::Released(_) => Accepted::Replayed,
    }
}
