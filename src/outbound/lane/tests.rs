use std::time::Duration;

use super::*;
use crate::peers::health::{Change, Pause};
use crate::protocol::{Schedule, Via};
use crate::store::RowState;

const POLICY: Policy = Policy {
    threshold: 3,
    initial: Duration::from_secs(5),
    max: Duration::from_secs(60),
};

fn schedule() -> Schedule {
    Schedule {
        delays: vec![Duration::from_secs(30)],
    }
}

fn lane() -> Lane {
    Lane::new(Limits { window: 4, head: 8 }, Facts::default())
}

pub(super) fn row(id: i64, key: &str) -> QueueRow {
    QueueRow {
        id,
        protocol: "uam".into(),
        peer: "beta.test".into(),
        msg_id: id.to_string(),
        out_seq: 0,
        event_id: id.to_string(),
        event_type: "message".into(),
        order_key: key.into(),
        body: Bytes::new(),
        state: RowState::Pending,
        attempts: 0,
        created_ms: 0,
        first_failed_ms: None,
        next_at_ms: None,
        expires_ms: None,
        peer_fault: false,
        reason_code: None,
        reason: None,
        traceparent: None,
        settled_ms: None,
    }
}

fn attempts(lane: &mut Lane, now: i64) -> Vec<Item> {
    let mut items = Vec::new();
    while let Step::Attempt(item, _) = lane.next(&POLICY, &schedule(), now, true) {
        items.push(item);
    }
    items
}

fn ids(items: &[Item]) -> Vec<i64> {
    items.iter().map(|i| i.id).collect()
}

#[test]
fn one_key_goes_one_at_a_time_and_several_keys_at_once() {
    let mut lane = lane();
    for (id, key) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
        lane.arrive(row(id, key).into());
    }
    let first = attempts(&mut lane, 0);
    assert_eq!(ids(&first), [1, 3, 4]);
    lane.finished(&first[0]);
    assert_eq!(ids(&attempts(&mut lane, 0)), [2]);
}

#[test]
fn a_waiting_head_blocks_its_own_key_only_and_sends_its_tail_to_disk() {
    let mut lane = lane();
    for (id, key) in [(1, "a"), (2, "a"), (3, "b")] {
        lane.arrive(row(id, key).into());
    }
    let mut first = attempts(&mut lane, 0);
    let mut head = first.remove(0);
    head.next_at_ms = 30_000;
    head.attempts = 1;
    lane.waits(head, &POLICY);
    lane.finished(&first[0]);
    lane.arrive(row(4, "b").into());
    lane.arrive(row(5, "a").into());
    let b = attempts(&mut lane, 1);
    assert_eq!(ids(&b), [4]);
    lane.finished(&b[0]);
    let a = attempts(&mut lane, 30_000);
    assert_eq!(ids(&a), [1]);
    lane.finished(&a[0]);
    let Step::LoadKey { key, from, limit } = lane.next(&POLICY, &schedule(), 30_000, true) else {
        panic!("reads the key")
    };
    assert_eq!((&*key, from), ("a", 2));
    lane.loaded_key(&key, vec![row(2, "a"), row(5, "a")], limit, false, Some(5));
    let a = attempts(&mut lane, 30_000);
    assert_eq!(ids(&a), [2]);
    lane.finished(&a[0]);
    assert_eq!(ids(&attempts(&mut lane, 30_000)), [5]);
}

#[test]
fn memory_is_bounded_and_the_tail_is_read_in_order() {
    let mut lane = lane();
    for id in 1..=100 {
        lane.arrive(row(id, &format!("k{id}")).into());
    }
    assert_eq!(lane.held.len(), 8);
    let mut seen = Vec::new();
    loop {
        match lane.next(&POLICY, &schedule(), 0, true) {
            Step::Attempt(item, _) => {
                seen.push(item.id);
                lane.finished(&item);
            }
            Step::Load { after, limit } => {
                let page: Vec<_> = (after + 1..=100)
                    .take(limit)
                    .map(|id| row(id, &format!("k{id}")))
                    .collect();
                let (full, last) = (page.len() >= limit, page.last().map(|r| r.id));
                lane.loaded(page, full, last);
            }
            Step::Rest => break,
            other => panic!("{other:?}"),
        }
        assert!(lane.held.len() <= 8);
    }
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
    assert!(lane.is_idle());
}

