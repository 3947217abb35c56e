//! What one transaction has to write, worked out in memory from the operations gathered for it.
//!
//! Pure: nothing here touches a database. An outcome that meets its row still waiting to be inserted
//! becomes part of that row; of several outcomes of one row the one nearest to the end counts; a body
//! several rows of one message share is written once.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::checkpoint::Acked;
use super::leases::Lease;
use super::ops::{Arrival, Single, Work};
use super::types::{AttemptRow, NewRow, Outcome, RowState, Settle};
use crate::clock::UnixMs;
use crate::protocol::{ProtocolId, Record};

/// A body shorter than this is not worth a row of its own.
const SHARE_FROM: usize = 128;

/// The statements' worth of one batch, by kind. Order between kinds is fixed by the backend: rows,
/// outcomes, attempts, notices, arrivals, acknowledgements, records, single operations.
#[derive(Default)]
pub(super) struct Plan<'a> {
    /// Under which all of it is written: not at all unless each is ours.
    pub leases: BTreeSet<Lease>,
    pub rows: Vec<PlannedRow<'a>>,
    /// Bodies shared by several rows: id of the first of them, bytes.
    pub bodies: Vec<(i64, &'a Bytes)>,
    pub settles: Vec<&'a Settle>,
    pub attempts: Vec<&'a AttemptRow>,
    pub noticed: Vec<i64>,
    pub arrivals: Vec<&'a Arrival>,
    pub published: Vec<i64>,
    /// What is known of the streams once these are marked.
    pub acked: Vec<&'a Acked>,
    pub records: Vec<(ProtocolId, &'a Record)>,
    pub singles: Vec<&'a Single>,
}

impl Plan<'_> {
    /// Whether it touches more than rows of the queue and their outcomes: what instances that share a
    /// database decide in turns.
    pub fn in_turn(&self) -> bool {
        !self.arrivals.is_empty()
            || !self.published.is_empty()
            || !self.singles.is_empty()
            || !self.acked.is_empty()
    }
}

/// A row to insert, with its outcome if that is known already.
pub(super) struct PlannedRow<'a> {
    pub row: &'a NewRow,
    pub settle: Option<&'a Settle>,
    /// Where the body stands when several rows share it.
    pub body_ref: Option<i64>,
}

/// The columns an outcome sets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutcomeColumns<'a> {
    pub state: &'static str,
    pub attempts: u32,
    pub first_failed_ms: Option<UnixMs>,
    pub next_at_ms: Option<UnixMs>,
    pub peer_fault: bool,
    pub code: Option<&'a str>,
    pub reason: Option<&'a str>,
    pub settled_ms: Option<UnixMs>,
}

/// A state's name in the tables.
pub(super) fn state_name(state: RowState) -> &'static str {
    match state {
        RowState::Pending => "pending",
        RowState::Delivered => "delivered",
        RowState::Failed => "failed",
        RowState::Held => "held",
    }
}

/// The columns of an outcome.
pub(super) fn outcome_columns(settle: &Settle) -> OutcomeColumns<'_> {
    let mut c = OutcomeColumns {
        state: "pending",
        attempts: settle.attempts,
        first_failed_ms: None,
        next_at_ms: None,
        peer_fault: false,
        code: None,
        reason: None,
        settled_ms: None,
    };
    match &settle.outcome {
        Outcome::Delivered { at_ms } => {
            c.state = "delivered";
            c.settled_ms = Some(*at_ms);
        }
        Outcome::Retry {
            first_failed_ms,
            next_at_ms,
            peer_fault,
            code,
            reason,
        } => {
            c.first_failed_ms = Some(*first_failed_ms);
            c.next_at_ms = Some(*next_at_ms);
            c.peer_fault = *peer_fault;
            (c.code, c.reason) = (Some(code.as_str()), Some(reason.as_str()));
        }
        Outcome::Dead {
            at_ms,
            code,
            reason,
        } => {
            c.state = "failed";
            c.settled_ms = Some(*at_ms);
            (c.code, c.reason) = (Some(code.as_str()), Some(reason.as_str()));
        }
        Outcome::Held { code, reason } => {
            c.state = "held";
            (c.code, c.reason) = (Some(code.as_str()), Some(reason.as_str()));
        }
    }
    c
}

