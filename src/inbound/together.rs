//! Several instances at one ledger (`store.shared`): each publishes what it took in itself.
//!
//! * [`Turn`]: one instance at a time compares the streams with the ledger. The turn is held in the
//!   database, kept while its holder lives, and sure only for a while: whoever was frozen longer
//!   publishes nothing more.
//! * [`await_others`]: a copy of an event that another instance has on its way joins that one's
//!   outcome, as it would at the same instance.
//! * [`watch`]: what an instance left unpublished when it died is published by the others, who see
//!   it lie there for longer than a live one would leave it. That two of them, or the owner as well,
//!   publish it is no harm: the broker knows its id. Also tells when the streams' history is
//!   another.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::store::{Store, StoreError, Way};

use super::Entry;
use super::flights::Reply;
use super::marks::Acknowledged;
use super::message::bus_message;
use super::outlet::Outlet;
use super::publisher::ToPublish;
use super::state::State;

/// How long a turn lasts unless it is kept …
const TURN: Duration = Duration::from_secs(12);
/// … how often it is kept …
const KEEP_EVERY: Duration = Duration::from_secs(3);
/// … and how long before its end nothing is done in it any more.
const TURN_MARGIN: Duration = Duration::from_secs(3);
/// How often it is looked whether others left something.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What lies unpublished for so long was left by one that died, or hangs.
const LEFT_AFTER: Duration = Duration::from_secs(3);
/// Events of others published in one look.
const LEFT_AT_ONCE: usize = 256;
/// How often it is asked what became of events on their way elsewhere.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// After so long a sender is told to come again.
const PATIENCE: Duration = Duration::from_secs(9);
/// Senders that wait for other instances at most.
pub const WAITING: usize = 512;

/// The turn to mend the streams; given back when dropped, or when the instance died.
pub struct Turn {
    store: Store,
    sure_until: Arc<Mutex<Instant>>,
    keeper: AbortHandle,
}

impl Turn {
    /// Takes it; `None`: another instance has it. Answers the series in force as well.
    pub async fn take(store: &Store) -> Result<Option<(Self, i64)>, StoreError> {
        let asked = Instant::now();
        let Some(series) = store.mend_turn(Some(TURN), false).await? else {
            return Ok(None);
        };
        let sure_until = Arc::new(Mutex::new(asked + TURN - TURN_MARGIN));
        let keeper = tokio::spawn(keep(store.clone(), Arc::clone(&sure_until)));
        let turn = Self {
            store: store.clone(),
            sure_until,
            keeper: keeper.abort_handle(),
        };
        Ok(Some((turn, series)))
    }

