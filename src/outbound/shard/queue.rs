//! Asking a lane what to do, and who waits for a place in the window.

use std::time::{Duration, Instant};

use super::super::lane::Step;
use super::done::Done;
use super::room::Pace;
use super::{Entry, LaneKey, Shard};
use crate::ops::metrics::{self, LaneState};
use crate::store::{StoreError, StoreErrorKind};

/// Lanes asked in vain for each place that becomes free, while other attempts are in flight.
const TRIES: usize = 16;
/// A lane whose lease is not surely ours is looked at again after so long.
const UNSURE: Duration = Duration::from_millis(500);
/// Lanes without work that are kept.
const MAX_RESTING: usize = 128;

impl Shard {
    /// Does what the lane asks for until it rests.
    pub(super) fn poke(&mut self, key: &LaneKey) {
        let Some(protocol) = self.shared.protocols.get(key.0).cloned() else {
            return;
        };
        let mut resumed = false;
        loop {
            let now = self.tools.clock.now_ms();
            let steady = self.tools.clock.steady();
            let hangs = self.flights.hangs(key);
            let Some(entry) = self.lanes.get_mut(key) else {
                return;
            };
            entry.lane.unsteady = !steady;
            entry.lane.leaves_by(protocol.via(&key.1));
            resumed |= entry.lane.pause_ran_out(now);
            let (per_minute, instant) = (protocol.pace(&key.1), Instant::now());
            let mut metered = per_minute.and_then(|limit| entry.meter.wait(limit, instant));
            if !entry.hold.may_begin() {
                // It is known soon whether the lane is still ours.
                metered = Some(UNSURE);
            }
            let lease = entry.hold.lease();
            let full = self.deliveries.too_many();
            let room = metered.is_none()
                && !full
                && self
                    .flights
                    .room
                    .admits(entry.pace(hangs), entry.lane.in_flight());
            match entry
                .lane
                .next(&self.shared.policy, protocol.schedule(), now, room)
            {
                Step::Attempt(item, cause) => {
                    if let Some(limit) = per_minute {
                        entry.meter.spend(limit, instant);
                    }
                    self.attempt(key.clone(), protocol.clone(), item, cause);
                }
                Step::Dead(item, code, why) => self.bury(key.clone(), item, code, why, true),
                Step::Load { after, limit } => {
                    let (store, lane) = (self.shared.store.clone(), key.clone());
                    let read = self.ended.read_begins();
                    self.tasks.spawn(async move {
                        let rows =
                            read_until(|| store.pending(lane.0, &lane.1, after, limit)).await;
                        Done::Page {
                            read,
                            lane,
                            lease,
                            rows,
                            asked: limit,
                        }
                    });
                }
                Step::LoadKey {
                    key: name,
                    from,
                    limit,
                } => {
                    let (store, lane) = (self.shared.store.clone(), key.clone());
                    let read = self.ended.read_begins();
                    self.tasks.spawn(async move {
                        let rows = read_until(|| {
                            store.pending_of_key(lane.0, &lane.1, &name, from, limit)
                        })
                        .await;
                        Done::KeyPage {
                            read,
                            lane,
                            lease,
                            key: name,
                            rows,
                            asked: limit,
                        }
                    });
                }
                step @ (Step::Sleep(_) | Step::Rest) => {
                    let sleeps = match step {
                        Step::Sleep(at) => Some(at),
                        _ => None,
                    };
                    // What the meter holds back is runnable, and no end of an attempt may wake it.
                    let held = metered.filter(|_| entry.lane.has_runnable()).map(|wait| {
                        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
                        now.saturating_add(wait).saturating_add(1)
                    });
                    let wake = match (sleeps, held) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                    if let Some(at) = wake
                        && entry.armed.is_none_or(|t| t > at)
                    {
                        if let Some(old) = entry.armed.replace(at) {
                            self.wakes.remove(&(old, key.clone()));
                        }
                        self.wakes.insert((at, key.clone()));
                    }
                    if sleeps.is_none() && entry.lane.is_idle() && !entry.resting {
                        entry.resting = true;
                        self.resting.push_back(key.clone());
                    }
                    break;
                }
            }
        }
        self.settle_in(key);
        if resumed {
            self.health_changed(key, "resumed");
        }
        self.make_room();
    }

