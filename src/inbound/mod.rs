//! The one door to `fed.in`.
//!
//! An event that comes through is in the ledger (event and replay ids in one fsynced commit) and
//! acknowledged by JetStream before its sender hears of success. A copy that arrives while the first
//! is on its way joins the first one's outcome. When store or bus cannot take it the sender is told
//! to come again; what got as far as the ledger is published as soon as the bus is back, in ledger
//! order, before anything newer.
//!
//! Route → [`Door::enter`] → [`flights`] → [`ledger`] → [`publisher`] → answer.

mod flights;
mod ledger;
mod message;
mod outlet;
mod publisher;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::bus::{Bus, BusError, BusErrorKind};
use crate::clock::Clock;
use crate::ops::{Ops, metrics, trace};
use crate::protocol::{ProtocolId, Verified};
use crate::store::Store;

use flights::{Boarding, Flights, Outcome};
use ledger::Job;
pub use outlet::{Outlet, PubAck};
use publisher::{Acknowledged, Publisher, RepairError};
use state::State;

/// The stream of `fed.in`.
const STREAM: &str = "FED_IN";
/// Whoever waits longer is told to come again; the event goes on its way regardless.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);
/// Events between the door and the ledger's task, and between that and the publisher.
const QUEUE: usize = 1024;
/// How long an orderly stop waits for what is on its way.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// The one way to `fed.in`; cloning shares it.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    outlet: Arc<dyn Outlet>,
    ops: Ops,
    clock: Clock,
    state: State,
    flights: Arc<Flights>,
    tasks: Mutex<Tasks>,
    unlike: AtomicU64,
}

struct Tasks {
    jobs: Option<mpsc::Sender<Job>>,
    handles: Vec<JoinHandle<()>>,
}

/// How an event went through the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Durable and acknowledged by JetStream.
    New,
    /// It was so already (or joined the first copy, which now is).
    Duplicate,
    /// A replay id was used before.
    Replayed,
    /// Larger than the broker takes.
    TooLarge,
    /// Store or broker cannot take it now: answer 503 with this `Retry-After` in seconds.
    Unavailable { retry_after_s: u32 },
}

impl Entry {
    /// The outcome's name in metrics and operator events.
    fn code(self) -> &'static str {
        match self {
            Self::New => "accepted",
            Self::Duplicate => "duplicate",
            Self::Replayed => "replayed",
            Self::TooLarge => "too_large",
            Self::Unavailable { .. } => "unavailable",
        }
    }
}

impl Door {
    /// Publishes what an earlier run left unpublished, then opens; runs a publisher that keeps ledger order.
    pub async fn open(store: Store, bus: Bus, ops: Ops, clock: Clock) -> Result<Self, BusError> {
        Self::over(store, Arc::new(bus), ops, clock).await
    }

