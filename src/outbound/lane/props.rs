//! A lane against a model of its disk: whatever arrives, fails, is read late or recovers, every row
//! is attempted until it is settled, one at a time and in order per key.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::tests::row;
use super::*;
use crate::peers::health::Pause;
use crate::protocol::{Schedule, Via};

const POLICY: Policy = Policy {
    threshold: 3,
    initial: Duration::from_secs(5),
    max: Duration::from_secs(60),
};
/// A head that one read of a key can fill, and one that leaves room for arrivals meanwhile.
const HEADS: [usize; 2] = [8, 2 * KEY_PAGE];

#[derive(Clone, Debug)]
enum Act {
    /// So many new rows of this key, on disk at once.
    Arrive(u8, u8),
    /// So many of them are told to the lane.
    Told(u8),
    /// The peer asks for patience, so many milliseconds.
    Throttle(u16),
    /// The n-th thing under way ends; attempts succeed, fail by the peer, or by the message.
    End(u8, u8),
    /// The n-th thing under way, if it is a read, sees the disk as it is now.
    Look(u8),
    /// Milliseconds pass.
    Pass(u16),
    /// A row, already met, comes back (its outcome was on its way when it was read).
    Back(u8),
    /// An operator pauses the peer, with or without an end; or resumes it.
    Pause(Option<u16>),
    Resume,
    /// The peer is heard of, or an operator wants it tried, or everything at once.
    Heard,
    Probe,
    Flush,
    /// The peer turns out to fetch its messages, for so many milliseconds; or takes them pushed.
    Fetches(u16),
    Takes,
    /// It fetches so many, if it fetches.
    Fetch(u8),
}

enum Under {
    Attempt(Item, Cause, i64),
    Page(Read),
    Key(Arc<str>, Read),
}

/// A read: what it sees is of the moment when it began, of one between ([`Act::Look`]), or of the
/// moment when it ends.
struct Read {
    from: i64,
    limit: usize,
    rows: Vec<QueueRow>,
}

struct World {
    lane: Lane,
    schedule: Schedule,
    now: i64,
    next: i64,
    disk: BTreeMap<i64, QueueRow>,
    /// On disk, and the lane has not heard of them.
    untold: std::collections::VecDeque<Item>,
    under: Vec<Under>,
    first: HashMap<String, i64>,
    tried: HashSet<i64>,
    fetched_until: i64,
}

impl World {
    fn poke(&mut self) {
        self.lane.pause_ran_out(self.now);
        self.lane.leaves_by(if self.fetched() {
            Via::Held {
                until_ms: self.fetched_until,
            }
        } else {
            Via::Post
        });
        for turn in 0.. {
            assert!(turn < 10_000, "the lane asks for ever");
            match self.lane.next(&POLICY, &self.schedule, self.now, true) {
                Step::Sleep(at) => {
                    assert!(at > self.now, "a wake that makes no progress");
                    break;
                }
                Step::Rest => break,
                step => self.step(step),
            }
        }
        let most = 2 * self.lane.limits.head + self.lane.limits.window;
        assert!(self.lane.active() <= most, "{}", self.lane.active());
    }

    /// Does what the lane asks for.
    fn step(&mut self, step: Step) {
        match step {
            Step::Attempt(item, cause) => self.begin(item, cause),
            Step::Dead(item, ..) => {
                self.disk.remove(&item.id);
                self.lane.finished(&item);
            }
            Step::Load { after, limit } => {
                let (from, rows) = (after + 1, self.see(after + 1, limit, None));
                self.under.push(Under::Page(Read { from, limit, rows }));
            }
            Step::LoadKey { key, from, limit } => {
                let rows = self.see(from, limit, Some(&key));
                self.under.push(Under::Key(key, Read { from, limit, rows }));
            }
            Step::Sleep(_) | Step::Rest => {}
        }
    }

    fn see(&self, from: i64, limit: usize, key: Option<&str>) -> Vec<QueueRow> {
        let rows = self.disk.range(from..).map(|(_, r)| r);
        let rows = rows.filter(|r| key.is_none_or(|k| *r.order_key == *k));
        rows.take(limit).cloned().collect()
    }

