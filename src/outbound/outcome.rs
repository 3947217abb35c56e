//! From a judged attempt to what becomes of the row: one pure function.

use std::time::Duration;

use super::attempt::Finished;
use super::lane::{Cause, Item};
use super::schedule::{self, Next, ms};
use crate::clock::UnixMs;
use crate::protocol::{Fault, Refusal, Schedule, Verdict};
use crate::store::{AttemptRow, Outcome, Settle};

/// The row's fate and what the lane has to know.
#[derive(Debug)]
pub struct Fate {
    /// What is written down; `None`: the row stays as it was.
    pub settle: Option<Settle>,
    /// Attempts counted so far, this one included where it counts.
    pub attempts: u32,
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

/// What a decision needs besides the row and its attempt.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub schedule: &'a Schedule,
    /// Share of a delay to add.
    pub jitter: f64,
    /// The patience with a 429 that names none.
    pub patience: Duration,
    /// How much of the time since the row's first failure an operator had paused the peer,
    /// milliseconds.
    pub paused_ms: i64,
    /// Why the attempt was made: one before the row's time costs the row nothing when it fails.
    pub cause: Cause,
}

/// Decides.
pub fn decide(item: &Item, finished: &Finished, now: UnixMs, terms: &Terms<'_>) -> Fate {
    let news = |fault: Fault| match fault {
        Fault::Peer => HealthNews::Bad,
        Fault::Message => HealthNews::Good,
    };
    match &finished.verdict {
        Verdict::Delivered | Verdict::Duplicate => {
            leaves(item, finished, Outcome::Delivered { at_ms: now }, None)
        }
        Verdict::Refused(why) => {
            let outcome = Outcome::Dead {
                at_ms: now,
                code: why.code.to_owned(),
                reason: why.detail.clone(),
            };
            leaves(item, finished, outcome, Some(why))
        }
        Verdict::Hold(why) => {
            let outcome = Outcome::Held {
                code: why.code.to_owned(),
                reason: why.detail.clone(),
            };
            leaves(item, finished, outcome, Some(why))
        }
        Verdict::Mailbox(why) => untouched(item, why, HealthNews::Good),
        Verdict::Retry {
            fault,
            reason,
            after: None,
        } => fails(item, finished, now, terms, reason, *fault, news(*fault)),
        Verdict::Retry {
            fault,
            reason,
            after: Some(patience),
        } => is_put_off(item, finished, now, terms, reason, *fault, *patience),
        Verdict::Throttled { reason, after } => {
            let patience = after.unwrap_or(terms.patience);
            is_put_off(item, finished, now, terms, reason, Fault::Peer, patience)
        }
        // `attempt::run` resolves these two.
        Verdict::Again | Verdict::Rediscover { .. } => {
            let why = Refusal::new("undecided", "the attempt ended without a verdict");
            let fault = Fault::Message;
            fails(item, finished, now, terms, &why, fault, HealthNews::None)
        }
    }
}

/// The row's way ends: delivered, dead or held.
fn leaves(item: &Item, finished: &Finished, outcome: Outcome, why: Option<&Refusal>) -> Fate {
    let attempts = item.attempts + 1;
    let attempt = match why {
        Some(why) => Some(attempt_row(item, attempts, finished, why.code, &why.detail)),
        None if attempts > 1 => Some(attempt_row(item, attempts, finished, "delivered", "")),
        None => None,
    };
    let spoke = why.is_none() || finished.status.is_some();
    Fate {
        settle: Some(Settle {
            row: item.id,
            outcome,
            attempts,
            attempt,
        }),
        attempts,
        waits: None,
        health: if spoke {
            HealthNews::Good
        } else {
            HealthNews::None
        },
        reason: why.cloned(),
    }
}

/// A failure: on by the schedule. One before the row's time leaves the row as it was.
fn fails(
    item: &Item,
    finished: &Finished,
    now: UnixMs,
    terms: &Terms<'_>,
    why: &Refusal,
    fault: Fault,
    health: HealthNews,
) -> Fate {
    if terms.cause != Cause::Due {
        return untouched(item, why, health);
    }
    let made = item.attempts + 1;
    let first = item.first_failed_ms.unwrap_or(now);
    let start = first.saturating_add(terms.paused_ms);
    let next = schedule::after_failure(terms.schedule, made, start, now, terms.jitter);
    let attempt = attempt_row(item, made, finished, why.code, &why.detail);
    goes_on(item, next, attempt, (first, now), why, fault, health)
}

