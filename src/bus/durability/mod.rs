//! What the connected broker does with a message before it acknowledges it: the truth behind
//! promise 2.
//!
//! JetStream acknowledges a message when it has it, not when the disk has it: by default a server
//! flushes every two minutes, so a power cut takes acknowledged messages with it. Whether that can
//! happen here depends on three things: the streams (replicas, storage), the servers
//! (`sync_interval: always`), and what we can learn of them. A server does not tell its clients how
//! it flushes; its monitoring port does, and of the managed server we know it. What is not known
//! counts as a risk.
//!
//! [`judge`] is the pure decision; `look` gathers the facts.

mod look;

use serde::Serialize;

pub use look::watch;

use super::monitoring::Monitored;
use super::{BusError, BusErrorKind};
use crate::config::DurabilityPolicy;

/// Replicas from which on a majority holds what was acknowledged, whichever one machine is lost.
const QUORUM: usize = 3;

/// What a crash of a broker's machine costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing: what is acknowledged is on disk.
    Fsync,
    /// Nothing, as long as a majority of three or more servers does not crash together.
    Replicated,
    /// It may cost acknowledged messages.
    AtRisk,
}

impl Verdict {
    /// As in the metric's label and in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Replicated => "replicated",
            Self::AtRisk => "at_risk",
        }
    }
}

/// The verdict and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Durability {
    pub verdict: Verdict,
    /// One sentence for a person.
    pub sentence: String,
    /// What to change; empty unless at risk.
    pub advice: String,
    pub streams: Vec<StreamDurability>,
    /// What is known of the servers' flushing.
    pub servers: Vec<Monitored>,
}

/// One stream's part of the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamDurability {
    pub stream: String,
    pub verdict: Verdict,
    /// `file` or `memory`.
    pub storage: &'static str,
    pub replicas: usize,
    pub why: String,
}

/// What is known of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamFact {
    pub name: String,
    pub memory: bool,
    pub replicas: usize,
    /// Names of the servers that hold it; empty: the one we are connected to.
    pub servers: Vec<String>,
}

/// How far back the bridge itself mends a loss of `fed.in`.
pub const MENDS: &str = "what FED_IN loses is published again from our own store, as far back as it \
                         keeps bodies (store.keep_bodies, 24 h unless set; never under 10 min)";

/// The decision: `connected` is the name of the server we are connected to.
pub(super) fn judge(
    streams: &[StreamFact],
    servers: &[Monitored],
    connected: &str,
    unreachable: &[String],
) -> Durability {
    let judged: Vec<_> = streams
        .iter()
        .map(|stream| judge_stream(stream, servers, connected))
        .collect();
    let worst = judged.iter().map(|s| s.verdict).max_by_key(|v| match v {
        Verdict::Fsync => 0,
        Verdict::Replicated => 1,
        Verdict::AtRisk => 2,
    });
    // Nothing known is nothing promised.
    let verdict = worst.unwrap_or(Verdict::AtRisk);
    let risky: Vec<_> = judged
        .iter()
        .filter(|s| s.verdict == Verdict::AtRisk)
        .collect();
    let (mut sentence, mut advice) = match verdict {
        Verdict::Fsync => (
            "every acknowledged message is on disk".to_owned(),
            String::new(),
        ),
        Verdict::Replicated => (
            format!(
                "acknowledged messages are held by a majority of at least {QUORUM} servers, not \
                 yet by a disk: they survive the loss of any one server"
            ),
            String::new(),
        ),
        Verdict::AtRisk if risky.is_empty() => (
            "none of our streams could be looked at".to_owned(),
            "set nats.streams = \"ensure\" or allow $JS.API.STREAM.INFO".to_owned(),
        ),
        Verdict::AtRisk => {
            // Streams of one fate are named together.
            let mut fates: Vec<(&str, Vec<&str>)> = Vec::new();
            for stream in &risky {
                match fates.iter_mut().find(|(why, _)| *why == stream.why) {
                    Some((_, names)) => names.push(&stream.stream),
                    None => fates.push((&stream.why, vec![&stream.stream])),
                }
            }
            let list: Vec<_> = fates
                .iter()
                .map(|(why, names)| format!("{}: {why}", names.join(", ")))
                .collect();
            let memory = risky.iter().any(|s| s.storage == "memory");
            let advice = if memory {
                "make the streams named with storage file"
            } else if servers.is_empty() {
                "set sync_interval: always in the server's jetstream block and name its monitoring \
                 port under nats.monitoring_url so that we can see it, or give the streams 3 \
                 replicas in a cluster"
            } else {
                "set sync_interval: always in the jetstream block of every server that holds the \
                 streams, or give the streams 3 replicas in a cluster"
            };
            (
                format!(
                    "a crash of the broker's machine may lose acknowledged messages ({})",
                    list.join("; ")
                ),
                advice.to_owned(),
            )
        }
    };
    if verdict != Verdict::Fsync {
        sentence = format!("{sentence}; {MENDS}");
    }
    if !unreachable.is_empty() {
        sentence = format!("{sentence}; {}", unreachable.join("; "));
        if advice.is_empty() {
            advice = "check nats.monitoring_url".to_owned();
        }
    }
    Durability {
        verdict,
        sentence,
        advice,
        streams: judged,
        servers: servers.to_vec(),
    }
}

