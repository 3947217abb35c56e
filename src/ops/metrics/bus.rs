//! The broker and what is said on it for operators.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::METRICS;
use super::labels::{Registry, added};

pub(super) struct Bus {
    connected: Gauge,
    durability: Family<ByVerdict, Gauge>,
    ops_dropped: Counter,
    reloads: Family<ByResult, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByVerdict {
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByResult {
    outcome: &'static str,
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
            durability: added(
                r,
                "broker_durability",
                "1 for what an acknowledgement of the broker is worth, 0 for the other verdicts",
                Family::default(),
            ),
            ops_dropped: added(
                r,
                "ops_events_dropped",
                "Operator events dropped because their queue was full",
                Counter::default(),
            ),
            reloads: added(
                r,
                "config_reloads",
                "Times the configuration was read again, by what came of it",
                Family::default(),
            ),
        }
    }
}

/// Sets whether NATS is connected.
pub fn bus_connected(connected: bool) {
    METRICS.bus.connected.set(i64::from(connected));
}

/// Sets what an acknowledgement of the broker is worth: `fsync`, `replicated` or `at_risk`.
pub fn broker_durability(verdict: &'static str) {
    for one in ["fsync", "replicated", "at_risk"] {
        let label = ByVerdict { verdict: one };
        let gauge = METRICS.bus.durability.get_or_create(&label);
        gauge.set(i64::from(one == verdict));
    }
}

/// An operator event was dropped.
pub fn ops_dropped() {
    METRICS.bus.ops_dropped.inc();
}

/// How many operator events were dropped so far.
pub fn ops_dropped_count() -> u64 {
    METRICS.bus.ops_dropped.get()
}

/// The configuration was read again; `taken`: it is in force.
pub fn config_reload(taken: bool) {
    let outcome = if taken { "taken" } else { "rejected" };
    let label = ByResult { outcome };
    METRICS.bus.reloads.get_or_create(&label).inc();
}