#[test]
fn an_arrival_during_a_read_is_not_lost() {
    let mut lane = lane();
    lane.has_tail(1);
    let Step::Load { .. } = lane.next(&POLICY, &schedule(), 0, true) else {
        panic!("reads")
    };
    lane.arrive(row(2, "b").into());
    lane.loaded(vec![row(1, "a")], false, Some(1));
    let Step::Load { after, .. } = lane.next(&POLICY, &schedule(), 0, true) else {
        panic!("reads again")
    };
    assert_eq!(after, 1);
}

#[test]
fn an_open_peer_keeps_nothing_in_memory_probes_with_one_and_then_drains_all() {
    let mut lane = lane();
    for id in 1..=5 {
        lane.arrive(row(id, &format!("k{id}")).into());
    }
    let mut first = attempts(&mut lane, 0);
    assert_eq!(first.len(), 4);
    for (n, item) in first.iter_mut().enumerate() {
        let now = i64::try_from(n).unwrap() * 10;
        lane.failed(&POLICY, Cause::Due, now, now + 5, ("connect", ""));
        item.next_at_ms = 30_000;
        item.attempts = 1;
        item.peer_fault = true;
        lane.waits(item.clone(), &POLICY);
    }
    assert!(lane.held.is_empty());
    let Step::Sleep(until) = lane.next(&POLICY, &schedule(), 40, true) else {
        panic!("sleeps")
    };
    let stored = |failed: bool| {
        (1..=5)
            .map(|id| {
                let mut r = row(id, &format!("k{id}"));
                if id <= 4 {
                    (r.attempts, r.next_at_ms, r.peer_fault) = (1, Some(30_000), failed);
                }
                r
            })
            .collect::<Vec<_>>()
    };
    let Step::Load { after: 0, .. } = lane.next(&POLICY, &schedule(), until, true) else {
        panic!("reads")
    };
    lane.loaded(stored(true), false, Some(5));
    let probe = attempts(&mut lane, until);
    assert_eq!(
        ids(&probe),
        [5],
        "the row never tried is due; the others keep their times"
    );
    assert_eq!(
        lane.succeeded(&POLICY, Cause::Due, until),
        Change::Recovered
    );
    lane.finished(&probe[0]);
    assert_eq!(attempts(&mut lane, until).len(), 1, "narrow at first");
}

#[test]
fn an_expired_row_is_never_attempted() {
    let mut lane = lane();
    let mut item: Item = row(1, "a").into();
    item.expires_ms = Some(10);
    lane.arrive(item);
    assert!(matches!(
        lane.next(&POLICY, &schedule(), 11, true),
        Step::Dead(_, "expired", _)
    ));
}

/// Runs a lane over a disk until it rests; answers what was attempted (and delivered).
fn drain(lane: &mut Lane, disk: &[(i64, &str)], now: i64) -> Vec<i64> {
    let mut seen = Vec::new();
    loop {
        match lane.next(&POLICY, &schedule(), now, true) {
            Step::Attempt(item, _) => {
                seen.push(item.id);
                lane.succeeded(&POLICY, Cause::Due, now);
                lane.finished(&item);
            }
            Step::Load { after, limit } => {
                let page: Vec<_> = disk
                    .iter()
                    .filter(|(id, _)| *id > after && !seen.contains(id))
                    .take(limit)
                    .map(|(id, key)| row(*id, key))
                    .collect();
                let (full, last) = (page.len() == limit, page.last().map(|r| r.id));
                lane.loaded(page, full, last);
            }
            Step::LoadKey { key, from, limit } => {
                let rows: Vec<_> = disk
                    .iter()
                    .filter(|(id, k)| *id >= from && *k == &*key && !seen.contains(id))
                    .take(limit)
                    .map(|(id, key)| row(*id, key))
                    .collect();
                let (full, last) = (rows.len() == limit, rows.last().map(|r| r.id));
                lane.loaded_key(&key, rows, limit, full, last);
            }
            Step::Rest => return seen,
            step => panic!("{step:?}"),
        }
    }
}

