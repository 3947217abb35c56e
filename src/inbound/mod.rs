//! The gate and the one door to `fed.in`.

use crate::protocol::Verified;

/// The one way to `fed.in`; cloning shares it.
#[derive(Clone)]
pub struct Door {}

/// How an event went through the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Durable and acknowledged by JetStream.
    New,
    /// It was so already (or joined the first copy, which now is).
    Duplicate,
    /// A replay id was used before.
    Replayed,
    /// Store or broker cannot take it now: answer 503 with this `Retry-After` in seconds.
    Unavailable { retry_after_s: u32 },
}

#[allow(unused_variables)]
impl Door {
    /// Publishes what an earlier run left unpublished, then opens; runs a publisher that keeps ledger order.
    pub async fn open(
        store: crate::store::Store,
        bus: crate::bus::Bus,
        ops: crate::ops::Ops,
        clock: crate::clock::Clock,
    ) -> Result<Self, crate::bus::BusError> {
        todo!()
    }
    /// Event and id into the ledger (fsynced), then to JetStream (PubAck); then the answer.
    pub async fn enter(&self, event: Verified) -> Entry {
        todo!()
    }
}
