//! The tasks: attempts, rows buried without one, outcomes on their way to the store.

use std::sync::Arc;
use std::time::Duration;

use super::super::attempt;
use super::super::lane::{Cause, Item};
use super::super::outcome::{self, Terms};
use super::done::Done;
use super::queue::read_until;
use super::room::Pace;
use super::{Entry, LaneKey, Shard};
use crate::clock::random_share;
use crate::ops::metrics;
use crate::protocol::{Protocol, Refusal, Verdict};
use crate::store::{AttemptRow, Commit, Outcome, RowState, Settle, StoreError, StoreErrorKind};

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
        let pace = entry.map_or(Pace::Unknown, Entry::pace);
        let start = item.first_failed_ms.unwrap_or(item.created_ms);
        let paused_ms = entry.map_or(0, |e| {
            e.lane.facts.paused_ms(start, self.tools.clock.now_ms())
        });
        self.room.enter(pace);
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
                    _ => return Done::Gone { lane, item, pace },
                },
            };
            if crate::faults::on("shuffle_keys") {
                tokio::time::sleep(Duration::from_secs_f64(random_share() * 0.1)).await;
            }
            let finished = attempt::run(&tools, &protocol, &lane.1, &item, body).await;
            let now = tools.clock.now_ms();
            // After a jump the first failure's time says nothing: attempts alone end the schedule.
            let base = if tools.clock.steady() {
                item.first_failed_ms
            } else {
                None
            };
            let judged = Item {
                first_failed_ms: base,
                ..item.clone()
            };
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
            let fate = Box::new(outcome::decide(&judged, &finished, now, &terms));
            let commit = match &fate.settle {
                Some(settle) => Some(shared.store.settle(settle.clone()).await),
                None => None,
            };
            Done::Attempted {
                lane,
                item,
                pace,
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
        if counted && let Some(entry) = self.lanes.get_mut(&lane) {
            entry.lane.finished(&item);
        }
        self.settled(settle, None);
    }

    /// Watches an outcome's commit; while the store cannot take it, it is tried again each second.
    pub(super) fn settled(&mut self, settle: Settle, commit: Option<Result<Commit, StoreError>>) {
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
                if error.kind == StoreErrorKind::Closed {
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
}
