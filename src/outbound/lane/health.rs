//! What a success, a failure, a pause or a word from the peer changes.
//!
//! Three things make an attempt that no row's schedule asks for (see [`Cause`]):
//!
//! - **The breaker's probe.** While a peer is in trouble every row of it may wait for a retry that is
//!   hours away, and nothing would notice that the peer is back. So when the breaker lets one try (or,
//!   for a peer with too few failures to trip it, a breaker's longest pause after the last trouble)
//!   and no row is due, the first row that the peer failed is tried all the same.
//! - **A word from the peer.** A verified request from it shows that it runs, not that it takes
//!   anything. It earns one early attempt for each failure counted, so a peer that can only send
//!   is tried at most twice as often, and never looks healthy for it.
//! - **An operator** who asks for one.
//!
//! Each is a real delivery when it succeeds. When it fails the row is as it was: no attempt of its
//! schedule is used up and none of its time.

use serde::{Deserialize, Serialize};

use super::{Cause, Item, Lane};
use crate::clock::UnixMs;
use crate::peers::health::{Change, Facts, Pause, Policy, Verdict};
use crate::protocol::Via;

/// Who asked for an early attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The peer was heard of.
    Heard,
    /// An operator: any row will do, and a 429 is not waited for.
    Operator,
}

/// A peer that did not trip the breaker is not probed more often than this, milliseconds.
const BACKGROUND_MS: i64 = 30_000;

/// A lane as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// Attempts in flight.
    pub in_flight: usize,
    /// Attempts that may be in flight.
    pub window: usize,
    /// Rows in memory, those in flight among them.
    pub in_memory: usize,
    /// Of these, rows that wait for the time of their retry.
    pub waiting: usize,
    /// There are further rows on disk.
    pub more_on_disk: bool,
    /// When the next attempt may begin, milliseconds since the epoch; `None`: now, or nothing waits.
    pub next_at_ms: Option<UnixMs>,
    /// Why not earlier.
    pub next_why: String,
}

/// The peer failed this row and has taken something since: its backlog goes promptly. That no
/// failure is on record is not enough, for a few are forgotten by a restart.
pub(super) fn is_back_for(facts: &Facts, item: &Item) -> bool {
    let took_since = |failed| facts.last_success_ms > failed;
    item.peer_fault && facts.failures == 0 && item.first_failed_ms.is_some_and(took_since)
}

impl Lane {
    /// A success: the window widens; after an outage what waited for the peer is due.
    pub fn succeeded(&mut self, policy: &Policy, cause: Cause, now: UnixMs) -> Change {
        let change = self.facts.succeeded(policy, now);
        self.heard_at = 0;
        let back = change == Change::Recovered || change == Change::Noted && cause != Cause::Due;
        if !back {
            self.window = (self.window + 1).min(self.limits.window);
            return change;
        }
        self.window = 1;
        for (_, name) in std::mem::take(&mut self.waiting) {
            let Some(key) = self.keys.get_mut(&name) else {
                continue;
            };
            if key.items.front().is_some_and(|i| i.peer_fault) {
                key.waits_until = None;
                if let Some(first) = key.items.front_mut() {
                    first.next_at_ms = 0;
                }
                key.queued = true;
                self.runnable.push_back(name);
            } else if let Some(at) = key.waits_until {
                self.waiting.insert((at, name));
            }
        }
        Change::Recovered
    }

    /// A failure of the peer: the window narrows; when that opens it, the head goes back to disk.
    pub fn failed(
        &mut self,
        policy: &Policy,
        cause: Cause,
        started: UnixMs,
        now: UnixMs,
        (code, detail): (&str, &str),
    ) -> Change {
        self.window = (self.window / 2).max(1);
        let change = match cause {
            Cause::Due | Cause::Probe => self.facts.failed(policy, started, now, code, detail),
            Cause::Early => Change::None,
        };
        if self.facts.tripped(policy) {
            self.spill_all();
        }
        change
    }

    /// Nothing is attempted from now on; what is in flight ends.
    pub fn pause(&mut self, pause: Pause) {
        self.facts.begin_pause(pause);
        self.grant = None;
        self.spill_all();
    }

    /// Ends a pause; false when there was none.
    pub fn resume(&mut self, now: UnixMs) -> bool {
        self.facts.end_pause(now)
    }

