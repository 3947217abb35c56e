//! Events into the ledger, and from there to the publisher in the order of their ledger numbers.
//!
//! One task hands events to the store's writer one after the other; the writer numbers and commits
//! them in that order, so awaiting the commits in the same order costs nothing and keeps it.

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;

use crate::bus::BusMessage;
use crate::ops::Ops;
use crate::store::{Accepted, NewInbound, Store, StoreError};

use super::flights::Reply;
use super::publisher::{Acknowledged, ToPublish};
use super::{Entry, STREAM, conflict, state::State};

/// Commits awaited at once at most.
const MAX_COMMITS: usize = 8192;

/// An event that wants into the ledger.
pub struct Job {
    pub event: NewInbound,
    pub reply: Reply,
}

/// What outlives the hand-over of the row to the writer.
struct Waiting {
    reply: Reply,
    message: BusMessage,
    protocol: crate::protocol::ProtocolId,
    peer: crate::protocol::PeerName,
    event_id: String,
}

/// The task: ends when every sender of `jobs` is gone and all commits are answered.
pub async fn run(
    store: Store,
    ops: Ops,
    state: State,
    acknowledged: Acknowledged,
    mut jobs: mpsc::Receiver<Job>,
    publisher: mpsc::Sender<ToPublish>,
) {
    let mut commits = FuturesOrdered::new();
    let mut open = true;
    while open || !commits.is_empty() {
        tokio::select! {
            biased;
            Some((waiting, found)) = commits.next(), if !commits.is_empty() => {
                committed(&store, &ops, &state, &acknowledged, &publisher, waiting, found).await;
            }
            job = jobs.recv(), if open && commits.len() < MAX_COMMITS => {
                let Some(Job { event, reply }) = job else {
                    open = false;
                    continue;
                };
                let waiting = Waiting {
                    reply,
                    message: BusMessage {
                        subject: event.subject.clone(),
                        headers: event.headers.clone(),
                        payload: event.payload.clone(),
                        stream: STREAM,
                    },
                    protocol: event.protocol,
                    peer: event.peer.clone(),
                    event_id: event.event_id.clone(),
                };
                match store.accept(event).await {
                    Ok(commit) => commits.push_back(async move { (waiting, commit.await) }),
                    Err(error) => refuse(waiting, &error),
                }
            }
        }
    }
}

fn refuse(waiting: Waiting, error: &StoreError) {
    tracing::warn!(
        protocol = waiting.protocol,
        peer = %waiting.peer,
        %error,
        "the ledger takes no inbound event now"
    );
    waiting.reply.send(Entry::Unavailable { retry_after_s: 5 });
}

async fn committed(
    store: &Store,
    ops: &Ops,
    state: &State,
    acknowledged: &Acknowledged,
    publisher: &mpsc::Sender<ToPublish>,
    waiting: Waiting,
    found: Result<Accepted, StoreError>,
) {
    match found {
        Ok(Accepted::New(id)) => {
            let item = ToPublish {
                id,
                message: waiting.message,
                reply: waiting.reply,
            };
            // Only a publisher that has stopped refuses it; the row is republished at the next start.
            if let Err(back) = publisher.send(item).await {
                back.0.reply.send(Entry::Unavailable { retry_after_s: 5 });
            }
        }
        Ok(Accepted::Duplicate {
            id,
            published,
            same,
        }) => {
            if !same {
                conflict(
                    ops,
                    waiting.protocol,
                    waiting.peer.as_str(),
                    &waiting.event_id,
                );
            }
            let done = published || acknowledged.has(id) || marked(store, id).await;
            if !done {
                // It is being republished, or a repair is owed: success would promise too much.
                state.ask_for_repair();
            }
            waiting.reply.send(if done {
                Entry::Duplicate
            } else {
                Entry::Unavailable { retry_after_s: 1 }
            });
        }
        Ok(Accepted::Replayed) => waiting.reply.send(Entry::Replayed),
        Err(error) => refuse(waiting, &error),
    }
}

/// Whether a row was marked as published between the look of its commit and now.
async fn marked(store: &Store, id: i64) -> bool {
    match store.unpublished(id.saturating_sub(1), 1).await {
        Ok(rows) => rows.first().is_none_or(|row| row.id != id),
        Err(_) => false,
    }
}
