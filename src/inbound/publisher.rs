//! The one publisher of `fed.in` and `fed.held`: in ledger order, a window of PubAcks in flight.
//!
//! It is in one of two moods. *Direct*: what the ledger hands over is published at once. *Repair*
//! (at start, after a failure or a reconnect, or when asked): nothing is taken from the ledger's
//! queue; ledger and streams are compared and what a stream lacks is published in order (see
//! `repair`). A row that failed stays in the store either way, so nothing is lost by answering 503.
//!
//! A PubAck whose sequence is not above every earlier one tells of a stream that was rolled back or
//! made again behind our back: nothing is noted from there on, and repair follows.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::bus::{BusError, BusErrorKind, BusMessage};
use crate::clock::Clock;
use crate::ops::Ops;
use crate::store::{Acked, Store, StoreError, Tip, Way};

use super::Entry;
use super::flights::Reply;
use super::message::msg_id_of;
use super::outlet::Outlet;
use super::state::State;

/// A publish or its PubAck that takes longer has failed.
const PUBLISH_LIMIT: Duration = Duration::from_secs(10);
/// Acknowledged rows are marked together: after this long at the latest …
const MARK_AFTER: Duration = Duration::from_millis(50);
/// … or as soon as there are this many.
const MARK_AT: usize = 512;
/// A checkpoint is written with a mark when the last one is this old …
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);
/// … or this many events ago.
const CHECKPOINT_AT: usize = 1_000;
/// PubAcks awaited at once at most (the bus has its own, usually smaller window).
const MAX_IN_FLIGHT: usize = 4096;
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
    pub way: Way,
    pub message: BusMessage,
    /// `None`: nobody waits for it (it was released).
    pub reply: Option<Reply>,
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

/// An event on its way to its PubAck.
struct Flight {
    id: i64,
    way: Way,
    msg_id: String,
    /// The stream had acknowledged this sequence before the event was handed over.
    floor: u64,
    reply: Option<Reply>,
}

type Landing = BoxFuture<'static, (Flight, Result<(u64, bool), BusError>)>;
pub(super) type Ack = BoxFuture<'static, Result<(u64, bool), BusError>>;
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

/// What is known of one stream.
#[derive(Default)]
pub(super) struct Known {
    /// The stream that PubAcks come from; `None` before the first repair.
    pub created_ns: Option<i64>,
    /// The newest message acknowledged.
    pub best: Option<Tip>,
    /// The store does not have `best` yet.
    fresh: bool,
    /// It has no checkpoint of it yet.
    dirty: bool,
}

/// The publisher's state between events.
pub struct Publisher {
    pub(super) store: Store,
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) ops: Ops,
    pub(super) state: State,
    pub(super) clock: Clock,
    pub(super) acknowledged: Acknowledged,
    queue: mpsc::Receiver<ToPublish>,
    in_flight: FuturesUnordered<Landing>,
    marks: Vec<i64>,
    mark_at: Option<Instant>,
    marking: FuturesUnordered<Marking>,
    last_checkpoint: Option<Instant>,
    since_checkpoint: usize,
    ways: [Known; 2],
    /// PubAcks went backwards: nothing they say of the stream is noted until it is repaired.
    pub(super) tripped: bool,
    /// Events given to a stream again by repairs that did not end well, by way.
    pub(super) given_again: HashMap<Way, usize>,
    /// Rows that the last repair dealt with while the ledger may still hand them over.
    pub(super) repaired: HashSet<i64>,
    /// Rows that this broker can never take, complained about once.
    pub(super) too_large: HashSet<i64>,
}