impl PlannedRow<'_> {
    /// The columns of the outcome, or of the state it is inserted with.
    pub fn columns(&self, now_ms: UnixMs) -> OutcomeColumns<'_> {
        if let Some(settle) = self.settle {
            return outcome_columns(settle);
        }
        let reason = self.row.reason.as_ref();
        OutcomeColumns {
            state: state_name(self.row.state),
            attempts: 0,
            first_failed_ms: None,
            next_at_ms: None,
            peer_fault: false,
            code: reason.map(|r| r.0.as_str()),
            reason: reason.map(|r| r.1.as_str()),
            settled_ms: matches!(self.row.state, RowState::Delivered | RowState::Failed)
                .then_some(now_ms),
        }
    }

    /// Whether the body is needed any more.
    pub fn keeps_body(&self) -> bool {
        let delivered = match self.settle {
            Some(settle) => matches!(settle.outcome, Outcome::Delivered { .. }),
            None => self.row.state == RowState::Delivered,
        };
        !delivered && !self.row.body.is_empty()
    }
}

/// The outcome that counts of two, `later` having been handed in after `earlier`: as in the
/// database, delivered is final, dead and held give way to delivered only, and of failed attempts the
/// one with the higher count stands.
fn prevailing<'a>(earlier: &'a Settle, later: &'a Settle) -> &'a Settle {
    let rank = |s: &Settle| match s.outcome {
        Outcome::Delivered { .. } => (2, 0),
        Outcome::Dead { .. } | Outcome::Held { .. } => (1, 0),
        Outcome::Retry { .. } => (0, s.attempts),
    };
    let replaces = match rank(later).cmp(&rank(earlier)) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => rank(later).0 == 0,
        std::cmp::Ordering::Less => false,
    };
    if replaces { later } else { earlier }
}

/// Plans a batch.
pub(super) fn plan<'a>(works: impl Iterator<Item = &'a Work>) -> Plan<'a> {
    let mut plan = Plan::default();
    // Positions, by row id, of rows and outcomes planned so far.
    let mut row_at: HashMap<i64, usize> = HashMap::new();
    let mut settle_at: HashMap<i64, usize> = HashMap::new();
    for work in works {
        match work {
            Work::Insert(rows, _) => {
                for row in rows.iter() {
                    row_at.entry(row.id).or_insert(plan.rows.len());
                    plan.rows.push(PlannedRow {
                        row,
                        settle: None,
                        body_ref: None,
                    });
                }
            }
            Work::Settle(settle) => {
                plan.attempts.extend(settle.attempt.as_ref());
                if let Some(row) = row_at.get(&settle.row).and_then(|i| plan.rows.get_mut(*i)) {
                    row.settle = Some(row.settle.map_or(settle, |s| prevailing(s, settle)));
                } else if let Some(known) = settle_at
                    .get(&settle.row)
                    .and_then(|i| plan.settles.get_mut(*i))
                {
                    *known = prevailing(known, settle);
                } else {
                    settle_at.insert(settle.row, plan.settles.len());
                    plan.settles.push(settle);
                }
            }
            Work::Noticed(ids) => plan.noticed.extend(ids),
            Work::Accept(arrival) => plan.arrivals.push(arrival),
            Work::Published(acked) => {
                plan.published.extend(&acked.ids);
                if !acked.tips.is_empty() || acked.series.is_some() {
                    plan.acked.push(acked);
                }
            }
            Work::Records(protocol, records) => {
                plan.records.extend(records.iter().map(|r| (*protocol, r)));
            }
            Work::Single(single) => plan.singles.push(single),
            Work::Barrier | Work::Close => {}
        }
    }
    share_bodies(&mut plan);
    plan
}