    /// Lets lanes go that have nothing to do, the ones that rest longest first. Some are kept: a
    /// peer that gets a message now and then would have its lane made anew for each.
    fn make_room(&mut self) {
        while self.resting.len() > MAX_RESTING
            && let Some(key) = self.resting.pop_front()
        {
            let Some(entry) = self.lanes.get_mut(&key) else {
                continue;
            };
            entry.resting = false;
            // One that is busy now comes here again when it rests.
            let over = entry.lane.is_idle() && entry.saving.is_idle();
            let met_to = entry.lane.met_to();
            if over
                && self
                    .lanes
                    .get(&key)
                    .is_some_and(|e| met_to <= self.arrived_for(e))
            {
                self.retire(&key);
            }
        }
    }

    /// Notes what a lane waits for besides the time.
    fn settle_in(&mut self, key: &LaneKey) {
        let now = self.tools.clock.now_ms();
        let Some(entry) = self.lanes.get_mut(key) else {
            return;
        };
        let pace = entry.pace(self.flights.hangs(key));
        // The end of its one attempt brings it here again.
        let tries = pace == Pace::Unknown && entry.lane.in_flight() > 0;
        if !tries
            && entry.lane.has_runnable()
            && !entry.starved
            && (self.deliveries.too_many()
                || !self.flights.room.admits(pace, entry.lane.in_flight()))
            && entry.lane.in_flight() < entry.lane.window()
        {
            entry.starved = true;
            match pace {
                Pace::Slow => self.starved_slow.push_back(key.clone()),
                Pace::Unknown | Pace::Fast => self.starved.push_back(key.clone()),
            }
        }
        if entry.resting && entry.lane.is_idle() {
            entry.lane.shrink();
        }
        let listens = entry.lane.would_listen(now);
        if listens != entry.listening {
            entry.listening = listens;
            if listens {
                self.shared.listening.note(key);
            } else {
                self.shared.listening.forget(key);
            }
        }
        let late = entry.is_late(pace);
        if late != entry.late {
            entry.late = late;
            if late {
                self.shared.late.note(key);
            } else {
                self.shared.late.forget(key);
            }
        }
        let state = state_of(entry, &self.shared.policy);
        if state != entry.state {
            metrics::lane_state(Some(entry.state), Some(state));
            entry.state = state;
        }
    }

    /// Gives free places to those who have waited longest.
    pub(super) fn feed(&mut self) {
        let mut in_vain = 0;
        for slow in [false, true] {
            let waiting = if slow {
                self.starved_slow.len()
            } else {
                self.starved.len()
            };
            for _ in 0..waiting {
                let room = &self.flights.room;
                let full = match slow {
                    true => room.slow_is_full(),
                    false => room.is_full(),
                };
                if full || self.deliveries.too_many() {
                    break;
                }
                // While attempts are in flight, their ends bring further tries.
                if in_vain >= TRIES && self.flights.room.in_flight() > 0 {
                    return;
                }
                let next = if slow {
                    self.starved_slow.pop_front()
                } else {
                    self.starved.pop_front()
                };
                let Some(key) = next else { break };
                let before = self.flights.room.in_flight();
                if let Some(entry) = self.lanes.get_mut(&key) {
                    entry.starved = false;
                    self.poke(&key);
                }
                in_vain += usize::from(self.flights.room.in_flight() <= before);
            }
        }
    }
}

fn state_of(entry: &Entry, policy: &crate::peers::health::Policy) -> LaneState {
    let facts = &entry.lane.facts;
    if facts.pause.is_some() {
        LaneState::Paused
    } else if facts.tripped(policy) {
        LaneState::Open
    } else if facts.failures > 0 {
        LaneState::BackingOff
    } else {
        LaneState::Healthy
    }
}

/// Reads, trying again each second while the store cannot answer; a closed store answers nothing.
pub(super) async fn read_until<T, F, R>(mut read: F) -> T
where
    T: Default,
    F: FnMut() -> R,
    R: Future<Output = Result<T, StoreError>>,
{
    loop {
        match read().await {
            Ok(value) => return value,
            Err(e) if e.kind == StoreErrorKind::Closed => return T::default(),
            Err(error) => {
                tracing::warn!(%error, "the queue cannot be read");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
