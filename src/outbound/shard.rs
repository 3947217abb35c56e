//! A shard: a plain thread with its own runtime and HTTP pool that owns the lanes of its peers.
//!
//! Its heart is one `select!` over finished work, new work and due wakes. Lanes are entries of a
//! map; only an attempt or a read in progress is a task, and their number is bounded.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::attempt::{self, Finished, Tools};
use super::ended::Ended;
use super::lane::{Item, Lane, Limits, Step};
use super::outcome::{self, Fate, HealthNews};
use crate::ops::{Ops, metrics, trace};
use crate::peers::health::{Facts, Policy};
use crate::protocol::{PeerName, Protocol, ProtocolId, Refusal, Verdict};
use crate::store::{AttemptRow, Commit, HealthRow, Outcome, QueueRow, Settle, Store, StoreError};

/// Whose lane.
pub type LaneKey = (ProtocolId, PeerName);

/// What the rest of the bridge tells a shard.
#[derive(Debug)]
pub enum Work {
    /// New rows, already handed to the store.
    Arrivals(Vec<(LaneKey, Item)>),
    /// A lane has rows on disk from this number on.
    Tail(LaneKey, i64),
    /// These rows are past their time: dead, unless they are in flight.
    Expired(Vec<(LaneKey, Item)>),
}

/// What every shard shares.
#[derive(Clone)]
pub struct Shared {
    pub store: Store,
    pub ops: Ops,
    pub protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
    /// Wakes the publisher of dead letters.
    pub dead: Arc<tokio::sync::Notify>,
    pub policy: Policy,
    pub limits: Limits,
    /// Attempts in flight in this shard at most; slow peers may take half.
    pub window: usize,
    pub jitter: f64,
    pub throttle_pause: Duration,
    pub drain: Duration,
    /// Facts known from earlier runs.
    pub health: Arc<HashMap<(String, String), Facts>>,
}

enum Done {
    Attempted {
        lane: LaneKey,
        item: Item,
        slow: bool,
        finished: Finished,
        fate: Box<Fate>,
        commit: Result<Commit, StoreError>,
    },
    /// The row could not be read back or is no longer pending.
    Gone {
        lane: LaneKey,
        item: Item,
        slow: bool,
    },
    Page {
        read: u64,
        lane: LaneKey,
        rows: Vec<QueueRow>,
        asked: usize,
    },
    KeyPage {
        read: u64,
        lane: LaneKey,
        key: Arc<str>,
        rows: Vec<QueueRow>,
        asked: usize,
    },
    Settled(i64),
}

/// An average above which a peer counts as slow, milliseconds.
const SLOW_MS: f64 = 1_000.0;

struct Entry {
    lane: Lane,
    /// Exponential average of attempt times, milliseconds.
    average_ms: f64,
    armed: Option<i64>,
}

impl Entry {
    fn slow(&self) -> bool {
        self.average_ms > SLOW_MS || self.lane.facts.failures > 0
    }
}

/// The shard's state.
pub struct Shard {
    shared: Shared,
    tools: Tools,
    lanes: HashMap<LaneKey, Entry>,
    wakes: BTreeSet<(i64, LaneKey)>,
    /// Lanes that found no room in the shard's window.
    starved: Vec<LaneKey>,
    tasks: JoinSet<Done>,
    /// Rows that came to their end, which a page read before the commit still shows as pending.
    ended: Ended,
    /// Highest number whose arrival was taken (they come ascending). A lane that read further from
    /// disk must stay to know those rows when they arrive.
    arrived_to: i64,
    in_flight: usize,
    slow_in_flight: usize,
}

