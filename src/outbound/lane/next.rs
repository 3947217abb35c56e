//! What a lane asks the shard to do now.

use std::sync::Arc;

use super::health::is_back_for;
use super::{Cause, Grant, Item, KEY_PAGE, Lane, MAX_WAITING, PROBE_PAGE, Step, UNSTEADY_MS};
use crate::clock::UnixMs;
use crate::outbound::schedule;
use crate::peers::health::{Policy, Verdict};
use crate::protocol::Schedule;

/// How long a probe waits for a place in the shard's window, milliseconds.
const NO_ROOM_MS: i64 = 1_000;

impl Lane {
    /// The next thing to do at `now`. Called until it answers `Sleep`, always with a later time, or
    /// `Rest`. `room`: whether the shard can take another attempt of this lane.
    pub fn next(&mut self, policy: &Policy, schedule: &Schedule, now: UnixMs, room: bool) -> Step {
        let verdict = self.facts.verdict(policy, now);
        if self.is_idle() {
            self.grant = None;
            return Step::Rest;
        }
        if let Some(until_ms) = self.fetched_until
            && !matches!(verdict, Verdict::Paused { .. })
        {
            return Step::Sleep(until_ms);
        }
        let early = self.grant.filter(|_| self.in_flight == 0);
        let window = match verdict {
            Verdict::Paused { until_ms } => return until_ms.map_or(Step::Rest, Step::Sleep),
            Verdict::Wait { until_ms } if early.is_none() => return Step::Sleep(until_ms),
            Verdict::Wait { .. } | Verdict::Probe => 1,
            Verdict::Closed => self.window,
        };
        // What is tried before its time is looked for among the first rows only.
        let probing = verdict != Verdict::Closed;
        while let Some((at, _)) = self.waiting.first() {
            if *at > now {
                break;
            }
            if let Some((_, name)) = self.waiting.pop_first()
                && let Some(key) = self.keys.get_mut(&name)
            {
                key.waits_until = None;
                key.queued = true;
                self.runnable.push_back(name);
            }
        }
        if let Some(name) = self.freed.pop() {
            if let Some(key) = self.keys.get_mut(&name)
                && !key.busy
                && key.items.is_empty()
                && let Some(from) = key.disk_from
            {
                key.busy = true;
                key.reading = Some(from);
                // At least one: the key had a row in memory until just now.
                let room = self.limits.head.saturating_sub(self.active() + self.asked);
                let limit = room.clamp(1, KEY_PAGE);
                self.asked += limit;
                return Step::LoadKey {
                    key: name,
                    from,
                    limit,
                };
            }
            return self.next(policy, schedule, now, room);
        }
        let room_on_disk = (self.active() + self.asked) * 2 < self.limits.head.max(2)
            && self.waiting.len() < MAX_WAITING;
        let enough = probing && (!self.runnable.is_empty() || self.candidate().is_some());
        if self.tail && self.loading.is_none() && room_on_disk && !enough {
            self.loading = Some(self.loaded_to);
            let room = self.limits.head.saturating_sub(self.active() + self.asked);
            let most = if probing { PROBE_PAGE } else { usize::MAX };
            self.page = room.clamp(1, most);
            self.asked += self.page;
            return Step::Load {
                after: self.loaded_to,
                limit: self.page,
            };
        }
        let dead_only = !room || self.in_flight >= window;
        while !dead_only && let Some(name) = self.runnable.pop_front() {
            let Some(key) = self.keys.get_mut(&name) else {
                continue;
            };
            key.queued = false;
            let Some(item) = key.items.pop_front() else {
                self.after(&name);
                continue;
            };
            if item.next_at_ms > now && !is_back_for(&self.facts, &item) {
                self.park(item);
                continue;
            }
            let expired = item.expires_ms.is_some_and(|t| t <= now);
            if self.unsteady && expired {
                self.park(Item {
                    next_at_ms: now.saturating_add(UNSTEADY_MS),
                    ..item
                });
                continue;
            }
            key.busy = true;
            self.in_flight += 1;
            if expired {
                return Step::Dead(
                    item,
                    "expired",
                    "the time given in Fed-Expires is over".into(),
                );
            }
            let start = item.first_failed_ms.unwrap_or(item.created_ms);
            // The schedule's clock stood still while an operator had paused the peer.
            let start = start.saturating_add(self.facts.paused_ms(start, now));
            if verdict == Verdict::Probe
                && !self.unsteady
                && now > schedule::ends_at(schedule, start)
                && !schedule.delays.is_empty()
            {
                let why = format!(
                    "the peer did not take anything until the schedule ended (last: {})",
                    self.facts.last_code
                );
                return Step::Dead(item, "peer_unreachable", why);
            }
            // A row that the breaker still holds back is tried for the peer's sake.
            let cause = match verdict {
                Verdict::Wait { .. } => Cause::Early,
                _ => Cause::Due,
            };
            self.grant = None;
            return Step::Attempt(item, cause);
        }
        self.otherwise(policy, verdict, now, room)
    }

    /// No row is due: a row tried before its time, or rest.
    fn otherwise(&mut self, policy: &Policy, verdict: Verdict, now: UnixMs, room: bool) -> Step {
        let first = self.waiting.first().map(|(at, _)| *at);
        let rest = |until: Option<UnixMs>| match (until, first) {
            (Some(a), Some(b)) => Step::Sleep(a.min(b)),
            (a, b) => a.or(b).map_or(Step::Rest, Step::Sleep),
        };
        let retry = match verdict {
            Verdict::Wait { until_ms } => Some(until_ms),
            _ => None,
        };
        if self.in_flight > 0 || !self.runnable.is_empty() || self.loading.is_some() {
            return rest(retry);
        }
        let (cause, at) = match (self.grant, verdict) {
            (Some(_), _) => (Cause::Early, now),
            (None, Verdict::Probe) => (Cause::Probe, now),
            (None, _) => match self.background_at(policy) {
                Some(at) => (Cause::Probe, at),
                None => return rest(retry),
            },
        };
        let Some(found) = self.candidate().cloned() else {
            self.grant = None;
            return rest(retry);
        };
        if at > now {
            return rest(Some(at));
        }
        if !room {
            return rest(Some(now.saturating_add(NO_ROOM_MS)));
        }
        self.grant = None;
        self.waiting.remove(&found);
        let (_, name) = found;
        let item = self.keys.get_mut(&name).and_then(|key| {
            key.waits_until = None;
            key.busy = true;
            key.items.pop_front()
        });
        let Some(item) = item else {
            return rest(retry); // `found` has a first item
        };
        self.in_flight += 1;
        if cause == Cause::Probe {
            self.probed_ms = now;
        }
        Step::Attempt(item, cause)
    }

    /// A waiting row that may be tried before its time: one that the peer failed, or any for an
    /// operator.
    fn candidate(&self) -> Option<&(UnixMs, Arc<str>)> {
        let any = self.grant == Some(Grant::Operator);
        let may = |item: &Item| any || item.peer_fault;
        self.waiting.iter().find(|(_, name)| {
            let key = self.keys.get(name);
            key.is_some_and(|k| k.items.front().is_some_and(may))
        })
    }
}
