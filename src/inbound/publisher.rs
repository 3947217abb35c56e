//! The one publisher of `fed.in` and `fed.held`: in ledger order, a window of PubAcks in flight.
//!
//! It is in one of two moods. *Direct*: what the ledger hands over is published at once. *Repair*
//! (at start, after a failure or a reconnect, or when asked): nothing is taken from the ledger's
//! queue; ledger and streams are compared and what a stream lacks is published in order (see
//! `repair`). A row that failed stays in the store either way, so nothing is lost by answering 503.
//!
//! With several instances (see `together`) each publishes its own; an id the broker knows already may
//! be another's work, so the message in its place decides. A connection that was lost since the last
//! repair may lead to a broker that was rolled back, to a place below what another instance knows:
//! what it acknowledges is noted by that repair.
//!
//! A PubAck whose sequence is not above every earlier one tells of a stream that was rolled back or
//! made again behind our back: nothing is noted from there on, and repair follows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::bus::{BusError, BusErrorKind, BusMessage};
use crate::clock::Clock;
use crate::faults;
use crate::ops::Ops;
use crate::store::{Store, StoreError, Way};

use super::Entry;
use super::flights::Reply;
use super::marks::{Acknowledged, Marks};
use super::message::msg_id_of;
use super::outlet::Outlet;
use super::state::State;
use super::together::Turn;

/// A publish or its PubAck that takes longer has failed.
const PUBLISH_LIMIT: Duration = Duration::from_secs(10);
/// PubAcks awaited at once at most (the bus has its own, usually smaller window).
const MAX_IN_FLIGHT: usize = 4096;
/// Pauses between attempts to repair, ...
const REPAIR_PAUSE: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];
/// ... and from then on.
const REPAIR_PAUSE_LATER: Duration = Duration::from_secs(2);

/// Several instances: an event that was handed to the ledger longer ago is not simply published. Well
/// within the two minutes in which the broker knows an id again.
const STILL_OURS: Duration = Duration::from_secs(45);
/// Pause before it is asked again whether the turn to repair is ours.
const OTHERS_TURN: Duration = Duration::from_millis(250);

/// A committed event to publish.
pub struct ToPublish {
    pub id: i64,
    pub way: Way,
    pub message: BusMessage,
    /// When it was handed to the ledger, or read from it.
    pub since: Instant,
    /// `None`: nobody waits for it (it was released).
    pub reply: Option<Reply>,
}

/// An event on its way to its PubAck.
struct Flight {
    id: i64,
    way: Way,
    msg_id: String,
    /// The stream had acknowledged this sequence before the event was handed over.
    floor: u64,
    /// Another instance has published it already: it is in the stream, at the sequence answered.
    there: bool,
    reply: Option<Reply>,
}

type Landing = BoxFuture<'static, (Flight, Result<(u64, bool), BusError>)>;
pub(super) type Ack = BoxFuture<'static, Result<(u64, bool), BusError>>;
type HandOver = BoxFuture<'static, Result<Ack, BusError>>;

/// Why a repair stopped before all was published.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Several instances: another one compares the streams with the ledger, or has since.
    #[error("another instance compares the streams with the ledger")]
    NotOurTurn,
}

