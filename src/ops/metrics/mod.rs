//! What Prometheus reads.
//!
//! One registry for the process, made at first use, and one small function an event, so that a room
//! says what happened without holding handles. Names start with `drawbridge_`, values are in base
//! units, labels have few values: a protocol, an outcome, a reason code of our own. A peer's name is
//! never a label (10,000 peers are 10,000 series); `GET /api/v1/peers` and `fed.ops` speak of peers.
//!
//! Functions on the path of every message take `&'static str` labels: a hash of two short strings
//! and one read lock, no allocation.
//!
//! One file a topic: its metrics, made in `new`, and the functions that set them, all re-exported here.

mod bus;
mod inbound;
mod labels;
mod lanes;
mod outbound;
mod sharing;
mod store;

use std::fmt::Write as _;
use std::sync::LazyLock;

use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::metrics::info::Info;

use labels::Registry;

pub use bus::*;
pub use inbound::*;
pub use labels::Described;
pub use lanes::*;
pub use outbound::*;
pub use sharing::*;
pub use store::*;

/// Media type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The commit of the build, where whoever built it said so.
const COMMIT: Option<&str> = option_env!("DRAWBRIDGE_COMMIT");

struct Metrics {
    registry: Registry,
    outbound: outbound::Outbound,
    lanes: lanes::Lanes,
    inbound: inbound::Inbound,
    store: store::Store,
    bus: bus::Bus,
    sharing: sharing::Sharing,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::new();
        let r = &mut registry;
        let build = Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("commit", COMMIT.unwrap_or("unknown")),
        ]);
        r.register("build", "The version that runs", build);
        Self {
            outbound: outbound::Outbound::new(r),
            lanes: lanes::Lanes::new(r),
            inbound: inbound::Inbound::new(r),
            store: store::Store::new(r),
            bus: bus::Bus::new(r),
            sharing: sharing::Sharing::new(r),
            registry,
        }
    }
}

/// Registers everything, so that the first scrape shows all that has no labels; what has some is shown
/// once it was counted.
pub fn init() {
    LazyLock::force(&METRICS);
}

/// Every metric there is, shown already or not, in the order of its registration.
pub fn described() -> Vec<Described> {
    METRICS.registry.described.clone()
}

/// Everything, in the OpenMetrics text form ([`CONTENT_TYPE`]).
pub fn encode() -> String {
    let mut text = String::with_capacity(8 * 1024);
    if encode_text(&mut text, &METRICS.registry.inner).is_err() {
        // Writing into a String cannot fail; were it to, half a page would read as a reset of all.
        text.clear();
        let _ = writeln!(text, "# EOF");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown_under_its_name() {
        attempt("uam", "delivered", 0.01);
        dead("uam", "expired");
        queue("uam", 3, 1.5);
        let text = encode();
        assert!(
            text.contains("drawbridge_attempts_total{protocol=\"uam\",outcome=\"delivered\"}"),
            "{text}"
        );
        assert!(text.contains("drawbridge_dead_total{protocol=\"uam\",reason=\"expired\"}"));
        assert!(text.contains("drawbridge_deliveries_total{protocol=\"uam\"}"));
        assert!(text.contains("drawbridge_queue_oldest_age_seconds{protocol=\"uam\"} 1.5"));
        assert!(text.contains("drawbridge_build_info{version="));
        assert!(text.ends_with("# EOF\n"));
    }
}
