//! Messages sent on to the unit of their peer, where several instances share the work.
//!
//! A message published to a reserved word (`_to`, `_all`) is stored under the word's partition, not its
//! peer's. Whoever reads it finds out its targets and publishes one copy for each under the target's
//! own name; the copies are read by the owners of their lanes. So a lane is always in one unit and its
//! numbers ascend. The original is acknowledged when every copy is stored; sent on twice, a copy meets
//! its first one at the broker, or its row.

use super::intake::Reader;
use crate::bus::{BusError, OutMessage};
use crate::protocol::{PeerName, Targets};

impl Reader {
    /// Sends on what is not for one lane of this unit, in order; answers the rest.
    pub(super) async fn send_on(
        &self,
        batch: Vec<OutMessage>,
    ) -> Result<Vec<OutMessage>, BusError> {
        if self.serving.is_none() {
            return Ok(batch);
        }
        let mut rest = Vec::with_capacity(batch.len());
        for message in batch {
            let Some(peers) = self.elsewhere(&message) else {
                rest.push(message);
                continue;
            };
            let Ok(event) = &message.event else {
                continue; // one with targets was read
            };
            // All copies of a message before the first of the next: what follows it to the same peer
            // stays behind it, whatever is lost on the way.
            let mut sent = Vec::with_capacity(peers.len());
            for peer in &peers {
                let copy = self
                    .bus
                    .forward_out(&message.protocol, peer.as_str(), event);
                sent.push(copy.await?);
            }
            for stored in sent {
                stored.await?;
            }
            if let Err(error) = message.ack.ack().await {
                tracing::debug!(%error, "an acknowledgement was lost; the copies will meet their rows");
            }
        }
        Ok(rest)
    }

    /// The targets of a message that is sent on; `None`: it becomes rows here, or dies here.
    fn elsewhere(&self, message: &OutMessage) -> Option<Vec<PeerName>> {
        let tenure = &self.serving.as_ref()?.tenure;
        let protocol = self.protocols.get(message.protocol.as_str())?;
        let event = message.event.as_ref().ok()?;
        if message.forwarded
            || !event.peer.starts_with('_')
            || !tenure.units()?.divides(protocol.id())
        {
            return None;
        }
        let peers = match protocol.targets(event).ok()? {
            Targets::Peers(peers) => peers,
            Targets::AllAccepted => self.peers.accepted(protocol.id()),
        };
        (!peers.is_empty()).then_some(peers)
    }
}
