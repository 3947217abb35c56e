//! A shard: a plain thread with its own runtime and HTTP pool that owns the lanes of its peers.
//!
//! Its heart is one `select!` over finished work, new work and due wakes. Lanes are entries of a
//! map; only an attempt or a read in progress is a task, and their number is bounded.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `work` | what the rest of the bridge tells a shard, and what it does about it |
//! | `queue` | asking a lane what to do; who waits for a place in the window |
//! | `attempts` | the tasks: attempts, rows buried without one, outcomes on their way to the store |
//! | `units` | lanes that come and go with leases, where instances share the work |
//! | `done` | what came of a task |
//! | `delivered` | deliveries handed to the store together |
//! | `ask` | an operator's questions and orders |
//! | `saving` | health facts on their way to the store |
//! | `report` | operator events and the log |
//! | `meter` | how many events a minute a peer is sent |
//! | [`room`] | who may take a place in the window |
//! | `flights` | attempts in flight; those that last long give their places back |

mod ask;
mod attempts;
mod delivered;
mod done;
mod flights;
mod meter;
mod queue;
mod report;
pub mod room;
mod saving;
mod units;
mod work;
pub use work::{Ask, Replied, Reply, Work};

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::attempt::Tools;
use super::ended::Ended;
use super::lane::{Lane, Limits};
use super::peer_set::PeerSet;
use crate::cluster::{Hold, Tenure};
use crate::ops::{Ops, metrics};
use crate::peers::health::{Facts, Policy};
use crate::protocol::{PeerName, Protocol, ProtocolId};
use crate::store::Store;
use delivered::Deliveries;
use done::Done;
use flights::Flights;
use meter::Meter;
use room::Pace;
use saving::Saving;

/// Whose lane.
pub type LaneKey = (ProtocolId, PeerName);

/// What every shard shares.
#[derive(Clone)]
pub struct Shared {
    pub store: Store,
    /// Which lanes are ours to work.
    pub tenure: Tenure,
    pub ops: Ops,
    pub protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
    /// Wakes the publisher of dead letters.
    pub dead: Arc<tokio::sync::Notify>,
    /// Peers of whom a word would earn an early attempt.
    pub listening: PeerSet,
    /// Peers to whom an operator lets nothing go out.
    pub paused: PeerSet,
    /// Peers whose outcomes are long in coming.
    pub late: PeerSet,
    pub policy: Policy,
    pub limits: Limits,
    /// Attempts in flight in this shard at most, see [`room`].
    pub window: usize,
    pub jitter: f64,
    pub throttle_pause: Duration,
    pub drain: Duration,
}

/// An average above which a peer counts as slow, milliseconds.
const SLOW_MS: f64 = 1_000.0;
/// An average above which the store does not wait for its outcomes, milliseconds.
const LATE_MS: f64 = 150.0;

struct Entry {
    lane: Lane,
    /// Why it is ours.
    hold: Hold,
    /// Exponential average of attempt times, milliseconds; `None`: no attempt has ended yet.
    average_ms: Option<f64>,
    armed: Option<i64>,
    /// Waits in one of the queues for a place in the window.
    starved: bool,
    /// Stands among the lanes that had nothing to do when they were last looked at.
    resting: bool,
    /// Noted as a peer of whom a word would earn an early attempt.
    listening: bool,
    /// Noted as a peer whose outcomes are long in coming.
    late: bool,
    state: metrics::LaneState,
    saving: Saving,
    meter: Meter,
}

impl Entry {
    /// `hangs`: an attempt lasts long.
    fn pace(&self, hangs: bool) -> Pace {
        match self.average_ms {
            _ if hangs || self.lane.facts.failures > 0 => Pace::Slow,
            None => Pace::Unknown,
            Some(ms) if ms > SLOW_MS => Pace::Slow,
            Some(_) => Pace::Fast,
        }
    }

    /// Whether the outcome of what arrives now will be long in coming.
    fn is_late(&self, pace: Pace) -> bool {
        let takes_long = self.average_ms.is_some_and(|ms| ms > LATE_MS);
        takes_long || pace == Pace::Slow || self.lane.is_behind()
    }
}

/// What is remembered of a peer that has no lane.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub facts: Facts,
    average_ms: Option<f64>,
    meter: Meter,
}

impl From<Facts> for Known {
    fn from(facts: Facts) -> Self {
        Self {
            facts,
            average_ms: None,
            meter: Meter::default(),
        }
    }
}

/// The shard's state.
pub struct Shard {
    shared: Shared,
    tools: Tools,
    lanes: HashMap<LaneKey, Entry>,
    /// Peers without a lane, as they are now.
    known: HashMap<LaneKey, Known>,
    wakes: BTreeSet<(i64, LaneKey)>,
    /// Lanes that found no place in the window: slow ones, and the others.
    starved_slow: VecDeque<LaneKey>,
    starved: VecDeque<LaneKey>,
    /// Lanes that had nothing to do, each once.
    resting: VecDeque<LaneKey>,
    tasks: JoinSet<Done>,
    /// Rows that came to their end, which a page read before the commit still shows as pending.
    ended: Ended,
    deliveries: Deliveries,
    /// Highest number whose arrival was taken (they come ascending). A lane that read further from
    /// disk must stay to know those rows when they arrive.
    arrived_to: i64,
    units: units::Serving,
    flights: Flights,
}