    /// Whether it is surely still ours.
    pub fn is_sure(&self) -> bool {
        Instant::now()
            < *self
                .sure_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a new series and shuts the doors of all others; answers it, `None` if the turn is lost.
    pub async fn new_series(&self) -> Result<Option<i64>, StoreError> {
        self.store.mend_turn(Some(TURN), true).await
    }

    /// Gives it back.
    pub async fn end(self) {
        self.keeper.abort();
        if let Err(error) = self.store.mend_turn(None, false).await {
            tracing::debug!(%error, "the turn to mend ends by itself");
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Keeps the turn until it is aborted or lost.
async fn keep(store: Store, sure_until: Arc<Mutex<Instant>>) {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        let asked = Instant::now();
        let until = match store.mend_turn(Some(TURN), false).await {
            Ok(Some(_)) => asked + TURN - TURN_MARGIN,
            Ok(None) => asked,
            Err(error) => {
                tracing::debug!(%error, "the turn to mend is not kept yet");
                continue;
            }
        };
        *sure_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// A sender whose event another instance has on its way.
pub struct Late {
    pub id: i64,
    pub reply: Reply,
}

/// Answers senders whose event another instance has on its way, when that one's PubAck is in the
/// ledger. Ends when every sender of `late` is gone; who still waits then is told to come again.
pub async fn await_others(store: Store, mut late: mpsc::Receiver<Late>) {
    let mut waiting: HashMap<i64, (Instant, Vec<Reply>)> = HashMap::new();
    loop {
        let next = match waiting.is_empty() {
            true => late.recv().await,
            false => match tokio::time::timeout(ASK_EVERY, late.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    ask(&store, &mut waiting).await;
                    continue;
                }
            },
        };
        match next {
            Some(Late { id, reply }) => {
                let (_, replies) = waiting
                    .entry(id)
                    .or_insert_with(|| (Instant::now(), Vec::new()));
                replies.push(reply);
                if waiting.len() >= WAITING {
                    ask(&store, &mut waiting).await;
                }
            }
            None => break,
        }
    }
    for (_, replies) in waiting.into_values() {
        for reply in replies {
            reply.send(Entry::Unavailable { retry_after_s: 1 });
        }
    }
}

/// Asks once what became of them.
async fn ask(store: &Store, waiting: &mut HashMap<i64, (Instant, Vec<Reply>)>) {
    let open = match store
        .unacknowledged_of(waiting.keys().copied().collect())
        .await
    {
        Ok(open) => open.into_iter().collect(),
        Err(error) => {
            tracing::debug!(%error, "what became of events elsewhere is not known yet");
            waiting.keys().copied().collect::<HashSet<_>>()
        }
    };
    waiting.retain(|id, (since, replies)| {
        let entry = match open.contains(id) {
            false => Entry::Duplicate,
            true if since.elapsed() >= PATIENCE => Entry::Unavailable { retry_after_s: 1 },
            true => return true,
        };
        replies.drain(..).for_each(|reply| reply.send(entry));
        false
    });
}

/// What [`watch`] works with.
pub struct Watch {
    pub store: Store,
    pub outlet: Arc<dyn Outlet>,
    pub state: State,
    pub acknowledged: Acknowledged,
    pub publisher: mpsc::Sender<ToPublish>,
}

/// Looks after what others leave, until it is aborted or the publisher is gone.
pub async fn watch(watch: Watch) {
    let mut seen: HashMap<i64, Instant> = HashMap::new();
    let mut due = tokio::time::interval(LOOK_EVERY);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        match watch.store.common().await {
            Ok(common) => watch.state.note_series(common.series),
            Err(error) => {
                tracing::debug!(%error, "the streams' history is not known");
                continue;
            }
        }
        if watch.state.down() || !watch.outlet.connected() {
            // A repair publishes all that is owed.
            seen.clear();
            continue;
        }
        match watch.look(&mut seen).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => tracing::debug!(%error, "what others left could not be looked at"),
        }
    }
}

impl Watch {
    /// Looks once; false: the publisher is gone.
    async fn look(&self, seen: &mut HashMap<i64, Instant>) -> Result<bool, StoreError> {
        let now = Instant::now();
        let limit = u64::try_from(self.outlet.max_body()).unwrap_or(u64::MAX);
        let mut there = HashSet::new();
        for way in [Way::In, Way::Held] {
            let entries = self
                .store
                .unacknowledged(way, 0, i64::MAX, LEFT_AT_ONCE)
                .await?;
            let mut left = Vec::new();
            for entry in entries {
                if self.acknowledged.has(entry.id) || entry.bytes.is_none_or(|b| b > limit) {
                    continue;
                }
                there.insert(entry.id);
                let first = seen.entry(entry.id).or_insert(now);
                if now.duration_since(*first) >= LEFT_AFTER {
                    // Not again at once: its PubAck may take a moment.
                    *first = now;
                    left.push(entry.id);
                }
            }
            if left.is_empty() {
                continue;
            }
            tracing::info!(
                events = left.len(),
                stream = way.stream(),
                "publishing what another instance left in the ledger"
            );
            for row in self.store.inbound_rows(left).await? {
                let prefix = self.outlet.prefix();
                let message = bus_message(way, prefix, row.subject, row.headers, row.payload, None);
                let item = ToPublish {
                    id: row.id,
                    way,
                    message,
                    since: now,
                    reply: None,
                };
                if self.publisher.send(item).await.is_err() {
                    return Ok(false);
                }
            }
        }
        seen.retain(|id, _| there.contains(id));
        Ok(true)
    }
}
