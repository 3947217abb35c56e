//! Quarantine at the door: what is held, released or dropped.
//!
//! A quarantined peer's events go to `fed.held` instead of `fed.in`; their sender hears of success.
//! They come out in their order, once, before anything newer of that peer, when an operator releases
//! them or the quarantine is over; all of it is in the ledger, so a crash in between changes nothing.

use std::sync::Weak;
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;

use crate::bus::{BusError, BusErrorKind};
use crate::ops::metrics;
use crate::protocol::ProtocolId;
use crate::store::{HeldBatch, HeldCount, StoreError};
use crate::trust::{Standing, Trust};

use super::ledger::Job;
use super::{Door, Inner};

/// Events released or dropped in one commit.
const BATCH: usize = 64;
/// How often it is looked whether a quarantine is over.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Several instances: whoever looks does so for all, for so long.
const LEAD: Duration = Duration::from_secs(10);
/// Held this long, an event is dropped: what is on `fed.held` is gone by then as well.
const HELD_AT_MOST_MS: i64 = 30 * 86_400_000;

/// Why held events could not be released or dropped.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Door {
    /// What is held, by protocol and peer.
    pub async fn held(&self) -> Result<Vec<HeldCount>, StoreError> {
        self.inner.store.held().await
    }

    /// Puts the held events of a peer, or of every peer that `*.suffix` matches, on `fed.in` in the
    /// order of arrival; answers how many. They are on their way when this returns: in the ledger,
    /// ahead of whatever of that peer comes later. While the quarantine lasts, later events of the
    /// peer are held again.
    pub async fn release(&self, protocol: &str, pattern: &str) -> Result<u64, HeldError> {
        let mut all = 0;
        for held in self.matching(protocol, pattern).await? {
            let mut count = 0;
            loop {
                let batch = HeldBatch {
                    protocol: held.protocol,
                    peer: held.peer.clone(),
                    through: held.through,
                    limit: BATCH,
                };
                let (done, answer) = oneshot::channel();
                let Some(jobs) = self.tasks().jobs.clone() else {
                    return Err(closed().into());
                };
                jobs.send(Job::Release(batch, done))
                    .await
                    .map_err(|_| closed())?;
                drop(jobs);
                let released = answer.await.map_err(|_| closed())??;
                if released == 0 {
                    break;
                }
                count += released;
            }
            self.tell("released", held.protocol, &held.peer, count);
            all += count;
        }
        Ok(all)
    }

    /// Forgets the held events of a peer, or of every peer that `*.suffix` matches: they never reach
    /// `fed.in`, and a repeat of one is a duplicate. Answers how many.
    pub async fn drop_held(&self, protocol: &str, pattern: &str) -> Result<u64, HeldError> {
        let mut all = 0;
        for held in self.matching(protocol, pattern).await? {
            all += self.discard(&held).await?;
        }
        Ok(all)
    }

    async fn discard(&self, held: &HeldCount) -> Result<u64, HeldError> {
        let mut count = 0;
        loop {
            let batch = HeldBatch {
                protocol: held.protocol,
                peer: held.peer.clone(),
                through: held.through,
                limit: BATCH,
            };
            let dropped = self.inner.store.drop_held(batch).await?.await?;
            if dropped == 0 {
                break;
            }
            count += dropped;
        }
        self.tell("dropped", held.protocol, &held.peer, count);
        Ok(count)
    }

    async fn matching(&self, protocol: &str, pattern: &str) -> Result<Vec<HeldCount>, StoreError> {
        let mut held = self.held().await?;
        held.retain(|h| h.protocol == protocol && matches(pattern, &h.peer));
        Ok(held)
    }

    fn tell(&self, what: &'static str, protocol: ProtocolId, peer: &str, events: u64) {
        if events == 0 {
            return;
        }
        tracing::info!(protocol, peer, events, "held events were {what}");
        let body = json!({"peer": peer, "events": events});
        self.inner.ops.event("trust", what, protocol, peer, body);
    }

    /// Releases what is held of peers whose quarantine is over, and drops what was held for longer
    /// than 30 days; once.
    async fn sweep(&self, trust: &Trust) -> Result<(), HeldError> {
        let now = self.inner.clock.now_ms();
        let held = self.held().await?;
        metrics::held(held.iter().map(|h| h.events).sum());
        // Two that release the same peer's events at once would mix their order.
        if held.is_empty() || !self.inner.store.lead("held", LEAD).await? {
            return Ok(());
        }
        for h in held {
            match trust.standing(h.protocol, &h.peer) {
                Standing::Quarantined | Standing::Blocked => {
                    if now.saturating_sub(h.oldest_ms) > HELD_AT_MOST_MS
                        && self.inner.clock.steady()
                    {
                        self.discard_older(&h, now - HELD_AT_MOST_MS).await?;
                    }
                }
                Standing::Allowed | Standing::Ordinary => {
                    self.release(h.protocol, &h.peer).await?;
                }
            }
        }
        Ok(())
    }

    /// Drops the oldest held events of a peer up to the first that is younger.
    async fn discard_older(&self, held: &HeldCount, before_ms: i64) -> Result<(), HeldError> {
        let through = self
            .inner
            .store
            .held_through(held.protocol, &held.peer, before_ms)
            .await?;
        let old = HeldCount {
            through,
            ..held.clone()
        };
        self.discard(&old).await.map(drop)
    }
}

/// Looks again and again until the door is closed.
pub(super) async fn watch(door: Weak<Inner>, trust: Trust) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(inner) = door.upgrade() else {
            return;
        };
        if let Err(error) = (Door { inner }).sweep(&trust).await {
            tracing::debug!(%error, "held events could not be looked at");
        }
    }
}

/// Whether a name is the pattern, or below the suffix of `*.suffix` (whatever the port).
fn matches(pattern: &str, name: &str) -> bool {
    if pattern == name {
        return true;
    }
    let host = match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => name,
    };
    pattern
        .strip_prefix('*')
        .filter(|suffix| suffix.starts_with('.'))
        .is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
}

fn closed() -> BusError {
    BusError {
        kind: BusErrorKind::Unavailable,
        detail: "the door is closed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_pattern_is_a_name_or_a_suffix() {
        assert!(matches("a.test", "a.test"));
        assert!(matches("*.test", "a.test:8443"));
        assert!(!matches("*.test", "test"));
        assert!(!matches("*test", "a.test"));
        assert!(!matches("*.test", "a.test.example"));
    }
}
