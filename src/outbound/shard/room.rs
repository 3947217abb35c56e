//! Who may take a place in the shard's window: pure arithmetic.
//!
//! The window is shared so that peers that hang cannot keep the others waiting for a whole timeout:
//!
//! - A peer known to be slow or failing takes from one half only; one that has not answered anything
//!   yet, from three quarters: the last quarter is for those that have proved to be fast.
//! - The fuller the window, the fewer places one peer may have: above a half two, above three
//!   quarters one. So however many peers that were fast until now begin to hang at once, a place is
//!   left for the next one as long as there are fewer of them than places in the last quarter.

/// What is known of a peer's speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It answered lately, and quickly.
    Fast,
    /// It has not answered yet.
    Unknown,
    /// It is slow or failing.
    Slow,
}

/// The shard's window.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    window: usize,
    in_flight: usize,
    slow: usize,
}

impl Room {
    /// An empty window of that many places.
    pub fn new(window: usize) -> Self {
        Self {
            window: window.max(1),
            in_flight: 0,
            slow: 0,
        }
    }

    /// Whether a peer with `has` attempts in flight may begin another.
    pub fn admits(&self, pace: Pace, has: usize) -> bool {
        if self.in_flight >= self.window || pace == Pace::Slow && self.slow_is_full() {
            return false;
        }
        if self.in_flight * 4 >= self.window * 3 {
            has < 1 && pace == Pace::Fast
        } else if self.in_flight * 2 >= self.window {
            has < 2
        } else {
            true
        }
    }

    /// Every place is taken.
    pub fn is_full(&self) -> bool {
        self.in_flight >= self.window
    }

    /// The slow peers' half is taken.
    pub fn slow_is_full(&self) -> bool {
        self.slow * 2 >= self.window
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// An attempt begins.
    pub fn enter(&mut self, pace: Pace) {
        self.in_flight += 1;
        self.slow += usize::from(pace == Pace::Slow);
    }

    /// An attempt begun at that pace has ended.
    pub fn leave(&mut self, pace: Pace) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.slow = self.slow.saturating_sub(usize::from(pace == Pace::Slow));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many places as it gets.
    fn fill(room: &mut Room, pace: Pace, most: usize) -> usize {
        let mut has = 0;
        while has < most && room.admits(pace, has) {
            room.enter(pace);
            has += 1;
        }
        has
    }

    #[test]
    fn slow_peers_get_one_half_and_unknown_ones_leave_a_quarter() {
        let mut room = Room::new(64);
        let taken: usize = (0..100).map(|_| fill(&mut room, Pace::Slow, 8)).sum();
        assert_eq!(taken, 32);
        let taken: usize = (0..100).map(|_| fill(&mut room, Pace::Unknown, 8)).sum();
        assert_eq!(taken, 16);
        assert_eq!(fill(&mut room, Pace::Fast, 8), 1);
    }

    #[test]
    fn fast_peers_that_hang_all_at_once_leave_places_for_others() {
        let mut room = Room::new(64);
        // 20 peers, each ready to take its whole window of 8: 160 attempts.
        for _ in 0..20 {
            fill(&mut room, Pace::Fast, 8);
        }
        assert!(room.admits(Pace::Fast, 0), "{room:?}");
        assert!(!room.is_full());
    }

    #[test]
    fn one_peer_alone_is_not_held_back() {
        assert_eq!(fill(&mut Room::new(64), Pace::Fast, 8), 8);
        assert_eq!(fill(&mut Room::new(1), Pace::Slow, 8), 1);
    }

    #[test]
    fn places_are_given_back() {
        let mut room = Room::new(4);
        for _ in 0..2 {
            room.enter(Pace::Slow);
        }
        assert!(room.slow_is_full());
        room.leave(Pace::Slow);
        room.leave(Pace::Slow);
        assert_eq!(room.in_flight(), 0);
        assert!(room.admits(Pace::Slow, 0));
    }
}
