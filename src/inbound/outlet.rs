//! What the door needs of the bus, so that its logic can be tried against a bus that fails on cue.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::bus::{Bus, BusError, BusMessage, ScanFrom, StreamFacts};
use crate::store::Way;

use super::message::MSG_ID;

/// Resolves at the PubAck: stream sequence, and whether the broker knew the message id.
pub type PubAck = BoxFuture<'static, Result<(u64, bool), BusError>>;

/// Bytes of a message that are left to subject and headers.
const HEADROOM: usize = 8 * 1024;

/// What a stream was found to hold; 24 bytes and a little more a message, whatever its id.
#[derive(Clone, Debug, Default)]
pub struct Held {
    ids: HashSet<u128>,
    sequences: Vec<u64>,
}

impl Held {
    /// A message was found.
    pub fn add(&mut self, seq: u64, msg_id: &str) {
        self.ids.insert(short(msg_id));
        self.sequences.push(seq);
    }

    /// A message was put there since.
    pub(super) fn put(&mut self, msg_id: &str) {
        self.ids.insert(short(msg_id));
    }

    /// Whether this message is there.
    pub fn has(&self, msg_id: &str) -> bool {
        self.ids.contains(&short(msg_id))
    }

    /// The sequences found, in order.
    pub fn sequences(&self) -> &[u64] {
        &self.sequences
    }
}

/// An id in 16 bytes of its hash, so that no two are alike even if somebody wants them to be.
fn short(msg_id: &str) -> u128 {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(Sha256::digest(msg_id.as_bytes())) {
        *to = from;
    }
    u128::from_le_bytes(bytes)
}

/// A bus to publish on, and to ask what became of it.
pub trait Outlet: Send + Sync + 'static {
    /// Subject prefix.
    fn prefix(&self) -> &str;
    /// Connected at this moment.
    fn connected(&self) -> bool;
    /// Follows that; `None`: it never changes.
    fn connection(&self) -> Option<watch::Receiver<bool>>;
    /// How often the connection was lost so far.
    fn losses(&self) -> u64;
    /// Largest body it takes, bytes.
    fn max_body(&self) -> usize;
    /// See [`Bus::publish_windowed`].
    fn publish(&self, message: BusMessage) -> BoxFuture<'_, Result<PubAck, BusError>>;
    /// See [`Bus::stream_facts`].
    fn facts(&self, way: Way) -> BoxFuture<'_, Result<Option<StreamFacts>, BusError>>;
    /// `Nats-Msg-Id` of the message at a sequence (empty: it has none); `None`: no message is there.
    fn id_at(&self, way: Way, seq: u64) -> BoxFuture<'_, Result<Option<String>, BusError>>;
    /// What the stream holds from a place on.
    fn holds(&self, way: Way, from: ScanFrom) -> BoxFuture<'_, Result<Held, BusError>>;
    /// Makes missing streams, if policy says so.
    fn ensure(&self) -> BoxFuture<'_, Result<(), BusError>>;
}

impl Outlet for Bus {
    fn prefix(&self) -> &str {
        Bus::prefix(self)
    }

    fn connected(&self) -> bool {
        Bus::connected(self)
    }

    fn connection(&self) -> Option<watch::Receiver<bool>> {
        Some(self.connected_changes())
    }

    fn losses(&self) -> u64 {
        Bus::losses(self)
    }

    fn max_body(&self) -> usize {
        self.server().max_payload.saturating_sub(HEADROOM)
    }

    fn publish(&self, message: BusMessage) -> BoxFuture<'_, Result<PubAck, BusError>> {
        Box::pin(self.publish_windowed(message))
    }

    fn facts(&self, way: Way) -> BoxFuture<'_, Result<Option<StreamFacts>, BusError>> {
        Box::pin(self.stream_facts(way.stream()))
    }

    fn id_at(&self, way: Way, seq: u64) -> BoxFuture<'_, Result<Option<String>, BusError>> {
        Box::pin(async move {
            let found = self.read_message(way.stream(), seq).await?;
            Ok(found.map(|m| m.header(MSG_ID).unwrap_or_default().to_owned()))
        })
    }

    fn holds(&self, way: Way, from: ScanFrom) -> BoxFuture<'_, Result<Held, BusError>> {
        Box::pin(async move {
            let mut held = Held::default();
            self.scan(way.stream(), from, &mut |seq, id| {
                held.add(seq, id);
            })
            .await?;
            Ok(held)
        })
    }

    fn ensure(&self) -> BoxFuture<'_, Result<(), BusError>> {
        Box::pin(async move { self.apply_streams().await.map(drop) })
    }
}
