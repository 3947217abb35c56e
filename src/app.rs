//! Start-up and shutdown, top to bottom; [`reload`] is what can change in between.

mod knowledge;
mod patience;
mod reload;
mod speakers;
mod together;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::bus::{Bus, BusError, ManagedServer, durability};
use crate::clock::Clock;
use crate::cluster::Keeper;
use crate::config::{Config, ListenConfig, Secret};
use crate::faults;
use crate::http::client::Client;
use crate::http::server::Server;
use crate::http::tls::Certificate;
use crate::http::unrouted;
use crate::inbound::Door;
use crate::ops::health::Health;
use crate::ops::{Ops, metrics};
use crate::outbound::{self, Outbound};
use crate::peers::{Peers, beats};
use crate::protocol::{Protocol, ProtocolId, Refusal};
use crate::protocols::paracord::ParacordError;
use crate::protocols::uam::UamError;
use crate::protocols::voltchat::VoltChatError;
use crate::store::{Keeping, Store, StoreError};
use crate::trust::Trust;

use knowledge::Knowledge;
use patience::patiently;
use reload::Reloadable;
pub use reload::Reloaded;

/// How often gauges are read and old rows are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(15);

/// What closing ledger and broker may take after the drain.
const CLOSING: Duration = Duration::from_secs(15);