/// The publisher's state between events.
pub struct Publisher {
    pub(super) store: Store,
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) ops: Ops,
    pub(super) state: State,
    pub(super) clock: Clock,
    pub(super) marks: Marks,
    queue: mpsc::Receiver<ToPublish>,
    in_flight: FuturesUnordered<Landing>,
    /// Events given to a stream again by repairs that did not end well, by way.
    pub(super) given_again: HashMap<Way, usize>,
    /// Rows that the last repair dealt with while the ledger may still hand them over.
    pub(super) repaired: HashSet<i64>,
    /// Rows that this broker can never take, complained about once.
    pub(super) too_large: HashSet<i64>,
    /// How often the connection had been lost when the last repair began.
    pub(super) losses: u64,
    /// Several instances: the turn to repair, while it is ours.
    pub(super) turn: Option<Turn>,
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
            marks: Marks::new(store.clone(), clock.clone(), acknowledged),
            store,
            outlet,
            ops,
            state,
            clock,
            queue,
            in_flight: FuturesUnordered::new(),
            given_again: HashMap::new(),
            repaired: HashSet::new(),
            too_large: HashSet::new(),
            losses: 0,
            turn: None,
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
                    self.marks.finish().await;
                    return;
                }
            }
        }
    }

    /// One event of the direct mood.
    async fn direct(&mut self) -> Mood {
        let mark_at = self.marks.due();
        tokio::select! {
            biased;
            Some(done) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                if self.landed(done) { Mood::Direct } else { Mood::Repair }
            }
            Some(marked) = self.marks.committed() => {
                self.marks.marked(marked);
                Mood::Direct
            }
            () = sleep_until(mark_at), if mark_at.is_some() => {
                self.marks.hand_in().await;
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
            since,
            reply,
        } = item;
        if self.store.shared() && since.elapsed() > STILL_OURS {
            // This process may have been frozen, and another may have published it so long ago that
            // the broker has forgotten its id: the stream itself is asked.
            answer(reply, Entry::Unavailable { retry_after_s: 1 });
            return false;
        }
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
            floor: self.marks.known(way).best.as_ref().map_or(0, |tip| tip.seq),
            there: false,
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
                faults::crash_point("in_published");
                self.in_flight.push(match self.store.shared() {
                    true => {
                        let outlet = Arc::clone(&self.outlet);
                        Box::pin(land_among_others(flight, ack, outlet))
                    }
                    false => Box::pin(async move { (flight, ack.await) }),
                });
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
        let elsewhere = self.store.shared() && self.outlet.losses() != self.losses;
        match result {
            // In the ledger and in the stream; where that one stands, the repair finds out.
            Ok((_, false)) if elsewhere => {
                answer(flight.reply, taken(flight.way));
                false
            }
            Ok((seq, false)) if flight.there => {
                self.marks.add(flight.id);
                self.marks.advance(flight.way, seq, flight.msg_id);
                answer(flight.reply, taken(flight.way));
                true
            }
            Ok((seq, false)) => {
                faults::crash_point("in_acked");
                self.marks.add(flight.id);
                if seq <= flight.floor {
                    tracing::warn!(
                        stream = flight.way.stream(),
                        sequence = seq,
                        before = flight.floor,
                        "the broker counts from an earlier place than before: it was rolled back"
                    );
                    self.marks.trip();
                } else if !self.marks.tripped() {
                    self.marks.advance(flight.way, seq, flight.msg_id);
                }
                answer(flight.reply, taken(flight.way));
                !self.marks.tripped()
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

    /// Waits for every PubAck that is still out (each has its time limit).
    async fn settle_in_flight(&mut self) {
        while let Some(done) = self.in_flight.next().await {
            self.landed(done);
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
                Err(RepairError::NotOurTurn) => {
                    self.state
                        .shut("another instance compares fed.in with the ledger; events wait");
                    self.turn_away();
                    self.pause(OTHERS_TURN).await;
                    if self.queue.is_closed() && self.queue.is_empty() {
                        return;
                    }
                }
                Err(error) => {
                    let pause = REPAIR_PAUSE.get(failures).unwrap_or(&REPAIR_PAUSE_LATER);
                    failures = failures.saturating_add(1);
                    tracing::warn!(%error, failures, "inbound events cannot be published yet");
                    self.state
                        .shut(&format!("inbound events cannot be published: {error}"));
                    self.turn_away();
                    self.pause(*pause).await;
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

/// The PubAck of an event that another instance may have published as well.
async fn land_among_others(
    mut flight: Flight,
    ack: Ack,
    outlet: Arc<dyn Outlet>,
) -> (Flight, Result<(u64, bool), BusError>) {
    let mut result = ack.await;
    if let Ok((seq, true)) = result {
        let found = timeout(PUBLISH_LIMIT, outlet.id_at(flight.way, seq)).await;
        let found = found.unwrap_or_else(|_| Err(late()));
        if found.is_ok_and(|id| id.as_deref() == Some(flight.msg_id.as_str())) {
            flight.there = true;
            result = Ok((seq, false));
        }
    }
    (flight, result)
}

pub(super) fn late() -> BusError {
    BusError {
        kind: BusErrorKind::Unavailable,
        detail: "not connected, or no PubAck in time".to_owned(),
    }
}

/// Never, without a time, is at once: the branch that waits for it is off then.
pub(super) async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
