//! Who may take a place in the shard's window: pure arithmetic.
//!
//! The window is shared so that peers that hang cannot keep the others waiting for a whole timeout:
//!
//! - A peer known to be slow or failing takes no place in it: there are half as many again for those.
//! - A peer that has not answered anything yet takes from three quarters, and one place at a time
//!   unless a quarter is all that is taken: the last quarter is for those that have proved to be fast.
//! - The fuller the window, the fewer places one peer may have: above a half two, above three
//!   quarters one. So however many peers that were fast until now begin to hang at once, a place is
//!   left for the next one as long as there are fewer of them than places in the last quarter.
//! - An attempt that lasts long counts apart ([`super::flights`]), as long as there are not twice as
//!   many of those as the window has places.

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

/// Where an attempt is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the window.
    Window,
    /// Among those of slow peers.
    Slow,
    /// Among those that lasted long.
    Apart,
}

/// The shard's window.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    window: usize,
    /// Attempts that have a place in it.
    taken: usize,
    slow: usize,
    apart: usize,
}

impl Room {
    /// An empty window of that many places.
    pub fn new(window: usize) -> Self {
        Self {
            window: window.max(1),
            taken: 0,
            slow: 0,
            apart: 0,
        }
    }

    /// Whether a peer with `has` attempts in flight may begin another.
    pub fn admits(&self, pace: Pace, has: usize) -> bool {
        if pace == Pace::Slow {
            return !self.slow_is_full();
        }
        let unknown = pace == Pace::Unknown && self.taken * 4 >= self.window;
        if self.is_full() || unknown && has > 0 {
            return false;
        }
        if self.taken * 4 >= self.window * 3 {
            has < 1 && pace == Pace::Fast
        } else if self.taken * 2 >= self.window {
            has < 2
        } else {
            true
        }
    }

    /// Every place is taken.
    pub fn is_full(&self) -> bool {
        self.taken >= self.window
    }

    /// The slow peers' places are taken.
    pub fn slow_is_full(&self) -> bool {
        self.slow * 2 >= self.window
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> usize {
        self.taken + self.slow + self.apart
    }

    /// An attempt begins.
    pub fn enter(&mut self, pace: Pace) {
        match pace {
            Pace::Slow => self.slow += 1,
            Pace::Fast | Pace::Unknown => self.taken += 1,
        }
    }

    /// An attempt with a place in the window counts apart from now on, if it may.
    pub fn set_apart(&mut self) -> bool {
        let may = self.apart < self.window * 2;
        if may {
            self.leave(Place::Window);
            self.apart += 1;
        }
        may
    }

    /// An attempt counted there has ended.
    pub fn leave(&mut self, place: Place) {
        let count = match place {
            Place::Window => &mut self.taken,
            Place::Slow => &mut self.slow,
            Place::Apart => &mut self.apart,
        };
        *count = count.saturating_sub(1);
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
    fn slow_peers_have_places_of_their_own_and_unknown_ones_leave_a_quarter() {
        let mut room = Room::new(64);
        let taken: usize = (0..100).map(|_| fill(&mut room, Pace::Slow, 8)).sum();
        assert_eq!(taken, 32);
        let mut unknown = || fill(&mut room, Pace::Unknown, 8);
        assert_eq!([unknown(), unknown()], [8, 8]);
        // Once a quarter is taken, one attempt must show who they are.
        let taken: Vec<usize> = (0..100).map(|_| unknown()).collect();
        assert!(taken.iter().all(|n| *n <= 1));
        assert_eq!(taken.iter().sum::<usize>(), 32);
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
        room.leave(Place::Slow);
        room.leave(Place::Slow);
        assert_eq!(room.in_flight(), 0);
        assert!(room.admits(Pace::Slow, 0));
    }
}