/// Why the bridge cannot start: a sentence a person can act on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Uam(#[from] UamError),
    #[error(transparent)]
    VoltChat(#[from] VoltChatError),
    #[error(transparent)]
    Paracord(#[from] ParacordError),
    #[error(transparent)]
    Outbound(#[from] outbound::StartError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Setting(String),
}

/// A bridge at work.
pub struct Running {
    /// Where peers reach it.
    pub public: SocketAddr,
    /// Where operators reach it.
    pub admin: SocketAddr,
    /// The admin API's bearer token.
    pub admin_token: Secret,
    /// The broker in use.
    pub nats_url: String,
    store: Store,
    bus: Bus,
    peers: Peers,
    trust: Trust,
    door: Door,
    outbound: Outbound,
    /// Keeps this instance's share, where several share the work.
    keeper: Option<Keeper>,
    ops: Ops,
    managed: Option<ManagedServer>,
    listeners: Vec<std::thread::JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    stop_listening: CancellationToken,
    stop_rest: CancellationToken,
    health: Health,
    reloadable: Reloadable,
}

/// Starts everything, in the order in which each part needs the ones before it; the public listener
/// opens last.
pub async fn start(config: Config) -> Result<Running, StartError> {
    start_with(config, faults::clock()).await
}

/// [`start`] by a given clock, so that its jumps can be rehearsed.
pub async fn start_with(config: Config, clock: Clock) -> Result<Running, StartError> {
    metrics::init();
    let health = Health::new().stuck_after(config.nats.stuck_after);
    private_dir(&config.data_dir)?;
    let admin_token = admin::token::load_or_create(&config).map_err(StartError::Setting)?;

    let patience = config.store.connect_timeout;
    let store = patiently(patience, || Store::open(&config.store, clock.clone())).await?;

    let (managed, nats) = match &config.nats.url {
        Some(_) => (None, config.nats.clone()),
        None => {
            let server = ManagedServer::start(&config.nats).await?;
            let nats = config.nats.with_managed(server.url());
            (Some(server), nats)
        }
    };
    let bus = Bus::connect(&nats).await?;
    let broker_patience = config.nats.connect_timeout;
    for difference in patiently(broker_patience, || bus.apply_streams()).await? {
        tracing::warn!("{difference}");
    }
    let (stop_listening, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    patiently(broker_patience, || {
        durability::watch(&bus, &health, stop_rest.clone())
    })
    .await?;
    let ops = Ops::start(bus.clone(), config.ops_single);

    let peers = patiently(patience, || {
        Peers::open(store.clone(), &config.peers, clock.clone())
    })
    .await?;
    let trust = patiently(patience, || Trust::open(store.clone(), clock.clone())).await?;
    let door = patiently(patience, || {
        Door::open(store.clone(), bus.clone(), ops.clone(), clock.clone())
    })
    .await?;
    door.follow(trust.clone());
    door.report_to(health.clone());

    let client = Client::new(&config.http).map_err(StartError::Setting)?;
    let speaking = speakers::Parts {
        config: config.clone(),
        peers: peers.clone(),
        trust: trust.clone(),
        door: door.clone(),
        client: client.clone(),
        bus: bus.clone(),
        ops: ops.clone(),
        clock: clock.clone(),
    };
    let (protocols, tenure) = speakers::start(&speaking, &store).await?;
    if protocols.is_empty() {
        tracing::warn!(
            "no protocol is configured: set uam.domain (UAM_RELAY_DOMAIN) to federate over UAM, \
             voltchat.url to federate over VoltChat, or paracord.server_name \
             (PARACORD_SERVER_NAME) to federate over Paracord"
        );
    }
    let spoken = protocols.keys().copied().collect();
    store.keep(protocols.values().map(|p| keeping(p.as_ref())).collect());
    let mut routes = axum::Router::new();
    for protocol in protocols.values() {
        routes = routes.merge(protocol.clone().routes());
    }
    let protocols = Arc::new(protocols);

    let parts = || outbound::Parts {
        bus: bus.clone(),
        store: store.clone(),
        peers: peers.clone(),
        ops: ops.clone(),
        clock: clock.clone(),
        health: health.clone(),
        protocols: protocols.clone(),
        tenure: tenure.clone(),
    };
    let mut outbound = patiently(patience, || Outbound::start(&config, parts())).await?;
    peers.follow(outbound.control());
    serve_calls(&bus, protocols.clone()).await?;
    let joined = patiently(patience, || {
        together::join(&store, &bus, &tenure, &protocols, outbound.control())
    })
    .await?;
    let mut keeper = None;
    if let Some((ours, turns)) = joined {
        outbound.serve(turns);
        keeper = Some(ours);
    }
    for protocol in protocols.values() {
        tokio::spawn(beats::run(protocol.clone(), stop_listening.clone()));
    }

    // The admin listener answers first; ready is only who takes deliveries.
    health.set("public", "the public listener is not open yet");
    let admin_server = Server::bind(&config.admin, false)?;
    let admin_at = admin_server.local_addr();
    let admin_certificate = admin_server.certificate();
    let state = AdminState {
        store: store.clone(),
        peers: peers.clone(),
        trust: trust.clone(),
        door: Some(door.clone()),
        lanes: Some(outbound.control()),
        health: health.clone(),
        ops: ops.clone(),
        clock: clock.clone(),
        protocols: spoken,
        speakers: protocols.values().cloned().collect(),
        token: admin_token.clone(),
        metrics_open: AdminState::metrics_open(&config),
        loopback_only: config.admin.address.ip().is_loopback(),
    };
    let knowledge = Knowledge {
        store: store.clone(),
        trust: trust.clone(),
        protocols: protocols.clone(),
    };
    let tasks = vec![
        tokio::spawn(admin_server.serve(admin::router(state), stop_rest.clone())),
        tokio::spawn(housekeeping(
            store.clone(),
            bus.clone(),
            health.clone(),
            clock.clone(),
            stop_rest.clone(),
        )),
        tokio::spawn(retention(store.clone(), clock, stop_rest.clone())),
        tokio::spawn(knowledge.follow(stop_rest.clone())),
    ];
    let threads = outbound::shard_count(config.outbound.shards);
    let routes = unrouted::answered(routes);
    let (public, listeners, certificates) =
        listen(&config.public, &routes, threads, &stop_listening)?;
    health.clear("public");
    let mut clients = outbound.clients().to_vec();
    clients.push(client);
    let reloadable = Reloadable {
        current: config.clone(),
        started: config,
        public: certificates,
        admin: admin_certificate,
        clients,
        peers: peers.clone(),
        trust: trust.clone(),
        protocols,
        ops: ops.clone(),
    };
    let nats_url = nats.url.unwrap_or_default();
    tracing::info!(%public, admin = %admin_at, broker = bus.server().version, "drawbridge is open");
    Ok(Running {
        public,
        admin: admin_at,
        admin_token,
        nats_url,
        store,
        bus,
        peers,
        trust,
        door,
        outbound,
        keeper,
        ops: ops.clone(),
        managed,
        listeners,
        tasks,
        stop_listening,
        stop_rest,
        health,
        reloadable,
    })
}

impl Running {
    /// Orders to the lanes, and questions about them.
    pub fn lanes(&self) -> outbound::Control {
        self.outbound.control()
    }

    /// Rows still to be delivered, oldest first.
    pub async fn pending(&self) -> Result<Vec<crate::store::QueueRow>, StoreError> {
        let filter = crate::store::RowFilter {
            states: [crate::store::RowState::Pending].into(),
            ..Default::default()
        };
        self.store.list_rows(&filter).await
    }

    /// Takes up what can change while running; see [`reload`].
    pub async fn reload(&mut self, fresh: Result<Config, String>) -> Result<Reloaded, String> {
        self.reloadable.reload(fresh).await
    }

    /// How long [`Running::stop`] may take before something in it hangs.
    pub fn stop_limit(&self) -> Duration {
        self.reloadable.started.public.drain_timeout + CLOSING
    }

    /// Stops: no new requests and messages, those in hand are finished (each part bounded by the
    /// drain time), then the ledger, the broker connection and the managed server are closed.
    pub async fn stop(self) {
        // Red before the doors close: whoever balances load looks here.
        self.health
            .set("drain", "the bridge is stopping; send nothing new here");
        tracing::info!("drawbridge is draining");
        self.stop_listening.cancel();
        if let Some(keeper) = &self.keeper {
            // First: the others take over while this one finishes.
            keeper.leave().await;
        }
        let (listeners, outbound) = (self.listeners, self.outbound);
        let listening = tokio::task::spawn_blocking(move || {
            for thread in listeners {
                if thread.join().is_err() {
                    tracing::error!("a listener thread ended abnormally");
                }
            }
        });
        let (_, _) = tokio::join!(listening, outbound.stop());
        self.door.close().await;
        for protocol in self.reloadable.protocols.values() {
            protocol.flush().await;
        }
        self.peers.flush().await;
        if let Err(error) = self.trust.flush().await {
            tracing::warn!(%error, "the latest scores were not stored");
        }
        self.stop_rest.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
        self.ops.flush().await;
        self.store.close().await;
        self.bus.close().await;
        if let Some(server) = self.managed {
            server.stop().await;
        }
        tracing::info!("drawbridge has stopped");
    }
}

/// Where, by which threads, with which certificates (one a thread, none without TLS).
type Listening = (
    SocketAddr,
    Vec<std::thread::JoinHandle<()>>,
    Vec<Certificate>,
);

/// The public listener: one thread a shard, each with its own socket on the same port.
fn listen(
    config: &ListenConfig,
    routes: &axum::Router,
    threads: usize,
    stop: &CancellationToken,
) -> Result<Listening, StartError> {
    let first = Server::bind(config, true)?;
    let at = first.local_addr();
    let share = ListenConfig {
        address: at,
        max_connections: (config.max_connections / threads.max(1)).max(1),
        ..config.clone()
    };
    let mut servers = vec![first];
    for _ in 1..threads {
        servers.push(Server::bind(&share, true)?);
    }
    let certificates = servers.iter().filter_map(Server::certificate).collect();
    let mut handles = Vec::new();
    for (n, server) in servers.into_iter().enumerate() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (routes, stop) = (routes.clone(), stop.clone());
        let thread = std::thread::Builder::new().name(format!("public-{n}"));
        handles.push(thread.spawn(move || runtime.block_on(server.serve(routes, stop)))?);
    }
    Ok((at, handles, certificates))
}

/// Answers `fed.do.<protocol>.<method>`.
async fn serve_calls(
    bus: &Bus,
    protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
) -> Result<(), BusError> {
    bus.serve_calls(Arc::new(move |protocol, method, body| {
        let protocols = protocols.clone();
        Box::pin(async move {
            match protocols.get(protocol.as_str()) {
                Some(p) => p.call(&method, body).await,
                None => Err(Refusal::new(
                    "unknown_protocol",
                    format!("no protocol is called {protocol:?}"),
                )),
            }
        })
    }))
    .await
}

/// Gauges, readiness of store and broker.
async fn housekeeping(
    store: Store,
    bus: Bus,
    health: Health,
    clock: Clock,
    stop: CancellationToken,
) {
    let mut connected = bus.connected_changes();
    let mut due = tokio::time::interval(HOUSEKEEPING);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if *connected.borrow_and_update() {
            health.clear("bus");
        } else {
            health.set(
                "bus",
                &match bus.trouble() {
                    Some(why) => format!("not connected to the broker: {why}"),
                    None => "not connected to the broker".to_owned(),
                },
            );
        }
        metrics::bus_connected(bus.connected());
        if store.healthy() {
            health.clear("store");
        } else {
            health.set("store", "the last commit failed");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = connected.changed() => if changed.is_err() { return },
            _ = due.tick() => {
                let now = clock.now_ms();
                match store.queue_counts().await {
                    Ok(counts) => for c in counts {
                        let age = c.oldest_pending_ms.map_or(0.0, |t| Duration::from_millis(u64::try_from(now - t).unwrap_or(0)).as_secs_f64());
                        metrics::queue(&c.protocol, c.pending, age);
                    },
                    Err(error) => tracing::debug!(%error, "the queue could not be counted"),
                }
            }
        }
    }
}

/// What a protocol wants kept otherwise than retention says.
fn keeping(protocol: &dyn Protocol) -> Keeping {
    Keeping {
        protocol: protocol.id(),
        ids: protocol.keeps_ids(),
        room_events: protocol.room_events_kept(),
    }
}

/// Retention, beside everything else: an arrear is worked off without a pause, in steps that leave
/// the writer to others; nothing goes while the clock is not to be trusted.
async fn retention(store: Store, clock: Clock, stop: CancellationToken) {
    loop {
        let mut pause = HOUSEKEEPING;
        let ours = async || store.lead("retention", HOUSEKEEPING * 3).await;
        if clock.steady() && store.healthy() && ours().await.unwrap_or(false) {
            tokio::select! {
                () = stop.cancelled() => return,
                gone = store.prune(clock.now_ms()) => match gone {
                    Ok(0) => {}
                    Ok(rows) => {
                        tracing::debug!(rows, "old rows were pruned");
                        pause = Duration::from_secs(1);
                    }
                    Err(error) => tracing::debug!(%error, "old rows could not be pruned"),
                },
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Makes the data directory, readable by its owner only.
fn private_dir(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| {
            std::io::Error::new(
                e.kind(),
                format!("the data directory {} cannot be made: {e}", path.display()),
            )
        })
}
