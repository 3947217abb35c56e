//! What other instances changed of what every instance keeps in memory: trust rules, and what a
//! protocol's rows say (a relay's agents, its keys' turn).
//!
//! A change is counted in the database in the commit that makes it. Each instance looks at the
//! counts and reads anew what they are about, so that a change made anywhere is in force everywhere
//! within two seconds. No message says so: one that is lost would have to be made up for by looking
//! anyway.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::protocol::{Protocol, ProtocolId};
use crate::store::{Store, TRUST};
use crate::trust::Trust;

/// How often the counts are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Who keeps what in memory.
pub(super) struct Knowledge {
    pub store: Store,
    pub trust: Trust,
    pub protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
}

impl Knowledge {
    /// Follows the others until it is stopped; ends at once where there are none.
    pub async fn follow(self, stop: CancellationToken) {
        if !self.store.shared() {
            return;
        }
        // What was read at the start may be older than the first look: all of it is read once more.
        let mut seen: BTreeMap<String, i64> = BTreeMap::new();
        loop {
            let begun = Instant::now();
            match self.store.common().await {
                Ok(common) => self.take_up(&common.changes, &mut seen).await,
                Err(error) => {
                    tracing::debug!(%error, "what other instances changed is not known yet");
                }
            }
            // A great many rows take their time: they leave as much of it to others.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(LOOK_EVERY.max(begun.elapsed())) => {}
            }
        }
    }

    async fn take_up(&self, counts: &BTreeMap<String, i64>, seen: &mut BTreeMap<String, i64>) {
        for (topic, count) in counts {
            if seen.get(topic) == Some(count) {
                continue;
            }
            let read = match topic.as_str() {
                TRUST => self
                    .trust
                    .reload()
                    .await
                    .map(drop)
                    .map_err(|e| e.to_string()),
                topic => match self.protocols.get(topic) {
                    Some(protocol) => protocol.refresh().await.map_err(|e| e.to_string()),
                    None => Ok(()),
                },
            };
            match read {
                Ok(()) => drop(seen.insert(topic.clone(), *count)),
                Err(reason) => tracing::warn!(
                    topic,
                    reason,
                    "what another instance changed could not be read; trying again"
                ),
            }
        }
    }
}
