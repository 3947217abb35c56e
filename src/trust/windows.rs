//! Exact sliding windows of a minute over monotonic time, one a key.
//!
//! A window holds the instant of every request that counts, so the limit is exact at every moment
//! (no buckets that let twice the limit through at their edge). Keys come from strangers: their
//! number is bounded, and a key without a request in the last minute costs nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::lru::Lru;

/// How long a request counts.
pub const WINDOW: Duration = Duration::from_secs(60);

/// Keys remembered at most; past that the one asked for longest ago is forgotten.
pub const MAX_KEYS: usize = 65_536;

/// The windows of all keys.
#[derive(Debug)]
pub struct Windows {
    keys: Lru<String, VecDeque<Instant>>,
}

impl Windows {
    /// Empty windows for at most `keys` keys.
    pub fn new(keys: usize) -> Self {
        Self {
            keys: Lru::new(keys),
        }
    }

    /// Counts a request if fewer than `limit` are in the window; a refused one is not counted.
    pub fn admit(&mut self, key: &str, limit: u32, now: Instant) -> bool {
        self.sweep(now);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if limit == 0 {
            return false;
        }
        if let Some(window) = self.keys.get_mut(key) {
            forget(window, now);
            if window.len() >= limit {
                return false;
            }
            window.push_back(now);
        } else {
            self.keys.insert(key.to_owned(), VecDeque::from([now]));
        }
        true
    }

    /// Whether `limit` requests or more are in the window; counts nothing.
    pub fn full(&mut self, key: &str, limit: u32, now: Instant) -> bool {
        self.count(key, now) >= usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// Requests in the window.
    pub fn count(&mut self, key: &str, now: Instant) -> usize {
        self.keys.get_mut(key).map_or(0, |window| {
            forget(window, now);
            window.len()
        })
    }

    /// Takes the newest request of a key back.
    pub fn withdraw(&mut self, key: &str) {
        if let Some(window) = self.keys.get_mut(key) {
            window.pop_back();
            if window.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    /// Makes the window hold `count` requests of this instant.
    pub fn preset(&mut self, key: &str, count: u32, now: Instant) {
        self.keys
            .insert(key.to_owned(), (0..count).map(|_| now).collect());
    }

    /// Drops at most a few keys that nobody asked for within a window.
    fn sweep(&mut self, now: Instant) {
        for _ in 0..4 {
            let idle = self
                .keys
                .oldest()
                .is_some_and(|(_, window)| window.back().is_none_or(|&last| over(last, now)));
            if !idle {
                return;
            }
            self.keys.pop_oldest();
        }
    }
}

fn over(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) >= WINDOW
}

fn forget(window: &mut VecDeque<Instant>, now: Instant) {
    while window.front().is_some_and(|&at| over(at, now)) {
        window.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_over_every_sliding_minute() {
        let mut windows = Windows::new(8);
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        for second in 0..10 {
            assert!(windows.admit("a", 10, at(second)));
        }
        assert!(!windows.admit("a", 10, at(59)));
        assert!(windows.admit("a", 10, at(60)), "the first one has left");
        assert!(!windows.admit("a", 10, at(60)));
        assert!(windows.admit("a", 10, at(61)));
    }

    #[test]
    fn a_refused_request_is_not_counted() {
        let mut windows = Windows::new(8);
        let start = Instant::now();
        assert!(windows.admit("a", 1, start));
        for second in 1..60 {
            assert!(!windows.admit("a", 1, start + Duration::from_secs(second)));
        }
        assert!(windows.admit("a", 1, start + WINDOW));
    }

    #[test]
    fn a_limit_of_zero_admits_nobody() {
        assert!(!Windows::new(8).admit("a", 0, Instant::now()));
    }

    #[test]
    fn keys_do_not_share_a_window_and_their_number_is_bounded() {
        let mut windows = Windows::new(4);
        let now = Instant::now();
        for key in 0..100 {
            assert!(windows.admit(&format!("k{key}"), 1, now));
        }
        assert_eq!(windows.keys.len(), 4);
        assert!(!windows.admit("k99", 1, now));
    }

    #[test]
    fn idle_keys_leave() {
        let mut windows = Windows::new(100);
        let now = Instant::now();
        for key in 0..50 {
            windows.admit(&format!("k{key}"), 5, now);
        }
        for step in 0..20 {
            windows.admit("busy", 1000, now + WINDOW + Duration::from_millis(step));
        }
        assert_eq!(windows.keys.len(), 1);
    }

    #[test]
    fn a_withdrawn_request_makes_room_again() {
        let mut windows = Windows::new(8);
        let now = Instant::now();
        windows.preset("a", 499, now);
        assert!(windows.admit("a", 500, now));
        assert!(windows.full("a", 500, now));
        windows.withdraw("a");
        assert!(windows.admit("a", 500, now));
    }
}
