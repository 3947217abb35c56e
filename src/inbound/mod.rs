//! The one door to `fed.in`.
//!
//! An event that comes through is in the ledger (event and replay ids in one fsynced commit) and
//! acknowledged by JetStream before its sender hears of success. A copy that arrives while the first
//! is on its way joins the first one's outcome. When store or bus cannot take it the sender is told
//! to come again; what got as far as the ledger is published as soon as the bus is back, in ledger
//! order, before anything newer.
//!
//! Route → [`Door::enter`] → [`flights`] → [`ledger`] → [`publisher`] → answer.
//!
//! What was acknowledged is told to the store in commits of many rows ([`marks`]).
//!
//! What a quarantined peer sends goes the same way to `fed.held` ([`Door::hold`], [`held`]). What the
//! broker acknowledged and then lost is published again ([`repair`], [`guard`], [`series`]).
//!
//! Several instances may share the ledger; what that changes is in [`together`].

mod flights;
mod guard;
mod held;
mod ledger;
mod marks;
#[cfg(test)]
pub(crate) mod memory;
mod message;
mod outlet;
mod publisher;
mod repair;
mod series;
mod state;
#[cfg(test)]
mod tests;
mod together;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::bus::{Bus, BusError, BusErrorKind};
use crate::clock::Clock;
use crate::faults;
use crate::ops::health::Health;
use crate::ops::{Ops, metrics, trace};
use crate::protocol::{ProtocolId, Verified};
use crate::store::Store;
use crate::trust::Trust;

use flights::{Boarding, Flights, Outcome};
use guard::Guard;
pub use held::HeldError;
use ledger::{Entering, Job, Ledger};
use marks::Acknowledged;
pub use outlet::{Held, Outlet, PubAck};
use publisher::{Publisher, RepairError};
use state::State;
use together::Watch;

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
    store: Store,
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
    /// Tasks that have nothing to finish.
    watchers: Vec<JoinHandle<()>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for watcher in &self.watchers {
            watcher.abort();
        }
    }
}

/// How an event went through the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Durable and acknowledged by JetStream.
    New,
    /// The same, on `fed.held`: its peer is quarantined. The peer is told what it is told of `New`.
    Held,
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
            Self::Held => "held",
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
            ops.clone(),
            state.clone(),
            clock.clone(),
            acknowledged.clone(),
            committed,
        );
        let losses = outlet.losses();
        match publisher.repair().await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "published what an earlier run left in the ledger"),
            Err(RepairError::Bus(error)) => return Err(error),
            Err(RepairError::NotOurTurn) => {
                return Err(BusError {
                    kind: BusErrorKind::Unavailable,
                    detail: RepairError::NotOurTurn.to_string(),
                });
            }
            Err(RepairError::Store(error)) => {
                return Err(BusError {
                    kind: BusErrorKind::Unavailable,
                    detail: format!("the ledger of inbound events cannot be read: {error}"),
                });
            }
        }
        state.open();
        let mut watchers = Vec::new();
        let mut handles = Vec::new();
        let mut late = None;
        if store.shared() {
            watchers.push(tokio::spawn(together::watch(Watch {
                store: store.clone(),
                outlet: Arc::clone(&outlet),
                state: state.clone(),
                acknowledged: acknowledged.clone(),
                publisher: to_publisher.clone(),
            })));
            let (to_others, others) = mpsc::channel(together::WAITING);
            handles.push(tokio::spawn(together::await_others(store.clone(), others)));
            late = Some(to_others);
        }
        let ledger = Ledger {
            store: store.clone(),
            outlet: Arc::clone(&outlet),
            ops: ops.clone(),
            state: state.clone(),
            acknowledged,
            publisher: to_publisher,
            late,
        };
        let guard = Guard {
            store: store.clone(),
            outlet: Arc::clone(&outlet),
            state: state.clone(),
            clock: clock.clone(),
            losses,
        };
        handles.push(tokio::spawn(ledger.run(jobs)));
        handles.push(tokio::spawn(publisher.run()));
        watchers.push(tokio::spawn(guard.run()));
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                outlet,
                ops,
                clock,
                state,
                flights: Flights::new(),
                tasks: Mutex::new(Tasks {
                    jobs: Some(to_ledger),
                    handles,
                    watchers,
                }),
                unlike: AtomicU64::new(0),
            }),
        })
    }

    /// Largest event that gets through, bytes; larger ones are a 413.
    pub fn max_body(&self) -> usize {
        self.inner.outlet.max_body()
    }

    /// Whether an event of this key came in and has no outcome yet: a copy would join it.
    pub fn on_its_way(&self, protocol: ProtocolId, dedupe_key: &str) -> bool {
        self.inner.flights.has(protocol, dedupe_key)
    }

    /// Whether events get through at this moment, for readiness.
    pub fn is_open(&self) -> bool {
        !self.inner.state.down()
    }

    /// Follows trust from now on: events held back are released when their peer's quarantine ends.
    pub fn follow(&self, trust: Trust) {
        let watcher = tokio::spawn(held::watch(Arc::downgrade(&self.inner), trust));
        self.tasks().watchers.push(watcher);
    }

    /// Tells readiness from now on why the door is shut, when it is.
    pub fn report_to(&self, health: Health) {
        self.inner.state.report_to(health);
    }

    /// Compares streams and ledger now, as after a reconnect.
    pub fn check_broker(&self) {
        self.inner.state.ask_for_repair();
    }

    /// The event of a quarantined peer: like [`Door::enter`], but to `fed.held`.
    pub async fn hold(&self, event: Verified) -> Entry {
        self.admit(event, true).await
    }

    /// Event and id into the ledger (fsynced), then to JetStream (PubAck); then the answer.
    pub async fn enter(&self, event: Verified) -> Entry {
        self.admit(event, false).await
    }

    async fn admit(&self, event: Verified, hold: bool) -> Entry {
        let protocol = event.protocol;
        let peer = event.peer.clone();
        let event_id = event.event_id.clone();
        let traceparent = event.traceparent.clone();
        faults::crash_point("in_verified");
        let entry = self.pass(event, hold).await;
        faults::crash_point("in_answered");
        match entry {
            // Refusals are counted by the route, which makes them for other reasons as well.
            Entry::New | Entry::Held | Entry::Duplicate => {
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

    async fn pass(&self, mut event: Verified, hold: bool) -> Entry {
        let inner = &self.inner;
        if inner.state.down() {
            return Entry::Unavailable { retry_after_s: 5 };
        }
        if event.payload.len() > inner.outlet.max_body() {
            return Entry::TooLarge;
        }
        if faults::on("dedup_off") {
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
                    let row = message::ledger_row(event, inner.outlet.prefix(), hold);
                    let entering = Box::new(Entering { event: row, reply });
                    if faults::on("answer_before_commit") {
                        let door = self.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(300)).await;
                            door.start(Job::Enter(entering), outcome).await
                        });
                        return Entry::New;
                    }
                    return self.start(Job::Enter(entering), outcome).await;
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
                        Entry::New | Entry::Held | Entry::Duplicate => return Entry::Duplicate,
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
            for watcher in tasks.watchers.drain(..) {
                watcher.abort();
            }
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
