//! How many events a minute a peer is sent: pure arithmetic on the monotonic clock.
//!
//! Attempts are spread over the minute, a sixth of them may come at once. However they fall, no 60
//! seconds see more than the peer takes: a burst and the minute's share together stay below it.

use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// Of what a peer takes, this much is spread evenly.
const EVEN: f64 = 0.8;
/// And one in so many may come at once.
const BURST: u32 = 6;

/// One peer's meter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    /// When everything spent so far is paid for by the even flow; `None`: nothing was spent.
    paid_at: Option<Instant>,
}

impl Meter {
    /// How long the next attempt has to wait; `None`: not at all.
    pub fn wait(&self, per_minute: u32, now: Instant) -> Option<Duration> {
        let (gap, burst) = terms(per_minute);
        let slack = gap.saturating_mul(burst - 1);
        let due = self.paid_at?.checked_sub(slack)?;
        let wait = due.checked_duration_since(now)?;
        (!wait.is_zero()).then_some(wait)
    }

    /// An attempt begins.
    pub fn spend(&mut self, per_minute: u32, now: Instant) {
        let from = self.paid_at.map_or(now, |at| at.max(now));
        self.paid_at = Some(from + terms(per_minute).0);
    }
}

/// From one attempt to the next, evenly; and how many may come at once.
fn terms(per_minute: u32) -> (Duration, u32) {
    let gap = MINUTE.div_f64(f64::from(per_minute.max(1)) * EVEN);
    (gap, (per_minute / BURST).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends whenever it may for ten minutes; the times in seconds.
    fn eager(per_minute: u32) -> Vec<f64> {
        let (mut meter, start, mut sent) = (Meter::default(), Instant::now(), Vec::new());
        let mut now = start;
        while now < start + 10 * MINUTE {
            match meter.wait(per_minute, now) {
                Some(wait) => now += wait,
                None => {
                    meter.spend(per_minute, now);
                    sent.push((now - start).as_secs_f64());
                }
            }
        }
        sent
    }

    #[test]
    fn no_minute_sees_more_than_the_peer_takes_and_most_of_it_is_used() {
        for per_minute in [1, 2, 5, 6, 60, 120, 6000] {
            let sent = eager(per_minute);
            let mut end = 0;
            for (at, from) in sent.iter().enumerate() {
                end += sent[end..].iter().take_while(|t| **t < from + 60.0).count();
                let within = end - at;
                assert!(within <= per_minute as usize, "{per_minute}: {within}");
            }
            let least = (f64::from(per_minute) * 10.0 * EVEN).floor() as usize;
            assert!(sent.len() >= least, "{per_minute}: {}", sent.len());
        }
    }

    #[test]
    fn a_sixth_of_a_minute_may_come_at_once() {
        let sent = eager(120);
        assert_eq!(sent.iter().take_while(|t| **t == 0.0).count(), 20);
    }
}