/// The peer asked for patience: the next attempt moves, none is used up.
fn is_put_off(
    item: &Item,
    finished: &Finished,
    now: UnixMs,
    terms: &Terms<'_>,
    why: &Refusal,
    fault: Fault,
    patience: Duration,
) -> Fate {
    let until = now.saturating_add(ms(patience.min(schedule::MAX_PATIENCE)));
    let health = match fault {
        Fault::Peer => HealthNews::Patience(until),
        Fault::Message => HealthNews::None,
    };
    if terms.cause != Cause::Due {
        return untouched(item, why, health);
    }
    let first = item.first_failed_ms.unwrap_or(now);
    let start = first.saturating_add(terms.paused_ms);
    let next = schedule::after_patience(terms.schedule, start, now, patience);
    let attempt = attempt_row(item, item.attempts + 1, finished, why.code, &why.detail);
    let fate = goes_on(item, next, attempt, (first, now), why, fault, health);
    let uncounted = |settle| Settle {
        attempts: item.attempts,
        ..settle
    };
    Fate {
        settle: fate.settle.map(uncounted),
        attempts: item.attempts,
        waits: fate.waits.map(|w| Item {
            attempts: item.attempts,
            ..w
        }),
        ..fate
    }
}

/// The row as it was; what the attempt says of the peer stands.
fn untouched(item: &Item, why: &Refusal, health: HealthNews) -> Fate {
    Fate {
        settle: None,
        attempts: item.attempts,
        waits: Some(Item {
            body: None,
            ..item.clone()
        }),
        health,
        reason: Some(why.clone()),
    }
}

fn attempt_row(
    item: &Item,
    number: u32,
    finished: &Finished,
    code: &str,
    detail: &str,
) -> AttemptRow {
    AttemptRow {
        queue_id: item.id,
        number,
        at_ms: finished.started_ms,
        duration_ms: u64::try_from(finished.elapsed.as_millis()).unwrap_or(u64::MAX),
        status: finished.status,
        code: code.to_owned(),
        detail: detail.to_owned(),
    }
}

fn goes_on(
    item: &Item,
    next: Next,
    attempt: AttemptRow,
    (first_failed_ms, now): (UnixMs, UnixMs),
    why: &Refusal,
    fault: Fault,
    health: HealthNews,
) -> Fate {
    let (attempts, peer_fault) = (attempt.number, fault == Fault::Peer);
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
        settle: Some(Settle {
            row: item.id,
            outcome,
            attempts,
            attempt: Some(attempt),
        }),
        attempts,
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
        decide(item, &finished, now, &terms(&schedule, Cause::Due, 0))
    }

    fn terms(schedule: &Schedule, cause: Cause, paused_ms: i64) -> Terms<'_> {
        Terms {
            schedule,
            jitter: 0.0,
            patience: Duration::from_secs(60),
            paused_ms,
            cause,
        }
    }

    fn died(fate: &Fate) -> bool {
        let outcome = fate.settle.as_ref().map(|s| &s.outcome);
        matches!(outcome, Some(Outcome::Dead { .. }))
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
                    assert!(died(&fate));
                    assert_eq!(fate.attempts, 3);
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
        assert_eq!(fate.attempts, 0);
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
        assert!(died(&fate) && fate.reason.is_some_and(|r| r.code == "blocked"));
    }

    #[test]
    fn an_attempt_before_its_time_costs_the_row_nothing_when_it_fails() {
        let schedule = Schedule {
            delays: vec![Duration::from_secs(30)],
        };
        let row = Item {
            attempts: 1,
            first_failed_ms: Some(0),
            next_at_ms: 30_000,
            peer_fault: true,
            ..item()
        };
        for cause in [Cause::Probe, Cause::Early] {
            for verdict in [
                failing(Fault::Peer),
                Verdict::Throttled {
                    reason: Refusal::new("throttled", "429"),
                    after: None,
                },
            ] {
                let finished = Finished {
                    verdict,
                    status: Some(500),
                    started_ms: 10,
                    elapsed: Duration::ZERO,
                };
                // Even when the schedule is over, which only an attempt of the schedule may find.
                let fate = decide(&row, &finished, 99_000, &terms(&schedule, cause, 0));
                assert!(fate.settle.is_none());
                let waits = fate.waits.expect("it goes on waiting");
                assert_eq!((waits.attempts, waits.next_at_ms), (1, 30_000));
                assert_eq!(waits.first_failed_ms, Some(0));
            }
            let finished = Finished {
                verdict: Verdict::Delivered,
                status: Some(200),
                started_ms: 10,
                elapsed: Duration::ZERO,
            };
            let fate = decide(&row, &finished, 10, &terms(&schedule, cause, 0));
            assert!(fate.waits.is_none() && fate.attempts == 2);
        }
    }

    #[test]
    fn the_time_an_operator_paused_the_peer_does_not_count() {
        let schedule = Schedule {
            delays: [30, 60].map(Duration::from_secs).to_vec(),
        };
        let row = Item {
            attempts: 0,
            first_failed_ms: Some(0),
            ..item()
        };
        let finished = Finished {
            verdict: failing(Fault::Peer),
            status: None,
            started_ms: 100_000,
            elapsed: Duration::ZERO,
        };
        let decide = |paused| {
            decide(
                &row,
                &finished,
                100_000,
                &terms(&schedule, Cause::Due, paused),
            )
        };
        assert!(died(&decide(0)), "90 s are over");
        let fate = decide(20_000);
        assert_eq!(fate.waits.map(|w| w.next_at_ms), Some(130_000));
    }
}
