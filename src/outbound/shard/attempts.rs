//! The tasks: attempts, rows buried without one, outcomes on their way to the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::attempt;
use super::super::lane::{Cause, Item};
use super::super::outcome::{self, Terms};
use super::delivered::is_plain;
use super::done::Done;
use super::queue::read_until;
use super::room::Pace;
use super::{LaneKey, Shard};
use crate::clock::random_share;
use crate::cluster::Hold;
use crate::faults;
use crate::ops::metrics;
use crate::protocol::{Protocol, Refusal, Verdict};
use crate::store::{
    AttemptRow, Commit, Lease, Outcome, RowState, Settle, StoreError, StoreErrorKind,
};

impl Shard {
    /// Begins an attempt.
    pub(super) fn attempt(
        &mut self,
        lane: LaneKey,
        protocol: Arc<dyn Protocol>,
        item: Item,
        cause: Cause,
    ) {
        let entry = self.lanes.get(&lane);
        let hold = entry.map_or(Hold::NotOurs, |e| e.hold.clone());
        let pace = entry.map_or(Pace::Unknown, |e| e.pace(self.flights.hangs(&lane)));
        let start = item.first_failed_ms.unwrap_or(item.created_ms);
        let paused_ms = entry.map_or(0, |e| {
            e.lane.facts.paused_ms(start, self.tools.clock.now_ms())
        });
        let flight = self.flights.begins(&lane, pace, Instant::now());
        let lease = hold.lease();
        self.units.begins(lease);
        metrics::in_flight_add(1);
        if cause != Cause::Due {
            metrics::probe(lane.0);
            tracing::debug!(protocol = lane.0, peer = %lane.1, queue_id = item.id, "a row is tried before its time");
        }
        let (tools, shared) = (self.tools.clone(), self.shared.clone());
        self.tasks.spawn(async move {
            let body = match &item.body {
                Some(body) => body.clone(),
                // Read after everything handed to the writer before, and again until the store answers.
                None => match read_until(|| shared.store.row(item.id)).await {
                    Some(row) if row.state == RowState::Pending => row.body,
                    _ => {
                        return Done::Gone {
                            lane,
                            lease,
                            item,
                            flight,
                        };
                    }
                },
            };
            if lease.is_some() {
                // Looked up first: what takes long comes before the last look at the lease.
                let _ = tools.peers.resolve(&protocol, &lane.1).await;
                if !hold.may_begin() {
                    return Done::Unsure {
                        lane,
                        lease,
                        item,
                        flight,
                    };
                }
            }
            if faults::on("shuffle_keys") {
                tokio::time::sleep(Duration::from_secs_f64(random_share() * 0.1)).await;
            }
            let finished = attempt::run(&tools, &protocol, &lane.1, &item, body).await;
            let now = tools.clock.now_ms();
            let terms = Terms {
                schedule: protocol.schedule(),
                // Only a row that goes on waiting needs it.
                jitter: match finished.verdict {
                    Verdict::Delivered | Verdict::Duplicate => 0.0,
                    _ => shared.jitter * random_share(),
                },
                patience: shared.throttle_pause,
                paused_ms,
                cause,
            };
            // After a jump the first failure's time says nothing: attempts alone end the schedule.
            let fate = if tools.clock.steady() || item.first_failed_ms.is_none() {
                outcome::decide(&item, &finished, now, &terms)
            } else {
                let judged = Item {
                    first_failed_ms: None,
                    ..item.clone()
                };
                outcome::decide(&judged, &finished, now, &terms)
            };
            let fate = Box::new(fate);
            faults::crash_point("out_settling");
            let commit = match &fate.settle {
                // It is handed in with others, later: nothing that is read of the row counts any more.
                Some(settle) if is_plain(settle) => None,
                Some(settle) => Some(shared.store.settle_under(lease, settle.clone()).await),
                None => None,
            };
            Done::Attempted {
                lane,
                lease,
                item,
                flight,
                cause,
                finished,
                fate,
                commit,
            }
        });
    }

    /// A row that dies without an attempt.
    pub(super) fn bury(
        &mut self,
        lane: LaneKey,
        item: Item,
        code: &'static str,
        why: String,
        counted: bool,
    ) {
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
        let mut lease = None;
        if let Some(entry) = self.lanes.get_mut(&lane) {
            lease = entry.hold.lease();
            if counted {
                entry.lane.finished(&item);
            }
        }
        self.settled(settle, lease, None);
    }

    /// Watches an outcome's commit; while the store cannot take it, it is tried again each second.
    /// One under a lease that was lost is not tried again: the row is another's.
    pub(super) fn settled(
        &mut self,
        settle: Settle,
        lease: Option<Lease>,
        commit: Option<Result<Commit, StoreError>>,
    ) {
        self.units.begins(lease);
        let (store, dead) = (self.shared.store.clone(), self.shared.dead.clone());
        let is_dead = matches!(settle.outcome, Outcome::Dead { .. });
        self.tasks.spawn(async move {
            let mut commit = commit;
            loop {
                let queued = match commit.take() {
                    Some(queued) => queued,
                    None => store.settle_under(lease, settle.clone()).await,
                };
                let error = match queued {
                    Ok(commit) => match commit.await {
                        Ok(()) => {
                            faults::crash_point("out_settled");
                            break;
                        }
                        Err(e) => e,
                    },
                    Err(e) => e,
                };
                if matches!(error.kind, StoreErrorKind::Closed | StoreErrorKind::Fenced) {
                    tracing::debug!(%error, queue_id = settle.row, "an outcome is not written");
                    break;
                }
                tracing::warn!(%error, queue_id = settle.row, "an outcome waits for the store");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            if is_dead {
                dead.notify_one();
            }
            Done::Settled(settle.row, lease)
        });
    }
}