#[test]
fn a_page_asked_for_before_everything_went_back_to_disk_strands_nothing() {
    let mut lane = lane();
    let disk: Vec<(i64, &str)> = (1..=20)
        .map(|id| (id, "abcdefghij".get(id as usize % 10..).unwrap_or("")))
        .collect();
    lane.has_tail(1);
    let Step::Load { after: 0, limit } = lane.next(&POLICY, &schedule(), 0, true) else {
        panic!("reads")
    };
    let page = |after: i64, limit: usize| -> Vec<QueueRow> {
        disk.iter()
            .filter(|(id, _)| *id > after)
            .take(limit)
            .map(|(id, key)| row(*id, key))
            .collect()
    };
    lane.loaded(page(0, limit), true, Some(limit as i64));
    let mut delivered = Vec::new();
    for item in attempts(&mut lane, 0) {
        lane.finished(&item);
        delivered.push(item.id);
    }
    let mut flying = attempts(&mut lane, 0);
    let item = flying.remove(0);
    lane.finished(&item);
    delivered.push(item.id);
    let Step::Load { after, limit } = lane.next(&POLICY, &schedule(), 0, true) else {
        panic!("reads on while attempts are in flight")
    };
    for n in 0..3 {
        lane.failed(&POLICY, Cause::Due, n * 10, n * 10 + 1, ("connect", ""));
    }
    for mut item in flying {
        item.attempts = 1;
        item.next_at_ms = 10;
        item.peer_fault = true;
        lane.waits(item, &POLICY);
    }
    let late = page(after, limit);
    let last = late.last().map(|r| r.id);
    lane.loaded(late, true, last);
    let left: Vec<_> = disk
        .iter()
        .copied()
        .filter(|(id, _)| !delivered.contains(id))
        .collect();
    let mut all = drain(&mut lane, &left, 20_000);
    all.extend(delivered);
    all.sort_unstable();
    assert_eq!(all, (1..=20).collect::<Vec<_>>());
}

#[test]
fn a_row_that_a_page_brought_is_not_taken_again_when_its_arrival_comes() {
    let mut lane = lane();
    lane.has_tail(1);
    assert_eq!(drain(&mut lane, &[(1, "a"), (2, "b")], 0), [1, 2]);
    lane.arrive(row(2, "b").into());
    assert!(drain(&mut lane, &[], 0).is_empty());
    lane.arrive(row(3, "b").into());
    assert_eq!(drain(&mut lane, &[], 0), [3]);
}

/// Five rows of five keys that failed and wait for a retry far away, their peer open.
fn all_wait(lane: &mut Lane) -> Vec<QueueRow> {
    for id in 1..=3 {
        lane.arrive(row(id, &format!("k{id}")).into());
    }
    for (n, mut item) in attempts(lane, 0).into_iter().enumerate() {
        let now = i64::try_from(n).unwrap() * 10;
        lane.failed(&POLICY, Cause::Due, now, now + 5, ("connect", ""));
        item.next_at_ms = 1_800_000;
        item.attempts = 1;
        item.first_failed_ms = Some(now);
        item.peer_fault = true;
        lane.waits(item, &POLICY);
    }
    (1..=3)
        .map(|id| {
            let mut r = row(id, &format!("k{id}"));
            (r.attempts, r.next_at_ms, r.peer_fault) = (1, Some(1_800_000), true);
            r.first_failed_ms = Some(0);
            r
        })
        .collect()
}