    /// The database looks at what one read asked for; its answer comes later.
    fn look(&mut self, n: usize) {
        let at = n % self.under.len().max(1);
        let (from, limit, key) = match self.under.get(at) {
            Some(Under::Page(read)) => (read.from, read.limit, None),
            Some(Under::Key(key, read)) => (read.from, read.limit, Some(key.clone())),
            Some(Under::Attempt(..)) | None => return,
        };
        let seen = self.see(from, limit, key.as_deref());
        if let Some(Under::Page(read) | Under::Key(_, read)) = self.under.get_mut(at) {
            read.rows = seen;
        }
    }

    fn tell(&mut self, n: usize) {
        for item in self.untold.drain(..n.min(self.untold.len())) {
            self.lane.arrive(item);
        }
    }

    fn begin(&mut self, item: Item, cause: Cause) {
        assert!(!self.paused(), "{} goes to a paused peer", item.id);
        assert!(!self.fetched(), "{} goes to a peer that fetches", item.id);
        assert!(self.disk.contains_key(&item.id), "{} was settled", item.id);
        for other in &self.under {
            if let Under::Attempt(o, ..) = other {
                assert_ne!(o.id, item.id, "in flight twice");
                assert_ne!(o.key, item.key, "one key at a time");
            }
        }
        if self.tried.insert(item.id) {
            let last = self.first.insert(item.key.to_string(), item.id);
            assert!(
                last.is_none_or(|l| l < item.id),
                "{last:?} before {}",
                item.id
            );
        }
        self.under.push(Under::Attempt(item, cause, self.now));
    }

    fn fetched(&self) -> bool {
        self.fetched_until > self.now
    }

    fn paused(&self) -> bool {
        let pause = self.lane.facts.pause.as_ref();
        pause.is_some_and(|p| p.until_ms.is_none_or(|t| t > self.now))
    }

    /// What a shard does with rows whose outcome came while they were read.
    fn current(&self, rows: Vec<QueueRow>) -> Vec<QueueRow> {
        rows.into_iter()
            .filter_map(|r| self.disk.get(&r.id).cloned())
            .collect()
    }

    fn end(&mut self, n: usize, how: u8) {
        if self.under.is_empty() {
            return;
        }
        match self.under.remove(n % self.under.len()) {
            Under::Page(read) => {
                let (limit, mut rows) = (read.limit, read.rows);
                if how == 1 {
                    rows = self.see(read.from, limit, None);
                }
                let (full, last) = (rows.len() >= limit, rows.last().map(|r| r.id));
                let rows = self.current(rows);
                self.lane.loaded(rows, full, last);
            }
            Under::Key(key, read) => {
                let (limit, mut rows) = (read.limit, read.rows);
                if how == 1 {
                    rows = self.see(read.from, limit, Some(&key));
                }
                let (full, last) = (rows.len() >= limit, rows.last().map(|r| r.id));
                let rows = self.current(rows);
                self.lane.loaded_key(&key, rows, limit, full, last);
            }
            Under::Attempt(item, cause, _) if how.is_multiple_of(3) => {
                self.disk.remove(&item.id);
                self.lane.succeeded(&POLICY, cause, self.now);
                self.lane.finished(&item);
            }
            Under::Attempt(item, cause, started) if cause != Cause::Due => {
                if how % 3 == 1 {
                    self.lane
                        .failed(&POLICY, cause, started, self.now, ("connect", ""));
                } else {
                    self.lane.succeeded(&POLICY, cause, self.now);
                }
                self.lane.waits(item, &POLICY);
            }
            Under::Attempt(mut item, cause, started) => {
                item.peer_fault = how % 3 == 1;
                item.attempts += 1;
                item.first_failed_ms.get_or_insert(self.now);
                item.next_at_ms = self.now + 1_000;
                if let Some(r) = self.disk.get_mut(&item.id) {
                    r.attempts = item.attempts;
                    r.peer_fault = item.peer_fault;
                    r.first_failed_ms = item.first_failed_ms;
                    r.next_at_ms = Some(item.next_at_ms);
                }
                if item.peer_fault {
                    self.lane
                        .failed(&POLICY, cause, started, self.now, ("connect", ""));
                }
                self.lane.waits(item, &POLICY);
            }
        }
        self.poke();
    }
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..5u8, 1..6u8).prop_map(|(k, n)| Act::Arrive(k, n)),
        6 => (any::<u8>(), 0..3u8).prop_map(|(n, how)| Act::End(n, how)),
        3 => any::<u8>().prop_map(Act::Look),
        2 => (0..6_000u16).prop_map(Act::Pass),
        3 => (1..8u8).prop_map(Act::Told),
        1 => (1..3_000u16).prop_map(Act::Throttle),
        1 => any::<u8>().prop_map(Act::Back),
        1 => prop::option::of(1..9_000u16).prop_map(Act::Pause),
        1 => Just(Act::Resume),
        1 => Just(Act::Heard),
        1 => Just(Act::Probe),
        1 => Just(Act::Flush),
        1 => (0..3_000u16).prop_map(Act::Fetches),
        1 => Just(Act::Takes),
        1 => (0..6u8).prop_map(Act::Fetch),
    ]
}

