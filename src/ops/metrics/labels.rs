//! Label sets with few values, and counters over them.

use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Metric, Registry as Inner, Unit};

/// Series one label of reason codes may have; later codes count as `other`. Codes are ours and few,
/// so this only bounds what a mistake could cost.
pub(super) const MAX_REASONS: usize = 256;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByOutcome {
    pub protocol: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByProtocolId {
    pub protocol: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByProtocol {
    pub protocol: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByReason {
    pub protocol: String,
    pub reason: String,
}

/// The endings of names that are units: OpenMetrics wants them told apart from the name.
const UNITS: [&str; 3] = ["seconds", "bytes", "rows"];

/// What is registered, and what it was said to be.
pub(super) struct Registry {
    pub inner: Inner,
    pub described: Vec<Described>,
}

/// One metric as it is documented: the name of its samples (a histogram's without `_bucket`),
/// its type, its unit where it has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Described {
    pub name: String,
    pub kind: String,
    pub unit: Option<String>,
}

impl Registry {
    pub fn new() -> Self {
        Self {
            inner: Inner::with_prefix(PREFIX),
            described: Vec::new(),
        }
    }

    /// Registers `metric` under `drawbridge_<name>`; a unit at the end of the name is found by itself.
    pub fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        let kind = metric.metric_type().as_str().to_owned();
        let ending = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let unit = UNITS
            .into_iter()
            .find_map(|unit| Some((name.strip_suffix(unit)?.strip_suffix('_')?, unit)));
        self.described.push(Described {
            name: format!("{PREFIX}_{name}{ending}"),
            kind,
            unit: unit.map(|(_, unit)| unit.to_owned()),
        });
        match unit {
            None => self.inner.register(name, help, metric),
            Some((short, unit)) => {
                let unit = match unit {
                    "seconds" => Unit::Seconds,
                    "bytes" => Unit::Bytes,
                    other => Unit::Other(other.to_owned()),
                };
                self.inner.register_with_unit(short, help, unit, metric);
            }
        }
    }
}

/// What every name begins with.
const PREFIX: &str = "drawbridge";

pub(super) type Outcomes = Family<ByOutcome, Counter>;
pub(super) type Protocols = Family<ByProtocol, Counter>;

/// Counters by reason code, with a bound on how many there may be.
#[derive(Default)]
pub(super) struct Reasons {
    pub family: Family<ByReason, Counter>,
    known: AtomicUsize,
}

impl Reasons {
    pub fn added(registry: &mut Registry, name: &str, help: &str) -> Self {
        let reasons = Self::default();
        registry.register(name, help, reasons.family.clone());
        reasons
    }

    pub fn count(&self, protocol: &str, code: &str) {
        let label = |reason: &str| ByReason {
            protocol: protocol.to_owned(),
            reason: reason.to_owned(),
        };
        let wanted = label(code);
        if let Some(known) = self.family.get(&wanted) {
            known.inc();
            return;
        }
        // Two threads may both take a place for one new code: the bound is then reached earlier.
        if self.known.fetch_add(1, Ordering::Relaxed) < MAX_REASONS {
            self.family.get_or_create(&wanted).inc();
        } else {
            self.known.fetch_sub(1, Ordering::Relaxed);
            self.family.get_or_create(&label("other")).inc();
        }
    }
}

/// Registers `metric` under `drawbridge_<name>` and gives it back.
pub(super) fn added<M>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M
where
    M: Metric + Clone,
{
    registry.register(name, help, metric.clone());
    metric
}

/// Counts one for a protocol.
pub(super) fn count(family: &Protocols, protocol: &str) {
    let label = ByProtocol {
        protocol: protocol.to_owned(),
    };
    family.get_or_create(&label).inc();
}

pub(super) fn gauge_value(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn reason_codes_beyond_the_bound_count_as_other() {
        let reasons = Reasons::default();
        for n in 0..MAX_REASONS + 50 {
            reasons.count("uam", &format!("code_{n}"));
        }
        reasons.count("uam", "code_0");
        let other = ByReason {
            protocol: "uam".into(),
            reason: "other".into(),
        };
        assert_eq!(reasons.family.get(&other).map(|c| c.get()), Some(50));
        let mut text = String::new();
        let mut registry = Inner::default();
        registry.register("reasons", "By code", reasons.family.clone());
        assert!(encode(&mut text, &registry).is_ok());
        assert_eq!(text.matches("reasons_total{").count(), MAX_REASONS + 1);
        assert!(text.contains("reason=\"code_0\"} 2"));
    }
}
