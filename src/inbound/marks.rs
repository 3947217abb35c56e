//! What JetStream acknowledged, on its way into the store: rows are marked together, and now and then
//! a checkpoint of how far each stream has come is written in the same commit.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::faults;
use crate::store::{Acked, Store, StoreError, Tip, Way};

/// Acknowledged rows are marked together: after this long at the latest …
const MARK_AFTER: Duration = Duration::from_millis(50);
/// … or as soon as there are this many.
const MARK_AT: usize = 512;
/// A checkpoint is written with a mark when the last one is this old …
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);
/// … or this many events ago.
const CHECKPOINT_AT: usize = 1_000;
/// Pause before marks that the store did not take are handed to it again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

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

/// The rows of one commit, and whether it came about.
pub(super) type Marked = (Vec<i64>, Result<(), StoreError>);

/// What was acknowledged and is not in the store yet.
pub(super) struct Marks {
    store: Store,
    clock: Clock,
    acknowledged: Acknowledged,
    ids: Vec<i64>,
    due: Option<Instant>,
    committing: FuturesUnordered<BoxFuture<'static, Marked>>,
    last_checkpoint: Option<Instant>,
    since_checkpoint: usize,
    ways: [Known; 2],
    /// Several instances: the history of the streams that PubAcks are of.
    series: Option<i64>,
    /// PubAcks went backwards: nothing they say of the stream is noted until it is repaired.
    tripped: bool,
}

impl Marks {
    /// Nothing is acknowledged yet.
    pub fn new(store: Store, clock: Clock, acknowledged: Acknowledged) -> Self {
        Self {
            store,
            clock,
            acknowledged,
            ids: Vec::new(),
            due: None,
            committing: FuturesUnordered::new(),
            last_checkpoint: None,
            since_checkpoint: 0,
            ways: [Known::default(), Known::default()],
            series: None,
            tripped: false,
        }
    }

    /// Notes a row as acknowledged, to be marked soon.
    pub fn add(&mut self, id: i64) {
        self.acknowledged.add(id);
        self.ids.push(id);
        self.since_checkpoint += 1;
        let when = if self.ids.len() >= MARK_AT {
            Instant::now()
        } else {
            let soon = Instant::now() + MARK_AFTER;
            self.due.map_or(soon, |at| at.min(soon))
        };
        self.due = Some(when);
    }

    /// Whether the row was acknowledged, though the store may not know.
    pub fn has(&self, id: i64) -> bool {
        self.acknowledged.has(id)
    }

    /// A stream was acknowledged to have come this far.
    pub fn advance(&mut self, way: Way, seq: u64, msg_id: String) {
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
    pub fn trip(&mut self) {
        self.tripped = true;
        for known in &mut self.ways {
            (known.fresh, known.dirty) = (false, false);
        }
    }

    /// Whether PubAcks went backwards since the last repair.
    pub fn tripped(&self) -> bool {
        self.tripped
    }

    /// The streams are repaired: PubAcks tell of them again.
    pub fn untrip(&mut self) {
        self.tripped = false;
    }

    /// Several instances: the history of the streams that PubAcks are of.
    pub fn series(&self) -> Option<i64> {
        self.series
    }

    /// PubAcks are of this history from now on; what an earlier one said of the streams is void.
    pub fn begin_series(&mut self, series: i64) {
        if self.series.replace(series) != Some(series) {
            self.ways = [Known::default(), Known::default()];
        }
    }

    /// The same; what is known of the streams was found to be true in it.
    pub fn go_on_in(&mut self, series: i64) {
        self.series = Some(series);
    }

    /// What PubAcks said of a stream gives way to what a repair found of it: rows that are marked
    /// from here on may be above it, so no checkpoint is taken there.
    pub fn give_way(&mut self, way: Way) {
        let known = self.known_mut(way);
        (known.fresh, known.dirty) = (false, false);
    }

    /// A stream is known to be this one, come this far; the store has been told.
    pub fn settled_on(&mut self, way: Way, tip: Tip) {
        *self.known_mut(way) = Known {
            created_ns: Some(tip.created_ns),
            best: Some(tip),
            fresh: false,
            dirty: false,
        };
    }

    /// What is known of the stream of this way.
    pub fn known(&self, way: Way) -> &Known {
        let [first, second] = &self.ways;
        match way {
            Way::In => first,
            Way::Held => second,
        }
    }

    /// The same, to change it.
    pub fn known_mut(&mut self, way: Way) -> &mut Known {
        let [first, second] = &mut self.ways;
        match way {
            Way::In => first,
            Way::Held => second,
        }
    }

    /// When [`Self::hand_in`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Hands the acknowledged rows to the store's writer, with a checkpoint when one is due.
    pub async fn hand_in(&mut self) {
        self.due = None;
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
        if self.ids.is_empty() && tips.is_empty() {
            return;
        }
        if due && !tips.is_empty() {
            self.last_checkpoint = Some(Instant::now());
            self.since_checkpoint = 0;
        } else if self.ways.iter().any(|known| known.dirty) {
            self.due = self.last_checkpoint.map(|at| at + CHECKPOINT_AFTER);
        }
        let ids = std::mem::take(&mut self.ids);
        let acked = Acked {
            ids: ids.clone(),
            tips,
            checkpoint_ms: due.then(|| self.clock.now_ms()),
            series: self.series,
        };
        match self.store.acknowledged(acked).await {
            Ok(commit) => self
                .committing
                .push(Box::pin(async move { (ids, commit.await) })),
            Err(error) => self.marked((ids, Err(error))),
        }
    }

    /// The next commit that ends; `None`: none is under way. May be dropped at any time.
    pub async fn committed(&mut self) -> Option<Marked> {
        self.committing.next().await
    }

    /// A commit of marks ended.
    pub fn marked(&mut self, (ids, result): Marked) {
        match result {
            Ok(()) => {
                faults::crash_point("in_marked");
                self.acknowledged.forget(&ids);
            }
            Err(error) => {
                // They stay in `acknowledged`, so no repair publishes them again in this life.
                tracing::warn!(%error, rows = ids.len(), "acknowledged events are not marked yet");
                self.ids.extend(ids);
                for known in &mut self.ways {
                    let noted = known.best.is_some() && !self.tripped;
                    (known.fresh, known.dirty) = (noted, noted);
                }
                self.due = Some(Instant::now() + AGAIN_AFTER);
            }
        }
    }

    /// Hands in what there is with a last checkpoint, which the next start reads from, and sees it
    /// committed.
    pub async fn finish(&mut self) {
        self.last_checkpoint = None;
        self.hand_in().await;
        while let Some(marked) = self.committed().await {
            self.marked(marked);
        }
    }
}
