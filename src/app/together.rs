//! Joining the other instances that share this one's database.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::StartError;
use crate::bus::Bus;
use crate::cluster::{Keeper, Tenure, Turn, one_owner};
use crate::outbound::{Control, orders};
use crate::protocol::{Protocol, ProtocolId, Refusal};
use crate::store::Store;

/// Something may be free for others.
const LEASES: &str = "leases";

/// What the others may ask of this instance.
struct Asked {
    tenure: Tenure,
    protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
    lanes: Control,
    keeper: OnceLock<Keeper>,
}

/// Hears the other instances and begins to take a share of the work; `None` for one that is alone.
pub(super) async fn join(
    store: &Store,
    bus: &Bus,
    tenure: &Tenure,
    protocols: &Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
    lanes: Control,
) -> Result<Option<(Keeper, mpsc::Receiver<Turn>)>, StartError> {
    if tenure.is_alone() {
        return Ok(None);
    }
    let name = crate::cluster::own_name();
    let asked = Arc::new(Asked {
        tenure: tenure.clone(),
        protocols: protocols.clone(),
        lanes,
        keeper: OnceLock::new(),
    });
    let hearing = asked.clone();
    bus.hear_instances(
        &name,
        Arc::new(move |what, body| Box::pin(hearing.clone().heard(what, body))),
    )
    .await?;
    let tell = {
        let bus = bus.clone();
        Box::new(move || bus.tell_all(LEASES, Bytes::new()))
    };
    let joined = Keeper::start(store, &name, tenure.clone(), tell).await?;
    if let Some((keeper, _)) = &joined {
        tracing::info!(name, "this instance shares its work with others");
        let _ = asked.keeper.set(keeper.clone()); // it is set here only
    }
    Ok(joined)
}

impl Asked {
    async fn heard(self: Arc<Self>, what: String, body: Bytes) -> Option<Bytes> {
        match what.as_str() {
            LEASES => {
                if let Some(keeper) = self.keeper.get() {
                    keeper.look();
                }
                None
            }
            orders::ORDER => Some(self.lanes.carry_out(&body).await),
            other => {
                let call = other.strip_prefix(one_owner::CALL)?.strip_prefix('.')?;
                let (protocol, method) = call.split_once('.')?;
                Some(one_owner::written_answer(
                    self.call(protocol, method, body).await,
                ))
            }
        }
    }

    async fn call(
        &self,
        protocol: &str,
        method: &str,
        body: Bytes,
    ) -> Result<serde_json::Value, Refusal> {
        match self.protocols.get(protocol) {
            Some(known) if self.tenure.answers_for(known.id()) => known.call(method, body).await,
            _ => Err(Refusal::new(
                "owner_unavailable",
                format!("this instance does not serve {protocol} any more; try again"),
            )),
        }
    }
}
