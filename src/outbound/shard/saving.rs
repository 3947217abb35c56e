//! Health facts on their way to the store: one write of a peer at a time, so that what is written
//! last is what was true last.

use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;

use super::super::control::ControlError;
use super::done::Done;
use super::work::{Replied, Reply};
use super::{LaneKey, Shard};
use crate::store::{HealthRow, StoreErrorKind};

/// Who is told once what was decided cannot be forgotten.
type Teller = (oneshot::Sender<Reply>, Replied);

/// The state of one peer's writing.
#[derive(Debug, Default)]
pub(super) struct Saving {
    under_way: bool,
    /// The facts changed since the write under way began.
    again: bool,
    tellers: Vec<Teller>,
}

impl Saving {
    /// Nothing is being written.
    pub fn is_idle(&self) -> bool {
        !self.under_way && !self.again
    }

    /// Somebody waits for the next write to end.
    pub fn expect(&mut self, teller: Teller) {
        self.tellers.push(teller);
    }
}

impl Shard {
    /// The facts changed in a way operators hear of.
    pub(super) fn health_changed(&mut self, key: &LaneKey, what: &'static str) {
        let Some(entry) = self.lanes.get(key) else {
            return;
        };
        let facts = &entry.lane.facts;
        if facts.pause.is_some() {
            self.shared.paused.note(key);
        } else {
            self.shared.paused.forget(key);
        }
        tracing::info!(protocol = key.0, peer = %key.1, failures = facts.failures, code = facts.last_code, "peer {what}");
        self.shared
            .ops
            .event("peer", what, key.0, key.1.as_str(), json!(facts));
        self.save(key);
    }

    /// Writes the peer's facts down, and tells those who wait for it.
    pub(super) fn save(&mut self, key: &LaneKey) {
        let Some(entry) = self.lanes.get_mut(key) else {
            return;
        };
        if entry.saving.under_way {
            entry.saving.again = true;
            return;
        }
        let Ok(facts) = serde_json::to_string(&entry.lane.facts) else {
            return; // plain data: it can be written
        };
        entry.saving.under_way = true;
        entry.saving.again = false;
        let tellers = std::mem::take(&mut entry.saving.tellers);
        let row = HealthRow {
            protocol: key.0.to_owned(),
            peer: key.1.to_string(),
            facts,
        };
        let (store, lane) = (self.shared.store.clone(), key.clone());
        self.tasks.spawn(async move {
            let mut tellers = Some(tellers);
            loop {
                let written = match store.put_health(row.clone()).await {
                    Ok(commit) => commit.await,
                    Err(error) => Err(error),
                };
                for (reply, said) in tellers.take().into_iter().flatten() {
                    let _ = reply.send(match &written {
                        Ok(()) => Ok(said),
                        Err(error) => Err(ControlError::NotWritten(error.clone())),
                    });
                }
                match written {
                    Ok(()) => break,
                    Err(e) if e.kind == StoreErrorKind::Closed => break,
                    Err(error) => {
                        tracing::debug!(%error, peer = row.peer, "the peer's health is not stored yet");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
            Done::Saved(lane)
        });
    }

    /// A write ended.
    pub(super) fn saved(&mut self, key: &LaneKey) {
        let Some(entry) = self.lanes.get_mut(key) else {
            return;
        };
        entry.saving.under_way = false;
        if entry.saving.again {
            self.save(key);
        } else {
            self.poke(key);
        }
    }
}
