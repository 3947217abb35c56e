//! From a judged attempt to what becomes of the row: one pure function.

use std::time::Duration;

use super::attempt::Finished;
use super::lane::Item;
use super::schedule::{self, Next, ms};
use crate::clock::UnixMs;
use crate::protocol::{Fault, Refusal, Schedule, Verdict};
use crate::store::{AttemptRow, Outcome, Settle};

/// The row's fate and what the lane has to know.
#[derive(Debug)]
pub struct Fate {
    pub settle: Settle,
    /// The row as it goes on waiting; `None`: it left.
    pub waits: Option<Item>,
    /// What the peer's health learns.
    pub health: HealthNews,
    /// Why, where it is not delivered.
    pub reason: Option<Refusal>,
}

/// What an attempt says of the peer as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthNews {
    /// It took something or spoke the protocol.
    Good,
    /// It is in trouble.
    Bad,
    /// It asked for patience until then.
    Patience(UnixMs),
    /// Nothing.
    None,
}

/// Decides. `jitter` is the share of a delay to add; `pause` the patience with a 429 that names none.
pub fn decide(
    item: &Item,
    finished: &Finished,
    schedule: &Schedule,
    now: UnixMs,
    jitter: f64,
    pause: Duration,
) -> Fate {
    let made = item.attempts + 1;
    let row = |code: &str, detail: &str| {
        Some(AttemptRow {
            queue_id: item.id,
            number: made,
            at_ms: finished.started_ms,
            duration_ms: u64::try_from(finished.elapsed.as_millis()).unwrap_or(u64::MAX),
            status: finished.status,
            code: code.to_owned(),
            detail: detail.to_owned(),
        })
    };
    let left = |outcome, attempt, health, reason| Fate {
        settle: Settle {
            row: item.id,
            outcome,
            attempts: made,
            attempt,
        },
        waits: None,
        health,
        reason,
    };
    match &finished.verdict {
        Verdict::Delivered | Verdict::Duplicate => {
            let attempt = if made > 1 { row("delivered", "") } else { None };
            left(
                Outcome::Delivered { at_ms: now },
                attempt,
                HealthNews::Good,
                None,
            )
        }
        Verdict::Refused(why) => {
            let outcome = Outcome::Dead {
                at_ms: now,
                code: why.code.to_owned(),
                reason: why.detail.clone(),
            };
            let health = if finished.status.is_some() {
                HealthNews::Good
            } else {
                HealthNews::None
            };
            left(
                outcome,
                row(why.code, &why.detail),
                health,
                Some(why.clone()),
            )
        }
        Verdict::Hold(why) => {
            let outcome = Outcome::Held {
                code: why.code.to_owned(),
                reason: why.detail.clone(),
            };
            left(
                outcome,
                row(why.code, &why.detail),
                HealthNews::Good,
                Some(why.clone()),
            )
        }
        Verdict::Retry {
            fault,
            reason,
            after: None,
        } => {
            let first = item.first_failed_ms.unwrap_or(now);
            let next = schedule::after_failure(schedule, made, first, now, jitter);
            let health = if *fault == Fault::Peer {
                HealthNews::Bad
            } else {
                HealthNews::Good
            };
            goes_on(
                item,
                next,
                made,
                first,
                *fault == Fault::Peer,
                reason,
                row(reason.code, &reason.detail),
                health,
                now,
            )
        }
        Verdict::Retry {
            reason,
            after: Some(patience),
            ..
        } => patient(
            item,
            finished,
            schedule,
            now,
            *patience,
            reason,
            row(reason.code, &reason.detail),
        ),
        Verdict::Throttled { reason, after } => patient(
            item,
            finished,
            schedule,
            now,
            after.unwrap_or(pause),
            reason,
            row(reason.code, &reason.detail),
        ),
        // `attempt::run` resolves these two.
        Verdict::Again | Verdict::Rediscover(_) => {
            let why = Refusal::new("undecided", "the attempt ended without a verdict");
            let first = item.first_failed_ms.unwrap_or(now);
            let next = schedule::after_failure(schedule, made, first, now, jitter);
            goes_on(
                item,
                next,
                made,
                first,
                false,
                &why,
                row(why.code, &why.detail),
                HealthNews::None,
                now,
            )
        }
    }
}