impl Publisher {
    /// A publisher over these; nothing runs yet.
    pub fn new(
        store: Store,
        outlet: Arc<dyn Outlet>,
        ops: Ops,
        state: State,
        clock: Clock,
        acknowledged: Acknowledged,
        queue: mpsc::Receiver<ToPublish>,
    ) -> Self {
        Self {
            store,
            outlet,
            ops,
            state,
            clock,
            acknowledged,
            queue,
            in_flight: FuturesUnordered::new(),
            marks: Vec::new(),
            mark_at: None,
            marking: FuturesUnordered::new(),
            last_checkpoint: None,
            since_checkpoint: 0,
            ways: [Known::default(), Known::default()],
            tripped: false,
            given_again: HashMap::new(),
            repaired: HashSet::new(),
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
                    self.state
                        .shut("fed.in is compared with the ledger; events wait");
                    self.settle_in_flight().await;
                    self.repair_until_done().await;
                    self.state.open();
                }
                Mood::Finished => {
                    self.settle_in_flight().await;
                    // The last thing known is worth a checkpoint: the next start reads from there.
                    self.last_checkpoint = None;
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
            () = self.state.repair_asked() => Mood::Repair,
            item = self.queue.recv(), if self.in_flight.len() < MAX_IN_FLIGHT => match item {
                None => Mood::Finished,
                Some(item) => if self.publish(item).await { Mood::Direct } else { Mood::Repair },
            },
        }
    }

