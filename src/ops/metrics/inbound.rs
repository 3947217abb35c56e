//! Receiving: events judged, requests refused.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::METRICS;
use super::labels::{ByOutcome, Outcomes, Reasons, Registry, added};

pub(super) struct Inbound {
    inbound: Outcomes,
    refusals: Reasons,
    repairs: Counter,
    republished: Counter,
    beyond_mending: Counter,
    mendable: Gauge<f64, AtomicU64>,
    held: Gauge,
}

impl Inbound {
    pub fn new(r: &mut Registry) -> Self {
        Self {
            inbound: added(
                r,
                "inbound",
                "Events delivered to us, by what became of them",
                Outcomes::default(),
            ),
            refusals: Reasons::added(r, "refusals", "Inbound requests refused, by reason code"),
            repairs: added(
                r,
                "broker_repairs",
                "Times that the broker had lost events it had acknowledged",
                Counter::default(),
            ),
            republished: added(
                r,
                "broker_republished",
                "Events that the broker had lost and was given again",
                Counter::default(),
            ),
            beyond_mending: added(
                r,
                "broker_unmendable",
                "Events that the broker had lost and that were older than their bodies are kept",
                Counter::default(),
            ),
            mendable: added(
                r,
                "broker_mendable_seconds",
                "How far back a loss of the broker can be mended",
                Gauge::default(),
            ),
            held: added(
                r,
                "held_events",
                "Events of quarantined peers that are held back",
                Gauge::default(),
            ),
        }
    }
}

/// An inbound event was judged. `outcome`: `accepted`, `duplicate`, `held`, `replayed`,
/// `refused`, `unavailable`.
pub fn inbound(protocol: &'static str, outcome: &'static str) {
    METRICS
        .inbound
        .inbound
        .get_or_create(&ByOutcome { protocol, outcome })
        .inc();
}

/// An inbound request was refused for this reason code.
pub fn refusal(protocol: &str, code: &str) {
    METRICS.inbound.refusals.count(protocol, code);
}

/// A loss of the broker was mended: events given to it again, and events that could not be.
pub fn repaired(republished: usize, beyond_mending: usize) {
    let m = &METRICS.inbound;
    m.repairs.inc();
    m.republished
        .inc_by(u64::try_from(republished).unwrap_or(u64::MAX));
    m.beyond_mending
        .inc_by(u64::try_from(beyond_mending).unwrap_or(u64::MAX));
}

/// How far back a loss of the broker can be mended, seconds.
pub fn mendable(seconds: f64) {
    METRICS.inbound.mendable.set(seconds);
}

/// Events held back at this moment.
pub fn held(events: u64) {
    METRICS
        .inbound
        .held
        .set(i64::try_from(events).unwrap_or(i64::MAX));
}
