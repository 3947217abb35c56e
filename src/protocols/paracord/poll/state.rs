//! What polling remembers: how far each room of each server was read (kept in the store), whose turn
//! it is, who asked for patience, and which events were dealt with lately.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::ID;
use super::super::rooms::Polled;
use crate::protocol::{PeerName, Record};
use crate::store::{Store, StoreError};

/// Kind of the store's rows; the key is server and room.
pub const KIND: &str = "cursor";
/// Rooms of a server in one beat at most.
pub const ROOMS: usize = 64;
/// First and longest pause after something went wrong.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// A server that asks for more patience than this is asked again all the same.
const MOST_PATIENCE: Duration = Duration::from_secs(3_600);
/// Events remembered in each of two generations.
const SEEN: usize = 65_536;

/// Everything polling remembers.
pub struct Polls {
    store: Store,
    turns: Mutex<HashMap<PeerName, Turn>>,
    cursors: Mutex<Cursors>,
    seen: Mutex<Seen>,
    hashers: [RandomState; 2],
}

#[derive(Default)]
struct Cursors {
    reached: HashMap<String, i64>,
    unwritten: HashSet<String>,
}

/// One server.
#[derive(Default)]
struct Turn {
    /// The room asked for last: the next beat goes on behind it.
    last: Option<String>,
    trouble: Trouble,
    rooms: HashMap<String, RoomTurn>,
}

/// One room of one server.
#[derive(Default)]
struct RoomTurn {
    trouble: Trouble,
    /// Events to ask for, where pages were too large.
    limit: Option<usize>,
}

/// What went wrong lately.
#[derive(Default)]
struct Trouble {
    failures: u32,
    quiet_until: Option<Instant>,
}

impl Trouble {
    /// One more; answers the pause. `after`: how long the server wants to be left alone.
    fn one_more(&mut self, after: Option<Duration>, now: Instant) -> Duration {
        let pause = PAUSES.0.saturating_mul(1 << self.failures.min(16));
        let pause = pause
            .min(PAUSES.1)
            .max(after.unwrap_or_default())
            .min(MOST_PATIENCE);
        self.failures = self.failures.saturating_add(1);
        self.quiet_until = now.checked_add(pause);
        pause
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.quiet_until.is_some_and(|until| now < until)
    }
}

/// The newest events that need no second look: two generations, the older goes when the newer is full.
#[derive(Default)]
struct Seen {
    newer: HashSet<u128>,
    older: HashSet<u128>,
}

impl Polls {
    /// Reads how far every room was read.
    pub async fn open(store: Store) -> Result<Self, StoreError> {
        let mut cursors = Cursors::default();
        for (key, value) in store.records(ID, KIND).await? {
            match value.parse() {
                Ok(reached) => drop(cursors.reached.insert(key, reached)),
                Err(_) => {
                    tracing::error!(key, "how far a room was read is no number; it is read anew");
                }
            }
        }
        Ok(Self {
            store,
            turns: Mutex::default(),
            cursors: Mutex::new(cursors),
            seen: Mutex::default(),
            hashers: [RandomState::new(), RandomState::new()],
        })
    }

    /// Whether a server is left alone at this moment.
    pub fn is_quiet(&self, peer: &PeerName, now: Instant) -> bool {
        let turns = lock(&self.turns);
        turns
            .get(peer)
            .is_some_and(|turn| turn.trouble.is_quiet(now))
    }

    /// Rooms to ask for now: those behind the last one first, none that is left alone. What is
    /// remembered of others is forgotten.
    pub fn begin(&self, peer: &PeerName, rooms: Vec<Polled>, now: Instant) -> Vec<Polled> {
        let mut turns = lock(&self.turns);
        let turn = turns.entry(peer.clone()).or_default();
        let kept: HashSet<&str> = rooms.iter().map(|room| room.key.as_str()).collect();
        turn.rooms.retain(|key, _| kept.contains(key.as_str()));
        let at = turn.last.as_ref().map_or(0, |last| {
            rooms.partition_point(|room| room.key.as_str() <= last.as_str())
        });
        let is_quiet = |room: &Polled| {
            let known = turn.rooms.get(&room.key);
            known.is_some_and(|known| known.trouble.is_quiet(now))
        };
        let (before, behind) = rooms.split_at(at);
        let in_turn = behind.iter().chain(before).filter(|room| !is_quiet(room));
        in_turn.take(ROOMS).cloned().collect()
    }

