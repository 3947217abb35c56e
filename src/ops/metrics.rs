//! What Prometheus reads.
//!
//! One registry for the process, made at first use, and one small function an event, so that a room
//! says what happened without holding handles. Names start with `drawbridge_`, values are in base
//! units, labels have few values: a protocol, an outcome, a reason code of our own. A peer's name is
//! never a label (10,000 peers are 10,000 series); `GET /api/v1/peers` and `fed.ops` speak of peers.
//!
//! Functions on the path of every message take `&'static str` labels: a hash of two short strings
//! and one read lock, no allocation.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Media type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Series one label of reason codes may have; later codes count as `other`. Codes are ours and few,
/// so this only bounds what a mistake could cost.
const MAX_REASONS: usize = 256;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByOutcome {
    protocol: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByProtocolId {
    protocol: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByProtocol {
    protocol: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByReason {
    protocol: String,
    reason: String,
}

type FloatGauge = Gauge<f64, AtomicU64>;
type Outcomes = Family<ByOutcome, Counter>;

/// Counters by reason code, with a bound on how many there may be.
#[derive(Default)]
struct Reasons {
    family: Family<ByReason, Counter>,
    known: AtomicUsize,
}
type Protocols = Family<ByProtocol, Counter>;

struct Metrics {
    registry: Registry,
    attempts: Outcomes,
    attempt_seconds: Family<ByOutcome, Histogram, fn() -> Histogram>,
    deliveries: Family<ByProtocolId, Counter>,
    retries: Protocols,
    dead: Reasons,
    inbound: Outcomes,
    refusals: Reasons,
    queue_pending: Family<ByProtocol, Gauge>,
    queue_oldest: Family<ByProtocol, FloatGauge>,
    queue_protocols: Mutex<BTreeSet<String>>,
    lanes: Gauge,
    lane_states: Family<ByState, Gauge>,
    probes: Family<ByProtocolId, Counter>,
    queue_stranded: Family<ByProtocol, Gauge>,
    in_flight: Gauge,
    window: Gauge,
    batch_rows: Histogram,
    commit_seconds: Histogram,
    bus_connected: Gauge,
    discovery: Outcomes,
    ops_dropped: Counter,
    duplicate_first: Protocols,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

fn attempt_histogram() -> Histogram {
    // 1 ms to 65 s: from a peer on loopback to a request that ran into its time limit.
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::with_prefix("drawbridge");
        let r = &mut registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "The version that runs", build);
        Self {
            attempts: added(
                r,
                "attempts",
                "Attempts to deliver, by outcome",
                Outcomes::default(),
            ),
            attempt_seconds: added(
                r,
                "attempt_duration_seconds",
                "Time from sending an attempt to its answer or failure",
                Family::new_with_constructor(attempt_histogram as fn() -> Histogram),
            ),
            deliveries: added(
                r,
                "deliveries",
                "Messages that a peer took",
                Family::default(),
            ),
            retries: added(
                r,
                "retries",
                "Failed attempts that will be repeated",
                Protocols::default(),
            ),
            dead: Reasons::added(r, "dead", "Messages given up, by reason code"),
            inbound: added(
                r,
                "inbound",
                "Events delivered to us, by what became of them",
                Outcomes::default(),
            ),
            refusals: Reasons::added(r, "refusals", "Inbound requests refused, by reason code"),
            queue_pending: added(
                r,
                "queue_pending",
                "Rows of the outbound queue that wait for their outcome",
                Family::default(),
            ),
            queue_oldest: added(
                r,
                "queue_oldest_age_seconds",
                "Age of the oldest waiting row; 0 when none waits",
                Family::default(),
            ),
            queue_protocols: Mutex::default(),
            lanes: added(
                r,
                "lanes",
                "Lanes (peers with work) in memory",
                Gauge::default(),
            ),
            lane_states: added(
                r,
                "lanes_by_state",
                "Lanes in memory, by the state of their peer",
                Family::default(),
            ),
            probes: added(
                r,
                "probes",
                "Attempts made before a message's own time, to find out whether a peer is back",
                Family::default(),
            ),
            queue_stranded: added(
                r,
                "queue_stranded",
                "Rows found at start that no lane attempts, because their protocol is off or their peer no name",
                Family::default(),
            ),
            in_flight: added(
                r,
                "in_flight",
                "Attempts in flight at this moment",
                Gauge::default(),
            ),
            window: added(
                r,
                "window",
                "Attempts that may be in flight in all",
                Gauge::default(),
            ),
            batch_rows: added(
                r,
                "store_batch_rows",
                "Rows written by one commit",
                Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            ),
            commit_seconds: added(
                r,
                "store_commit_seconds",
                "Time of one commit, fsync included",
                Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            ),
            bus_connected: added(
                r,
                "bus_connected",
                "1 while NATS is connected, else 0",
                Gauge::default(),
            ),
            discovery: added(
                r,
                "discovery",
                "Discoveries of a peer, by outcome",
                Outcomes::default(),
            ),
            ops_dropped: added(
                r,
                "ops_events_dropped",
                "Operator events dropped because their queue was full",
                Counter::default(),
            ),
            duplicate_first: added(
                r,
                "duplicate_first_attempt",
                "First attempts that a peer answered as a duplicate: it may have lost the message",
                Protocols::default(),
            ),
            registry,
        }
    }
}

fn added<M>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M
where
    M: prometheus_client::registry::Metric + Clone,
{
    registry.register(name, help, metric.clone());
    metric
}

impl Reasons {
    fn added(registry: &mut Registry, name: &str, help: &str) -> Self {
        let reasons = Self::default();
        registry.register(name, help, reasons.family.clone());
        reasons
    }

    fn count(&self, protocol: &str, code: &str) {
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

fn protocol_count(family: &Protocols, protocol: &str) {
    let label = ByProtocol {
        protocol: protocol.to_owned(),
    };
    family.get_or_create(&label).inc();
}

fn gauge_value(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Registers everything, so that the first scrape shows all that has no labels; what has some is shown
/// once it was counted.
pub fn init() {
    LazyLock::force(&METRICS);
}

/// One attempt ended. `outcome`: `delivered`, `duplicate`, `retry`, `throttled`, `refused`, `held`.
pub fn attempt(protocol: &'static str, outcome: &'static str, seconds: f64) {
    let label = ByOutcome { protocol, outcome };
    METRICS.attempts.get_or_create(&label).inc();
    METRICS
        .attempt_seconds
        .get_or_create(&label)
        .observe(seconds);
    if matches!(outcome, "delivered" | "duplicate") {
        METRICS
            .deliveries
            .get_or_create(&ByProtocolId { protocol })
            .inc();
    }
}

/// An inbound event was judged. `outcome`: `accepted`, `duplicate`, `replayed`, `refused`, `unavailable`.
pub fn inbound(protocol: &'static str, outcome: &'static str) {
    METRICS
        .inbound
        .get_or_create(&ByOutcome { protocol, outcome })
        .inc();
}

/// An inbound request was refused for this reason code.
pub fn refusal(protocol: &str, code: &str) {
    METRICS.refusals.count(protocol, code);
}

/// The store committed `rows` rows in `seconds`.
pub fn store_commit(rows: usize, seconds: f64) {
    METRICS
        .batch_rows
        .observe(u32::try_from(rows).map_or(f64::MAX, f64::from));
    METRICS.commit_seconds.observe(seconds);
}

/// A message was given up for this reason code.
pub fn dead(protocol: &str, code: &str) {
    METRICS.dead.count(protocol, code);
}

/// A failed attempt will be repeated.
pub fn retry(protocol: &str) {
    protocol_count(&METRICS.retries, protocol);
}

/// Sets the outbound queue's gauges for one protocol; `oldest_age_s` is 0 when nothing waits.
pub fn queue(protocol: &str, pending: u64, oldest_age_s: f64) {
    let label = ByProtocol {
        protocol: protocol.to_owned(),
    };
    METRICS
        .queue_pending
        .get_or_create(&label)
        .set(gauge_value(pending));
    METRICS.queue_oldest.get_or_create(&label).set(oldest_age_s);
}

/// Sets the queue's gauges of every protocol at once; one that is left out has nothing waiting.
pub fn queues(rows: &[(String, u64, f64)]) {
    let mut seen = METRICS
        .queue_protocols
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    for protocol in seen.iter() {
        if !rows.iter().any(|(p, ..)| p == protocol) {
            queue(protocol, 0, 0.0);
        }
    }
    for (protocol, pending, oldest_age_s) in rows {
        queue(protocol, *pending, *oldest_age_s);
        seen.insert(protocol.clone());
    }
}

/// Sets the number of lanes in memory of the calling thread's shard; the gauge is the sum over all
/// shards, each of which is a thread of its own.
pub fn lanes(n: usize) {
    thread_local! {
        static MINE: Cell<i64> = const { Cell::new(0) };
    }
    let now = gauge_value(n as u64);
    METRICS.lanes.inc_by(now - MINE.replace(now));
}

/// The state of a lane's peer, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    Healthy,
    BackingOff,
    Open,
    Paused,
}

impl LaneState {
    fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::BackingOff => "backing_off",
            Self::Open => "open",
            Self::Paused => "paused",
        }
    }
}

/// A lane came (`from` is `None`), changed its state, or went (`to` is `None`).
pub fn lane_state(from: Option<LaneState>, to: Option<LaneState>) {
    let add = |state: Option<LaneState>, n: i64| {
        if let Some(state) = state {
            let label = ByState {
                state: state.name(),
            };
            METRICS.lane_states.get_or_create(&label).inc_by(n);
        }
    };
    add(from, -1);
    add(to, 1);
}

/// A row was tried before its own time.
pub fn probe(protocol: &'static str) {
    METRICS
        .probes
        .get_or_create(&ByProtocolId { protocol })
        .inc();
}

/// Sets how many rows of a protocol no lane attempts.
pub fn queue_stranded(protocol: &str, rows: u64) {
    let label = ByProtocol {
        protocol: protocol.to_owned(),
    };
    METRICS
        .queue_stranded
        .get_or_create(&label)
        .set(gauge_value(rows));
}

/// Sets the number of attempts in flight.
pub fn in_flight(n: usize) {
    METRICS.in_flight.set(gauge_value(n as u64));
}

/// Adds to the number of attempts in flight (several shards share the gauge).
pub fn in_flight_add(delta: i64) {
    METRICS.in_flight.inc_by(delta);
}

/// Sets how many attempts may be in flight in all.
pub fn window(n: usize) {
    METRICS.window.set(gauge_value(n as u64));
}

/// Sets whether NATS is connected.
pub fn bus_connected(connected: bool) {
    METRICS.bus_connected.set(i64::from(connected));
}

/// A discovery ended; `ok`: it found an endpoint.
pub fn discovery(protocol: &'static str, ok: bool) {
    let outcome = if ok { "found" } else { "failed" };
    METRICS
        .discovery
        .get_or_create(&ByOutcome { protocol, outcome })
        .inc();
}

/// An operator event was dropped.
pub fn ops_dropped() {
    METRICS.ops_dropped.inc();
}

/// How many operator events were dropped so far.
pub fn ops_dropped_count() -> u64 {
    METRICS.ops_dropped.get()
}

/// A first attempt was answered `duplicate`.
pub fn duplicate_first(protocol: &str) {
    protocol_count(&METRICS.duplicate_first, protocol);
}

/// Everything, in the OpenMetrics text form ([`CONTENT_TYPE`]).
pub fn encode() -> String {
    let mut text = String::with_capacity(8 * 1024);
    if encode_text(&mut text, &METRICS.registry).is_err() {
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

    #[test]
    fn lanes_are_summed_over_the_shards_threads() {
        // The only test that sets lanes: the gauge belongs to the process.
        lanes(3);
        let other = std::thread::spawn(|| {
            lanes(10);
            lanes(4);
        });
        assert!(other.join().is_ok());
        assert_eq!(METRICS.lanes.get(), 7);
        lanes(1);
        assert_eq!(METRICS.lanes.get(), 5);
    }

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
        let mut registry = Registry::default();
        registry.register("reasons", "By code", reasons.family.clone());
        assert!(encode_text(&mut text, &registry).is_ok());
        assert_eq!(text.matches("reasons_total{").count(), MAX_REASONS + 1);
        assert!(text.contains("reason=\"code_0\"} 2"));
    }
}