    /// Publishes one committed event; false: a repair is needed.
    async fn publish(&mut self, item: ToPublish) -> bool {
        let ToPublish {
            id,
            way,
            message,
            reply,
        } = item;
        if self.repaired.contains(&id) {
            answer(reply, taken(way));
            return true;
        }
        if self.too_large.contains(&id) {
            answer(reply, Entry::Unavailable { retry_after_s: 600 });
            return true;
        }
        let flight = Flight {
            id,
            way,
            msg_id: msg_id_of(&message.headers).unwrap_or_default().to_owned(),
            floor: self.known(way).best.as_ref().map_or(0, |tip| tip.seq),
            reply,
        };
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
                    .push(Box::pin(async move { (flight, ack.await) }));
                well
            }
            Err(error) => {
                tracing::warn!(%error, "fed.in takes nothing now; events wait in the ledger");
                answer(flight.reply, Entry::Unavailable { retry_after_s: 5 });
                false
            }
        }
    }

    /// A PubAck, or its absence; false: a repair is needed.
    fn landed(&mut self, (flight, result): (Flight, Result<(u64, bool), BusError>)) -> bool {
        match result {
            Ok((seq, false)) => {
                self.mark(flight.id);
                if seq <= flight.floor {
                    tracing::warn!(
                        stream = flight.way.stream(),
                        sequence = seq,
                        before = flight.floor,
                        "the broker counts from an earlier place than before: it was rolled back"
                    );
                    self.trip();
                } else if !self.tripped {
                    self.advance(flight.way, seq, flight.msg_id);
                }
                answer(flight.reply, taken(flight.way));
                !self.tripped
            }
            // A new event that the broker has seen: whether it still has it, repair finds out.
            Ok((_, true)) => {
                answer(flight.reply, Entry::Unavailable { retry_after_s: 1 });
                false
            }
            Err(error) => {
                tracing::warn!(%error, ledger = flight.id, "no PubAck for an inbound event; it will be published again");
                answer(flight.reply, Entry::Unavailable { retry_after_s: 5 });
                false
            }
        }
    }

    /// Notes a row as acknowledged, to be marked soon.
    pub(super) fn mark(&mut self, id: i64) {
        self.acknowledged.add(id);
        self.marks.push(id);
        self.since_checkpoint += 1;
        let when = if self.marks.len() >= MARK_AT {
            Instant::now()
        } else {
            let soon = Instant::now() + MARK_AFTER;
            self.mark_at.map_or(soon, |at| at.min(soon))
        };
        self.mark_at = Some(when);
    }

    /// A stream was acknowledged to have come this far.
    pub(super) fn advance(&mut self, way: Way, seq: u64, msg_id: String) {
        let known = self.known_mut(way);
        let Some(created_ns) = known.created_ns else {
            return;
        };
        if known.best.as_ref().is_none_or(|tip| tip.seq < seq) {
            known.best = Some(Tip {
                created_ns,
                seq,
                msg_id,
            });
            (known.fresh, known.dirty) = (true, true);
        }
    }

    /// What PubAcks said since the last mark may be of another history.
    fn trip(&mut self) {
        self.tripped = true;
        for known in &mut self.ways {
            (known.fresh, known.dirty) = (false, false);
        }
    }

    /// A stream is known to be this one, come this far; the store has been told.
    pub(super) fn settled_on(&mut self, way: Way, tip: Tip) {
        *self.known_mut(way) = Known {
            created_ns: Some(tip.created_ns),
            best: Some(tip),
            fresh: false,
            dirty: false,
        };
    }

    pub(super) fn known(&self, way: Way) -> &Known {
        let [first, second] = &self.ways;
        match way {
            Way::In => first,
            Way::Held => second,
        }
    }

    pub(super) fn known_mut(&mut self, way: Way) -> &mut Known {
        let [first, second] = &mut self.ways;
        match way {
            Way::In => first,
            Way::Held => second,
        }
    }

    /// Waits for every PubAck that is still out (each has its time limit).
    async fn settle_in_flight(&mut self) {
        while let Some(done) = self.in_flight.next().await {
            self.landed(done);
        }
    }

    /// Hands the acknowledged rows to the store's writer, with a checkpoint when one is due.
    pub(super) async fn mark_now(&mut self) {
        self.mark_at = None;
        let due = self.since_checkpoint >= CHECKPOINT_AT
            || self
                .last_checkpoint
                .is_none_or(|at| at.elapsed() >= CHECKPOINT_AFTER);
        let mut tips = Vec::new();
        for way in [Way::In, Way::Held] {
            let known = self.known_mut(way);
            if known.fresh || (due && known.dirty) {
                tips.extend(known.best.clone().map(|tip| (way, tip)));
                known.fresh = false;
                known.dirty &= !due;
            }
        }
        if self.marks.is_empty() && tips.is_empty() {
            return;
        }
        if due && !tips.is_empty() {
            self.last_checkpoint = Some(Instant::now());
            self.since_checkpoint = 0;
        } else if self.ways.iter().any(|known| known.dirty) {
            self.mark_at = self.last_checkpoint.map(|at| at + CHECKPOINT_AFTER);
        }
        let ids = std::mem::take(&mut self.marks);
        let acked = Acked {
            ids: ids.clone(),
            tips,
            checkpoint_ms: due.then(|| self.clock.now_ms()),
        };
        match self.store.acknowledged(acked).await {
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
                for known in &mut self.ways {
                    let noted = known.best.is_some() && !self.tripped;
                    (known.fresh, known.dirty) = (noted, noted);
                }
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
                    self.state
                        .shut(&format!("inbound events cannot be published: {error}"));
                    self.turn_away();
                    self.pause(REPAIR_PAUSE[step]).await;
                    if self.queue.is_closed() && self.queue.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// Waits this long, or until a connection that is away is back.
    async fn pause(&mut self, most: Duration) {
        let connection = self
            .outlet
            .connection()
            .filter(|_| !self.outlet.connected());
        let back = async {
            match connection {
                Some(mut up) => {
                    // An error: the bus is gone, and nothing comes back.
                    if up.wait_for(|up| *up).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        // Whichever comes first.
        let _ = timeout(most, back).await;
    }

    /// Answers what the ledger handed over meanwhile: the rows are in the store and are published
    /// by the repair, whose next look sees them.
    pub(super) fn turn_away(&mut self) {
        while let Ok(item) = self.queue.try_recv() {
            answer(item.reply, Entry::Unavailable { retry_after_s: 5 });
        }
    }
}

/// What to do next.
enum Mood {
    Direct,
    Repair,
    Finished,
}

/// What the sender of a new event is told.
fn taken(way: Way) -> Entry {
    match way {
        Way::In => Entry::New,
        Way::Held => Entry::Held,
    }
}

fn answer(reply: Option<Reply>, entry: Entry) {
    if let Some(reply) = reply {
        reply.send(entry);
    }
}

/// Hands a message to the bus; what it resolves to is its PubAck. Both have a time limit.
pub(super) fn hand_over(outlet: Arc<dyn Outlet>, message: BusMessage) -> HandOver {
    Box::pin(async move {
        let ack = timeout(PUBLISH_LIMIT, outlet.publish(message))
            .await
            .unwrap_or_else(|_| Err(late()))?;
        let ack: Ack = Box::pin(async move {
            timeout(PUBLISH_LIMIT, ack)
                .await
                .unwrap_or_else(|_| Err(late()))
        });
        Ok(ack)
    })
}

pub(super) fn late() -> BusError {
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
