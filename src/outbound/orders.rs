//! Orders for lanes that another instance serves, on their way there.
//!
//! An operator may ask any instance. What changes rows is written to the database by whoever was
//! asked; the word to the lane goes to its owner. While a unit has none, its rows are read anew by the
//! next one.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::control::{Control, ControlError, PeerOutlook, Probed};
use super::shard::{Ask, LaneKey, Replied};
use crate::protocol::PeerName;

/// The first token of an order passed on.
pub const ORDER: &str = "order";
/// The longest that an order may take there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tries while a unit is on its way from one owner to the next, and the pause between two.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Serialize, Deserialize)]
struct Order {
    protocol: String,
    peer: String,
    what: What,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) enum What {
    Ask(Ask),
    /// Rows from this number on were changed.
    Changed(i64),
}

#[derive(Serialize, Deserialize)]
enum Said {
    Done,
    Probe(Probed),
    Outlook(Box<PeerOutlook>),
    Paused,
    Elsewhere,
    Refused(String),
}

impl Control {
    /// Answers an order that another instance passed on.
    pub async fn carry_out(&self, order: &[u8]) -> Bytes {
        let said = match serde_json::from_slice::<Order>(order) {
            Ok(order) => self.carried_out(order).await,
            Err(error) => Said::Refused(format!("an order cannot be read: {error}")),
        };
        serde_json::to_vec(&said).map_or_else(|_| Bytes::new(), Bytes::from)
    }

    async fn carried_out(&self, order: Order) -> Said {
        let Ok(peer) = PeerName::parse(&order.peer) else {
            return Said::Refused(format!("{:?} is no name of a peer", order.peer));
        };
        let done = match self.key(&order.protocol, &peer) {
            Ok(key) => self.here(key, order.what).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(Replied::Done) => Said::Done,
            Ok(Replied::Probe(probed)) => Said::Probe(probed),
            Ok(Replied::Outlook(outlook)) => Said::Outlook(outlook),
            Err(ControlError::Paused(_)) => Said::Paused,
            Err(ControlError::Elsewhere) => Said::Elsewhere,
            Err(error) => Said::Refused(error.to_string()),
        }
    }

    /// Passes an order on to the owner of a lane, wherever it is by now.
    pub(super) async fn there(&self, key: LaneKey, what: What) -> Result<Replied, ControlError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let said = match self.is_here(&key) {
                true => self.here(key.clone(), what.clone()).await,
                false => self.once(&key, &what).await,
            };
            if tries >= TRIES || !matches!(said, Err(ControlError::Elsewhere)) {
                return said;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn once(&self, key: &LaneKey, what: &What) -> Result<Replied, ControlError> {
        let (Some(bus), Some(units)) = (&self.others, self.tenure.units()) else {
            return Err(ControlError::Elsewhere);
        };
        let owner = self.tenure.owner(units.of_peer(key.0, &key.1));
        let owner = owner.ok_or(ControlError::Elsewhere)?;
        let order = Order {
            protocol: key.0.to_owned(),
            peer: key.1.to_string(),
            what: what.clone(),
        };
        let order = serde_json::to_vec(&order).map_err(|_| ControlError::Elsewhere)?;
        let said = bus
            .ask_instance(&owner, ORDER, order.into(), PATIENCE)
            .await;
        let said = said.map_err(|error| {
            tracing::debug!(%error, owner, "an order could not be passed on");
            ControlError::Elsewhere
        })?;
        match serde_json::from_slice(&said) {
            Ok(Said::Done) => Ok(Replied::Done),
            Ok(Said::Probe(probed)) => Ok(Replied::Probe(probed)),
            Ok(Said::Outlook(mut outlook)) => {
                outlook.protocol = key.0;
                Ok(Replied::Outlook(outlook))
            }
            Ok(Said::Paused) => Err(ControlError::Paused(key.1.to_string())),
            Ok(Said::Refused(why)) => Err(ControlError::Owner(why)),
            Ok(Said::Elsewhere) | Err(_) => Err(ControlError::Elsewhere),
        }
    }
}