/// Does all that happens, then lets everything end well.
fn run(head: usize, acts: Vec<Act>) -> Result<(), TestCaseError> {
    let mut world = World {
        lane: Lane::new(Limits { window: 4, head }, Facts::default()),
        // Long: the rows of this test do not die of age.
        schedule: Schedule {
            delays: vec![Duration::from_secs(1 << 30)],
        },
        now: 1,
        next: 1,
        disk: BTreeMap::new(),
        untold: Default::default(),
        under: vec![],
        first: HashMap::new(),
        tried: HashSet::new(),
        fetched_until: 0,
    };
    for act in acts {
        match act {
            Act::Arrive(key, n) => {
                for _ in 0..n {
                    let new = row(world.next, &format!("k{key}"));
                    world.next += 1;
                    world.disk.insert(new.id, new.clone());
                    world.untold.push_back(new.into());
                }
            }
            Act::Told(n) => world.tell(usize::from(n)),
            Act::Throttle(ms) => world.lane.facts.throttled(world.now + i64::from(ms)),
            Act::End(n, how) => world.end(usize::from(n), how),
            Act::Look(n) => world.look(usize::from(n)),
            Act::Pass(ms) => world.now += i64::from(ms),
            Act::Pause(ms) => world.lane.pause(Pause {
                since_ms: world.now,
                until_ms: ms.map(|ms| world.now + i64::from(ms)),
                reason: None,
            }),
            Act::Resume => {
                world.lane.resume(world.now);
            }
            Act::Heard => {
                world.lane.heard(world.now);
            }
            Act::Probe => world.lane.grant(Grant::Operator),
            Act::Fetches(ms) => world.fetched_until = world.now + i64::from(ms),
            Act::Takes => world.fetched_until = 0,
            Act::Fetch(n) => {
                // A push that is under way may bring one of them a second time; its id tells.
                if world.fetched() && world.under.is_empty() && world.untold.is_empty() {
                    for _ in 0..n {
                        world.disk.pop_first();
                    }
                }
            }
            Act::Flush => {
                for row in world.disk.values_mut() {
                    row.next_at_ms = row.next_at_ms.map(|t| t.min(world.now));
                }
                world.lane.reread(1);
            }
            Act::Back(n) => {
                let tried: Vec<i64> = world
                    .disk
                    .keys()
                    .copied()
                    .filter(|i| world.tried.contains(i))
                    .collect();
                if !tried.is_empty() {
                    world.lane.has_tail(tried[usize::from(n) % tried.len()]);
                }
            }
        }
        world.poke();
    }
    world.tell(usize::MAX);
    world.lane.resume(world.now);
    world.fetched_until = 0;
    world.poke();
    for turn in 0.. {
        if world.disk.is_empty() && world.under.is_empty() && world.lane.is_idle() {
            break;
        }
        prop_assert!(
            turn < 5_000,
            "stuck with {:?} on disk",
            world.disk.keys().collect::<Vec<_>>()
        );
        if world.under.is_empty() {
            world.now += 61_000;
        }
        world.end(0, 0);
        world.poke();
    }
    Ok(())
}

