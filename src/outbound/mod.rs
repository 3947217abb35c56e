//! Intake from JetStream → lane per peer → attempt → outcome.
//!
//! ```text
//! FED_OUT ─ one intake ─▶ rows queued at the store's writer ─▶ commit ─▶ acknowledgement
//!               └─ the same rows, in order ─▶ shard (thread) ─▶ lane (map entry) ─▶ attempt (task)
//!                                                 └─ outcome ─▶ the writer; dead ─▶ FED_DEAD
//! ```
//!
//! Operators, and what is heard of peers, reach the lanes through [`Control`] and the shards' channels.

pub mod attempt;
pub mod control;
pub mod dead;
mod ended;
mod forward;
pub mod intake;
pub mod lane;
pub mod mailbox;
pub mod orders;
pub mod outcome;
pub mod peer_set;
mod rows;
pub mod schedule;
mod scopes;
pub mod shard;
mod turns;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::clock::{Clock, UnixMs};
use crate::cluster::{Hold, Tenure, Turn};
use crate::config::Config;
use crate::http::client::Client;
use crate::ops::health::Health;
use crate::ops::{Ops, metrics, trace};
use crate::peers::Peers;
use crate::peers::health::{Facts, Policy};
use crate::protocol::{Protocol, ProtocolId};
use crate::store::{LaneSummary, Outcome, QueueRow, Settle, Store, StoreError};
pub use control::{Control, ControlError, PeerOutlook, PeerState, Probed};
use lane::Limits;
pub use mailbox::Mailbox;
use peer_set::PeerSet;
use shard::{Known, LaneKey, Shard, Shared, Work};

/// Batches a shard may have waiting.
const SHARD_QUEUE: usize = 64;
/// How often rows past `Fed-Expires` are looked for.
const EXPIRY_SWEEP: Duration = Duration::from_secs(10);

/// What outbound is made from.
#[derive(Clone)]
pub struct Parts {
    pub bus: Bus,
    pub store: Store,
    pub peers: Peers,
    pub ops: Ops,
    pub clock: Clock,
    pub health: Health,
    pub protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
    /// Which lanes are ours, where several instances share the work.
    pub tenure: Tenure,
}

/// Outbound at work.
pub struct Outbound {
    threads: Vec<JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    units: Arc<turns::Turns>,
    control: Control,
    stop: CancellationToken,
    /// One a shard.
    clients: Vec<Client>,
}

/// Why outbound could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the outgoing HTTP client: {0}")]
    Client(String),
    #[error("a delivery thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Threads by configuration, or one a core, at most 8.
pub fn shard_count(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism()
            .map_or(1, std::num::NonZero::get)
            .min(8),
        n => n,
    }
}