impl Shard {
    /// A shard without lanes; `known`: health facts of earlier runs.
    pub fn new(shared: Shared, tools: Tools, known: HashMap<LaneKey, Known>) -> Self {
        Self {
            arrived_to: shared.store.reserve_rows(0).start - 1,
            units: units::Serving::default(),
            flights: Flights::new(shared.window),
            shared,
            tools,
            lanes: HashMap::new(),
            known,
            wakes: BTreeSet::new(),
            starved_slow: VecDeque::new(),
            starved: VecDeque::new(),
            resting: VecDeque::new(),
            tasks: JoinSet::new(),
            ended: Ended::default(),
            deliveries: Deliveries::default(),
        }
    }

    /// Runs until `stop`, then lets attempts in flight end, at most `drain` long.
    pub async fn run(mut self, mut work: mpsc::Receiver<Work>, stop: CancellationToken) {
        loop {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.done(done.ok()),
                Some(w) = work.recv() => self.take(w),
                // Nothing else is ready: what came about meanwhile goes together.
                () = std::future::ready(()), if self.deliveries.any() => self.hand_in(),
                () = tokio::time::sleep(wake.unwrap_or(Duration::MAX)), if wake.is_some() => self.wake(),
            }
        }
        drop(work); // whoever asks something now is told that we stop
        let drained = tokio::time::timeout(self.shared.drain, async {
            loop {
                self.hand_in();
                let Some(done) = self.tasks.join_next().await else {
                    break;
                };
                let Ok(Done::Attempted {
                    lease,
                    fate,
                    commit,
                    ..
                }) = done
                else {
                    continue;
                };
                match commit {
                    Some(Ok(commit)) => {
                        if let Err(error) = commit.await {
                            tracing::warn!(%error, "an outcome could not be recorded while stopping");
                        }
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "an outcome could not be recorded while stopping");
                    }
                    None => fate
                        .settle
                        .into_iter()
                        .for_each(|settle| self.delivered(settle, lease)),
                }
            }
        });
        if drained.await.is_err() {
            tracing::warn!(
                "attempts still in flight at the end of the drain time will be repeated"
            );
        }
    }

    fn next_wake(&self) -> Option<Duration> {
        let due = self.wakes.first().map(|(at, _)| {
            let ms = at.saturating_sub(self.tools.clock.now_ms());
            let ms = ms.clamp(0, 60_000); // no longer: the wall clock may jump meanwhile
            Duration::from_millis(u64::try_from(ms).unwrap_or(0))
        });
        let look = self.flights.look_at();
        let look = look.map(|at| at.saturating_duration_since(Instant::now()));
        [due, look].into_iter().flatten().min()
    }

    fn wake(&mut self) {
        for key in self.flights.look(Instant::now()) {
            self.poke(&key);
        }
        let now = self.tools.clock.now_ms();
        while let Some((at, _)) = self.wakes.first() {
            if *at > now {
                break;
            }
            if let Some((_, key)) = self.wakes.pop_first() {
                if let Some(entry) = self.lanes.get_mut(&key) {
                    entry.armed = None;
                }
                self.poke(&key);
            }
        }
        self.feed();
    }

    /// The lane of a peer that is ours to work.
    fn entry(&mut self, key: &LaneKey) -> &mut Entry {
        let (limits, known, lanes) = (self.shared.limits, &mut self.known, &mut self.lanes);
        let tenure = &self.shared.tenure;
        lanes.entry(key.clone()).or_insert_with(|| {
            let known = known.remove(key).unwrap_or_default();
            metrics::lane_state(None, Some(metrics::LaneState::Healthy));
            Entry {
                lane: Lane::new(limits, known.facts),
                hold: tenure.of_peer(key.0, &key.1),
                average_ms: known.average_ms,
                armed: None,
                starved: false,
                resting: false,
                listening: false,
                late: false,
                state: metrics::LaneState::Healthy,
                saving: Saving::default(),
                meter: known.meter,
            }
        })
    }

    /// Takes a lane without work out of the map; what is known of its peer stays.
    fn retire(&mut self, key: &LaneKey) {
        let Some(entry) = self.lanes.remove(key) else {
            return;
        };
        if let Some(at) = entry.armed {
            self.wakes.remove(&(at, key.clone()));
        }
        if entry.listening {
            self.shared.listening.forget(key);
        }
        if entry.late {
            self.shared.late.forget(key);
        }
        metrics::lane_state(Some(entry.state), None);
        let known = Known {
            facts: entry.lane.facts,
            average_ms: entry.average_ms,
            meter: entry.meter,
        };
        self.known.insert(key.clone(), known);
    }
}
