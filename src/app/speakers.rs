//! The protocols that run, each made of the same parts.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::StartError;
use super::patience::patiently;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::cluster::OneOwner;
use crate::cluster::one_owner::Make;
use crate::cluster::{Tenure, Units};
use crate::config::Config;
use crate::http::client::Client;
use crate::inbound::Door;
use crate::ops::Ops;
use crate::peers::Peers;
use crate::protocol::{Protocol, ProtocolId};
use crate::protocols::paracord::{Paracord, ParacordParts};
use crate::protocols::uam::{Uam, UamParts};
use crate::protocols::voltchat::{VoltChat, VoltChatParts};
use crate::store::Store;
use crate::trust::Trust;

/// What they are made of, besides the store.
#[derive(Clone)]
pub(super) struct Parts {
    pub config: Config,
    pub peers: Peers,
    pub trust: Trust,
    pub door: Door,
    pub client: Client,
    pub bus: Bus,
    pub ops: Ops,
    pub clock: Clock,
}

type Made = BoxFuture<'static, Result<Arc<dyn Protocol>, StartError>>;
/// Makes one over a store.
type Maker = fn(Parts, Store) -> Made;

/// Every protocol that is configured, and how the work on them is divided among instances. Where
/// several share the store, one that cannot be divided is seen through [`OneOwner`].
pub(super) async fn start(
    parts: &Parts,
    store: &Store,
) -> Result<(HashMap<ProtocolId, Arc<dyn Protocol>>, Tenure), StartError> {
    let config = &parts.config;
    let makers: [(bool, Maker); 3] = [
        (config.uam.domain.is_some(), uam),
        (config.voltchat.url.is_some(), voltchat),
        (config.paracord.server_name.is_some(), paracord),
    ];
    let mut made = Vec::new();
    for (configured, maker) in makers {
        if configured {
            let patience = config.store.connect_timeout;
            let make = || maker(parts.clone(), store.clone());
            made.push((maker, patiently(patience, make).await?));
        }
    }
    let all = |made: &[(Maker, Arc<dyn Protocol>)]| {
        let each = made.iter().map(|(_, protocol)| protocol.clone());
        each.map(|protocol| (protocol.id(), protocol)).collect()
    };
    if !store.shared() {
        return Ok((all(&made), Tenure::alone()));
    }
    let tenure = Tenure::shared(Units::of(&all(&made)));
    for (maker, protocol) in &mut made {
        if !protocol.divisible() {
            let (bus, parts, maker) = (parts.bus.clone(), parts.clone(), *maker);
            let make: Make = Arc::new(move |store| {
                let made = maker(parts.clone(), store);
                Box::pin(async move { made.await.map_err(|e| e.to_string()) })
            });
            *protocol = OneOwner::over(protocol.clone(), make, store, &tenure, &bus);
        }
    }
    Ok((all(&made), tenure))
}

fn uam(parts: Parts, store: Store) -> Made {
    Box::pin(async move {
        let made = Uam::new(UamParts {
            config: parts.config.uam,
            store,
            peers: parts.peers,
            trust: parts.trust,
            door: parts.door,
            net: Arc::new(parts.client),
            ops: parts.ops,
            clock: parts.clock,
        });
        let made: Arc<dyn Protocol> = made.await?;
        Ok(made)
    })
}

fn voltchat(parts: Parts, store: Store) -> Made {
    Box::pin(async move {
        let made = VoltChat::new(VoltChatParts {
            config: parts.config.voltchat,
            store,
            peers: parts.peers,
            trust: parts.trust,
            door: parts.door,
            net: Arc::new(parts.client),
            bus: Some(parts.bus),
            ops: parts.ops,
            clock: parts.clock,
        });
        let made: Arc<dyn Protocol> = made.await?;
        Ok(made)
    })
}

fn paracord(parts: Parts, store: Store) -> Made {
    Box::pin(async move {
        let made = Paracord::new(ParacordParts {
            config: parts.config.paracord,
            store,
            peers: parts.peers,
            trust: parts.trust,
            door: parts.door,
            net: Arc::new(parts.client),
            bus: Some(parts.bus),
            ops: parts.ops,
            clock: parts.clock,
        });
        let made: Arc<dyn Protocol> = made.await?;
        Ok(made)
    })
}
