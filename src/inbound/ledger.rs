//! Events into the ledger, and from there to the publisher in the order of their ledger numbers.
//!
//! One task hands events to the store's writer one after the other; the writer numbers and commits
//! them in that order, so awaiting the commits in the same order costs nothing and keeps it. What is
//! released from quarantine gets its new numbers by the same way, and so its place among the others.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::faults;
use crate::ops::Ops;
use crate::protocol::{PeerName, ProtocolId};
use crate::store::{Accepted, HeldBatch, NewInbound, Released, Store, StoreError, Way};

use super::flights::Reply;
use super::marks::Acknowledged;
use super::message::bus_message;
use super::outlet::Outlet;
use super::publisher::{ToPublish, sleep_until};
use super::together::Late;
use super::{Entry, conflict, state::State};

/// How long events wait for others that come at the same time …
const GATHER: Duration = Duration::from_millis(1);
/// … while so many are on their way already …
const BUSY: usize = 8;
/// … and how many go together at most.
const TOGETHER: usize = 256;
/// Commits awaited at once at most.
const MAX_COMMITS: usize = 8192;
/// How long a sender waits whose peer has as much held as may be.
const HELD_FULL_AGAIN_S: u32 = 600;
/// Released bodies read at once.
const READ: i64 = 16;

/// What wants into the ledger.
pub enum Job {
    /// A new event.
    Enter(Box<Entering>),
    /// Held events that become ordinary ones; answers how many.
    Release(HeldBatch, oneshot::Sender<Result<u64, StoreError>>),
}

/// A new event and who waits for it.
pub struct Entering {
    pub event: NewInbound,
    pub reply: Reply,
}

/// What outlives the hand-over of the row to the writer.
struct Waiting {
    since: Instant,
    reply: Reply,
    event: Arc<NewInbound>,
}

enum Commit {
    Entered(Waiting, Result<Accepted, StoreError>),
    Released(
        Instant,
        oneshot::Sender<Result<u64, StoreError>>,
        Result<Released, StoreError>,
    ),
}

/// Commits on their way, in the order of their events.
type Commits = FuturesOrdered<BoxFuture<'static, Commit>>;

/// The ledger's task.
pub struct Ledger {
    pub store: Store,
    pub outlet: Arc<dyn Outlet>,
    pub ops: Ops,
    pub state: State,
    pub acknowledged: Acknowledged,
    pub publisher: mpsc::Sender<ToPublish>,
    /// Several instances: who waits for what another one has on its way.
    pub late: Option<mpsc::Sender<Late>>,
}