    /// Ends a pause whose time is over; true once for each.
    pub fn pause_ran_out(&mut self, now: UnixMs) -> bool {
        let over = |p: &Pause| p.until_ms.is_some_and(|t| t <= now);
        self.facts.pause.as_ref().is_some_and(over) && self.facts.end_pause(now)
    }

    /// Says how the peer's messages leave: it fetches them until that time, or they are pushed. Asked
    /// before each [`Lane::next`].
    pub fn leaves_by(&mut self, via: Via) {
        let until = match via {
            Via::Post => None,
            Via::Held { until_ms } => Some(until_ms),
        };
        if until.is_some() {
            self.grant = None;
            // Each time: a reading that was under way may have brought rows, which the peer may fetch.
            self.spill_all();
        }
        self.fetched_until = until;
    }

    /// Forgets the failures and what the peer asked for. The rows keep their times.
    pub fn reset(&mut self) {
        self.facts.reset();
        self.heard_at = 0;
        self.window = self.limits.window;
    }

    /// Lets one attempt go early. It is kept until it is used or nothing is left to try.
    pub fn grant(&mut self, grant: Grant) {
        self.grant = Some(grant);
    }

    /// Whether a word from the peer would earn an early attempt.
    pub fn would_listen(&self, now: UnixMs) -> bool {
        self.facts.failures > self.heard_at
            && !self.keeps_nothing()
            && !self.facts.throttled_at(now)
            && !self.is_idle()
    }

    /// The peer was heard of; true when that earned it an early attempt.
    pub fn heard(&mut self, now: UnixMs) -> bool {
        let earned = self.would_listen(now);
        if earned {
            self.heard_at = self.facts.failures;
            self.grant = self.grant.or(Some(Grant::Heard));
        }
        earned
    }

    /// When a peer in trouble whose rows all wait may be tried without one being due; `None`: it is
    /// not in trouble, or nothing of it can be tried.
    pub(super) fn background_at(&self, policy: &Policy) -> Option<UnixMs> {
        if self.facts.failures == 0 || self.in_flight > 0 || self.facts.tripped(policy) {
            return None;
        }
        let last = self.facts.last_failure_ms.max(self.probed_ms);
        Some(last.saturating_add(policy.longest_ms().max(BACKGROUND_MS)))
    }

    /// What an operator is shown.
    pub fn outlook(&self, policy: &Policy, now: UnixMs) -> Outlook {
        let nothing = self.is_idle();
        let (next_at_ms, next_why) = match self.facts.verdict(policy, now) {
            Verdict::Paused { until_ms } => {
                let why = self.facts.pause.as_ref().and_then(|p| p.reason.as_deref());
                let why = why.map_or(String::new(), |r| format!(": {r}"));
                (until_ms, format!("an operator paused the peer{why}"))
            }
            _ if nothing => (None, "nothing waits".to_owned()),
            _ if self.fetched_until.is_some() => (
                self.fetched_until,
                "the peer fetches its messages; a push is tried again then".to_owned(),
            ),
            Verdict::Wait { until_ms } if self.facts.throttled_at(now) => {
                (Some(until_ms), "the peer asked for patience".to_owned())
            }
            Verdict::Wait { until_ms } => (
                Some(until_ms),
                format!(
                    "{} failures in a row (last: {}); one attempt will be made then",
                    self.facts.failures, self.facts.last_code
                ),
            ),
            Verdict::Probe => (
                None,
                "one attempt is made to find out whether the peer is back".to_owned(),
            ),
            Verdict::Closed if self.in_flight > 0 || !self.runnable.is_empty() || self.tail => {
                (None, "messages are being delivered".to_owned())
            }
            Verdict::Closed => match self.waiting.first() {
                Some((at, _)) => (Some(*at), "the first retry by its schedule".to_owned()),
                None => (None, "rows are being read".to_owned()),
            },
        };
        Outlook {
            in_flight: self.in_flight,
            window: self.window,
            in_memory: self.held.len(),
            waiting: self.waiting.len(),
            more_on_disk: self.tail || self.keys.values().any(|k| k.disk_from.is_some()),
            next_at_ms,
            next_why,
        }
    }
}
