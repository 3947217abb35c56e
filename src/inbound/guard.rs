//! Looking after the broker while nothing happens: after every reconnect and every 30 seconds the
//! newest message we know of must still be in its place. Also keeps the series of checkpoints thin,
//! and says how far back a loss could be mended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{Clock, UnixMs};
use crate::ops::metrics;
use crate::store::{BodyHorizon, Store, Way};

use super::outlet::Outlet;
use super::publisher::RepairError;
use super::series::{Standing, is_same, standing, thin};
use super::state::State;

/// How often the streams are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long bodies are kept, and with them checkpoints.
const KEPT_MS: UnixMs = 24 * 3_600_000;

/// The guard's task.
pub struct Guard {
    pub store: Store,
    pub outlet: Arc<dyn Outlet>,
    pub state: State,
    pub clock: Clock,
    /// How often the connection had been lost before the ledger was compared at the start.
    pub losses: u64,
}

impl Guard {
    /// Runs until it is aborted.
    pub async fn run(mut self) {
        let mut connection = self.outlet.connection();
        let mut due = tokio::time::interval(LOOK_EVERY);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = changed(&mut connection) => {
                    let losses = self.outlet.losses();
                    if losses != self.losses {
                        self.losses = losses;
                        self.state.ask_for_repair();
                    }
                }
                _ = due.tick() => {
                    if let Err(error) = self.look().await {
                        tracing::debug!(%error, "the streams could not be looked at");
                    }
                }
            }
        }
    }

    /// Looks once.
    pub(super) async fn look(&self) -> Result<(), RepairError> {
        let now = self.clock.now_ms();
        metrics::mendable(seconds_back(self.store.body_horizon().await?, now));
        for way in [Way::In, Way::Held] {
            let gone = thin(&self.store.checkpoints(way).await?, now, KEPT_MS);
            if !gone.is_empty() && self.clock.steady() {
                self.store.forget_checkpoints(way, gone).await?.await?;
            }
        }
        if self.state.down() || !self.outlet.connected() {
            return Ok(());
        }
        for way in [Way::In, Way::Held] {
            if !self.is_whole(way).await? {
                self.state.ask_for_repair();
            }
        }
        Ok(())
    }

    /// Whether the newest message we know of is in its place.
    async fn is_whole(&self, way: Way) -> Result<bool, RepairError> {
        let Some(tip) = self.store.tip(way).await? else {
            return Ok(true);
        };
        let Some(facts) = self.outlet.facts(way).await? else {
            return Ok(false);
        };
        Ok(match standing(&tip, &facts) {
            Standing::Stands => true,
            Standing::Lost => false,
            Standing::Ask => is_same(&tip, self.outlet.id_at(way, tip.seq).await?.as_deref()),
        })
    }
}

/// How far back what the broker loses could be given to it again, seconds.
fn seconds_back(horizon: BodyHorizon, now_ms: UnixMs) -> f64 {
    let age = match horizon.oldest_ms {
        Some(oldest) if horizon.pruned => now_ms.saturating_sub(oldest).clamp(0, KEPT_MS),
        None if horizon.pruned => 0,
        _ => KEPT_MS,
    };
    Duration::from_millis(u64::try_from(age).unwrap_or(0)).as_secs_f64()
}

/// Resolves when the connection was lost or is back.
async fn changed(connection: &mut Option<watch::Receiver<bool>>) {
    match connection {
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                *connection = None;
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_can_be_mended_while_nothing_was_pruned() {
        let back = |oldest_ms, pruned| seconds_back(BodyHorizon { oldest_ms, pruned }, 100_000);
        assert!((back(Some(40_000), true) - 60.0).abs() < 1e-9);
        assert!((back(Some(40_000), false) - 86_400.0).abs() < 1e-9);
        assert!(back(None, true).abs() < 1e-9);
    }
}
