//! Metrics, operator events, logging.
pub mod health;
pub mod metrics;

use crate::protocol::ProtocolId;

/// Operator events on `fed.ops.<area>.<what>.<protocol>.<peer>`: queued without waiting, dropped
/// (and counted) when the bounded queue is full; delivered/accepted summed per peer and second.
#[derive(Clone)]
pub struct Ops {}

#[allow(unused_variables)]
impl Ops {
    /// Starts the sender task on the current runtime.
    pub fn start(bus: crate::bus::Bus, single: bool) -> Self {
        todo!()
    }
    /// For tests and offline commands: events go nowhere.
    pub fn silent() -> Self {
        todo!()
    }
    /// One event; `body` is the documented JSON of its kind. A time stamp `at` is added.
    pub fn event(
        &self,
        area: &'static str,
        what: &'static str,
        protocol: ProtocolId,
        peer: &str,
        body: serde_json::Value,
    ) {
        todo!()
    }
    /// Counts one for the per-peer sum of a second (`delivered`, `accepted`).
    pub fn tally(
        &self,
        area: &'static str,
        what: &'static str,
        protocol: ProtocolId,
        peer: &str,
        body: impl FnOnce() -> serde_json::Value,
    ) {
        todo!()
    }
}
