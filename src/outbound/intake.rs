//! From `FED_OUT` to rows and lanes.
//!
//! A message is acknowledged only when its rows are durable. Its attempt may already run: the shard
//! gets the rows as soon as they are *queued* at the writer, in the same order. A redelivered message
//! meets its row (or, not committed yet, its id in `unacked`) and makes nothing new.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::lane::Item;
use super::peer_set::PeerSet;
use super::rows::Made;
use super::scopes::{Batch, Scopes};
use super::shard::{LaneKey, Work};
use crate::bus::{AckHandle, Bus, BusError, BusErrorKind, Intake, OutMessage, Share};
use crate::clock::Clock;
use crate::cluster::Tenure;
use crate::cluster::units::subjects;
use crate::faults;
use crate::ops::Ops;
use crate::ops::health::Health;
use crate::peers::Peers;
use crate::protocol::{PeerName, Protocol, ProtocolId};
use crate::store::{Commit, Late, Lease, NewRow, RowState, Store, StoreError, StoreErrorKind};

/// Messages taken at once.
const BATCH: usize = 256;

/// Rows handed to the store in one piece, about: small enough that most have their outcomes soon, and
/// are written with them.
const PART: usize = 32;

/// Names ([`unique`]) of messages on their way to the store.
type Unacked = Mutex<HashSet<Arc<str>>>;

/// What the intake needs.
pub struct Reader {
    pub bus: Bus,
    pub store: Store,
    pub peers: Peers,
    pub ops: Ops,
    pub clock: Clock,
    pub health: Health,
    pub protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
    pub shards: Vec<mpsc::Sender<Work>>,
    pub dead: Arc<Notify>,
    /// Largest body that may travel, bytes.
    pub max_body: usize,
    pub(super) scopes: Scopes,
    /// Peers whose outcomes are long in coming.
    pub late: PeerSet,
    /// Whose messages are read here, where several instances share them.
    pub serving: Option<Serving>,
}

/// A unit that this reader is for.
#[derive(Clone)]
pub struct Serving {
    pub lease: Lease,
    pub tenure: Tenure,
}

/// Which shard owns a lane.
pub fn shard_of(key: &LaneKey, shards: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % shards.max(1) as u64).unwrap_or(0)
}

/// Messages that become durable together.
#[derive(Default)]
struct Part {
    ids: Vec<Arc<str>>,
    acks: Vec<AckHandle>,
    made: Made,
}