    /// How far a room was read, and how many events to ask for if not the usual number.
    pub fn room(&self, peer: &PeerName, room: &str) -> (i64, Option<usize>) {
        let reached = lock(&self.cursors).reached.get(&key(peer, room)).copied();
        let turns = lock(&self.turns);
        let known = turns.get(peer).and_then(|turn| turn.rooms.get(room));
        (reached.unwrap_or(0), known.and_then(|known| known.limit))
    }

    /// A room had its turn and was read up to here. `limit`: pages are to be no larger.
    pub fn read_up_to(&self, peer: &PeerName, room: &str, reached: i64, limit: Option<usize>) {
        self.turn(peer, |turn| {
            turn.last = Some(room.to_owned());
            match limit {
                Some(_) => turn.rooms.entry(room.to_owned()).or_default().limit = limit,
                None => {
                    if let Some(known) = turn.rooms.get_mut(room) {
                        known.limit = None;
                    }
                }
            }
        });
        let mut cursors = lock(&self.cursors);
        let key = key(peer, room);
        if cursors.reached.get(&key).copied().unwrap_or(0) != reached {
            cursors.reached.insert(key.clone(), reached);
            cursors.unwritten.insert(key);
        }
    }

    /// A server answered. True: it had not before.
    pub fn answered(&self, peer: &PeerName) -> bool {
        self.turn(peer, |turn| std::mem::take(&mut turn.trouble).failures > 0)
    }

    /// A room of it was readable. True: it had not been before.
    pub fn readable(&self, peer: &PeerName, room: &str) -> bool {
        self.turn(peer, |turn| {
            let known = turn.rooms.get_mut(room);
            known.is_some_and(|known| std::mem::take(&mut known.trouble).failures > 0)
        })
    }

    /// A server did not answer as it should; answers the pause, and whether this is news.
    pub fn failed(
        &self,
        peer: &PeerName,
        after: Option<Duration>,
        now: Instant,
    ) -> (Duration, bool) {
        self.turn(peer, |turn| {
            let news = turn.trouble.failures == 0;
            (turn.trouble.one_more(after, now), news)
        })
    }

    /// The same of one of its rooms.
    pub fn refused(&self, peer: &PeerName, room: &str, now: Instant) -> (Duration, bool) {
        self.turn(peer, |turn| {
            turn.last = Some(room.to_owned());
            let room = turn.rooms.entry(room.to_owned()).or_default();
            let news = room.trouble.failures == 0;
            (room.trouble.one_more(None, now), news)
        })
    }

    /// What an event in the words of this server is remembered by.
    pub fn mark(&self, peer: &PeerName, room: &str, raw: &str) -> u128 {
        let [high, low] = &self.hashers;
        let high = u128::from(high.hash_one((peer.as_str(), room, raw)));
        high << 64 | u128::from(low.hash_one((peer.as_str(), room, raw)))
    }

    /// Whether it was dealt with lately.
    pub fn has_seen(&self, mark: u128) -> bool {
        let seen = lock(&self.seen);
        seen.newer.contains(&mark) || seen.older.contains(&mark)
    }

    /// It is dealt with.
    pub fn saw(&self, mark: u128) {
        let mut seen = lock(&self.seen);
        if seen.newer.len() >= SEEN {
            seen.older = std::mem::take(&mut seen.newer);
        }
        seen.newer.insert(mark);
    }

    /// Writes how far rooms were read; what cannot be written is written another time.
    pub async fn save(&self) {
        let (keys, records): (Vec<String>, Vec<Record>) = {
            let mut cursors = lock(&self.cursors);
            let keys = std::mem::take(&mut cursors.unwritten);
            let rows = keys.into_iter().map(|key| {
                let value = cursors.reached.get(&key).map(i64::to_string);
                let kind = KIND;
                (key.clone(), Record { kind, key, value })
            });
            rows.unzip()
        };
        if records.is_empty() {
            return;
        }
        let written = match self.store.put_records(ID, records).await {
            Ok(commit) => commit.await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "how far rooms were read is not written yet");
            lock(&self.cursors).unwritten.extend(keys);
        }
    }

    fn turn<T>(&self, peer: &PeerName, change: impl FnOnce(&mut Turn) -> T) -> T {
        change(lock(&self.turns).entry(peer.clone()).or_default())
    }
}