/// What keeps few keys busy and their rows going to disk and back.
fn busy_key() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..2u8, 1..3u8).prop_map(|(k, n)| Act::Arrive(k, n)),
        3 => (1..4u8).prop_map(Act::Told),
        4 => (any::<u8>(), prop::sample::select(&[0u8, 2])).prop_map(|(n, how)| Act::End(n, how)),
        2 => any::<u8>().prop_map(Act::Look),
        1 => (0..2_000u16).prop_map(Act::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn every_row_is_settled_once_and_in_order_whatever_happens(
        head in prop::sample::select(&HEADS),
        acts in prop::collection::vec(act(), 1..120),
    ) {
        run(head, acts)?;
    }

    /// A row that its peer refuses keeps the rows behind it waiting, and those are read back while
    /// others come: of these, a read may have seen some and not the others.
    #[test]
    fn what_comes_while_a_key_is_read_back_is_neither_lost_nor_late(acts in prop::collection::vec(busy_key(), 1..120)) {
        run(HEADS[1], acts)?;
    }

    /// Time passes only by the lane's own wakes, and the peer fails as it likes: each wake is later
    /// than the one before, and finds something to do.
    #[test]
    fn a_wake_that_makes_no_progress_is_impossible(
        rows in prop::collection::vec((0..4u8, 0..3u8), 1..20),
        fails in prop::collection::vec(0..3u8, 40..80),
        orders in prop::collection::vec(0..6u8, 80),
    ) {
        let mut world = World {
            lane: Lane::new(Limits { window: 4, head: HEADS[0] }, Facts::default()),
            schedule: Schedule { delays: vec![Duration::from_secs(1 << 30)] },
            now: 1, next: 1, disk: BTreeMap::new(), untold: Default::default(), under: vec![], first: HashMap::new(),
            tried: HashSet::new(), fetched_until: 0,
        };
        for (key, wait) in rows {
            let mut new = row(world.next, &format!("k{key}"));
            world.next += 1;
            if wait > 0 {
                (new.attempts, new.first_failed_ms, new.peer_fault) = (1, Some(0), wait == 1);
                new.next_at_ms = Some(1_000_000);
            }
            world.disk.insert(new.id, new);
        }
        world.lane.has_tail(1);
        for (how, order) in fails.into_iter().zip(orders) {
            match order {
                0 => { world.lane.heard(world.now); },
                1 => world.lane.grant(Grant::Operator),
                2 => world.lane.pause(Pause {
                    since_ms: world.now,
                    until_ms: Some(world.now + 700),
                    reason: None,
                }),
                _ => {}
            }
            world.lane.pause_ran_out(world.now);
            // Whatever is under way ends, until the lane wants nothing but time.
            let sleeps_until = loop {
                match world.lane.next(&POLICY, &world.schedule, world.now, true) {
                    Step::Sleep(at) => if world.under.is_empty() { break Some(at) } else { world.end(0, how) },
                    Step::Rest => if world.under.is_empty() { break None } else { world.end(0, how) },
                    step => world.step(step),
                }
            };
            let Some(at) = sleeps_until else {
                prop_assert!(world.disk.is_empty(), "it rests with rows on disk");
                break;
            };
            prop_assert!(at > world.now, "{at} is not later than {}", world.now);
            world.now = at;
            let resumed = world.lane.pause_ran_out(at);
            let step = world.lane.next(&POLICY, &world.schedule, at, true);
            prop_assert!(
                resumed || !matches!(step, Step::Sleep(_) | Step::Rest),
                "woken at {at} for nothing: {step:?}"
            );
            world.step(step);
        }
    }
}