/// Steps until one is an attempt; pages come from `disk`.
#[allow(clippy::result_large_err, reason = "a test's helper")]
fn until_attempt(lane: &mut Lane, disk: &[QueueRow], now: i64) -> Result<(Item, Cause), Step> {
    let schedule = Schedule {
        delays: vec![Duration::from_secs(1_800)],
    };
    loop {
        match lane.next(&POLICY, &schedule, now, true) {
            Step::Attempt(item, cause) => return Ok((item, cause)),
            Step::Load { after, limit } => {
                let page: Vec<_> = disk
                    .iter()
                    .filter(|r| r.id > after)
                    .take(limit)
                    .cloned()
                    .collect();
                let (full, last) = (page.len() >= limit, page.last().map(|r| r.id));
                lane.loaded(page, full, last);
            }
            step => return Err(step),
        }
    }
}

#[test]
fn an_open_peer_whose_rows_all_wait_is_probed_by_the_breaker_and_no_row_pays_for_it() {
    let mut lane = lane();
    let disk = all_wait(&mut lane);
    let Err(Step::Sleep(probe_at)) = until_attempt(&mut lane, &disk, 30) else {
        panic!("the breaker holds it back")
    };
    let (item, cause) = until_attempt(&mut lane, &disk, probe_at).unwrap();
    assert_eq!((item.id, cause), (1, Cause::Probe));
    assert_eq!(
        lane.failed(&POLICY, cause, probe_at, probe_at + 1, ("connect", "")),
        Change::Noted
    );
    lane.waits(item, &POLICY);
    let Err(Step::Sleep(later)) = until_attempt(&mut lane, &disk, probe_at + 1) else {
        panic!("again it waits")
    };
    assert_eq!(later - probe_at - 1, 10_000, "longer than before");
    let (item, cause) = until_attempt(&mut lane, &disk, later).unwrap();
    assert_eq!(lane.succeeded(&POLICY, cause, later), Change::Recovered);
    lane.finished(&item);
    let (item, cause) = until_attempt(&mut lane, &disk[1..], later).unwrap();
    assert_eq!(
        (item.id, cause),
        (2, Cause::Due),
        "the backlog goes promptly"
    );
}

#[test]
fn a_word_from_the_peer_earns_one_early_attempt_and_resets_nothing() {
    let mut lane = lane();
    let disk = all_wait(&mut lane);
    let before = lane.facts.clone();
    assert!(lane.heard(40));
    assert!(!lane.heard(41), "one word is enough");
    let (item, cause) = until_attempt(&mut lane, &disk, 50).unwrap();
    assert_eq!((item.id, cause), (1, Cause::Early));
    assert!(
        matches!(until_attempt(&mut lane, &disk, 51), Err(Step::Sleep(_))),
        "one attempt at a time"
    );
    let news = lane.failed(&POLICY, cause, 50, 60, ("connect", ""));
    lane.waits(item, &POLICY);
    assert_eq!(news, Change::None);
    assert_eq!(lane.facts, before, "hearing of it changed nothing");
    assert!(!lane.heard(70), "not again before the next failure");
    let Err(Step::Sleep(probe_at)) = until_attempt(&mut lane, &disk, 70) else {
        panic!("the breaker's time stands")
    };
    let (item, cause) = until_attempt(&mut lane, &disk, probe_at).unwrap();
    lane.failed(&POLICY, cause, probe_at, probe_at + 1, ("connect", ""));
    lane.waits(item, &POLICY);
    assert!(
        lane.heard(probe_at + 2),
        "a failure later a word counts again"
    );
}

#[test]
fn a_peer_that_is_well_earns_nothing_by_its_words() {
    let mut lane = lane();
    lane.arrive(row(1, "a").into());
    assert!(!lane.would_listen(0) && !lane.heard(0));
}