impl Outbound {
    /// Starts the shards, arms them from the store, and opens the intake.
    /// Where several instances share the work nothing is read until [`Outbound::serve`].
    pub async fn start(config: &Config, parts: Parts) -> Result<Self, StartError> {
        let shards = shard_count(config.outbound.shards);
        let stop = CancellationToken::new();
        let dead = Arc::new(Notify::new());
        let shared = Shared {
            store: parts.store.clone(),
            tenure: parts.tenure.clone(),
            ops: parts.ops.clone(),
            protocols: parts.protocols.clone(),
            dead: dead.clone(),
            policy: Policy {
                threshold: config.outbound.breaker_threshold,
                initial: config.outbound.breaker_initial,
                max: config.outbound.breaker_max,
            },
            limits: Limits {
                window: config.outbound.peer_window,
                head: config.outbound.lane_head,
            },
            window: (config.outbound.global_window / shards).max(1),
            jitter: config.outbound.jitter,
            throttle_pause: config.outbound.throttle_pause,
            drain: config.public.drain_timeout,
            listening: PeerSet::default(),
            paused: PeerSet::default(),
            late: PeerSet::default(),
        };
        // All reads before the first thread: whoever failed may start again.
        let mut known = known(&parts, shards).await?;
        for (key, known) in known.values().flatten() {
            if known.facts.pause.is_some() {
                shared.paused.note(key);
            }
        }
        let waiting = match parts.tenure.is_alone() {
            true => parts.store.lanes().await?,
            false => Vec::new(),
        };
        let (mut senders, mut threads) = (Vec::new(), Vec::new());
        let mut clients = Vec::new();
        for n in 0..shards {
            let (sender, receiver) = mpsc::channel(SHARD_QUEUE);
            let mine = known.remove(&n).unwrap_or_default();
            let client = Client::new(&config.http).map_err(StartError::Client)?;
            clients.push(client.clone());
            let tools = attempt::Tools {
                client,
                peers: parts.peers.clone(),
                clock: parts.clock.clone(),
                timeout: config.http.timeout,
                max_answer: config.http.max_answer_bytes,
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (shard, stop) = (Shard::new(shared.clone(), tools, mine), stop.clone());
            threads.push(
                std::thread::Builder::new()
                    .name(format!("shard-{n}"))
                    .spawn(move || runtime.block_on(shard.run(receiver, stop)))?,
            );
            senders.push(sender);
        }
        metrics::window(shared.window * shards);
        arm(&parts.protocols, waiting, &senders).await;
        let control = Control {
            shards: senders.clone(),
            protocols: parts.protocols.clone(),
            listening: shared.listening.clone(),
            paused: shared.paused.clone(),
            store: parts.store.clone(),
            clock: parts.clock.clone(),
            dead: dead.clone(),
            tenure: parts.tenure.clone(),
            others: (!parts.tenure.is_alone()).then(|| parts.bus.clone()),
        };
        let max_body = parts.bus.server().max_payload.saturating_sub(8 * 1024);
        let units = Arc::new(turns::Turns {
            parts: parts.clone(),
            shards: senders.clone(),
            dead: dead.clone(),
            late: shared.late.clone(),
            max_body,
        });
        let mailboxes = Mailbox::new(parts.store.clone(), parts.ops.clone(), parts.clock.clone());
        let mut tasks = vec![
            tokio::spawn(dead::run(
                parts.bus.clone(),
                parts.store.clone(),
                dead,
                stop.clone(),
            )),
            tokio::spawn(mailboxes.keep_bounds(
                parts.protocols.values().cloned().collect(),
                control.dead.clone(),
                stop.clone(),
            )),
            tokio::spawn(sweep(parts, senders, stop.clone())),
        ];
        if units.parts.tenure.is_alone() {
            tasks.push(tokio::spawn(units.reader(None).run(stop.clone())));
        }
        Ok(Self {
            threads,
            tasks,
            units,
            control,
            stop,
            clients,
        })
    }

    /// Serves what leases are for, as they come and go.
    pub fn serve(&mut self, turns: mpsc::Receiver<Turn>) {
        let serving = self.units.clone().run(turns, self.stop.clone());
        self.tasks.push(tokio::spawn(serving));
    }

    /// The handle for operators' orders and for words heard of peers.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The HTTP clients of its threads, for new settings while they run.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// Stops pulling, lets attempts in flight end (bounded by the drain time), waits for it.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
        let _ = tokio::task::spawn_blocking(move || {
            for thread in self.threads {
                if thread.join().is_err() {
                    tracing::error!("a delivery thread ended abnormally");
                }
            }
        })
        .await;
    }
}

/// Health facts of earlier runs, by shard; unreadable ones are left out.
async fn known(
    parts: &Parts,
    shards: usize,
) -> Result<HashMap<usize, HashMap<LaneKey, Known>>, StoreError> {
    let mut known: HashMap<usize, HashMap<LaneKey, Known>> = HashMap::new();
    for row in parts.store.health().await? {
        let Ok(key) = control::stranded(&parts.protocols, &row.protocol, &row.peer) else {
            continue;
        };
        let Ok(facts) = serde_json::from_str::<Facts>(&row.facts) else {
            continue;
        };
        let mine = known.entry(intake::shard_of(&key, shards)).or_default();
        mine.insert(key, facts.into());
    }
    Ok(known)
}

