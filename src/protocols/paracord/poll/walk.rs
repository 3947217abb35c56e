//! How far a room has been read, and where its next page begins: no I/O, the time passed in.
//!
//! A page holds what is deeper than `since`, by depth. Several events may have one depth, and one may
//! come late under an old one, so a poll begins a few seconds before the point that was reached, and a
//! page that goes on begins at the last depth of the page before it, not behind it. What was read
//! before is known and passed over.

use crate::clock::UnixMs;
use crate::faults;

/// How far a poll steps back behind what was reached.
const BACK_MS: i64 = 5_000;
/// An event from further ahead moves nothing: a wrong clock, or a server that would have us skip what
/// comes until then.
const AHEAD_MS: i64 = 60_000;
/// Largest page that servers give.
const MAX_PAGE: usize = 1_000;
/// A page of so many bytes may have been cut short for its size.
const LARGE: usize = 512 * 1024;

/// One room of one server while it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// What was reached when it began.
    start: i64,
    /// Pages are asked for from behind this depth.
    pub since: i64,
    /// Latest depth or time that was passed.
    passed: i64,
    /// Events to ask for.
    pub limit: usize,
    /// Nothing from here on counts as reached.
    held: Option<i64>,
    /// Deepest event of this page.
    top: i64,
    /// Pages were too large.
    shrunk: bool,
}

/// What follows a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It was the last one.
    Done,
    /// There may be more.
    More,
    /// There may be more, and some of the last depth do not fit in any page.
    Crowded,
    /// The answers do not go on from where they were asked.
    Stuck,
}

impl Walk {
    /// From what was reached before (0: nothing), so many events a page.
    pub fn new(reached: i64, limit: usize) -> Self {
        let start = reached.max(0);
        let back = if faults::on("poll_forward") {
            0
        } else {
            BACK_MS
        };
        let since = start.saturating_sub(back).max(0);
        Self {
            start,
            since,
            passed: start,
            held: None,
            limit: limit.clamp(1, MAX_PAGE),
            top: i64::MIN,
            shrunk: false,
        }
    }

    /// An event of the page was dealt with, or needs nothing.
    pub fn passed(&mut self, depth: i64, origin_ts: UnixMs, now: UnixMs) {
        self.top = self.top.max(depth);
        let at = depth.max(origin_ts);
        if at <= now.saturating_add(AHEAD_MS) {
            self.passed = self.passed.max(at);
        }
    }

    /// An event could not be dealt with now: the next poll must bring it again.
    pub fn hold(&mut self, depth: i64) {
        self.top = self.top.max(depth);
        self.held = Some(self.held.map_or(depth, |held| held.min(depth)));
    }

    /// What is reached now: nothing that was to come again lies before it.
    pub fn reached(&self) -> i64 {
        let held = self.held.map_or(i64::MAX, |held| held.saturating_sub(1));
        self.passed.min(held).max(self.start)
    }

    /// After a page of so many events and bytes.
    pub fn next(&mut self, count: usize, bytes: usize) -> Next {
        let top = std::mem::replace(&mut self.top, i64::MIN);
        if count == 0 || (count < self.limit && bytes < LARGE) {
            return Next::Done;
        }
        let again = top.saturating_sub(1);
        if again > self.since {
            self.since = again;
            return Next::More;
        }
        if top <= self.since {
            return Next::Stuck;
        }
        if count < self.limit {
            // Cut short at a depth that was to be begun at: behind it.
            self.since = top;
            return Next::More;
        }
        // A whole page of one depth.
        if !self.shrunk && self.limit < MAX_PAGE {
            self.limit = self.limit.saturating_mul(2).min(MAX_PAGE);
            return Next::More;
        }
        self.since = top;
        Next::Crowded
    }