/// The peer asked for patience: the next attempt moves, none is used up.
fn patient(
    item: &Item,
    finished: &Finished,
    schedule: &Schedule,
    now: UnixMs,
    patience: Duration,
    why: &Refusal,
    attempt: Option<AttemptRow>,
) -> Fate {
    let first = item.first_failed_ms.unwrap_or(now);
    let until = now.saturating_add(ms(patience.min(schedule::MAX_PATIENCE)));
    let next = schedule::after_patience(schedule, first, now, patience);
    let whole_peer = matches!(
        finished.verdict,
        Verdict::Throttled { .. }
            | Verdict::Retry {
                fault: Fault::Peer,
                ..
            }
    );
    let health = if whole_peer {
        HealthNews::Patience(until)
    } else {
        HealthNews::None
    };
    goes_on(
        item,
        next,
        item.attempts,
        first,
        whole_peer,
        why,
        attempt,
        health,
        now,
    )
}

#[allow(clippy::too_many_arguments)] // one call, one place where a row is built
fn goes_on(
    item: &Item,
    next: Next,
    attempts: u32,
    first_failed_ms: UnixMs,
    peer_fault: bool,
    why: &Refusal,
    attempt: Option<AttemptRow>,
    health: HealthNews,
    now: UnixMs,
) -> Fate {
    let (outcome, waits) = match next {
        Next::At(next_at_ms) => (
            Outcome::Retry {
                first_failed_ms,
                next_at_ms,
                peer_fault,
                code: why.code.to_owned(),
                reason: why.detail.clone(),
            },
            Some(Item {
                attempts,
                first_failed_ms: Some(first_failed_ms),
                next_at_ms,
                peer_fault,
                body: None,
                ..item.clone()
            }),
        ),
        Next::GiveUp => (
            Outcome::Dead {
                at_ms: now,
                code: why.code.to_owned(),
                reason: why.detail.clone(),
            },
            None,
        ),
    };
    Fate {
        settle: Settle {
            row: item.id,
            outcome,
            attempts,
            attempt,
        },
        waits,
        health,
        reason: Some(why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item() -> Item {
        Item {
            id: 1,
            key: "k".into(),
            msg_id: "m".into(),
            out_seq: 1,
            event_id: "e".into(),
            event_type: "message".into(),
            body: None,
            attempts: 0,
            created_ms: 0,
            first_failed_ms: None,
            next_at_ms: 0,
            expires_ms: None,
            peer_fault: false,
            traceparent: None,
        }
    }

    fn after(verdict: Verdict, item: &Item, now: UnixMs) -> Fate {
        let schedule = Schedule {
            delays: vec![Duration::from_secs(30), Duration::from_secs(60)],
        };
        let finished = Finished {
            verdict,
            status: Some(500),
            started_ms: now,
            elapsed: Duration::ZERO,
        };
        decide(
            item,
            &finished,
            &schedule,
            now,
            0.0,
            Duration::from_secs(60),
        )
    }

    fn failing(fault: Fault) -> Verdict {
        Verdict::Retry {
            fault,
            reason: Refusal::new("http_500", "it said 500"),
            after: None,
        }
    }

    #[test]
    fn a_failed_attempt_is_tried_again_by_the_schedule_and_given_up_at_its_end() {
        let mut row = item();
        let mut times = vec![];
        let mut now = 0;
        loop {
            let fate = after(failing(Fault::Peer), &row, now);
            assert_eq!(fate.health, HealthNews::Bad);
            match fate.waits {
                Some(next) => {
                    now = next.next_at_ms;
                    times.push(now);
                    row = next;
                }
                None => {
                    assert!(matches!(fate.settle.outcome, Outcome::Dead { .. }));
                    assert_eq!(fate.settle.attempts, 3);
                    break;
                }
            }
        }
        assert_eq!(times, [30_000, 90_000]);
    }

    #[test]
    fn patience_uses_up_no_attempt_and_pauses_the_peer() {
        let verdict = Verdict::Throttled {
            reason: Refusal::new("throttled", "429"),
            after: None,
        };
        let fate = after(verdict, &item(), 1_000);
        assert_eq!(fate.settle.attempts, 0);
        assert_eq!(fate.health, HealthNews::Patience(61_000));
        assert_eq!(fate.waits.map(|i| i.next_at_ms), Some(61_000));
    }

    #[test]
    fn a_refusal_is_final_and_says_why() {
        let fate = after(
            Verdict::Refused(Refusal::new("blocked", "you are blocked")),
            &item(),
            5,
        );
        assert!(fate.waits.is_none());
        assert!(matches!(fate.settle.outcome, Outcome::Dead { ref code, .. } if code == "blocked"));
    }
}
