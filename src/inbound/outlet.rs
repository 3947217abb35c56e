//! What the door needs of the bus, so that its logic can be tried against a bus that fails on cue.

use std::collections::HashSet;

use futures_util::future::BoxFuture;

use crate::bus::{Bus, BusError, BusMessage};
use crate::clock::UnixMs;

use super::STREAM;
use super::message::MSG_ID;

/// Resolves at the PubAck: stream sequence, and whether the broker knew the message id.
pub type PubAck = BoxFuture<'static, Result<(u64, bool), BusError>>;

/// Bytes of a message that are left to subject and headers.
const HEADROOM: usize = 8 * 1024;

/// Messages looked at, at most, to learn what the stream holds.
const MAX_LOOK_BACK: u64 = 50_000;

/// A bus to publish on.
pub trait Outlet: Send + Sync + 'static {
    /// Subject prefix.
    fn prefix(&self) -> &str;
    /// Connected at this moment.
    fn connected(&self) -> bool;
    /// Largest body it takes, bytes.
    fn max_body(&self) -> usize;
    /// See [`Bus::publish_windowed`].
    fn publish(&self, message: BusMessage) -> BoxFuture<'_, Result<PubAck, BusError>>;
    /// `Nats-Msg-Id` of what the stream took since then, by the broker's clock.
    fn taken_since(&self, since_ms: UnixMs) -> BoxFuture<'_, Result<HashSet<String>, BusError>>;
}

impl Outlet for Bus {
    fn prefix(&self) -> &str {
        Bus::prefix(self)
    }

    fn connected(&self) -> bool {
        Bus::connected(self)
    }

    fn max_body(&self) -> usize {
        self.server().max_payload.saturating_sub(HEADROOM)
    }

    fn publish(&self, message: BusMessage) -> BoxFuture<'_, Result<PubAck, BusError>> {
        Box::pin(self.publish_windowed(message))
    }

    fn taken_since(&self, since_ms: UnixMs) -> BoxFuture<'_, Result<HashSet<String>, BusError>> {
        Box::pin(async move {
            let mut ids = HashSet::new();
            let Some(facts) = self.stream_facts(STREAM).await? else {
                return Ok(ids);
            };
            let first = facts
                .first_seq
                .max(facts.last_seq.saturating_sub(MAX_LOOK_BACK));
            for seq in (first..=facts.last_seq).rev() {
                let Some(message) = self.read_message(STREAM, seq).await? else {
                    continue;
                };
                if message.time_ms < since_ms {
                    break;
                }
                if let Some(id) = message.header(MSG_ID) {
                    ids.insert(id.to_owned());
                }
            }
            Ok(ids)
        })
    }
}
