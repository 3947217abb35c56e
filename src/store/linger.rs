//! Rows that wait a moment for their outcomes before they are written.
//!
//! Most messages are delivered within milliseconds of their arrival. A row written once, with its
//! outcome and without its body, costs a fraction of one that is written as pending and changed soon
//! after. Nobody waits for it meanwhile but the broker, who is told when it is durable, as ever.
//!
//! - A batch of rows waits until each of its rows has an outcome, at most [`PATIENCE`]; once half of
//!   them have theirs, the others get [`STRAGGLING`] more: a peer that hangs is none of the others'
//!   business. Rows for peers that are away or behind are handed in as late ones: nothing waits for
//!   theirs.
//! - Batches go in the order they came, complete or not: were a later one written before an earlier
//!   one, a bridge killed in between would take the earlier messages from the broker again and number
//!   them behind the later ones.
//! - While others wait, or the last commit was a moment ago, what is ready waits too, at most
//!   [`GATHER`]: a commit costs the same for ten rows and for a hundred.
//! - Whoever wants an answer makes what is ready go at once. Whoever asks for all that went before
//!   ([`Work::Barrier`]), or changes rows, makes everything go.
//! - While outcomes do not come in time (peers that are slow or away) nothing waits, but for a try
//!   each [`TRY_EVERY`].

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::ops::{Job, Work};
use super::types::RowState;

/// The longest that rows wait for their outcomes. As many as may be unacknowledged are through in a
/// fraction of it; peers that take long are not waited for at all.
const PATIENCE: Duration = Duration::from_millis(300);
/// The longest that they wait for the last of a batch.
const STRAGGLING: Duration = Duration::from_millis(100);
/// The longest that what is ready waits for what is not.
const GATHER: Duration = Duration::from_millis(20);
/// Operations that are enough for a commit.
const ENOUGH: usize = 1_024;
/// Rows that wait at most.
const MAX_ROWS: usize = 4_000;
/// Batches in a row that waited in vain, until waiting is given up.
const IN_VAIN: u32 = 8;
/// How long it is given up.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// One batch of rows and the outcomes it has so far.
struct Slot {
    rows: Job,
    count: usize,
    /// Rows without an outcome.
    open: usize,
    outcomes: Vec<Job>,
    until: Instant,
}

/// Where a row waits.
#[derive(Clone, Copy)]
struct Place {
    /// Number of its batch.
    slot: u64,
    /// Or none is awaited.
    has_outcome: bool,
}

/// The batches that wait, oldest first.
#[derive(Default)]
pub(super) struct Linger {
    slots: VecDeque<Slot>,
    /// Number of the first of `slots`; each batch has the next.
    first: u64,
    /// Where each row waits that was handed in as pending.
    places: HashMap<i64, Place>,
    rows: usize,
    /// What may be written, and since when it waits for more.
    ready: Vec<Job>,
    ready_since: Option<Instant>,
    in_vain: u32,
    off_until: Option<Instant>,
    /// The last commit began.
    last: Option<Instant>,
}

impl Linger {
    /// When the next of what waits has waited long enough.
    pub fn due(&self) -> Option<Instant> {
        let oldest = self.slots.front().map(|slot| slot.until);
        let ready = self.ready_since.map(|since| since + GATHER);
        [oldest, ready].into_iter().flatten().min()
    }

    /// Sorts what came in: `jobs` is left with what is to be written now, in an order in which it
    /// may be written.
    pub fn sort(&mut self, jobs: &mut Vec<Job>) {
        let now = Instant::now();
        let mut urgent = false;
        for job in jobs.drain(..) {
            match &job.work {
                Work::Insert(..) => self.rows(job, now),
                Work::Settle(settle) => {
                    let row = settle.row;
                    self.outcome(row, job, now);
                }
                Work::Noticed(_) | Work::Published(_) => self.ready.push(job),
                Work::Accept(_) | Work::Records(..) => {
                    urgent = true;
                    self.ready.push(job);
                }
                Work::Single(_) | Work::Barrier | Work::Close => {
                    urgent = true;
                    self.give_up_waiting();
                    self.ready.push(job);
                }
            }
        }
        self.expire(now);
        let waited = self.ready_since.is_some_and(|since| now >= since + GATHER);
        let idle = self.last.is_none_or(|last| now >= last + GATHER);
        let alone = idle && self.slots.is_empty();
        if urgent || waited || alone || self.ready.len() >= ENOUGH {
            self.ready_since = None;
            if !self.ready.is_empty() {
                self.last = Some(now);
            }
            jobs.append(&mut self.ready);
        } else if !self.ready.is_empty() {
            self.ready_since.get_or_insert(now);
        }
    }

