//! The one publisher of `fed.in`: in ledger order, a window of PubAcks in flight.
//!
//! It is in one of two moods. *Direct*: what the ledger hands over is published at once. *Repair*
//! (at start, after a failure, or when asked): nothing is taken from the ledger's queue; the rows that
//! JetStream has not acknowledged are read from the store and published in order, until none is left.
//! A row that failed stays in the store either way, so nothing is lost by answering 503.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::bus::{BusError, BusErrorKind, BusMessage};
use crate::clock::{Clock, UnixMs};
use crate::store::{InboundRow, Store, StoreError};

use super::flights::Reply;
use super::message::{msg_id_of, received_of};
use super::outlet::Outlet;
use super::state::State;
use super::{Entry, STREAM};

/// A publish or its PubAck that takes longer has failed.
const PUBLISH_LIMIT: Duration = Duration::from_secs(10);
/// Acknowledged rows are marked together: after this long at the latest …
const MARK_AFTER: Duration = Duration::from_millis(50);
/// … or as soon as there are this many.
const MARK_AT: usize = 512;
/// PubAcks awaited at once at most (the bus has its own, usually smaller window).
const MAX_IN_FLIGHT: usize = 4096;
/// Rows older than this may be past the broker's window of deduplication (two minutes): the stream
/// is asked whether it has them before they are published again.
const SURELY_IN_WINDOW_MS: UnixMs = 90_000;
/// How far the broker's clock may be from ours.
const CLOCK_MARGIN_MS: UnixMs = 300_000;
/// Rows read at a time in repair.
const REPAIR_ROWS: usize = 256;
/// Pauses between attempts to repair.
const REPAIR_PAUSE: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// A committed event to publish.
pub struct ToPublish {
    pub id: i64,
    pub message: BusMessage,
    pub reply: Reply,
}

/// Ledger numbers that JetStream acknowledged and the store does not know of yet.
#[derive(Clone, Default)]
pub struct Acknowledged(Arc<Mutex<HashSet<i64>>>);

impl Acknowledged {
    /// Whether this one is among them.
    pub fn has(&self, id: i64) -> bool {
        self.lock().contains(&id)
    }

    fn add(&self, id: i64) {
        self.lock().insert(id);
    }

