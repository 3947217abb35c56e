//! What the door needs of the bus, so that its logic can be tried against a bus that fails on cue.

use futures_util::future::BoxFuture;

use crate::bus::{Bus, BusError, BusMessage};

/// Resolves at the PubAck: stream sequence, and whether the broker knew the message id.
pub type PubAck = BoxFuture<'static, Result<(u64, bool), BusError>>;

/// Bytes of a message that are left to subject and headers.
const HEADROOM: usize = 8 * 1024;

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
}
