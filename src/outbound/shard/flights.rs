//! Attempts in flight, and which of them last long.
//!
//! Peers that hang must not keep the window from others for a whole timeout, and of a peer that has
//! not answered yet nobody knows whether it will. So an attempt that lasts longer than [`LONG`] gives
//! its place back and counts apart from then on; its peer is taken for slow while it lasts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::LaneKey;
use super::room::{Pace, Place, Room};

/// An attempt that lasts so long gives its place in the window back.
const LONG: Duration = Duration::from_secs(1);
/// How often it is looked for such attempts.
const LOOK: Duration = Duration::from_millis(100);

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    number: u64,
    is_slow: bool,
}

/// All of a shard's.
#[derive(Debug)]
pub(super) struct Flights {
    pub room: Room,
    next: u64,
    /// Those that take a place in the window, oldest first; one that ended goes when its turn comes.
    begun: VecDeque<(Instant, u64, LaneKey)>,
    /// Those of them that have not ended.
    young: HashSet<u64>,
    /// How many of a lane's last long.
    long: HashMap<LaneKey, usize>,
    look: Option<Instant>,
}

impl Flights {
    /// None, with that many places.
    pub fn new(window: usize) -> Self {
        Self {
            room: Room::new(window),
            next: 0,
            begun: VecDeque::new(),
            young: HashSet::new(),
            long: HashMap::new(),
            look: None,
        }
    }

    /// An attempt begins.
    pub fn begins(&mut self, lane: &LaneKey, pace: Pace, now: Instant) -> Flight {
        self.room.enter(pace);
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let is_slow = pace == Pace::Slow;
        if !is_slow {
            self.young.insert(number);
            self.begun.push_back((now, number, lane.clone()));
            self.look.get_or_insert(now + LONG);
        }
        Flight { number, is_slow }
    }

    /// It has ended.
    pub fn ends(&mut self, lane: &LaneKey, flight: Flight) {
        let place = if flight.is_slow {
            Place::Slow
        } else if self.young.remove(&flight.number) {
            Place::Window
        } else {
            if let Some(left) = self.long.get_mut(lane) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.long.remove(lane);
                }
            }
            Place::Apart
        };
        self.room.leave(place);
    }

    /// Whether an attempt of this lane lasts long.
    pub fn hangs(&self, lane: &LaneKey) -> bool {
        !self.long.is_empty() && self.long.contains_key(lane)
    }

    /// When to look again for attempts that last long.
    pub fn look_at(&self) -> Option<Instant> {
        self.look
    }

    /// Gives back the places of attempts that last long, as many as may count apart; answers whose
    /// they are.
    pub fn look(&mut self, now: Instant) -> Vec<LaneKey> {
        let mut found = Vec::new();
        if self.look.is_none_or(|at| now < at) {
            return found;
        }
        while let Some((since, number, _)) = self.begun.front() {
            let lasts = self.young.contains(number);
            if lasts && (now.saturating_duration_since(*since) < LONG || !self.room.set_apart()) {
                break;
            }
            if let Some((_, number, lane)) = self.begun.pop_front()
                && lasts
            {
                self.young.remove(&number);
                *self.long.entry(lane.clone()).or_default() += 1;
                found.push(lane);
            }
        }
        self.look = self.begun.front().map(|_| now + LOOK);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PeerName;

    fn lane(name: &str) -> LaneKey {
        ("uam", PeerName::parse(name).unwrap())
    }

    #[test]
    fn an_attempt_that_lasts_gives_its_place_back_and_its_peer_counts_as_slow() {
        let (mut flights, begun) = (Flights::new(1), Instant::now());
        let (hanging, next) = (lane("hangs.test"), lane("next.test"));
        let first = flights.begins(&hanging, Pace::Fast, begun);
        assert!(flights.room.is_full());
        flights.look(begun + LONG / 2);
        assert!(flights.room.is_full() && !flights.hangs(&hanging));
        assert_eq!(flights.look_at(), Some(begun + LONG));

        assert_eq!(flights.look(begun + LONG), std::slice::from_ref(&hanging));
        assert!(!flights.room.is_full() && flights.hangs(&hanging));
        let second = flights.begins(&next, Pace::Fast, begun + LONG);
        flights.ends(&hanging, first);
        assert!(!flights.hangs(&hanging));
        assert!(flights.room.is_full());
        flights.ends(&next, second);
        assert_eq!(flights.room.in_flight(), 0);
        flights.look(begun + LONG * 3);
        flights.look(begun + LONG * 4);
        assert_eq!(flights.look_at(), None);
    }

    #[test]
    fn only_so_many_count_apart_and_one_that_ends_makes_room() {
        let (mut flights, begun) = (Flights::new(1), Instant::now());
        let (lane, mut now) = (lane("hangs.test"), begun);
        let mut all = Vec::new();
        while !flights.room.is_full() {
            all.push(flights.begins(&lane, Pace::Unknown, now));
            now += LONG * 2;
            flights.look(now);
        }
        assert_eq!(all.len(), 3, "a window, and twice as many apart");
        flights.ends(&lane, all[0]);
        flights.look(now + LOOK);
        assert!(!flights.room.is_full());
        for flight in &all[1..] {
            flights.ends(&lane, *flight);
        }
        assert_eq!(flights.room.in_flight(), 0);
        assert!(!flights.hangs(&lane));
    }
}