    fn forget(&self, ids: &[i64]) {
        let mut set = self.lock();
        for id in ids {
            set.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type InFlight = BoxFuture<'static, (i64, Option<Reply>, Result<(), BusError>)>;
type Ack = BoxFuture<'static, Result<(), BusError>>;
type HandOver = BoxFuture<'static, Result<Ack, BusError>>;
type Marking = BoxFuture<'static, (Vec<i64>, Result<(), StoreError>)>;

/// Why a repair stopped before all was published.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The publisher's state between events.
pub struct Publisher {
    store: Store,
    outlet: Arc<dyn Outlet>,
    state: State,
    clock: Clock,
    acknowledged: Acknowledged,
    queue: mpsc::Receiver<ToPublish>,
    in_flight: FuturesUnordered<InFlight>,
    marks: Vec<i64>,
    mark_at: Option<Instant>,
    marking: FuturesUnordered<Marking>,
    /// Rows up to this number are published or were passed over.
    repaired_through: i64,
    /// Rows that this broker can never take, complained about once.
    too_large: HashSet<i64>,
}

impl Publisher {
    /// A publisher over these; nothing runs yet.
    pub fn new(
        store: Store,
        outlet: Arc<dyn Outlet>,
        state: State,
        clock: Clock,
        acknowledged: Acknowledged,
        queue: mpsc::Receiver<ToPublish>,
    ) -> Self {
        Self {
            store,
            outlet,
            state,
            clock,
            acknowledged,
            queue,
            in_flight: FuturesUnordered::new(),
            marks: Vec::new(),
            mark_at: None,
            marking: FuturesUnordered::new(),
            repaired_through: 0,
            too_large: HashSet::new(),
        }
    }

    /// The task: ends when the ledger's end of the queue is gone and everything is answered and marked.
    pub async fn run(mut self) {
        loop {
            let work = self.direct().await;
            match work {
                Mood::Direct => {}
                Mood::Repair => {
                    self.state.set_down(true);
                    self.settle_in_flight().await;
                    self.repair_until_done().await;
                    self.state.set_down(false);
                }
                Mood::Finished => {
                    self.settle_in_flight().await;
                    self.mark_now().await;
                    while let Some(marked) = self.marking.next().await {
                        self.marked(marked);
                    }
                    return;
                }
            }
        }
    }

    /// One event of the direct mood.
    async fn direct(&mut self) -> Mood {
        let mark_at = self.mark_at;
        tokio::select! {
            biased;
            Some(done) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                if self.landed(done) { Mood::Direct } else { Mood::Repair }
            }
            Some(marked) = self.marking.next(), if !self.marking.is_empty() => {
                self.marked(marked);
                Mood::Direct
            }
            () = sleep_until(mark_at), if mark_at.is_some() => {
                self.mark_now().await;
                Mood::Direct
            }
            item = self.queue.recv(), if self.in_flight.len() < MAX_IN_FLIGHT => match item {
                None => Mood::Finished,
                Some(item) => if self.publish(item).await { Mood::Direct } else { Mood::Repair },
            },
            () = self.state.repair_asked() => Mood::Repair,
        }
    }

    /// Publishes one committed event; false: the bus does not take it.
    async fn publish(&mut self, item: ToPublish) -> bool {
        let ToPublish { id, message, reply } = item;
        if id <= self.repaired_through && !self.too_large.contains(&id) {
            reply.send(Entry::New);
            return true;
        }
        // PubAcks are awaited meanwhile: they are what makes room in the bus's window.
        let mut handing = hand_over(Arc::clone(&self.outlet), message);
        let mut well = true;
        let handed = loop {
            tokio::select! {
                handed = &mut handing => break handed,
                Some(done) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    well &= self.landed(done);
                }
            }
        };
        match handed {
            Ok(ack) => {
                self.in_flight
                    .push(Box::pin(async move { (id, Some(reply), ack.await) }));
                well
            }
            Err(error) => {
                tracing::warn!(%error, "fed.in takes nothing now; events wait in the ledger");
                reply.send(Entry::Unavailable { retry_after_s: 5 });
                false
            }
        }
    }

    /// A PubAck, or its absence; false: a repair is needed.
    fn landed(&mut self, (id, reply, result): (i64, Option<Reply>, Result<(), BusError>)) -> bool {
        match result {
            Ok(()) => {
                self.acknowledged.add(id);
                self.marks.push(id);
                let when = if self.marks.len() >= MARK_AT {
                    Instant::now()
                } else {
                    self.mark_at.unwrap_or_else(|| Instant::now() + MARK_AFTER)
                };
                self.mark_at = Some(when);
                if let Some(reply) = reply {
                    reply.send(Entry::New);
                }
                true
            }
            Err(error) => {
                tracing::warn!(%error, ledger = id, "no PubAck for an inbound event; it will be published again");
                if let Some(reply) = reply {
                    reply.send(Entry::Unavailable { retry_after_s: 5 });
                }
                false
            }
        }
    }

    /// Waits for every PubAck that is still out (each has its time limit).
    async fn settle_in_flight(&mut self) {
        while let Some(done) = self.in_flight.next().await {
            self.landed(done);
        }
    }

    /// Hands the acknowledged rows to the store's writer.
    async fn mark_now(&mut self) {
        self.mark_at = None;
        if self.marks.is_empty() {
            return;
        }
        let ids = std::mem::take(&mut self.marks);
        match self.store.published(ids.clone()).await {
            Ok(commit) => self
                .marking
                .push(Box::pin(async move { (ids, commit.await) })),
            Err(error) => self.marked((ids, Err(error))),
        }
    }

    fn marked(&mut self, (ids, result): (Vec<i64>, Result<(), StoreError>)) {
        match result {
            Ok(()) => self.acknowledged.forget(&ids),
            Err(error) => {
                // They stay in `acknowledged`, so no repair publishes them again in this life.
                tracing::warn!(%error, rows = ids.len(), "acknowledged events are not marked yet");
                self.marks.extend(ids);
                self.mark_at = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    }

    /// Repairs, pausing between failures, for as long as it takes.
    async fn repair_until_done(&mut self) {
        let mut failures = 0usize;
        loop {
            match self.repair().await {
                Ok(rows) => {
                    if rows > 0 || failures > 0 {
                        tracing::info!(
                            rows,
                            "fed.in is open again; the ledger's backlog is published"
                        );
                    }
                    return;
                }
                Err(error) => {
                    let step = failures.min(REPAIR_PAUSE.len() - 1);
                    failures = failures.saturating_add(1);
                    tracing::warn!(%error, failures, "inbound events cannot be published yet");
                    self.turn_away();
                    tokio::time::sleep(REPAIR_PAUSE[step]).await;
                    if self.queue.is_closed() && self.queue.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// Publishes every row nobody acknowledged, in ledger order; answers how many.
    pub async fn repair(&mut self) -> Result<usize, RepairError> {
        if !self.outlet.connected() {
            return Err(late().into());
        }
        let mut count = 0;
        let mut after = 0;
        let mut taken = None;
        loop {
            self.turn_away();
            let rows = self.store.unpublished(after, REPAIR_ROWS).await?;
            let Some(last) = rows.last().map(|row| row.id) else {
                break;
            };
            let rows = self.lacking(rows, &mut taken).await?;
            count += self.republish(rows).await?;
            after = last;
            self.repaired_through = self.repaired_through.max(last);
        }
        self.mark_now().await;
        Ok(count)
    }

    /// The rows that the stream lacks. One whose PubAck was lost with the connection, or whose mark
    /// with the process, may be there; while it is young the broker itself knows its id again.
    /// `taken` holds what the stream was found to have, once it had to be asked.
    async fn lacking(
        &mut self,
        mut rows: Vec<InboundRow>,
        taken: &mut Option<HashSet<String>>,
    ) -> Result<Vec<InboundRow>, RepairError> {
        let oldest = rows
            .iter()
            .filter_map(|row| received_of(&row.headers))
            .min();
        let young = self.clock.now_ms().saturating_sub(SURELY_IN_WINDOW_MS);
        let Some(oldest) = oldest.filter(|at| *at < young) else {
            return Ok(rows);
        };
        // Rows come in the order received, so the first question reaches back the farthest.
        if taken.is_none() {
            let since = oldest.saturating_sub(CLOCK_MARGIN_MS);
            *taken = Some(self.outlet.taken_since(since).await?);
        }
        let mut there = Vec::new();
        if let Some(taken) = taken {
            rows.retain(|row| {
                let has = msg_id_of(&row.headers).is_some_and(|id| taken.contains(id));
                if has {
                    there.push(row.id);
                }
                !has
            });
        }
        for id in there {
            self.landed((id, None, Ok(())));
        }
        Ok(rows)
    }

    async fn republish(&mut self, rows: Vec<InboundRow>) -> Result<usize, RepairError> {
        let limit = self.outlet.max_body();
        let mut acks = FuturesOrdered::new();
        let mut landed: Vec<(i64, Result<(), BusError>)> = Vec::new();
        let mut failed = None;
        for row in rows {
            if self.acknowledged.has(row.id) {
                continue;
            }
            if row.payload.len() > limit {
                if self.too_large.insert(row.id) {
                    tracing::error!(
                        ledger = row.id,
                        bytes = row.payload.len(),
                        limit,
                        "an accepted event is larger than the broker's max_payload allows; raise it \
                         and restart, until then this event waits in the ledger"
                    );
                }
                continue;
            }
            let id = row.id;
            let mut handing = hand_over(Arc::clone(&self.outlet), message(row));
            let handed = loop {
                tokio::select! {
                    handed = &mut handing => break handed,
                    Some(done) = acks.next(), if !acks.is_empty() => landed.push(done),
                }
            };
            match handed {
                Ok(ack) => acks.push_back(async move { (id, ack.await) }),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        while let Some(done) = acks.next().await {
            landed.push(done);
        }
        let mut count = 0;
        for (id, result) in landed {
            match result {
                Ok(()) => {
                    count += 1;
                    self.landed((id, None, Ok(())));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(count), |error| Err(error.into()))
    }

    /// Answers what the ledger handed over meanwhile: the rows are in the store and are published
    /// by the repair, whose next look sees them.
    fn turn_away(&mut self) {
        while let Ok(item) = self.queue.try_recv() {
            item.reply.send(Entry::Unavailable { retry_after_s: 5 });
        }
    }
}

/// What to do next.
enum Mood {
    Direct,
    Repair,
    Finished,
}

/// Hands a message to the bus; what it resolves to is its PubAck. Both have a time limit.
fn hand_over(outlet: Arc<dyn Outlet>, message: BusMessage) -> HandOver {
    Box::pin(async move {
        let ack = timeout(PUBLISH_LIMIT, outlet.publish(message))
            .await
            .unwrap_or_else(|_| Err(late()))?;
        let ack: Ack = Box::pin(async move {
            timeout(PUBLISH_LIMIT, ack)
                .await
                .unwrap_or_else(|_| Err(late()))
                .map(|_| ())
        });
        Ok(ack)
    })
}

fn message(row: InboundRow) -> BusMessage {
    BusMessage {
        subject: row.subject,
        headers: row.headers,
        payload: row.payload,
        stream: STREAM,
    }
}

fn late() -> BusError {
    BusError {
        kind: BusErrorKind::Unavailable,
        detail: "not connected, or no PubAck in time".to_owned(),
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