    /// Lets everything go.
    pub fn flush(&mut self, to: &mut impl Extend<Job>) {
        self.give_up_waiting();
        self.ready_since = None;
        to.extend(self.ready.drain(..));
    }

    /// Every row that waits is ready as it is.
    fn give_up_waiting(&mut self) {
        while self.go() {}
    }

    /// Lets go what has waited long enough, and what waited only for that.
    fn expire(&mut self, now: Instant) {
        while let Some(slot) = self.slots.front()
            && (slot.until <= now || self.rows > MAX_ROWS)
        {
            if slot.open * 2 > slot.count {
                self.in_vain += 1;
            } else {
                self.in_vain = 0;
            }
            self.go();
        }
        self.complete();
        if self.in_vain >= IN_VAIN {
            self.in_vain = 0;
            self.off_until = Some(now + TRY_EVERY);
            self.give_up_waiting();
        }
    }

    /// A batch of rows came.
    fn rows(&mut self, job: Job, now: Instant) {
        // Nothing waits then: all that did went when the waiting was given up.
        if self.off_until.is_some_and(|until| now < until) {
            return self.ready.push(job);
        }
        let Work::Insert(rows, late) = &job.work else {
            return self.ready.push(job);
        };
        let pending = rows.iter().filter(|r| r.state == RowState::Pending);
        let slot = self.first + self.slots.len() as u64;
        let mut open = 0;
        for row in pending {
            let awaited = !late.contains(&row.id);
            open += usize::from(awaited);
            let place = Place {
                slot,
                has_outcome: !awaited,
            };
            self.places.insert(row.id, place);
        }
        let count = rows.len();
        self.rows += count;
        self.slots.push_back(Slot {
            rows: job,
            count,
            open,
            outcomes: Vec::with_capacity(open),
            until: now + PATIENCE,
        });
        self.complete();
    }

    /// An outcome came; it goes with its row.
    fn outcome(&mut self, row: i64, job: Job, now: Instant) {
        let Some(place) = self.places.get_mut(&row) else {
            return self.ready.push(job); // the row is written already
        };
        let first = !std::mem::replace(&mut place.has_outcome, true);
        let at = usize::try_from(place.slot - self.first).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get_mut(at) else {
            return self.ready.push(job);
        };
        slot.outcomes.push(job);
        slot.open -= usize::from(first);
        if slot.open * 2 <= slot.count {
            slot.until = slot.until.min(now + STRAGGLING);
        }
        self.complete();
    }

