//! Delivering: attempts, their outcomes, what waits, lanes and windows, discoveries.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::METRICS;
use super::labels::{
    ByOutcome, ByProtocol, ByProtocolId, Outcomes, Protocols, Reasons, Registry, added, count,
    gauge_value,
};

type FloatGauge = Gauge<f64, AtomicU64>;

pub(super) struct Outbound {
    attempts: Outcomes,
    attempt_seconds: Family<ByOutcome, Histogram, fn() -> Histogram>,
    deliveries: Family<ByProtocolId, Counter>,
    duplicate_first: Protocols,
    retries: Protocols,
    dead: Reasons,
    discovery: Outcomes,
    queue_pending: Family<ByProtocol, Gauge>,
    queue_oldest: Family<ByProtocol, FloatGauge>,
    queue_protocols: Mutex<BTreeSet<String>>,
    lanes: Gauge,
    in_flight: Gauge,
    window: Gauge,
}

fn attempt_histogram() -> Histogram {
    // 1 ms to 65 s: from a peer on loopback to a request that ran into its time limit.
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Outbound {
    pub fn new(r: &mut Registry) -> Self {
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
            duplicate_first: added(
                r,
                "duplicate_first_attempt",
                "First attempts that a peer answered as a duplicate: it may have lost the message",
                Protocols::default(),
            ),
            retries: added(
                r,
                "retries",
                "Failed attempts that will be repeated",
                Protocols::default(),
            ),
            dead: Reasons::added(r, "dead", "Messages given up, by reason code"),
            discovery: added(
                r,
                "discovery",
                "Discoveries of a peer, by outcome",
                Outcomes::default(),
            ),
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
            in_flight: added(
                r,
                "in_flight",
                "Attempts in flight at this moment",
                Gauge::default(),
            ),
            window: added(
                r,
                "window",
                "Attempts that may be in flight within their first second",
                Gauge::default(),
            ),
        }
    }
}

/// One attempt ended. `outcome`: `delivered`, `duplicate`, `retry`, `throttled`, `refused`, `held`.
pub fn attempt(protocol: &'static str, outcome: &'static str, seconds: f64) {
    let mine = &METRICS.outbound;
    let label = ByOutcome { protocol, outcome };
    mine.attempts.get_or_create(&label).inc();
    mine.attempt_seconds.get_or_create(&label).observe(seconds);
    if matches!(outcome, "delivered" | "duplicate") {
        mine.deliveries
            .get_or_create(&ByProtocolId { protocol })
            .inc();
    }
}

/// A first attempt was answered `duplicate`.
pub fn duplicate_first(protocol: &str) {
    count(&METRICS.outbound.duplicate_first, protocol);
}

/// A failed attempt will be repeated.
pub fn retry(protocol: &str) {
    count(&METRICS.outbound.retries, protocol);
}

/// A message was given up for this reason code.
pub fn dead(protocol: &str, code: &str) {
    METRICS.outbound.dead.count(protocol, code);
}

/// A discovery ended; `ok`: it found an endpoint.
pub fn discovery(protocol: &'static str, ok: bool) {
    let outcome = if ok { "found" } else { "failed" };
    METRICS
        .outbound
        .discovery
        .get_or_create(&ByOutcome { protocol, outcome })
        .inc();
}

/// Sets the outbound queue's gauges for one protocol; `oldest_age_s` is 0 when nothing waits.
pub fn queue(protocol: &str, pending: u64, oldest_age_s: f64) {
    let mine = &METRICS.outbound;
    let label = ByProtocol {
        protocol: protocol.to_owned(),
    };
    mine.queue_pending
        .get_or_create(&label)
        .set(gauge_value(pending));
    mine.queue_oldest.get_or_create(&label).set(oldest_age_s);
}

/// Sets the queue's gauges of every protocol at once; one that is left out has nothing waiting.
pub fn queues(rows: &[(String, u64, f64)]) {
    let mut seen = METRICS
        .outbound
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
    METRICS.outbound.lanes.inc_by(now - MINE.replace(now));
}

/// Sets the number of attempts in flight.
pub fn in_flight(n: usize) {
    METRICS.outbound.in_flight.set(gauge_value(n as u64));
}

/// Adds to the number of attempts in flight (several shards share the gauge).
pub fn in_flight_add(delta: i64) {
    METRICS.outbound.in_flight.inc_by(delta);
}

/// Sets how many attempts may be in flight within their first second.
pub fn window(n: usize) {
    METRICS.outbound.window.set(gauge_value(n as u64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_summed_over_the_shards_threads() {
        // The only test that sets lanes: the gauge belongs to the process.
        lanes(3);
        let other = std::thread::spawn(|| {
            lanes(10);
            lanes(4);
        });
        assert!(other.join().is_ok());
        assert_eq!(METRICS.outbound.lanes.get(), 7);
        lanes(1);
        assert_eq!(METRICS.outbound.lanes.get(), 5);
    }
}
