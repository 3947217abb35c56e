//! Several instances that share one database; nothing here moves while one is alone.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::METRICS;
use super::labels::{Registry, added, gauge_value};

pub(super) struct Sharing {
    instances: Gauge,
    held: Gauge,
    free: Gauge,
    unrenewed: Counter,
}

impl Sharing {
    pub fn new(r: &mut Registry) -> Self {
        Self {
            instances: added(
                r,
                "instances",
                "Instances that share the database and renewed in time, this one among them; 0: it is not shared",
                Gauge::default(),
            ),
            held: added(
                r,
                "units_held",
                "Units of the outbound work that this instance serves",
                Gauge::default(),
            ),
            free: added(
                r,
                "units_free",
                "Units of the outbound work that no instance serves",
                Gauge::default(),
            ),
            unrenewed: added(
                r,
                "lease_renewals_failed",
                "Times that this instance's leases could not be renewed",
                Counter::default(),
            ),
        }
    }
}

/// Sets what the last look at the leases showed.
pub fn sharing(instances: usize, held: usize, free: usize) {
    let set = |gauge: &Gauge, n: usize| gauge.set(gauge_value(n as u64));
    set(&METRICS.sharing.instances, instances);
    set(&METRICS.sharing.held, held);
    set(&METRICS.sharing.free, free);
}

/// The leases could not be renewed.
pub fn lease_renewal_failed() {
    METRICS.sharing.unrenewed.inc();
}