fn key(peer: &PeerName, room: &str) -> String {
    format!("{peer}\n{room}")
}

/// Nothing in these sections can panic half-way through a change, so a poisoned lock is as good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    async fn polls(dir: &std::path::Path) -> Polls {
        let clock = Clock::fixed(1_700_000_000_000);
        let store = Store::open(&dir.join("d.db"), clock).await.unwrap();
        Polls::open(store).await.unwrap()
    }

    fn peer() -> PeerName {
        PeerName::parse("b.example").unwrap()
    }

    fn rooms(count: usize) -> Vec<Polled> {
        let room = |n| format!("!{n:04}:b.example");
        let polled = (0..count).map(|n| Polled {
            key: room(n),
            room_id: room(n),
        });
        polled.collect()
    }

    #[tokio::test]
    async fn every_room_has_its_turn_however_many_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let polls = polls(dir.path()).await;
        let mut asked: HashMap<String, u32> = HashMap::new();
        for _ in 0..5 {
            let turn = polls.begin(&peer(), rooms(150), Instant::now());
            assert_eq!(turn.len(), ROOMS);
            for room in turn {
                polls.read_up_to(&peer(), &room.key, 1, None);
                *asked.entry(room.key).or_default() += 1;
            }
        }
        assert_eq!(asked.len(), 150);
        assert!(asked.values().all(|n| (2..=3).contains(n)), "{asked:?}");
        polls.store.close().await;
    }

    #[tokio::test]
    async fn pauses_double_to_five_minutes_and_end_with_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let polls = polls(dir.path()).await;
        let now = Instant::now();
        let fail = |after| polls.failed(&peer(), after, now);
        assert_eq!(fail(None), (Duration::from_secs(5), true));
        assert_eq!(fail(None), (Duration::from_secs(10), false));
        for _ in 0..70 {
            fail(None);
        }
        assert_eq!(fail(None).0, Duration::from_secs(300));
        let patience = |s| Some(Duration::from_secs(s));
        assert_eq!(fail(patience(400)).0, Duration::from_secs(400));
        assert_eq!(fail(patience(u64::MAX)).0, MOST_PATIENCE);
        assert!(polls.is_quiet(&peer(), now));
        assert!(!polls.is_quiet(&peer(), now + MOST_PATIENCE));
        assert!(polls.answered(&peer()));
        assert!(!polls.is_quiet(&peer(), now));
        assert!(!polls.answered(&peer()));
        polls.store.close().await;
    }

    #[tokio::test]
    async fn a_room_that_is_refused_waits_while_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let polls = polls(dir.path()).await;
        let now = Instant::now();
        let (pause, news) = polls.refused(&peer(), "!0000:b.example", now);
        assert!(news && !polls.is_quiet(&peer(), now));
        let turn = polls.begin(&peer(), rooms(2), now);
        assert_eq!(turn.len(), 1);
        assert_eq!(polls.begin(&peer(), rooms(2), now + pause).len(), 2);
        polls.store.close().await;
    }

    #[tokio::test]
    async fn how_far_a_room_was_read_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = polls(dir.path()).await;
        first.read_up_to(&peer(), "!1:b.example", 77, Some(8));
        first.save().await;
        first.read_up_to(&peer(), "!1:b.example", 78, None);
        first.store.close().await;
        let second = polls(dir.path()).await;
        assert_eq!(second.room(&peer(), "!1:b.example"), (77, None));
        assert_eq!(second.room(&peer(), "!2:b.example"), (0, None));
        second.store.close().await;
    }

    #[tokio::test]
    async fn what_was_seen_is_bounded_and_belongs_to_one_server_and_room() {
        let dir = tempfile::tempdir().unwrap();
        let polls = polls(dir.path()).await;
        let mark = polls.mark(&peer(), "r", "e");
        polls.saw(mark);
        assert!(polls.has_seen(mark));
        assert_ne!(mark, polls.mark(&peer(), "s", "e"));
        let other = PeerName::parse("c.example").unwrap();
        assert_ne!(mark, polls.mark(&other, "r", "e"));
        for n in 0..2 * SEEN as u128 {
            polls.saw(n);
        }
        assert!(!polls.has_seen(mark));
        let kept = {
            let seen = lock(&polls.seen);
            seen.newer.len() + seen.older.len()
        };
        assert!(kept <= 2 * SEEN);
        polls.store.close().await;
    }
}