fn judge_stream(stream: &StreamFact, servers: &[Monitored], connected: &str) -> StreamDurability {
    let holders: Vec<&str> = if stream.servers.is_empty() {
        vec![connected]
    } else {
        stream.servers.iter().map(String::as_str).collect()
    };
    let sync = |name: &str| servers.iter().find(|s| s.name == name);
    let lazy: Vec<_> = holders
        .iter()
        .filter(|name| !sync(name).is_some_and(|s| s.sync_always))
        .collect();
    let (verdict, why) = if stream.memory {
        (
            Verdict::AtRisk,
            "it is kept in memory, so a restart of the broker is enough".to_owned(),
        )
    } else if lazy.is_empty() {
        (
            Verdict::Fsync,
            "every write is flushed before it is acknowledged".to_owned(),
        )
    } else if stream.replicas >= QUORUM {
        (Verdict::Replicated, format!("{} replicas", stream.replicas))
    } else {
        let known = lazy
            .first()
            .and_then(|name| sync(name).map(|s| (name, s.sync_interval_ms)));
        let why = match known {
            Some((name, every)) => format!(
                "{} replica{}, and server {name} flushes every {} s",
                stream.replicas,
                if stream.replicas == 1 { "" } else { "s" },
                every / 1_000
            ),
            None => format!(
                "{} replica{}, and how its server flushes is not known",
                stream.replicas,
                if stream.replicas == 1 { "" } else { "s" },
            ),
        };
        (Verdict::AtRisk, why)
    };
    StreamDurability {
        stream: stream.name.clone(),
        verdict,
        storage: if stream.memory { "memory" } else { "file" },
        replicas: stream.replicas,
        why,
    }
}

/// Refuses a broker that may lose messages where that is not wanted.
pub fn accept(durability: &Durability, policy: DurabilityPolicy) -> Result<(), BusError> {
    if durability.verdict != Verdict::AtRisk || policy != DurabilityPolicy::Require {
        return Ok(());
    }
    Err(BusError::new(
        BusErrorKind::Stream,
        format!(
            "nats.durability = \"require\", but {}. To change it: {}",
            durability.sentence, durability.advice
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(replicas: usize, memory: bool, servers: &[&str]) -> StreamFact {
        StreamFact {
            name: "FED_IN".to_owned(),
            memory,
            replicas,
            servers: servers.iter().map(|&s| s.to_owned()).collect(),
        }
    }

    fn server(name: &str, sync_always: bool) -> Monitored {
        Monitored {
            name: name.to_owned(),
            sync_always,
            sync_interval_ms: 120_000,
            from: "test".to_owned(),
        }
    }

    fn verdict(streams: &[StreamFact], servers: &[Monitored]) -> Verdict {
        judge(streams, servers, "a", &[]).verdict
    }

    #[test]
    fn one_replica_is_safe_only_when_its_server_is_known_to_flush() {
        let one = [stream(1, false, &[])];
        assert_eq!(verdict(&one, &[]), Verdict::AtRisk);
        assert_eq!(verdict(&one, &[server("a", false)]), Verdict::AtRisk);
        assert_eq!(verdict(&one, &[server("b", true)]), Verdict::AtRisk);
        assert_eq!(verdict(&one, &[server("a", true)]), Verdict::Fsync);
    }

    #[test]
    fn every_server_that_holds_a_stream_must_flush() {
        let three = [stream(3, false, &["a", "b", "c"])];
        assert_eq!(verdict(&three, &[server("a", true)]), Verdict::Replicated);
        let all = [server("a", true), server("b", true), server("c", true)];
        assert_eq!(verdict(&three, &all), Verdict::Fsync);
        assert_eq!(
            verdict(&[stream(2, false, &["a", "b"])], &[]),
            Verdict::AtRisk
        );
    }

    #[test]
    fn memory_is_a_risk_however_many_replicas_there_are() {
        let three = [stream(3, true, &["a", "b", "c"])];
        assert_eq!(verdict(&three, &[server("a", true)]), Verdict::AtRisk);
    }

    #[test]
    fn the_worst_stream_decides_and_an_unknown_broker_is_a_risk() {
        let both = [stream(3, false, &[]), stream(1, false, &[])];
        assert_eq!(verdict(&both, &[]), Verdict::AtRisk);
        assert_eq!(verdict(&[], &[]), Verdict::AtRisk);
    }

    #[test]
    fn require_refuses_with_what_to_change_and_warn_does_not() {
        let risky = judge(&[stream(1, false, &[])], &[], "a", &[]);
        assert!(accept(&risky, DurabilityPolicy::Warn).is_ok());
        assert!(accept(&risky, DurabilityPolicy::Accept).is_ok());
        let said = accept(&risky, DurabilityPolicy::Require).expect_err("refused");
        assert!(said.detail.contains("sync_interval: always"), "{said}");
        let safe = judge(&[stream(1, false, &[])], &[server("a", true)], "a", &[]);
        assert!(accept(&safe, DurabilityPolicy::Require).is_ok());
    }
}
