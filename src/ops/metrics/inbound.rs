//! Receiving: events judged, requests refused.

use prometheus_client::registry::Registry;

use super::METRICS;
use super::labels::{ByOutcome, Outcomes, Reasons, added};

pub(super) struct Inbound {
    inbound: Outcomes,
    refusals: Reasons,
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
        }
    }
}

/// An inbound event was judged. `outcome`: `accepted`, `duplicate`, `replayed`, `refused`, `unavailable`.
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
