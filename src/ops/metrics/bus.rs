//! The broker and what is said on it for operators.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::METRICS;
use super::labels::added;

pub(super) struct Bus {
    connected: Gauge,
    ops_dropped: Counter,
}

impl Bus {
    pub fn new(r: &mut Registry) -> Self {
        Self {
            connected: added(
                r,
                "bus_connected",
                "1 while NATS is connected, else 0",
                Gauge::default(),
            ),
            ops_dropped: added(
                r,
                "ops_events_dropped",
                "Operator events dropped because their queue was full",
                Counter::default(),
            ),
        }
    }
}

/// Sets whether NATS is connected.
pub fn bus_connected(connected: bool) {
    METRICS.bus.connected.set(i64::from(connected));
}

/// An operator event was dropped.
pub fn ops_dropped() {
    METRICS.bus.ops_dropped.inc();
}

/// How many operator events were dropped so far.
pub fn ops_dropped_count() -> u64 {
    METRICS.bus.ops_dropped.get()
}