#[test]
fn a_paused_lane_keeps_nothing_in_memory_and_goes_on_where_it_was() {
    let mut lane = lane();
    for id in 1..=3 {
        lane.arrive(row(id, "a").into());
    }
    let first = attempts(&mut lane, 0);
    lane.pause(Pause::default());
    lane.arrive(row(4, "b").into());
    assert_eq!(lane.held.len(), 1, "only what is in flight");
    lane.finished(&first[0]);
    assert!(matches!(
        lane.next(&POLICY, &schedule(), 5, true),
        Step::Rest
    ));
    assert!(lane.held.is_empty() && !lane.is_idle());
    assert!(lane.resume(10));
    assert_eq!(
        drain(&mut lane, &[(2, "a"), (3, "a"), (4, "b")], 10),
        [2, 4, 3]
    );
}

#[test]
fn a_lane_whose_peer_fetches_attempts_nothing_and_goes_on_when_pushes_are_tried_again() {
    let mut lane = lane();
    for id in 1..=3 {
        lane.arrive(row(id, "a").into());
    }
    lane.leaves_by(Via::Held { until_ms: 100 });
    lane.arrive(row(4, "b").into());
    assert!(lane.held.is_empty(), "all of it is on disk");
    lane.grant(Grant::Operator);
    assert!(matches!(
        lane.next(&POLICY, &schedule(), 5, true),
        Step::Sleep(100)
    ));
    lane.leaves_by(Via::Post);
    // The first was fetched meanwhile.
    assert_eq!(
        drain(&mut lane, &[(2, "a"), (3, "a"), (4, "b")], 100),
        [2, 4, 3]
    );
}

#[test]
fn what_a_reading_brings_while_the_peer_fetches_is_left_on_disk() {
    let mut lane = lane();
    lane.has_tail(1);
    assert!(matches!(
        lane.next(&POLICY, &schedule(), 0, true),
        Step::Load { .. }
    ));
    lane.leaves_by(Via::Held { until_ms: 100 });
    lane.loaded(vec![row(1, "a")], false, Some(1));
    lane.leaves_by(Via::Held { until_ms: 100 });
    assert!(lane.held.is_empty());
    lane.leaves_by(Via::Post);
    assert_eq!(
        drain(&mut lane, &[(2, "a")], 100),
        [2],
        "the first was fetched"
    );
}

#[test]
fn a_pause_with_an_end_ends_by_itself() {
    let mut lane = lane();
    lane.pause(Pause {
        until_ms: Some(100),
        ..Pause::default()
    });
    lane.arrive(row(1, "a").into());
    assert!(matches!(
        lane.next(&POLICY, &schedule(), 5, true),
        Step::Sleep(100)
    ));
    assert!(!lane.pause_ran_out(99) && lane.pause_ran_out(100));
    assert_eq!(drain(&mut lane, &[(1, "a")], 100), [1]);
}

#[test]
fn the_schedule_does_not_end_while_an_operator_has_paused_the_peer() {
    let one = |paused: Option<(i64, i64)>| {
        let mut lane = lane();
        lane.facts.failures = 3;
        lane.facts.pauses.extend(paused);
        let mut item: Item = row(1, "a").into();
        item.first_failed_ms = Some(0);
        lane.arrive(item);
        lane.next(&POLICY, &schedule(), 50_000, true)
    };
    assert!(matches!(one(None), Step::Dead(_, "peer_unreachable", _)));
    assert!(matches!(one(Some((10_000, 40_000))), Step::Attempt(..)));
}

#[test]
fn an_operator_s_probe_tries_any_row_and_a_flush_reads_all_again() {
    let mut lane = lane();
    lane.arrive(row(1, "a").into());
    let mut item = attempts(&mut lane, 0).remove(0);
    (item.attempts, item.next_at_ms) = (1, 30_000);
    lane.waits(item, &POLICY);
    lane.grant(Grant::Operator);
    let (item, cause) = until_attempt(&mut lane, &[], 10).unwrap();
    assert_eq!((item.id, cause), (1, Cause::Early));
    lane.waits(item, &POLICY);
    assert!(matches!(
        until_attempt(&mut lane, &[], 11),
        Err(Step::Sleep(30_000))
    ));
    lane.reread(1);
    assert_eq!(drain(&mut lane, &[(1, "a")], 12), [1]);
}