impl Ledger {
    /// Runs until every sender of `jobs` is gone and all commits are answered.
    pub async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut commits = Commits::new();
        let mut open = true;
        // While many come they are handed over together, or each would wake the store's thread.
        let (mut first, mut gathering) = (Vec::new(), None);
        while open || gathering.is_some() || !commits.is_empty() {
            tokio::select! {
                biased;
                Some(commit) = commits.next(), if !commits.is_empty() => match commit {
                    Commit::Entered(waiting, found) => self.entered(waiting, found).await,
                    Commit::Released(since, done, found) => {
                        let _ = done.send(self.released(since, found).await);
                    }
                },
                () = sleep_until(gathering), if gathering.is_some() => {
                    gathering = None;
                    while first.len() < TOGETHER && let Ok(job) = jobs.try_recv() {
                        first.push(job);
                    }
                    self.take(&mut first, &mut commits).await;
                }
                job = jobs.recv(), if open && gathering.is_none() && commits.len() < MAX_COMMITS => {
                    match job {
                        None => open = false,
                        Some(job) => first.push(job),
                    }
                    if commits.len() >= BUSY && !first.is_empty() {
                        gathering = Some(Instant::now() + GATHER);
                    } else {
                        self.take(&mut first, &mut commits).await;
                    }
                },
            }
        }
    }

    /// Hands jobs to the store's writer, in their order.
    async fn take(&self, jobs: &mut Vec<Job>, commits: &mut Commits) {
        let mut entering = Vec::new();
        for job in jobs.drain(..) {
            match job {
                Job::Enter(new) => {
                    let Entering { event, reply } = *new;
                    let event = Arc::new(event);
                    entering.push(Waiting {
                        since: Instant::now(),
                        reply,
                        event,
                    });
                }
                Job::Release(batch, done) => {
                    self.enter(std::mem::take(&mut entering), commits).await;
                    let since = Instant::now();
                    match self.store.release_held(batch).await {
                        Ok(commit) => commits.push_back(Box::pin(async move {
                            Commit::Released(since, done, commit.await)
                        })),
                        Err(error) => {
                            let _ = done.send(Err(error));
                        }
                    }
                }
            }
        }
        self.enter(entering, commits).await;
    }

    async fn enter(&self, entering: Vec<Waiting>, commits: &mut Commits) {
        if entering.is_empty() {
            return;
        }
        let events = entering.iter().map(|waiting| Arc::clone(&waiting.event));
        match self.store.accept_all(events).await {
            Ok(answers) => {
                for (waiting, commit) in entering.into_iter().zip(answers) {
                    commits.push_back(Box::pin(
                        async move { Commit::Entered(waiting, commit.await) },
                    ));
                }
            }
            Err(error) => {
                for waiting in entering {
                    refuse(waiting, &error);
                }
            }
        }
    }

    async fn entered(&self, waiting: Waiting, found: Result<Accepted, StoreError>) {
        let event = &waiting.event;
        match found {
            Ok(Accepted::New(id)) => self.hand_over(id, Way::In, waiting).await,
            Ok(Accepted::Held(id)) => self.hand_over(id, Way::Held, waiting).await,
            Ok(Accepted::HeldFull) => {
                held_full(&self.ops, event.protocol, &event.peer);
                waiting.reply.send(Entry::Unavailable {
                    retry_after_s: HELD_FULL_AGAIN_S,
                });
            }
            Ok(Accepted::Duplicate {
                id,
                published,
                same,
            }) => {
                if !same {
                    conflict(
                        &self.ops,
                        event.protocol,
                        event.peer.as_str(),
                        &event.event_id,
                    );
                }
                if !published
                    && !self.acknowledged.has(id)
                    && let Some(late) = &self.late
                {
                    // Dropped when too many wait: the sender is told to come again.
                    let _ = late.try_send(Late {
                        id,
                        reply: waiting.reply,
                    });
                    return;
                }
                let done = published || self.acknowledged.has(id) || self.marked(id).await;
                if !done {
                    // It is being republished, or a repair is owed: success would promise too much.
                    self.state.ask_for_repair();
                }
                waiting.reply.send(if done {
                    Entry::Duplicate
                } else {
                    Entry::Unavailable { retry_after_s: 1 }
                });
            }
            Ok(Accepted::Replayed) => waiting.reply.send(Entry::Replayed),
            Ok(Accepted::Shut) => {
                self.state.ask_for_repair();
                waiting.reply.send(Entry::Unavailable { retry_after_s: 2 });
            }
            Err(error) => refuse(waiting, &error),
        }
    }

    async fn hand_over(&self, id: i64, way: Way, waiting: Waiting) {
        faults::crash_point("in_committed");
        let Waiting {
            since,
            reply,
            event,
        } = waiting;
        let event = Arc::unwrap_or_clone(event);
        let item = ToPublish {
            id,
            way,
            message: bus_message(
                way,
                self.outlet.prefix(),
                event.subject,
                event.headers,
                event.payload,
                None,
            ),
            since,
            reply: Some(reply),
        };
        // Only a publisher that has stopped refuses it; the row is republished at the next start.
        if let Err(back) = self.publisher.send(item).await
            && let Some(reply) = back.0.reply
        {
            reply.send(Entry::Unavailable { retry_after_s: 5 });
        }
    }

    /// Hands released events to the publisher, before anything that was committed after them.
    async fn released(
        &self,
        since: Instant,
        found: Result<Released, StoreError>,
    ) -> Result<u64, StoreError> {
        let Released { first, count } = found?;
        let mut next = first;
        let end = first.saturating_add(count);
        while next < end {
            let ids = (next..end.min(next.saturating_add(READ))).collect();
            next = next.saturating_add(READ);
            let rows = match self.store.inbound_rows(ids).await {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::warn!(%error, "released events wait in the ledger");
                    self.state.ask_for_repair();
                    break;
                }
            };
            for row in rows {
                let item = ToPublish {
                    id: row.id,
                    way: Way::In,
                    message: bus_message(
                        Way::In,
                        self.outlet.prefix(),
                        row.subject,
                        row.headers,
                        row.payload,
                        None,
                    ),
                    since,
                    reply: None,
                };
                if self.publisher.send(item).await.is_err() {
                    break;
                }
            }
        }
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Whether a row was marked as published between the look of its commit and now.
    async fn marked(&self, id: i64) -> bool {
        match self.store.unpublished(id.saturating_sub(1), 1).await {
            Ok(rows) => rows.first().is_none_or(|row| row.id != id),
            Err(_) => false,
        }
    }
}

fn refuse(waiting: Waiting, error: &StoreError) {
    tracing::warn!(
        protocol = waiting.event.protocol,
        peer = %waiting.event.peer,
        %error,
        "the ledger takes no inbound event now"
    );
    waiting.reply.send(Entry::Unavailable { retry_after_s: 5 });
}

fn held_full(ops: &Ops, protocol: ProtocolId, peer: &PeerName) {
    tracing::warn!(
        protocol,
        %peer,
        "a quarantined peer has as much held as may be; it is told to come again"
    );
    ops.tally("trust", "held_full", protocol, peer.as_str(), || {
        serde_json::json!({
            "peer": peer.as_str(),
            "code": "held_full",
            "detail": "as many of its events are held as may be; release or drop them",
        })
    });
}