impl Shard {
    /// An empty shard.
    pub fn new(shared: Shared, tools: Tools) -> Self {
        Self {
            arrived_to: shared.store.reserve_rows(0).start - 1,
            shared,
            tools,
            lanes: HashMap::new(),
            wakes: BTreeSet::new(),
            starved: Vec::new(),
            tasks: JoinSet::new(),
            ended: Ended::default(),
            in_flight: 0,
            slow_in_flight: 0,
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
                () = tokio::time::sleep(wake.unwrap_or(Duration::MAX)), if wake.is_some() => self.wake(),
            }
        }
        let drained = tokio::time::timeout(self.shared.drain, async {
            while let Some(done) = self.tasks.join_next().await {
                if let Ok(Done::Attempted {
                    commit: Ok(commit), ..
                }) = done
                    && let Err(error) = commit.await
                {
                    tracing::warn!(%error, "an outcome could not be recorded while stopping");
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
        let (at, _) = self.wakes.first()?;
        let ms = at
            .saturating_sub(self.tools.clock.now_ms())
            .clamp(0, 60_000); // no longer: the wall clock may jump meanwhile
        Some(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
    }

    fn wake(&mut self) {
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
    }

    fn entry(&mut self, key: &LaneKey) -> &mut Entry {
        let (shared, lanes) = (&self.shared, &mut self.lanes);
        lanes.entry(key.clone()).or_insert_with(|| {
            let facts = shared
                .health
                .get(&(key.0.to_owned(), key.1.to_string()))
                .cloned()
                .unwrap_or_default();
            Entry {
                lane: Lane::new(shared.limits, facts),
                average_ms: 0.0,
                armed: None,
            }
        })
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Arrivals(items) => {
                let mut keys = Vec::new();
                for (key, item) in items {
                    self.arrived_to = self.arrived_to.max(item.id);
                    self.entry(&key).lane.arrive(item);
                    if keys.last() != Some(&key) {
                        keys.push(key);
                    }
                }
                keys.iter().for_each(|key| self.poke(key));
            }
            Work::Tail(key, first) => {
                self.entry(&key).lane.has_tail(first);
                self.poke(&key);
            }
            Work::Expired(items) => {
                for (key, item) in items {
                    if !self.ended.has(item.id) && !self.entry(&key).lane.forget(item.id) {
                        let why = "the time given in Fed-Expires is over".to_owned();
                        self.bury(key.clone(), item, "expired", why, false);
                        self.poke(&key); // its key may be free now
                    }
                }
            }
        }
        metrics::lanes(self.lanes.len());
    }

    /// Does what the lane asks for until it rests.
    fn poke(&mut self, key: &LaneKey) {
        let Some(protocol) = self.shared.protocols.get(key.0).cloned() else {
            return;
        };
        loop {
            let now = self.tools.clock.now_ms();
            let (full, half) = (
                self.in_flight >= self.shared.window,
                self.slow_in_flight * 2 >= self.shared.window,
            );
            let steady = self.tools.clock.steady();
            let Some(entry) = self.lanes.get_mut(key) else {
                return;
            };
            entry.lane.unsteady = !steady;
            let room = !(full || half && entry.slow());
            match entry
                .lane
                .next(&self.shared.policy, protocol.schedule(), now, room)
            {
                Step::Attempt(item) => self.attempt(key.clone(), protocol.clone(), item),
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
                            key: name,
                            rows,
                            asked: limit,
                        }
                    });
                }
                Step::Sleep(at) => {
                    if entry.armed.is_none_or(|t| t > at) {
                        if let Some(old) = entry.armed.replace(at) {
                            self.wakes.remove(&(old, key.clone()));
                        }
                        self.wakes.insert((at, key.clone()));
                    }
                    break;
                }
                Step::Rest => {
                    if entry.lane.is_idle() && entry.lane.loaded_to() <= self.arrived_to {
                        if let Some(at) = entry.armed.take() {
                            self.wakes.remove(&(at, key.clone()));
                        }
                        self.lanes.remove(key);
                        return;
                    }
                    break;
                }
            }
        }
        let starving = self.lanes.get(key).is_some_and(|e| e.lane.has_runnable())
            && (self.in_flight >= self.shared.window
                || self.slow_in_flight * 2 >= self.shared.window);
        if starving && !self.starved.contains(key) {
            self.starved.push(key.clone());
        }
    }

    fn attempt(&mut self, lane: LaneKey, protocol: Arc<dyn Protocol>, item: Item) {
        self.in_flight += 1;
        let slow = self.lanes.get(&lane).is_some_and(Entry::slow);
        self.slow_in_flight += usize::from(slow);
        metrics::in_flight_add(1);
        let (tools, shared) = (self.tools.clone(), self.shared.clone());
        self.tasks.spawn(async move {
            let body = match &item.body {
                Some(body) => body.clone(),
                None => match shared.store.row(item.id).await {
                    Ok(Some(row)) if row.state == crate::store::RowState::Pending => row.body,
                    Ok(_) => return Done::Gone { lane, item, slow },
                    Err(error) => {
                        tracing::warn!(%error, queue_id = item.id, "the row could not be read back");
                        read_until(|| shared.store.row(item.id)).await.map_or_else(Default::default, |r| r.body)
                    }
                },
            };
            if crate::faults::on("shuffle_keys") {
                tokio::time::sleep(Duration::from_secs_f64(random_share() * 0.1)).await;
            }
            let finished = attempt::run(&tools, &protocol, &lane.1, &item, body).await;
            let now = tools.clock.now_ms();
            let jitter = shared.jitter * random_share();
            // After a jump the first failure's time says nothing: attempts alone end the schedule.
            let base = if tools.clock.steady() { item.first_failed_ms } else { None };
            let judged = Item { first_failed_ms: base, ..item.clone() };
            let fate =
                Box::new(outcome::decide(&judged, &finished, protocol.schedule(), now, jitter, shared.throttle_pause));
            let commit = shared.store.settle(fate.settle.clone()).await;
            Done::Attempted { lane, item, slow, finished, fate, commit }
        });
    }

    /// A row that dies without an attempt.
    fn bury(&mut self, lane: LaneKey, item: Item, code: &'static str, why: String, counted: bool) {
        let now = self.tools.clock.now_ms();
        let settle = Settle {
            row: item.id,
            outcome: Outcome::Dead {
                at_ms: now,
                code: code.to_owned(),
                reason: why.clone(),
            },
            attempts: item.attempts,
            attempt: Some(AttemptRow {
                queue_id: item.id,
                number: item.attempts,
                at_ms: now,
                duration_ms: 0,
                status: None,
                code: code.to_owned(),
                detail: why.clone(),
            }),
        };
        self.ended.add(item.id);
        self.report_dead(&lane, &item, item.attempts, &Refusal::new(code, why));
        if counted && let Some(entry) = self.lanes.get_mut(&lane) {
            entry.lane.finished(&item);
        }
        self.settled(settle, None);
    }

    fn done(&mut self, done: Option<Done>) {
        match done {
            Some(Done::Attempted {
                lane,
                item,
                slow,
                finished,
                fate,
                commit,
            }) => {
                self.left_flight(slow);
                self.attempted(&lane, item, &finished, *fate, commit);
            }
            Some(Done::Gone { lane, item, slow }) => {
                self.left_flight(slow);
                if let Some(entry) = self.lanes.get_mut(&lane) {
                    entry.lane.finished(&item);
                }
                self.poke(&lane);
            }
            Some(Done::Page {
                read,
                lane,
                mut rows,
                asked,
            }) => {
                let full = rows.len() >= asked;
                let last = rows.last().map(|r| r.id);
                rows.retain(|r| !self.ended.has(r.id));
                self.ended.read_ends(read);
                if let Some(entry) = self.lanes.get_mut(&lane) {
                    entry.lane.loaded(rows, full, last);
                }
                self.poke(&lane);
            }
            Some(Done::KeyPage {
                read,
                lane,
                key,
                mut rows,
                asked,
            }) => {
                let full = rows.len() >= asked;
                let last = rows.last().map(|r| r.id);
                rows.retain(|r| !self.ended.has(r.id));
                self.ended.read_ends(read);
                if let Some(entry) = self.lanes.get_mut(&lane) {
                    entry.lane.loaded_key(&key, rows, asked, full, last);
                }
                self.poke(&lane);
            }
            Some(Done::Settled(id)) => {
                self.ended.committed(id);
            }
            None => tracing::error!("a delivery task ended abnormally"),
        }
        if self.in_flight < self.shared.window {
            for key in std::mem::take(&mut self.starved) {
                self.poke(&key);
            }
        }
    }

    fn left_flight(&mut self, slow: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.slow_in_flight = self.slow_in_flight.saturating_sub(usize::from(slow));
        metrics::in_flight_add(-1);
    }

    fn attempted(
        &mut self,
        lane: &LaneKey,
        item: Item,
        finished: &Finished,
        fate: Fate,
        commit: Result<Commit, StoreError>,
    ) {
        let now = self.tools.clock.now_ms();
        if fate.waits.is_none() {
            self.ended.add(item.id);
        }
        self.settled(fate.settle.clone(), Some(commit));
        self.report(lane, &item, finished, &fate);
        let policy = self.shared.policy;
        let mut changed = None;
        if let Some(entry) = self.lanes.get_mut(lane) {
            entry.average_ms = entry.average_ms * 0.8 + finished.elapsed.as_secs_f64() * 200.0;
            let code = fate.reason.as_ref().map_or("", |r| r.code);
            match fate.health {
                HealthNews::Good if entry.lane.succeeded(&policy, now) => {
                    changed = Some("recovered")
                }
                HealthNews::Bad if entry.lane.failed(&policy, finished.started_ms, now, code) => {
                    changed = Some("open")
                }
                HealthNews::Patience(until) => {
                    entry.lane.facts.throttled(until);
                    changed = Some("throttled");
                }
                HealthNews::Good | HealthNews::Bad | HealthNews::None => {}
            }
            match fate.waits {
                Some(next) => entry.lane.waits(next, &policy),
                None => entry.lane.finished(&item),
            }
        }
        if let Some(what) = changed {
            self.health_changed(lane, what);
        }
        self.poke(lane);
    }

    /// Watches an outcome's commit; while the store cannot take it, it is tried again each second.
    fn settled(&mut self, settle: Settle, commit: Option<Result<Commit, StoreError>>) {
        let (store, dead) = (self.shared.store.clone(), self.shared.dead.clone());
        let is_dead = matches!(settle.outcome, Outcome::Dead { .. });
        self.tasks.spawn(async move {
            let mut commit = commit;
            loop {
                let queued = match commit.take() {
                    Some(queued) => queued,
                    None => store.settle(settle.clone()).await,
                };
                let error = match queued {
                    Ok(commit) => match commit.await {
                        Ok(()) => break,
                        Err(e) => e,
                    },
                    Err(e) => e,
                };
                if error.kind == crate::store::StoreErrorKind::Closed {
                    break;
                }
                tracing::warn!(%error, queue_id = settle.row, "an outcome waits for the store");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            if is_dead {
                dead.notify_one();
            }
            Done::Settled(settle.row)
        });
    }

    fn health_changed(&self, lane: &LaneKey, what: &'static str) {
        let Some(entry) = self.lanes.get(lane) else {
            return;
        };
        let facts = &entry.lane.facts;
        tracing::info!(protocol = lane.0, peer = %lane.1, failures = facts.failures, code = facts.last_code, "peer {what}");
        self.shared
            .ops
            .event("peer", what, lane.0, lane.1.as_str(), json!(facts));
        let Ok(text) = serde_json::to_string(facts) else {
            return;
        };
        let row = HealthRow {
            protocol: lane.0.to_owned(),
            peer: lane.1.to_string(),
            facts: text,
        };
        let store = self.shared.store.clone();
        tokio::spawn(async move {
            if let Err(error) = store.put_health(row).await {
                tracing::debug!(%error, "the peer's health was not stored");
            }
        });
    }

    fn report(&self, lane: &LaneKey, item: &Item, finished: &Finished, fate: &Fate) {
        let said = |attempts: u32, reason: &Refusal| {
            let body = json!({"msg_id": item.msg_id, "out_seq": item.out_seq, "event_id": item.event_id, "peer": lane.1.as_str(),
                "attempts": attempts, "code": reason.code, "detail": reason.detail, "queue_id": item.id});
            trace::named(body, item.traceparent.as_deref())
        };
        let (ops, peer) = (&self.shared.ops, lane.1.as_str());
        match (&fate.settle.outcome, &fate.reason) {
            (Outcome::Delivered { .. }, _) => {
                ops.tally("delivery", "delivered", lane.0, peer, || {
                    let code = if finished.verdict == Verdict::Duplicate {
                        "duplicate"
                    } else {
                        "delivered"
                    };
                    said(fate.settle.attempts, &Refusal::new(code, ""))
                })
            }
            (Outcome::Retry { next_at_ms, .. }, Some(reason)) => {
                metrics::retry(lane.0);
                let mut body = said(fate.settle.attempts, reason);
                body["next_at_ms"] = json!(next_at_ms);
                ops.event("delivery", "retrying", lane.0, peer, body);
            }
            (Outcome::Dead { .. }, Some(reason)) => {
                self.report_dead(lane, item, fate.settle.attempts, reason)
            }
            (Outcome::Held { .. }, Some(reason)) => {
                ops.event(
                    "delivery",
                    "held",
                    lane.0,
                    peer,
                    said(fate.settle.attempts, reason),
                );
            }
            _ => {}
        }
    }

    fn report_dead(&self, lane: &LaneKey, item: &Item, attempts: u32, reason: &Refusal) {
        metrics::dead(lane.0, reason.code);
        tracing::warn!(
            protocol = lane.0, peer = %lane.1, queue_id = item.id, event_id = item.event_id, msg_id = item.msg_id,
            attempts, code = reason.code, reason = reason.detail, "federation delivery failed for good"
        );
        let body = json!({"msg_id": item.msg_id, "out_seq": item.out_seq, "event_id": item.event_id,
            "peer": lane.1.as_str(), "attempts": attempts, "code": reason.code, "detail": reason.detail,
            "queue_id": item.id});
        let body = trace::named(body, item.traceparent.as_deref());
        self.shared
            .ops
            .event("delivery", "dead", lane.0, lane.1.as_str(), body);
    }
}

/// Reads, trying again each second while the store cannot answer; a closed store answers nothing.
async fn read_until<T, F, R>(mut read: F) -> T
where
    T: Default,
    F: FnMut() -> R,
    R: Future<Output = Result<T, StoreError>>,
{
    loop {
        match read().await {
            Ok(value) => return value,
            Err(e) if e.kind == crate::store::StoreErrorKind::Closed => return T::default(),
            Err(error) => {
                tracing::warn!(%error, "the queue cannot be read");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// A random share from 0 to 1.
fn random_share() -> f64 {
    let mut bytes = [0u8; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}
