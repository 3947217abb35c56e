//! The broker: connection, streams, durability, clock.

use std::time::{Duration, Instant};

use super::{Bridge, Report};
use crate::bus::{Bus, ManagedServer, Verdict};
use crate::clock::Clock;
use crate::config::{Config, DurabilityPolicy, NatsConfig, StreamPolicy};

/// Longest that connecting may take here, whatever a start may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A clock that is further off than this deserves a word ...
const SKEW: i64 = 2_000;

/// ... and than this, a repair: signatures would be refused.
const BAD_SKEW: i64 = 30_000;

/// Looks at the broker and all that is on it.
pub(super) async fn broker(config: &Config, bridge: Bridge, report: &mut Report) {
    let Some(nats) = settings(config, bridge, report).await else {
        return;
    };
    let begun = Instant::now();
    let bus = match Bus::connect(&nats).await {
        Ok(bus) => bus,
        Err(e) => return report.fault("nats", "connect", e.detail),
    };
    let server = bus.server();
    report.ok(
        "nats",
        "connect",
        format!(
            "{} (nats-server {}, messages up to {} bytes) in {} ms",
            nats.shown_url().unwrap_or_default(),
            server.version,
            server.max_payload,
            begun.elapsed().as_millis()
        ),
    );
    if streams(&bus, &nats, report).await {
        durability(&bus, nats.durability, report).await;
        clock(&bus, report).await;
    }
    bus.close().await;
}

/// Where to connect to; None: said already.
async fn settings(config: &Config, bridge: Bridge, report: &mut Report) -> Option<NatsConfig> {
    let mut nats = match &config.nats.url {
        Some(_) => config.nats.clone(),
        None => match (
            ManagedServer::running_url(&config.nats.managed).await,
            bridge,
        ) {
            (Some(url), _) => config.nats.with_managed(url),
            (None, Bridge::Running) => {
                report.fault("nats", "connect", "the managed nats-server does not answer");
                return None;
            }
            (None, _) => {
                let detail = "a nats-server of our own starts with the bridge";
                report.skip("nats", "connect", detail);
                return None;
            }
        },
    };
    nats.connect_timeout = nats.connect_timeout.min(PATIENCE);
    Some(nats)
}

/// Answers whether the streams could be looked at.
async fn streams(bus: &Bus, nats: &NatsConfig, report: &mut Report) -> bool {
    let reports = match bus.look_at_streams().await {
        Ok(reports) => reports,
        Err(e) => {
            report.fault("streams", "look", e.detail);
            return false;
        }
    };
    for stream in reports {
        let name = &stream.name;
        match (&stream.state, &stream.broken) {
            (None, _) if nats.streams == StreamPolicy::Ensure => {
                report.warn(
                    "streams",
                    name,
                    "missing; the bridge makes it when it starts",
                );
            }
            (None, _) => report.fault(
                "streams",
                name,
                "missing; make it with `drawbridge streams apply`",
            ),
            (Some(_), Some(broken)) => report.fault("streams", name, broken.clone()),
            (Some(_), None) if !stream.differences.is_empty() => {
                report.warn("streams", name, stream.differences.join("; "));
            }
            (Some(state), None) => report.ok(
                "streams",
                name,
                format!(
                    "as defined; {} messages, storage {}, replicas {}",
                    state.messages, state.storage, state.replicas
                ),
            ),
        }
    }
    true
}

async fn durability(bus: &Bus, policy: DurabilityPolicy, report: &mut Report) {
    let seen = match bus.durability().await {
        Ok(seen) => seen,
        Err(e) => return report.fault("durability", "verdict", e.detail),
    };
    let verdict = seen.verdict.label();
    match (seen.verdict, policy) {
        (Verdict::AtRisk, DurabilityPolicy::Require) => report.fault(
            "durability",
            verdict,
            format!("{}. To change it: {}", seen.sentence, seen.advice),
        ),
        (Verdict::AtRisk, DurabilityPolicy::Warn) => report.warn(
            "durability",
            verdict,
            format!("{}. To change it: {}", seen.sentence, seen.advice),
        ),
        _ => report.ok("durability", verdict, seen.sentence),
    }
}

/// Our clock against the broker's.
async fn clock(bus: &Bus, report: &mut Report) {
    let clock = Clock::system();
    let before = clock.now_ms();
    match bus.broker_time_ms("FED_OUT").await {
        Ok(Some(theirs)) => {
            let ours = before + (clock.now_ms() - before) / 2;
            say_skew(report, "broker", theirs - ours);
        }
        Ok(None) => report.skip("clock", "broker", "it does not tell its time"),
        Err(e) => report.warn("clock", "broker", e.detail),
    }
}

/// How far another clock is ahead of ours, in milliseconds.
pub(super) fn say_skew(report: &mut Report, whose: &str, ahead_ms: i64) {
    let off = ahead_ms.saturating_abs();
    let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
    let detail = format!("it is {off} ms {side} ours");
    if off > BAD_SKEW {
        let detail = format!("{detail}; one of the two is wrong: does NTP run?");
        report.fault("clock", whose, detail);
    } else if off > SKEW {
        report.warn("clock", whose, detail);
    } else {
        report.ok("clock", whose, format!("within {off} ms of ours"));
    }
}