    /// The page was larger than we read: a smaller one. False: there is none.
    pub fn shrink(&mut self) -> bool {
        if self.limit <= 1 {
            return false;
        }
        self.shrunk = true;
        self.limit = (self.limit / 4).max(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn a_poll_begins_a_few_seconds_before_what_was_reached() {
        assert_eq!(Walk::new(NOW, 10).since, NOW - 5_000);
        for start in [0, 3, -7, i64::MIN] {
            assert_eq!(Walk::new(start, 10).since, 0, "{start}");
        }
    }

    #[test]
    fn what_is_reached_is_the_later_of_depth_and_time() {
        let mut walk = Walk::new(0, 10);
        walk.passed(5, NOW, NOW);
        assert_eq!(walk.reached(), NOW);
        walk.passed(NOW + 7, 5, NOW);
        assert_eq!(walk.reached(), NOW + 7);
        walk.passed(1, 1, NOW);
        assert_eq!(walk.reached(), NOW + 7);
    }

    #[test]
    fn an_event_from_the_future_moves_nothing() {
        let mut walk = Walk::new(NOW, 10);
        walk.passed(NOW + 60_001, NOW, NOW);
        walk.passed(NOW, i64::MAX, NOW);
        walk.passed(i64::MIN, i64::MIN, NOW);
        assert_eq!(walk.reached(), NOW);
        walk.passed(NOW + 60_000, NOW, NOW);
        assert_eq!(walk.reached(), NOW + 60_000);
        let mut early = Walk::new(0, 10);
        early.passed(i64::MAX, i64::MAX, i64::MAX);
        assert_eq!(early.reached(), i64::MAX, "no arithmetic ends in a panic");
    }

    #[test]
    fn what_could_not_be_taken_is_asked_for_again() {
        let mut walk = Walk::new(NOW, 10);
        walk.passed(NOW + 10, NOW + 9_000, NOW);
        walk.hold(NOW + 11);
        let again = Walk::new(walk.reached(), 10);
        assert!(again.since < NOW + 11);
        let mut walk = Walk::new(NOW, 10);
        walk.hold(NOW - 4_000);
        assert_eq!(
            walk.reached(),
            NOW,
            "it is within what is read again anyway"
        );
        walk.hold(i64::MIN);
        assert_eq!(walk.reached(), NOW);
    }

    #[test]
    fn a_page_goes_on_at_the_last_depth_of_the_one_before() {
        let mut walk = Walk::new(0, 2);
        walk.passed(5, 5, NOW);
        walk.passed(6, 6, NOW);
        assert_eq!((walk.next(2, 0), walk.since), (Next::More, 5));
        walk.passed(6, 6, NOW);
        assert_eq!(walk.next(1, 0), Next::Done);
    }

    #[test]
    fn a_page_cut_short_for_its_size_is_not_the_last() {
        let mut walk = Walk::new(0, 100);
        walk.passed(5, 5, NOW);
        walk.passed(9, 9, NOW);
        assert_eq!((walk.next(2, LARGE), walk.since), (Next::More, 8));
        walk.passed(9, 9, NOW);
        assert_eq!((walk.next(1, LARGE), walk.since), (Next::More, 9));
        assert_eq!(walk.next(0, LARGE), Next::Done);
    }

    #[test]
    fn a_page_of_one_depth_grows_until_it_cannot() {
        let mut walk = Walk::new(0, 300);
        let page = |walk: &mut Walk, count| {
            walk.passed(1, 1, NOW);
            walk.next(count, 0)
        };
        assert_eq!((page(&mut walk, 300), walk.limit), (Next::More, 600));
        assert_eq!((page(&mut walk, 600), walk.limit), (Next::More, 1_000));
        assert_eq!((page(&mut walk, 1_000), walk.since), (Next::Crowded, 1));
        assert_eq!(page(&mut walk, 1_000), Next::Stuck);
    }

    #[test]
    fn a_full_page_without_a_depth_ends_the_walk() {
        let mut walk = Walk::new(NOW, 2);
        assert_eq!(walk.next(2, 0), Next::Stuck);
        walk.passed(i64::MIN, 0, NOW);
        assert_eq!(walk.next(2, 0), Next::Stuck);
    }

    #[test]
    fn a_page_that_is_too_large_shrinks_to_one_event() {
        let mut walk = Walk::new(0, 128);
        let limits: Vec<usize> =
            std::iter::from_fn(|| walk.shrink().then_some(walk.limit)).collect();
        assert_eq!(limits, [32, 8, 2, 1]);
    }
}
