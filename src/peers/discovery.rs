//! The limits of discovery: one flight a peer, so many at once, failures remembered, refreshes rare.
//!
//! Strangers choose names that we then look up, so everything here is bounded: flights, remembered
//! failures, remembered refreshes. All bookkeeping is one small lock, never held over an await and
//! never taken by a delivery to a peer that is known.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::undiscovered;
use crate::clock::UnixMs;
use crate::protocol::{PeerName, PeerRecord, ProtocolId, TransportError};

/// One discovery takes at most this long.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// Discoveries running at once.
const AT_ONCE: usize = 64;
/// Discoveries running or waiting for a place.
const WAITING: usize = 1_024;
/// A failure answers for the peer this long.
const FAILED_MS: i64 = 30_000;
/// A peer is looked up anew no more often than this.
const REFRESH_MS: i64 = 60_000;
/// Failures and refreshes remembered.
const REMEMBERED: usize = 10_000;

type Key = (ProtocolId, PeerName);
type Outcome = Result<Arc<PeerRecord>, TransportError>;

/// What a caller gets.
pub(super) enum Ticket {
    /// Known after all.
    Here(Arc<PeerRecord>),
    /// Failed within the last 30 s.
    FailedLately(TransportError),
    /// Looked up anew within the last 60 s.
    Limited,
    /// Wait for this one.
    Flying(Flight),
}

/// A discovery under way, shared by all who wait.
pub(super) struct Flight(watch::Receiver<Option<Outcome>>);

impl Flight {
    pub(super) async fn outcome(mut self, name: &PeerName) -> Outcome {
        match self.0.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or_else(|| Err(interrupted(name))),
            Err(_) => Err(interrupted(name)),
        }
    }
}

/// The duty to run a discovery. Dropped without landing (shutdown, panic), those who wait are told
/// and the next caller may start again.
pub(super) struct Takeoff {
    key: Key,
    sender: watch::Sender<Option<Outcome>>,
    state: Arc<Mutex<State>>,
}

impl Takeoff {
    pub(super) fn name(&self) -> &PeerName {
        &self.key.1
    }
}

impl Drop for Takeoff {
    fn drop(&mut self) {
        lock(&self.state).flying.remove(&self.key);
    }
}

#[derive(Default)]
struct State {
    flying: HashMap<Key, watch::Receiver<Option<Outcome>>>,
    /// When it failed, and how.
    failed: HashMap<Key, (UnixMs, TransportError)>,
    refreshed: HashMap<Key, UnixMs>,
}

pub(super) struct Discoveries {
    state: Arc<Mutex<State>>,
    places: Semaphore,
}

impl Discoveries {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::default(),
            places: Semaphore::new(AT_ONCE),
        }
    }

    /// Joins the flight for this peer or starts one: then the caller has to run it. `anew`: it is a
    /// refresh, limited by its own rule. `fresh` is asked under the lock, so that a flight that has
    /// just landed is not flown again.
    pub(super) fn ticket(
        &self,
        protocol: ProtocolId,
        name: &PeerName,
        anew: bool,
        now: UnixMs,
        fresh: impl FnOnce() -> Option<Arc<PeerRecord>>,
    ) -> Result<(Ticket, Option<Takeoff>), TransportError> {
        let key = (protocol, name.clone());
        let mut state = lock(&self.state);
        if let Some(flight) = state.flying.get(&key) {
            return Ok((Ticket::Flying(Flight(flight.clone())), None));
        }
        if let Some(record) = fresh() {
            return Ok((Ticket::Here(record), None));
        }
        if !anew
            && let Some((at, error)) = state.failed.get(&key)
            && is_within(*at, FAILED_MS, now)
        {
            return Ok((Ticket::FailedLately(error.clone()), None));
        }
        if state.flying.len() >= WAITING {
            return Err(crowded(name));
        }
        if anew {
            let lately = state.refreshed.get(&key);
            if lately.is_some_and(|at| is_within(*at, REFRESH_MS, now)) {
                return Ok((Ticket::Limited, None));
            }
            make_room(&mut state.refreshed, |at| is_within(*at, REFRESH_MS, now));
            if state.refreshed.len() >= REMEMBERED {
                return Ok((Ticket::Limited, None));
            }
            state.refreshed.insert(key.clone(), now);
        }
        let (sender, receiver) = watch::channel(None);
        state.flying.insert(key.clone(), receiver.clone());
        let takeoff = Takeoff {
            key,
            sender,
            state: Arc::clone(&self.state),
        };
        Ok((Ticket::Flying(Flight(receiver)), Some(takeoff)))
    }

    /// What is remembered of this peer counts no more: the next look-up is made.
    pub(super) fn forget(&self, protocol: &str, name: &PeerName) {
        let mut state = lock(&self.state);
        let other = |key: &Key| key.0 != protocol || key.1 != *name;
        state.failed.retain(|key, _| other(key));
        state.refreshed.retain(|key, _| other(key));
    }

    /// A place to run in; `None` when none came free in time.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        tokio::time::timeout(LIMIT, self.places.acquire())
            .await
            .ok()?
            .ok()
    }

    /// Ends a flight: remembers a failure if it says something about the peer, tells all who wait.
    pub(super) fn land(&self, takeoff: Takeoff, outcome: Outcome, remember: bool, now: UnixMs) {
        {
            let mut state = lock(&self.state);
            match &outcome {
                Ok(_) => {
                    state.failed.remove(&takeoff.key);
                }
                Err(error) if remember => {
                    make_room(&mut state.failed, |(at, _)| is_within(*at, FAILED_MS, now));
                    if state.failed.len() < REMEMBERED {
                        state
                            .failed
                            .insert(takeoff.key.clone(), (now, error.clone()));
                    }
                }
                Err(_) => {}
            }
        }
        // Whoever joins until `takeoff` is dropped gets this outcome too.
        takeoff.sender.send_replace(Some(outcome));
    }
}

/// Both ways, so that a clock set back does not keep a failure alive.
fn is_within(at: UnixMs, span: i64, now: UnixMs) -> bool {
    (0..span).contains(&now.saturating_sub(at))
}

fn make_room<V>(map: &mut HashMap<Key, V>, keep: impl Fn(&V) -> bool) {
    if map.len() >= REMEMBERED {
        map.retain(|_, value| keep(value));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn crowded(name: &PeerName) -> TransportError {
    undiscovered(format!(
        "{name} was not looked up: too many look-ups are under way; try again later"
    ))
}

pub(super) fn too_slow(name: &PeerName) -> TransportError {
    undiscovered(format!(
        "looking up {name} did not finish within {} s",
        LIMIT.as_secs()
    ))
}

pub(super) fn no_endpoint(name: &PeerName) -> TransportError {
    undiscovered(format!("looking up {name} gave no endpoint"))
}

fn interrupted(name: &PeerName) -> TransportError {
    undiscovered(format!("looking up {name} was interrupted"))
}