/// Gives neighbouring rows of one message with equal bodies one stored body.
fn share_bodies(plan: &mut Plan<'_>) {
    let alike = |one: &NewRow, next: &NewRow| {
        one.msg_id == next.msg_id && one.protocol == next.protocol && one.body == next.body
    };
    for group in plan.rows.chunk_by_mut(|one, next| alike(one.row, next.row)) {
        let Some(first) = group.first().map(|r| r.row) else {
            continue;
        };
        if first.body.len() >= SHARE_FROM && group.iter().filter(|r| r.keeps_body()).count() > 1 {
            for row in group.iter_mut().filter(|r| r.keeps_body()) {
                row.body_ref = Some(first.id);
            }
            plan.bodies.push((first.id, &first.body));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, msg_id: &str, body: &'static [u8]) -> NewRow {
        NewRow {
            peer: format!("p{id}.test"),
            msg_id: msg_id.into(),
            event_id: msg_id.into(),
            body: Bytes::from_static(body),
            ..NewRow::example(id)
        }
    }

    fn settle(row: i64, outcome: Outcome) -> Work {
        Work::Settle(Settle {
            row,
            outcome,
            attempts: 1,
            attempt: None,
        })
    }

    fn dead() -> Outcome {
        Outcome::Dead {
            at_ms: 9,
            code: "gone".into(),
            reason: "no more".into(),
        }
    }

    #[test]
    fn an_outcome_joins_its_row_still_waiting() {
        let works = [
            Work::Insert([row(1, "a", b"x"), row(2, "b", b"y")].into(), vec![]),
            settle(2, Outcome::Delivered { at_ms: 5 }),
        ];
        let plan = plan(works.iter());
        assert!(plan.settles.is_empty());
        assert!(plan.rows[0].settle.is_none() && plan.rows[0].keeps_body());
        assert_eq!(plan.rows[1].columns(0).state, "delivered");
        assert!(!plan.rows[1].keeps_body());
    }

    #[test]
    fn outcomes_of_one_row_come_to_the_same_in_any_order() {
        let retry = |attempts| {
            Work::Settle(Settle {
                row: 1,
                outcome: Outcome::Retry {
                    first_failed_ms: 1,
                    next_at_ms: 2,
                    peer_fault: false,
                    code: "timeout".into(),
                    reason: "late".into(),
                },
                attempts,
                attempt: None,
            })
        };
        let end = |works: [Work; 2]| {
            let plan = plan(works.iter());
            let c = outcome_columns(plan.settles[0]);
            (c.state, c.attempts)
        };
        assert_eq!(end([settle(1, dead()), retry(3)]), ("failed", 1));
        assert_eq!(end([retry(3), settle(1, dead())]), ("failed", 1));
        assert_eq!(end([retry(3), retry(2)]), ("pending", 3));
        assert_eq!(end([retry(2), retry(3)]), ("pending", 3));
    }

    #[test]
    fn of_several_outcomes_delivered_is_final() {
        let works = [
            settle(1, dead()),
            settle(1, Outcome::Delivered { at_ms: 5 }),
            settle(1, dead()),
        ];
        let plan = plan(works.iter());
        assert_eq!(plan.settles.len(), 1);
        assert_eq!(outcome_columns(plan.settles[0]).state, "delivered");
    }

    #[test]
    fn a_body_shared_by_rows_that_keep_it_is_written_once() {
        const BIG: &[u8] = &[7; 4096];
        let rows = vec![row(1, "a", BIG), row(2, "a", BIG), row(3, "a", BIG)];
        let works = [
            Work::Insert(rows.into(), vec![]),
            settle(1, Outcome::Delivered { at_ms: 5 }),
            Work::Insert([row(4, "b", BIG)].into(), vec![]),
        ];
        let plan = plan(works.iter());
        assert_eq!(plan.bodies.len(), 1);
        let refs: Vec<_> = plan.rows.iter().map(|r| r.body_ref).collect();
        assert_eq!(refs, [None, Some(1), Some(1), None]);
    }
}