impl Reader {
    /// Reads until `stop`; a lost consumer or stream is made again under a new epoch.
    pub async fn run(self, stop: CancellationToken) {
        let unacked: Arc<Unacked> = Arc::default();
        let mut pause = Duration::from_millis(100);
        while !stop.is_cancelled() {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.session(&unacked, &mut pause) => ended,
            };
            let Err(error) = ended else { continue };
            self.health.set(&self.part(), &error.to_string());
            tracing::warn!(%error, "outbound intake stopped; it is opened anew");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// One consumer's life.
    async fn session(&self, unacked: &Arc<Unacked>, pause: &mut Duration) -> Result<(), BusError> {
        self.bus.apply_stream("FED_OUT").await?;
        let mut intake = self.open().await?;
        self.health.clear(&self.part());
        *pause = Duration::from_millis(100);
        let every = self.health.look_every();
        loop {
            self.health.progress();
            let idle = tokio::time::timeout(every, intake.next_batch(BATCH)).await;
            let Ok(batch) = idle else {
                // Nothing came: because there is nothing, or because the consumer is stuck.
                intake.heed(&self.health).await?;
                continue;
            };
            self.health.moving();
            faults::crash_point("out_pulled");
            let batch = self.send_on(batch?).await?;
            self.take(batch, unacked).await.map_err(|e| BusError {
                kind: BusErrorKind::Unavailable,
                detail: format!("the {e}"),
            })?;
        }
    }

    async fn open(&self) -> Result<Intake, BusError> {
        let epoch = if faults::on("stale_consumer") {
            Ok(1)
        } else {
            self.store.next_epoch().await
        };
        let epoch = epoch.map_err(|e| BusError {
            kind: BusErrorKind::Unavailable,
            detail: e.to_string(),
        })?;
        let (enabled, held_back): (Vec<_>, Vec<_>) =
            self.protocols.values().partition(|p| p.enabled());
        let names =
            |list: Vec<&Arc<dyn Protocol>>| list.into_iter().map(|p| p.id()).collect::<Vec<_>>();
        let (enabled, held_back) = (names(enabled), names(held_back));
        let unit = self.serving.as_ref().map(|s| s.lease.unit.to_string());
        let share = match (&self.serving, &unit) {
            (Some(serving), Some(name)) => Share::Unit {
                name,
                lease: serving.lease.epoch,
                subjects: subjects(self.bus.prefix(), serving.lease.unit),
            },
            _ => Share::All {
                enabled: &enabled,
                held_back: &held_back,
            },
        };
        self.bus.open_share(self.store.id(), epoch, &share).await
    }

    /// The lease to write under.
    pub(super) fn lease(&self) -> Option<Lease> {
        self.serving.as_ref().map(|serving| serving.lease)
    }

    /// Its name in the bridge's health.
    fn part(&self) -> String {
        match self.lease() {
            Some(lease) => format!("intake of {}", lease.unit),
            None => "intake".to_owned(),
        }
    }

    /// Sees to it that every message of a batch can have a number for each of its targets.
    async fn numbers(&self, batch: &[OutMessage]) -> Result<(), StoreError> {
        if self.serving.is_none() {
            return Ok(());
        }
        let most = self.protocols.keys().map(|p| self.peers.accepted(p).len());
        let most = most.max().unwrap_or(0).saturating_add(1);
        self.store
            .ensure_rows(batch.len().saturating_mul(most))
            .await
    }

    /// Makes a batch durable and hands it to the lanes; acknowledges in the background.
    async fn take(&self, batch: Vec<OutMessage>, unacked: &Arc<Unacked>) -> Result<(), StoreError> {
        // Marked first and looked up second: a copy that another consumer brought is either still
        // marked, or its row is on disk by the time of the look-up.
        let names: Vec<Arc<str>> = batch.iter().map(unique).collect();
        let mine = mark(unacked, &names);
        let looked_up = async {
            self.numbers(&batch).await?;
            let known = self.known(&batch).await?;
            let sealing = self.sealing(&batch, &names, &known).await?;
            Ok((known, sealing))
        };
        let (known, mut sealing) = match looked_up.await {
            Ok(found) => found,
            Err(error) => {
                forget(unacked, mine.iter());
                return Err(error);
            }
        };
        let mut met = HashMap::new();
        let mut parts = vec![Part::default()];
        for (message, id) in batch.into_iter().zip(names) {
            if !mine.contains(&id) {
                continue; // its first copy is on its way to the store; redelivery will find the row
            }
            if parts.last().is_none_or(|p| p.made.rows.len() >= PART) {
                parts.push(Part::default());
            }
            // Twice in this batch: both are acknowledged by the same commit.
            let newest = parts.len() - 1;
            let first = !met.contains_key(&id);
            let at = *met.entry(id.clone()).or_insert(newest);
            let Some(part) = parts.get_mut(at) else {
                continue; // the number of one that is there
            };
            if first && !known.contains(&*id) {
                self.make(&id, &message, &mut sealing, &mut part.made);
            }
            if first {
                part.ids.push(id);
            }
            part.acks.push(message.ack);
        }
        let mut parts = parts.into_iter();
        while let Some(part) = parts.next() {
            if let Err(error) = self.take_part(part, unacked).await {
                // Unacknowledged: the next consumer brings them again.
                parts.for_each(|part| forget(unacked, part.ids.iter()));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes a part of a batch durable and hands it to the lanes; acknowledges in the background.
    async fn take_part(&self, part: Part, unacked: &Arc<Unacked>) -> Result<(), StoreError> {
        let Part {
            ids,
            mut acks,
            made,
        } = part;
        if faults::on("ack_before_commit") {
            for ack in acks.drain(..) {
                let _ = ack.ack().await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let dead = made.rows.iter().any(|r| r.state == RowState::Failed);
        let kept: Arc<[NewRow]> = made.rows.into();
        let commit = match enqueue(&self.store, self.lease(), &kept, made.late).await {
            Ok(commit) => commit,
            Err(error) => {
                forget(unacked, ids.iter());
                return Err(error);
            }
        };
        faults::crash_point("out_queued");
        self.hand_over(made.lanes).await;
        let (store, unacked, notify) = (
            self.store.clone(),
            unacked.clone(),
            dead.then(|| self.dead.clone()),
        );
        let (shards, lease) = (self.shards.clone(), self.lease());
        tokio::spawn(async move {
            let first_try = commit.await;
            let late = first_try.is_err();
            let lanes = if late {
                lanes_of(&kept)
            } else {
                HashMap::new()
            };
            if durable(&store, lease, first_try, kept).await {
                faults::crash_point("out_committed");
                acknowledge(acks).await;
                faults::crash_point("out_acked");
                // The lanes' readings may have passed these rows before they were on disk.
                for (key, first) in lanes {
                    if let Some(shard) = shards.get(shard_of(&key, shards.len())) {
                        let _ = shard.send(Work::Tail(key, first)).await;
                    }
                }
            }
            forget(&unacked, ids.iter());
            if let Some(notify) = notify {
                notify.notify_one();
            }
        });
        Ok(())
    }

    /// Names ([`unique`]) of the messages of this batch that have a row.
    async fn known(&self, batch: &[OutMessage]) -> Result<HashSet<String>, StoreError> {
        let mut ids: HashMap<ProtocolId, Vec<String>> = HashMap::new();
        // Copies of one message to several peers have one id: each is known by its own row.
        let mut copies: HashMap<ProtocolId, Vec<_>> = HashMap::new();
        for message in batch {
            let protocol = self.protocols.get(message.protocol.as_str());
            let protocol = protocol.map_or("unknown", |p| p.id());
            let (Ok(event) | Err((_, event))) = &message.event;
            if !message.forwarded {
                ids.entry(protocol).or_default().push(event.msg_id.clone());
            } else if let Ok(peer) = PeerName::parse(&event.peer) {
                let copy = (unique(message), (event.msg_id.clone(), peer));
                copies.entry(protocol).or_default().push(copy);
            }
        }
        let mut known = HashSet::new();
        for (protocol, ids) in ids {
            for id in self.store.known_messages(protocol, ids).await? {
                known.insert(format!("{protocol}\n{id}"));
            }
        }
        for (protocol, copies) in copies {
            let (names, copies): (Vec<_>, Vec<_>) = copies.into_iter().unzip();
            let found = self.store.known_copies(protocol, copies.clone()).await?;
            let named = names.into_iter().zip(&copies);
            let named = named.filter(|(_, copy)| found.contains(copy));
            known.extend(named.map(|(name, _)| name.to_string()));
        }
        Ok(known)
    }

    /// What the new messages of a batch need to be sealed.
    async fn sealing(
        &self,
        batch: &[OutMessage],
        names: &[Arc<str>],
        known: &HashSet<String>,
    ) -> Result<Batch, StoreError> {
        let mut wanted = Vec::new();
        for (message, id) in batch.iter().zip(names) {
            let protocol = self.protocols.get(message.protocol.as_str());
            if let (Some(protocol), Ok(event)) = (protocol, &message.event)
                && let Some(scope) = protocol.scope(event)
                && !known.contains(&**id)
            {
                wanted.push((id.to_string(), protocol.id(), scope));
            }
        }
        if wanted.is_empty() {
            return Ok(Batch::default());
        }
        self.scopes.load(&self.store, wanted).await
    }

    async fn hand_over(&self, lanes: Vec<(LaneKey, Item)>) {
        let mut parts: Vec<Vec<(LaneKey, Item)>> = self.shards.iter().map(|_| Vec::new()).collect();
        for (key, item) in lanes {
            if let Some(part) = parts.get_mut(shard_of(&key, self.shards.len())) {
                part.push((key, item));
            }
        }
        for (part, shard) in parts.into_iter().zip(&self.shards) {
            if !part.is_empty()
                && shard
                    .send(Work::Arrivals(self.lease(), part))
                    .await
                    .is_err()
            {
                tracing::debug!("a shard has stopped; its rows are in the store");
            }
        }
    }
}

/// Protocol and message id: what a row is unique by, for any number of peers; of a copy for one of
/// them, that one too.
fn unique(message: &OutMessage) -> Arc<str> {
    let (Ok(event) | Err((_, event))) = &message.event;
    match message.forwarded {
        true => format!("{}\n{}\n{}", message.protocol, event.msg_id, event.peer),
        false => format!("{}\n{}", message.protocol, event.msg_id),
    }
    .into()
}

/// Marks messages as on their way; answers those that were not so already.
fn mark(unacked: &Unacked, names: &[Arc<str>]) -> HashSet<Arc<str>> {
    let mut set = unacked.lock().unwrap_or_else(PoisonError::into_inner);
    let new = names.iter().filter(|name| set.insert(Arc::clone(name)));
    new.cloned().collect()
}

fn forget<'a>(unacked: &Unacked, ids: impl Iterator<Item = &'a Arc<str>>) {
    let mut set = unacked.lock().unwrap_or_else(PoisonError::into_inner);
    for id in ids {
        set.remove(id);
    }
}

async fn enqueue(
    store: &Store,
    lease: Option<Lease>,
    rows: &Arc<[NewRow]>,
    late: Late,
) -> Result<Commit, StoreError> {
    if rows.is_empty() {
        return Ok(Box::pin(std::future::ready(Ok(()))));
    }
    store.enqueue_under(lease, Arc::clone(rows), late).await
}

/// Waits for the commit, handing the rows over again while the store cannot take them.
/// Rows under a lease that was lost are another instance's to make, from the same messages.
async fn durable(
    store: &Store,
    lease: Option<Lease>,
    mut outcome: Result<(), StoreError>,
    rows: Arc<[NewRow]>,
) -> bool {
    while let Err(error) = outcome {
        if matches!(error.kind, StoreErrorKind::Closed | StoreErrorKind::Fenced) {
            return false;
        }
        tracing::warn!(%error, rows = rows.len(), "messages stay unacknowledged until the store can take them");
        tokio::time::sleep(Duration::from_secs(1)).await;
        outcome = match enqueue(store, lease, &rows, Late::new()).await {
            Ok(commit) => commit.await,
            Err(e) => Err(e),
        };
    }
    true
}

/// The lanes of these rows, each with its lowest number.
fn lanes_of(rows: &[NewRow]) -> HashMap<LaneKey, i64> {
    let mut lanes = HashMap::new();
    for row in rows.iter().filter(|r| r.state == RowState::Pending) {
        if let Ok(peer) = PeerName::parse(&row.peer) {
            let first = lanes.entry((row.protocol, peer)).or_insert(row.id);
            *first = row.id.min(*first);
        }
    }
    lanes
}

async fn acknowledge(acks: Vec<AckHandle>) {
    for ack in acks {
        if let Err(error) = ack.ack().await {
            tracing::debug!(%error, "an acknowledgement was lost; the message will meet its row");
            return;
        }
    }
}