    /// The same over anything that publishes.
    pub async fn over(
        store: Store,
        outlet: Arc<dyn Outlet>,
        ops: Ops,
        clock: Clock,
    ) -> Result<Self, BusError> {
        let state = State::default();
        let acknowledged = Acknowledged::default();
        let (to_ledger, jobs) = mpsc::channel(QUEUE);
        let (to_publisher, committed) = mpsc::channel(QUEUE);
        let mut publisher = Publisher::new(
            store.clone(),
            Arc::clone(&outlet),
            state.clone(),
            clock.clone(),
            acknowledged.clone(),
            committed,
        );
        match publisher.repair().await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "published what an earlier run left in the ledger"),
            Err(RepairError::Bus(error)) => return Err(error),
            Err(RepairError::Store(error)) => {
                return Err(BusError {
                    kind: BusErrorKind::Unavailable,
                    detail: format!("the ledger of inbound events cannot be read: {error}"),
                });
            }
        }
        let ledger = ledger::run(
            store,
            ops.clone(),
            state.clone(),
            acknowledged,
            jobs,
            to_publisher,
        );
        let handles = vec![tokio::spawn(ledger), tokio::spawn(publisher.run())];
        Ok(Self {
            inner: Arc::new(Inner {
                outlet,
                ops,
                clock,
                state,
                flights: Flights::new(),
                tasks: Mutex::new(Tasks {
                    jobs: Some(to_ledger),
                    handles,
                }),
                unlike: AtomicU64::new(0),
            }),
        })
    }

    /// Largest event that gets through, bytes; larger ones are a 413.
    pub fn max_body(&self) -> usize {
        self.inner.outlet.max_body()
    }

    /// Whether events get through at this moment, for readiness.
    pub fn is_open(&self) -> bool {
        !self.inner.state.down()
    }

    /// Event and id into the ledger (fsynced), then to JetStream (PubAck); then the answer.
    pub async fn enter(&self, event: Verified) -> Entry {
        let protocol = event.protocol;
        let peer = event.peer.clone();
        let event_id = event.event_id.clone();
        let traceparent = event.traceparent.clone();
        let entry = self.pass(event).await;
        match entry {
            // Refusals are counted by the route, which makes them for other reasons as well.
            Entry::New | Entry::Duplicate => {
                metrics::inbound(protocol, entry.code());
                let ops = &self.inner.ops;
                ops.tally("ingest", entry.code(), protocol, peer.as_str(), || {
                    let body = serde_json::json!({"event_id": event_id, "peer": peer.as_str()});
                    trace::named(body, traceparent.as_deref())
                });
            }
            Entry::Replayed | Entry::TooLarge | Entry::Unavailable { .. } => {}
        }
        entry
    }

    async fn pass(&self, mut event: Verified) -> Entry {
        let inner = &self.inner;
        if inner.state.down() {
            return Entry::Unavailable { retry_after_s: 5 };
        }
        if event.payload.len() > inner.outlet.max_body() {
            return Entry::TooLarge;
        }
        if crate::faults::on("dedup_off") {
            let n = inner.unlike.fetch_add(1, Ordering::Relaxed);
            event.dedupe_key = format!("{}#{}.{n}", event.dedupe_key, inner.clock.now_ms());
        }
        // A first copy that was refused for its own replay id says nothing of this one's.
        for _ in 0..3 {
            match inner
                .flights
                .board(event.protocol, &event.dedupe_key, &event.payload)
            {
                Boarding::Full => return Entry::Unavailable { retry_after_s: 1 },
                Boarding::First(reply, outcome) => {
                    let row = message::ledger_row(event, inner.outlet.prefix());
                    return self.start(Job { event: row, reply }, outcome).await;
                }
                Boarding::Joined { outcome, same } => {
                    if !same {
                        conflict(
                            &inner.ops,
                            event.protocol,
                            event.peer.as_str(),
                            &event.event_id,
                        );
                    }
                    match wait(outcome).await {
                        Entry::New | Entry::Duplicate => return Entry::Duplicate,
                        Entry::Replayed => {}
                        other => return other,
                    }
                }
            }
        }
        Entry::Unavailable { retry_after_s: 1 }
    }

    async fn start(&self, job: Job, outcome: Outcome) -> Entry {
        let Some(jobs) = self.tasks().jobs.clone() else {
            return Entry::Unavailable { retry_after_s: 30 };
        };
        // Dropping the job (time out, task gone) drops its reply: who joined is told the same.
        match timeout(ANSWER_WITHIN, jobs.send(job)).await {
            Ok(Ok(())) => wait(outcome).await,
            Ok(Err(_)) | Err(_) => Entry::Unavailable { retry_after_s: 5 },
        }
    }

    /// Takes nothing more, waits for what is on its way; for an orderly stop, before the store closes.
    pub async fn close(&self) {
        let handles = {
            let mut tasks = self.tasks();
            tasks.jobs = None;
            std::mem::take(&mut tasks.handles)
        };
        let all = futures_util::future::join_all(handles);
        if timeout(CLOSE_WITHIN, all).await.is_err() {
            tracing::warn!("inbound events are still on their way; the next start publishes them");
        }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.inner
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn wait(outcome: Outcome) -> Entry {
    match timeout(ANSWER_WITHIN, outcome.wait()).await {
        Ok(Some(entry)) => entry,
        Ok(None) | Err(_) => Entry::Unavailable { retry_after_s: 5 },
    }
}

/// One id, two contents: nothing is done with the second, but somebody should know.
fn conflict(ops: &Ops, protocol: ProtocolId, peer: &str, event_id: &str) {
    tracing::warn!(
        protocol,
        peer,
        event_id,
        "an event id came again with other content"
    );
    ops.event(
        "ingest",
        "conflict",
        protocol,
        peer,
        serde_json::json!({
            "event_id": event_id,
            "peer": peer,
            "code": "id_conflict",
            "detail": "the event id is known with other content; the first one stands",
        }),
    );
}