    /// The oldest batches go that wait for nothing more.
    fn complete(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.open == 0) {
            self.in_vain = 0;
            self.go();
        }
    }

    /// The oldest batch goes; answers whether there was one.
    fn go(&mut self) -> bool {
        let Some(slot) = self.slots.pop_front() else {
            return false;
        };
        self.first += 1;
        self.rows -= slot.count;
        if let Work::Insert(rows, _) = &slot.rows.work {
            for row in rows.iter() {
                self.places.remove(&row.id);
            }
        }
        self.ready.push(slot.rows);
        self.ready.extend(slot.outcomes);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;
    use crate::store::told::Told;
    use crate::store::types::{NewRow, Outcome, Settle};

    fn job(work: Work) -> Job {
        Job {
            work,
            lease: None,
            done: Told::Nobody,
            _room: None,
        }
    }

    fn rows(ids: impl IntoIterator<Item = i64>) -> Job {
        job(Work::Insert(
            ids.into_iter().map(NewRow::example).collect(),
            vec![],
        ))
    }

    fn outcome(row: i64) -> Job {
        job(Work::Settle(Settle {
            row,
            outcome: Outcome::Delivered { at_ms: 0 },
            attempts: 1,
            attempt: None,
        }))
    }

    /// What goes when this comes in: numbers of inserted rows, negative numbers of settled ones, zero
    /// for everything else.
    fn goes(linger: &mut Linger, jobs: impl IntoIterator<Item = Job>) -> Vec<i64> {
        let mut jobs: Vec<_> = jobs.into_iter().collect();
        linger.sort(&mut jobs);
        let ids = jobs.iter().flat_map(|job| match &job.work {
            Work::Insert(rows, _) => rows.iter().map(|r| r.id).collect(),
            Work::Settle(settle) => vec![-settle.row],
            _ => vec![0],
        });
        ids.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn rows_go_with_the_last_of_their_outcomes() {
        let mut linger = Linger::default();
        assert!(goes(&mut linger, [rows([1, 2]), outcome(2)]).is_empty());
        assert_eq!(goes(&mut linger, [outcome(1)]), [1, 2, -2, -1]);
        assert_eq!(linger.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_the_outcome_of_a_late_row() {
        let mut linger = Linger::default();
        let rows = [1, 2].into_iter().map(NewRow::example).collect();
        let with_late = job(Work::Insert(rows, vec![2]));
        assert!(goes(&mut linger, [with_late]).is_empty());
        assert_eq!(goes(&mut linger, [outcome(1)]), [1, 2, -1]);
        // If it comes all the same it goes behind its row.
        let rows = [3, 4].into_iter().map(NewRow::example).collect();
        let with_late = job(Work::Insert(rows, vec![4]));
        assert!(goes(&mut linger, [with_late, outcome(4)]).is_empty());
        advance(GATHER).await;
        assert_eq!(goes(&mut linger, [outcome(3)]), [3, 4, -4, -3]);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_a_commit_is_at_once_and_the_next_a_moment_later() {
        let mut linger = Linger::default();
        assert_eq!(goes(&mut linger, [outcome(1)]), [-1]);
        let begun = Instant::now();
        assert!(goes(&mut linger, [outcome(2)]).is_empty());
        assert!(goes(&mut linger, [outcome(3)]).is_empty());
        assert_eq!(linger.due(), Some(begun + GATHER));
        advance(GATHER).await;
        assert_eq!(goes(&mut linger, []), [-2, -3]);
        advance(GATHER).await;
        assert_eq!(goes(&mut linger, [outcome(4)]), [-4]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_waits_for_the_others_but_not_long() {
        let mut linger = Linger::default();
        let begun = Instant::now();
        assert!(goes(&mut linger, [rows([1]), rows([2]), outcome(1)]).is_empty());
        assert_eq!(linger.due(), Some(begun + GATHER));
        advance(GATHER).await;
        assert_eq!(goes(&mut linger, []), [1, -1]);
        assert_eq!(linger.due(), Some(begun + PATIENCE));
        advance(PATIENCE).await;
        assert_eq!(goes(&mut linger, []), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_holds_the_rest_of_its_batch_but_a_moment() {
        let mut linger = Linger::default();
        let begun = Instant::now();
        assert!(goes(&mut linger, [rows([1, 2, 3, 4]), outcome(1)]).is_empty());
        assert_eq!(linger.due(), Some(begun + PATIENCE));
        assert!(goes(&mut linger, [outcome(2)]).is_empty());
        assert_eq!(linger.due(), Some(begun + STRAGGLING));
        advance(STRAGGLING / 2).await;
        assert!(goes(&mut linger, [outcome(3)]).is_empty());
        assert_eq!(linger.due(), Some(begun + STRAGGLING));
        advance(STRAGGLING / 2).await;
        assert_eq!(goes(&mut linger, []), [1, 2, 3, 4, -1, -2, -3]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_batch_is_written_before_one_that_came_earlier() {
        let mut linger = Linger::default();
        assert!(goes(&mut linger, [rows([1]), rows([2]), outcome(2)]).is_empty());
        advance(GATHER).await;
        assert!(goes(&mut linger, []).is_empty());
        assert_eq!(goes(&mut linger, [outcome(1)]), [1, -1, 2, -2]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_for_all_before_gets_all_before() {
        let mut linger = Linger::default();
        let barrier = job(Work::Barrier);
        let came = [rows([1, 2]), outcome(1), barrier, rows([3])];
        assert_eq!(goes(&mut linger, came), [1, 2, -1, 0]);
        advance(GATHER).await;
        assert_eq!(goes(&mut linger, [outcome(2), outcome(3)]), [-2, 3, -3]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_while_outcomes_do_not_come_but_for_a_try_now_and_then() {
        let mut linger = Linger::default();
        for id in 1..i64::from(IN_VAIN) {
            assert!(goes(&mut linger, [rows([id])]).is_empty());
            advance(PATIENCE).await;
            assert_eq!(goes(&mut linger, []), [id]);
        }
        assert!(goes(&mut linger, [rows([98])]).is_empty());
        advance(PATIENCE / 2).await;
        assert!(goes(&mut linger, [rows([99])]).is_empty());
        advance(PATIENCE / 2).await;
        assert_eq!(goes(&mut linger, [rows([100])]), [98, 99, 100]);
        advance(TRY_EVERY).await;
        assert!(goes(&mut linger, [rows([101])]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_rows_wait() {
        let mut linger = Linger::default();
        let most = i64::try_from(MAX_ROWS).unwrap();
        assert!(goes(&mut linger, [rows(0..most), rows([most])]).is_empty());
        assert_eq!(goes(&mut linger, [job(Work::Noticed(vec![]))]).len(), 0);
        advance(GATHER).await;
        assert_eq!(goes(&mut linger, []).len(), MAX_ROWS + 1);
    }

    proptest! {
        /// Batches of rows, outcomes (also second ones, and of rows written long ago), barriers and
        /// time in any order: everything goes once, rows in the order they came, and no outcome
        /// before its row.
        #[test]
        fn everything_goes_once_rows_in_order_and_no_outcome_before_its_row(
            acts in prop::collection::vec((0..5u8, 0..20u64), 1..200),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let (mut linger, mut next, mut outcomes, mut barriers) = (Linger::default(), 1, 0, 0);
                let mut gone = Vec::new();
                for (act, n) in acts {
                    let came = match act {
                        0 => {
                            let ids = next..next + 1 + (n % 4) as i64;
                            next = ids.end;
                            vec![rows(ids)]
                        }
                        1 | 2 if next > 1 => {
                            outcomes += 1;
                            vec![outcome((next - 1 - n as i64).max(1))]
                        }
                        3 if n == 0 => {
                            barriers += 1;
                            vec![job(Work::Barrier)]
                        }
                        _ => {
                            advance(Duration::from_millis(n)).await;
                            vec![]
                        }
                    };
                    gone.extend(goes(&mut linger, came));
                }
                let mut rest = Vec::new();
                linger.flush(&mut rest);
                gone.extend(goes(&mut Linger { off_until: Some(Instant::now() + TRY_EVERY), ..Linger::default() }, rest));
                let count = |is: fn(&i64) -> bool| gone.iter().copied().filter(is).count();
                assert_eq!(count(|id| *id > 0) as i64, next - 1);
                assert_eq!(count(|id| *id < 0), outcomes);
                assert_eq!(count(|id| *id == 0), barriers);
                assert!(gone.iter().filter(|id| **id > 0).is_sorted(), "{gone:?}");
                for (at, id) in gone.iter().enumerate().filter(|(_, id)| **id < 0) {
                    assert!(gone[..at].contains(&-id), "{id} before its row: {gone:?}");
                }
            });
        }
    }
}
