//! An operator's questions and orders.

use tokio::sync::oneshot;

use super::super::control::{ControlError, PeerOutlook, Probed};
use super::super::lane::{Grant, Lane};
use super::work::{Ask, Replied, Reply};
use super::{LaneKey, Shard};
use crate::peers::health::Pause;

impl Shard {
    pub(super) fn asked(&mut self, key: &LaneKey, ask: Ask, reply: oneshot::Sender<Reply>) {
        let now = self.tools.clock.now_ms();
        match ask {
            Ask::Look => {
                let said = Replied::Outlook(Box::new(self.look(key)));
                let _ = reply.send(Ok(said)); // who asked may have gone
            }
            Ask::Pause { reason, until_ms } => {
                self.entry(key).lane.pause(Pause {
                    since_ms: now,
                    until_ms,
                    reason,
                });
                self.decided(key, "paused", reply);
            }
            Ask::Resume => {
                if self.entry(key).lane.resume(now) {
                    self.decided(key, "resumed", reply);
                } else {
                    let _ = reply.send(Ok(Replied::Done));
                    self.poke(key);
                }
            }
            Ask::Reset => {
                self.entry(key).lane.reset();
                self.decided(key, "reset", reply);
            }
            Ask::Flushed => {
                let lane = &mut self.entry(key).lane;
                lane.reread(1);
                if lane.facts.failures > 0 {
                    lane.grant(Grant::Operator);
                }
                self.decided(key, "flushed", reply);
            }
            Ask::Probe => {
                let lane = &mut self.entry(key).lane;
                let said = if lane.facts.pause.is_some() {
                    Err(ControlError::Paused(key.1.to_string()))
                } else if lane.is_idle() {
                    Ok(Replied::Probe(Probed::NothingWaits))
                } else {
                    lane.grant(Grant::Operator);
                    Ok(Replied::Probe(Probed::Begun))
                };
                let _ = reply.send(said);
                self.poke(key);
            }
        }
    }

    /// Something was changed that must outlive us: written down, then answered.
    fn decided(&mut self, key: &LaneKey, what: &'static str, reply: oneshot::Sender<Reply>) {
        if let Some(entry) = self.lanes.get_mut(key) {
            entry.saving.expect((reply, Replied::Done));
        }
        self.health_changed(key, what);
        self.poke(key);
    }

    fn look(&self, key: &LaneKey) -> PeerOutlook {
        let now = self.tools.clock.now_ms();
        let policy = &self.shared.policy;
        match self.lanes.get(key) {
            Some(entry) => PeerOutlook::of(key, &entry.lane, entry.average_ms, policy, now),
            None => {
                let known = self.known.get(key).cloned().unwrap_or_default();
                let lane = Lane::new(self.shared.limits, known.facts);
                PeerOutlook::of(key, &lane, known.average_ms, policy, now)
            }
        }
    }
}