/// Tells the shards which lanes have rows; says which rows have none.
async fn arm(
    protocols: &HashMap<ProtocolId, Arc<dyn Protocol>>,
    waiting: Vec<LaneSummary>,
    shards: &[mpsc::Sender<Work>],
) {
    let mut stranded: HashMap<String, u64> = HashMap::new();
    for summary in waiting {
        match control::stranded(protocols, &summary.protocol, &summary.peer) {
            Ok(key) => {
                if let Some(shard) = shards.get(intake::shard_of(&key, shards.len())) {
                    let _ = shard.send(Work::Tail(key, summary.first_id)).await;
                }
            }
            Err(why) => {
                tracing::warn!(
                    protocol = summary.protocol,
                    peer = summary.peer,
                    rows = summary.rows,
                    "messages wait and are not attempted: {why}"
                );
                *stranded.entry(summary.protocol).or_default() += summary.rows;
            }
        }
    }
    for (protocol, rows) in stranded {
        metrics::queue_stranded(&protocol, rows);
    }
}

/// Finds rows whose `Fed-Expires` is over; the owning shard decides.
async fn sweep(parts: Parts, shards: Vec<mpsc::Sender<Work>>, stop: CancellationToken) {
    let protocols: Vec<ProtocolId> = parts.protocols.keys().copied().collect();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EXPIRY_SWEEP) => {}
        }
        let now = parts.clock.now_ms();
        if !parts.clock.steady() {
            continue;
        }
        match parts.store.expired(now, &protocols, 500).await {
            Ok(rows) => {
                let mut by_shard: HashMap<usize, Vec<(LaneKey, i64)>> = HashMap::new();
                for row in rows {
                    match control::stranded(&parts.protocols, &row.protocol, &row.peer) {
                        Ok(key) if !is_ours(&parts.tenure, &key) => {}
                        Ok(key) => {
                            let mine = by_shard.entry(intake::shard_of(&key, shards.len()));
                            mine.or_default().push((key, row.id));
                        }
                        Err(_) => bury_stranded(&parts, row, now).await,
                    }
                }
                for (shard, rows) in by_shard {
                    if let Some(shard) = shards.get(shard) {
                        let _ = shard.send(Work::Expired(rows)).await;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "rows past their time could not be read"),
        }
    }
}

/// Whether this instance works that lane.
fn is_ours(tenure: &Tenure, (protocol, peer): &LaneKey) -> bool {
    !matches!(tenure.of_peer(protocol, peer), Hold::NotOurs)
}

/// A row past its time that no lane takes, because its protocol is off: nobody else decides on it.
async fn bury_stranded(parts: &Parts, row: QueueRow, now: UnixMs) {
    let (code, reason) = ("expired", "the time given in Fed-Expires is over");
    let settle = Settle {
        row: row.id,
        outcome: Outcome::Dead {
            at_ms: now,
            code: code.to_owned(),
            reason: reason.to_owned(),
        },
        attempts: row.attempts,
        attempt: None,
    };
    let written = match parts.store.settle(settle).await {
        Ok(commit) => commit.await,
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        tracing::warn!(%error, queue_id = row.id, "a row past its time could not be given up");
        return; // the next sweep finds it again
    }
    metrics::dead(&row.protocol, code);
    let body = serde_json::json!({"msg_id": row.msg_id, "out_seq": row.out_seq, "event_id": row.event_id,
        "peer": row.peer, "attempts": row.attempts, "code": code, "detail": reason, "queue_id": row.id});
    let body = trace::named(body, row.traceparent.as_deref());
    let protocol = parts.protocols.get(row.protocol.as_str());
    let protocol = protocol.map_or("unknown", |p| p.id());
    parts
        .ops
        .event("delivery", "dead", protocol, &row.peer, body);
}
