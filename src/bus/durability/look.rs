//! Gathers the facts of the verdict, tells it, and keeps looking.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Durability, StreamFact, Verdict, accept, judge};
use crate::bus::monitoring::{self, Monitored};
use crate::bus::{Bus, BusError};
use crate::config::{DurabilityPolicy, NatsConfig};
use crate::ops::health::Health;
use crate::ops::metrics;

/// Streams whose loss breaks a promise, by their contract names.
const STREAMS: [&str; 4] = ["FED_OUT", "FED_IN", "FED_HELD", "FED_DEAD"];

/// How often it is looked at again while nothing happens.
const AGAIN: Duration = Duration::from_secs(300);

/// How long one gathering may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl Bus {
    /// What the connected broker really gives, by its streams, by the monitoring ports that are
    /// configured and by what we know of our own managed server. `Err`: it could not be asked.
    pub async fn durability(&self) -> Result<Durability, BusError> {
        let gather = async {
            let mut streams = Vec::new();
            for logical in STREAMS {
                let name = self.stream(logical);
                if let Some(config) = self.stream_durability(&name).await? {
                    streams.push(config);
                }
            }
            let config = &self.inner.config;
            let (mut servers, unreachable) =
                monitoring::ask(&config.monitoring_urls, &config.tls.roots).await;
            let connected = self.server().name;
            servers.extend(managed(config, &connected));
            Ok(judge(&streams, &servers, &connected, &unreachable))
        };
        tokio::time::timeout(PATIENCE, gather)
            .await
            .map_err(|_| BusError::unavailable("looking at the broker's durability: no answer"))?
    }

    /// What is known of one stream by its real name; `None`: it does not exist.
    async fn stream_durability(&self, name: &str) -> Result<Option<StreamFact>, BusError> {
        let Some(info) = self.stream_info(name).await? else {
            return Ok(None);
        };
        let cluster = info.cluster.as_ref();
        let servers = cluster.map_or_else(Vec::new, |cluster| {
            let followers = cluster.replicas.iter().map(|peer| peer.name.clone());
            cluster.leader.iter().cloned().chain(followers).collect()
        });
        Ok(Some(StreamFact {
            name: name.to_owned(),
            memory: info.config.storage != async_nats::jetstream::stream::StorageType::File,
            replicas: info.config.num_replicas.max(1),
            servers,
        }))
    }
}

/// Looks at the broker, refuses it if the policy says so, and keeps looking: again after each
/// reconnect and every five minutes, until `stop`. The verdict is in the log, in `/readyz` and in the
/// metric.
pub async fn watch(bus: &Bus, health: &Health, stop: CancellationToken) -> Result<(), BusError> {
    let policy = bus.inner.config.durability;
    let first = match bus.durability().await {
        Ok(first) => {
            accept(&first, policy)?;
            tell(&first, policy, health);
            Some(first)
        }
        // What must be so must be known; otherwise not being told is no reason not to work.
        Err(error) if policy == DurabilityPolicy::Require => return Err(error),
        Err(error) => {
            tracing::warn!(%error, "what an acknowledgement of the broker is worth is not known");
            None
        }
    };
    let (bus, health) = (bus.clone(), health.clone());
    tokio::spawn(async move {
        let mut connected = bus.connected_changes();
        let mut last = first;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = connected.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN) => {}
            }
            if !*connected.borrow_and_update() {
                continue;
            }
            match bus.durability().await {
                Ok(now) if last.as_ref() == Some(&now) => {}
                Ok(now) => {
                    tell(&now, policy, &health);
                    last = Some(now);
                }
                Err(error) => tracing::debug!(%error, "the broker's durability was not looked at"),
            }
        }
    });
    Ok(())
}

fn tell(durability: &Durability, policy: DurabilityPolicy, health: &Health) {
    let (verdict, sentence) = (durability.verdict, &durability.sentence);
    let label = verdict.label();
    match (verdict, policy) {
        (Verdict::AtRisk, DurabilityPolicy::Require | DurabilityPolicy::Warn) => {
            tracing::warn!(
                verdict = label,
                advice = durability.advice,
                "broker: {sentence}"
            );
        }
        _ => tracing::info!(verdict = label, "broker: {sentence}"),
    }
    metrics::broker_durability(label);
    if let Ok(fact) = serde_json::to_value(durability) {
        health.tell("durability", fact);
    }
    match accept(durability, policy) {
        Ok(()) => health.clear("durability"),
        Err(error) => health.set("durability", &error.detail),
    }
}

/// What we know of the server that we started ourselves.
fn managed(config: &NatsConfig, connected: &str) -> Option<Monitored> {
    if !config.on_managed {
        return None;
    }
    let every = config.managed.sync_interval.as_str();
    Some(Monitored {
        name: connected.to_owned(),
        sync_always: every == "always",
        sync_interval_ms: crate::config::parse_duration(every)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        from: "nats.managed.sync_interval".to_owned(),
    })
}
