//! Units that come and go: what a lease gained, lost or handed over means for lanes and intake.
//!
//! Gained: the protocol reads its memory anew, row numbers go above all given before, the unit's lanes
//! are armed from the store, and a reader takes its messages. Lost: reader and lanes end at once.
//! Handed over: the reader ends, attempts in flight end, what they brought is written, and then
//! another may have it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::intake::{Reader, Serving, shard_of};
use super::peer_set::PeerSet;
use super::scopes::Scopes;
use super::shard::{Known, LaneKey, Work};
use super::{Facts, Parts, control};
use crate::cluster::Turn;
use crate::store::{Lease, Unit};

/// Pauses between tries to begin serving a unit.
const AGAIN: Duration = Duration::from_millis(500);

/// What serving a unit needs.
pub(super) struct Turns {
    pub parts: Parts,
    pub shards: Vec<mpsc::Sender<Work>>,
    pub dead: Arc<tokio::sync::Notify>,
    pub late: PeerSet,
    pub max_body: usize,
}

/// A unit being served.
struct Served {
    lease: Lease,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Turns {
    /// Follows the turns until `stop`.
    pub async fn run(self: Arc<Self>, mut turns: mpsc::Receiver<Turn>, stop: CancellationToken) {
        let this = self;
        let mut served: HashMap<Unit, Served> = HashMap::new();
        loop {
            let turn = tokio::select! {
                () = stop.cancelled() => break,
                turn = turns.recv() => turn,
            };
            match turn {
                None => break,
                Some(Turn::Gained(lease)) => {
                    let ours = stop.child_token();
                    let task = tokio::spawn(this.clone().serve(lease, ours.clone()));
                    let stop = ours;
                    let before = served.insert(lease.unit, Served { lease, stop, task });
                    if let Some(before) = before {
                        before.stop.cancel();
                    }
                }
                Some(Turn::Lost(lease)) => {
                    if served.get(&lease.unit).is_some_and(|s| s.lease == lease)
                        && let Some(gone) = served.remove(&lease.unit)
                    {
                        gone.stop.cancel();
                    }
                    this.tell(|| Work::Lost(lease)).await;
                    this.parts.health.clear(&part(lease));
                }
                Some(Turn::HandOver(lease, done)) => {
                    let reader = served.get(&lease.unit).is_some_and(|s| s.lease == lease);
                    let reader = reader.then(|| served.remove(&lease.unit)).flatten();
                    tokio::spawn(this.clone().hand_over(lease, reader, done));
                }
            }
        }
        for (_, unit) in served {
            unit.stop.cancel();
            let _ = unit.task.await; // it ends by its token
        }
    }

    /// Serves a unit until `stop`.
    async fn serve(self: Arc<Self>, lease: Lease, stop: CancellationToken) {
        let beginning = async {
            while let Err(why) = self.begin(lease).await {
                tracing::warn!(unit = %lease.unit, why, "a unit cannot be served yet");
                self.parts.health.set(&part(lease), &why);
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = beginning => {}
        }
        self.parts.health.clear(&part(lease));
        self.parts.tenure.is_ready(lease);
        let serving = Serving {
            lease,
            tenure: self.parts.tenure.clone(),
        };
        self.reader(Some(serving)).run(stop).await;
    }

    /// Makes the unit ours in memory as it is on disk.
    async fn begin(&self, lease: Lease) -> Result<(), String> {
        let store = &self.parts.store;
        store.fresh_rows().await.map_err(|e| e.to_string())?;
        let Some(protocol) = self.parts.protocols.get(lease.unit.protocol) else {
            return Ok(()); // messages of no protocol have no lanes
        };
        protocol.refresh().await.map_err(|e| e.to_string())?;
        let mut known: Vec<Vec<(LaneKey, Known)>> = self.shards.iter().map(|_| vec![]).collect();
        for row in store.health().await.map_err(|e| e.to_string())? {
            if let Some((key, shard)) = self.place(lease.unit, &row.protocol, &row.peer)
                && let Ok(facts) = serde_json::from_str::<Facts>(&row.facts)
                && let Some(of_shard) = known.get_mut(shard)
            {
                of_shard.push((key, facts.into()));
            }
        }
        let waiting = store.lanes_of(protocol.id()).await;
        let waiting = waiting.map_err(|e| e.to_string())?;
        for (shard, known) in self.shards.iter().zip(known) {
            let _ = shard.send(Work::Gained(lease, known)).await; // or it has stopped
        }
        for lane in waiting {
            if let Some((key, shard)) = self.place(lease.unit, &lane.protocol, &lane.peer)
                && let Some(shard) = self.shards.get(shard)
            {
                let _ = shard.send(Work::Tail(key, lane.first_id)).await; // or it has stopped
            }
        }
        Ok(())
    }

    /// The lane of these names and its shard, if it is in this unit.
    fn place(&self, unit: Unit, protocol: &str, peer: &str) -> Option<(LaneKey, usize)> {
        let key = control::stranded(&self.parts.protocols, protocol, peer).ok()?;
        if self.parts.tenure.units()?.of_peer(key.0, &key.1) != unit {
            return None;
        }
        let shard = shard_of(&key, self.shards.len());
        Some((key, shard))
    }

    /// Finishes what is in hand of a unit, then drops `done`.
    async fn hand_over(
        self: Arc<Self>,
        lease: Lease,
        reader: Option<Served>,
        done: oneshot::Sender<()>,
    ) {
        if let Some(reader) = reader {
            reader.stop.cancel();
            let _ = reader.task.await; // it ends by its token
        }
        // What the reader handed in is written, and then what the attempts in flight bring.
        let _ = self.parts.store.written().await; // what is not written now is another's to make
        let mut waits = Vec::new();
        for shard in &self.shards {
            let (idle, waiting) = oneshot::channel();
            if shard.send(Work::Drain(lease, idle)).await.is_ok() {
                waits.push(waiting);
            }
        }
        for idle in waits {
            let _ = idle.await; // dropped: nothing is in hand
        }
        if let Some(protocol) = self.parts.protocols.get(lease.unit.protocol) {
            protocol.flush().await;
        }
        let _ = self.parts.store.written().await;
        self.parts.health.clear(&part(lease));
        drop(done);
    }

    async fn tell(&self, work: impl Fn() -> Work) {
        for shard in &self.shards {
            let _ = shard.send(work()).await; // or it has stopped
        }
    }

    /// A reader of everything, or of a unit.
    pub fn reader(&self, serving: Option<Serving>) -> Reader {
        let parts = &self.parts;
        Reader {
            bus: parts.bus.clone(),
            store: parts.store.clone(),
            peers: parts.peers.clone(),
            ops: parts.ops.clone(),
            clock: parts.clock.clone(),
            health: parts.health.clone(),
            protocols: parts.protocols.clone(),
            shards: self.shards.clone(),
            dead: self.dead.clone(),
            max_body: self.max_body,
            scopes: Scopes::default(),
            late: self.late.clone(),
            serving,
        }
    }
}

fn part(lease: Lease) -> String {
    format!("intake of {}", lease.unit)
}
