//! The door against a real ledger and a bus that fails on cue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Door, Entry, Held, Outlet, PubAck};
use crate::bus::{BusError, BusErrorKind, BusMessage, ScanFrom, StreamFacts};
use crate::clock::Clock;
use crate::identity::SigningKey;
use crate::ops::Ops;
use crate::protocol::{PeerName, ReplayId, Verified, VerifiedParts};
use crate::store::{Store, Way};

const NOW: i64 = 1_777_636_800_000;

/// A bus that remembers what it was given, and acknowledges when it is told to.
struct Fake {
    seen: Mutex<Vec<BusMessage>>,
    up: AtomicBool,
    /// While false, PubAcks wait.
    acks: watch::Sender<bool>,
    /// Once it has so many messages, the next one meets it with only that many.
    rolls_back: Mutex<Option<(usize, usize)>>,
}

impl Fake {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::new(Vec::new()),
            up: AtomicBool::new(true),
            acks: watch::channel(true).0,
            rolls_back: Mutex::new(None),
        })
    }

    fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::SeqCst);
    }

    fn payloads(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .map(|m| String::from_utf8_lossy(&m.payload).into_owned())
            .collect()
    }

    /// Sequence and id of what a stream has.
    fn on(&self, way: Way) -> Vec<(u64, String)> {
        let seen = self.seen.lock().unwrap();
        (1..)
            .zip(seen.iter())
            .filter(|(_, m)| m.stream == way.stream())
            .map(|(seq, m)| {
                let id = m.headers.iter().find(|(name, _)| name == "Nats-Msg-Id");
                (seq, id.map(|(_, id)| id.clone()).unwrap_or_default())
            })
            .collect()
    }
}

fn gone() -> BusError {
    BusError {
        kind: BusErrorKind::Unavailable,
        detail: "gone".into(),
    }
}

impl Outlet for Fake {
    fn prefix(&self) -> &str {
        "fed"
    }

    fn connected(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    fn max_body(&self) -> usize {
        1024
    }

    fn publish(&self, message: BusMessage) -> BoxFuture<'_, Result<PubAck, BusError>> {
        Box::pin(async move {
            if !self.connected() {
                return Err(gone());
            }
            let sequence = {
                let mut seen = self.seen.lock().unwrap();
                let mut rolls_back = self.rolls_back.lock().unwrap();
                if let Some((_, to)) = rolls_back.take_if(|(at, _)| *at == seen.len()) {
                    seen.truncate(to);
                }
                seen.push(message);
                seen.len() as u64
            };
            let mut acks = self.acks.subscribe();
            let ack: PubAck = Box::pin(async move {
                acks.wait_for(|go| *go).await.map_err(|_| gone())?;
                Ok((sequence, false))
            });
            Ok(ack)
        })
    }

    fn connection(&self) -> Option<watch::Receiver<bool>> {
        None
    }

    fn losses(&self) -> u64 {
        0
    }

    fn facts(&self, way: Way) -> BoxFuture<'_, Result<Option<StreamFacts>, BusError>> {
        let last_seq = self.on(way).last().map_or(0, |(seq, _)| *seq);
        let facts = StreamFacts {
            created_ns: 1,
            messages: last_seq,
            bytes: 0,
            first_seq: 1,
            last_seq,
            max_age_ms: None,
        };
        Box::pin(std::future::ready(Ok(Some(facts))))
    }

    fn id_at(&self, way: Way, seq: u64) -> BoxFuture<'_, Result<Option<String>, BusError>> {
        let found = self.on(way).into_iter().find(|(at, _)| *at == seq);
        Box::pin(std::future::ready(Ok(found.map(|(_, id)| id))))
    }

    fn holds(&self, way: Way, _from: ScanFrom) -> BoxFuture<'_, Result<Held, BusError>> {
        let mut held = Held::default();
        for (seq, id) in self.on(way) {
            held.add(seq, &id);
        }
        Box::pin(std::future::ready(Ok(held)))
    }

    fn ensure(&self) -> BoxFuture<'_, Result<(), BusError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    bus: Arc<Fake>,
    door: Door,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let store = Store::open(&dir.path().join("bridge.db"), clock.clone())
        .await
        .unwrap();
    let bus = Fake::new();
    let door = Door::over(store.clone(), bus.clone(), Ops::silent(), clock)
        .await
        .unwrap();
    Bench {
        _dir: dir,
        store,
        bus,
        door,
    }
}

fn event(id: &str, payload: &str) -> Verified {
    let key = SigningKey::from_seed([7; 32]);
    let proof = key.public().verify(b"x", &key.sign(b"x")).unwrap();
    Verified::new(
        proof,
        VerifiedParts {
            protocol: "uam",
            peer: PeerName::parse("alpha.test:8443").unwrap(),
            dedupe_key: id.to_owned(),
            event_id: id.to_owned(),
            event_type: "handshake.Request".to_owned(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            origin: "alice::alpha.test".to_owned(),
            key_id: "k".to_owned(),
            hops: 1,
            received_at_ms: NOW,
            traceparent: None,
            replay: Vec::new(),
            room_event: None,
        },
    )
}

fn with_nonce(id: &str, nonce: u8) -> Verified {
    let mut event = event(id, id);
    event.replay = vec![ReplayId {
        scope: "alpha.test".into(),
        id: vec![nonce],
        expires_ms: NOW + 600_000,
    }];
    event
}

/// Waits until nothing in the ledger is unpublished.
async fn settled(store: &Store) {
    for _ in 0..500 {
        if store.unpublished(0, 1).await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the ledger still has unpublished events");
}

#[tokio::test]
async fn an_event_is_published_with_its_headers_and_marked() {
    let b = bench().await;
    assert_eq!(b.door.enter(event("m1", "{}")).await, Entry::New);
    let message = b.bus.seen.lock().unwrap()[0].clone();
    assert_eq!(
        message.subject,
        "fed.in.uam.alpha_test:8443.handshake.=52equest"
    );
    assert_eq!(message.stream, "FED_IN");
    let header = |name: &str| {
        let found = message.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.clone()).unwrap_or_default()
    };
    assert!(header("Nats-Msg-Id").starts_with("uam:"));
    assert_eq!(header("Fed-Event-Id"), "m1");
    assert_eq!(header("Fed-Type"), "handshake.Request");
    assert_eq!(header("Fed-Peer"), "alpha.test:8443");
    assert_eq!(header("Fed-Origin"), "alice::alpha.test");
    assert_eq!(header("Fed-Received-At"), "2026-05-01T12:00:00.000Z");
    assert_eq!(header("Fed-Hops"), "1");
    settled(&b.store).await;
}

#[tokio::test]
async fn a_repeat_is_a_duplicate_and_is_not_published_again_even_with_other_content() {
    let b = bench().await;
    assert_eq!(b.door.enter(event("m1", "a")).await, Entry::New);
    assert_eq!(b.door.enter(event("m1", "a")).await, Entry::Duplicate);
    settled(&b.store).await;
    assert_eq!(b.door.enter(event("m1", "b")).await, Entry::Duplicate);
    assert_eq!(b.bus.payloads(), ["a"]);
}

#[tokio::test]
async fn no_answer_comes_before_the_pub_ack_and_a_copy_joins_the_first_ones() {
    let b = bench().await;
    b.bus.acks.send_replace(false);
    let first = tokio::spawn({
        let door = b.door.clone();
        async move { door.enter(event("m1", "a")).await }
    });
    while b.bus.payloads().is_empty() {
        tokio::task::yield_now().await;
    }
    let second = tokio::spawn({
        let door = b.door.clone();
        async move { door.enter(event("m1", "a")).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!first.is_finished() && !second.is_finished());
    b.bus.acks.send_replace(true);
    assert_eq!(first.await.unwrap(), Entry::New);
    assert_eq!(second.await.unwrap(), Entry::Duplicate);
    assert_eq!(b.bus.payloads().len(), 1);
}

#[tokio::test]
async fn an_event_goes_on_its_way_though_its_sender_hangs_up() {
    let b = bench().await;
    b.bus.acks.send_replace(false);
    let asker = tokio::spawn({
        let door = b.door.clone();
        async move { door.enter(event("m1", "a")).await }
    });
    while b.bus.payloads().is_empty() {
        tokio::task::yield_now().await;
    }
    asker.abort();
    b.bus.acks.send_replace(true);
    settled(&b.store).await;
    assert_eq!(b.door.enter(event("m1", "a")).await, Entry::Duplicate);
}

#[tokio::test]
async fn events_are_published_in_the_order_of_the_ledger() {
    let b = bench().await;
    b.bus.acks.send_replace(false);
    let mut all = tokio::task::JoinSet::new();
    for n in 0..300 {
        let door = b.door.clone();
        all.spawn(async move { door.enter(event(&format!("m{n}"), &format!("{n}"))).await });
    }
    while b.bus.payloads().len() < 300 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let ledger: Vec<String> = b
        .store
        .unpublished(0, 1000)
        .await
        .unwrap()
        .iter()
        .map(|row| String::from_utf8_lossy(&row.payload).into_owned())
        .collect();
    assert_eq!(b.bus.payloads(), ledger);
    b.bus.acks.send_replace(true);
    while let Some(entry) = all.join_next().await {
        assert_eq!(entry.unwrap(), Entry::New);
    }
    b.door.close().await;
    assert!(b.store.unpublished(0, 1).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_the_bus_does_not_take_waits_in_the_ledger_and_goes_first_when_it_is_back() {
    let b = bench().await;
    b.bus.acks.send_replace(false);
    let mut first = tokio::task::JoinSet::new();
    let door = b.door.clone();
    first.spawn(async move { door.enter(event("m1", "1")).await });
    while b.bus.payloads().is_empty() {
        tokio::task::yield_now().await;
    }
    b.bus.set_up(false);
    b.bus.acks.send_replace(true);
    assert_eq!(first.join_next().await.unwrap().unwrap(), Entry::New);
    let second = b.door.enter(event("m2", "2")).await;
    assert!(matches!(second, Entry::Unavailable { .. }), "{second:?}");
    let shut = b.door.enter(event("m3", "3")).await;
    assert!(matches!(shut, Entry::Unavailable { .. }), "{shut:?}");
    assert!(!b.door.is_open());
    b.bus.set_up(true);
    settled(&b.store).await;
    assert_eq!(b.bus.payloads(), ["1", "2"]);
    while !b.door.is_open() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(b.door.enter(event("m2", "2")).await, Entry::Duplicate);
    assert_eq!(b.door.enter(event("m3", "3")).await, Entry::New);
    assert_eq!(b.bus.payloads(), ["1", "2", "3"]);
}

#[tokio::test]
async fn what_an_earlier_run_left_is_published_before_the_door_opens() {
    let b = bench().await;
    b.bus.set_up(false);
    let entry = b.door.enter(event("m1", "1")).await;
    assert!(matches!(entry, Entry::Unavailable { .. }));
    let bus = Fake::new();
    let door = Door::over(
        b.store.clone(),
        bus.clone(),
        Ops::silent(),
        Clock::fixed(NOW),
    )
    .await
    .unwrap();
    assert_eq!(bus.payloads(), ["1"]);
    assert_eq!(door.enter(event("m1", "1")).await, Entry::Duplicate);
}

#[tokio::test]
async fn what_the_stream_has_already_is_not_published_again_after_a_long_outage() {
    let b = bench().await;
    b.bus.acks.send_replace(false);
    let asker = tokio::spawn({
        let door = b.door.clone();
        async move { door.enter(event("m1", "1")).await }
    });
    while b.bus.payloads().is_empty() {
        tokio::task::yield_now().await;
    }
    // The broker has it, the process ends before it hears so, and comes back an hour later.
    asker.abort();
    let later = Clock::fixed(NOW + 3_600_000);
    let bus = Fake::new();
    bus.seen
        .lock()
        .unwrap()
        .extend(b.bus.seen.lock().unwrap().clone());
    let door = Door::over(b.store.clone(), bus.clone(), Ops::silent(), later)
        .await
        .unwrap();
    assert_eq!(bus.payloads(), ["1"]);
    assert_eq!(door.enter(event("m1", "1")).await, Entry::Duplicate);
    assert_eq!(bus.payloads(), ["1"]);
}

#[tokio::test]
async fn a_look_finds_a_silent_loss_and_has_it_mended() {
    let b = bench().await;
    for id in ["m1", "m2", "m3"] {
        assert_eq!(b.door.enter(event(id, id)).await, Entry::New);
    }
    settled(&b.store).await;
    let guard = super::Guard {
        store: b.store.clone(),
        outlet: b.bus.clone(),
        state: b.door.inner.state.clone(),
        clock: Clock::fixed(NOW),
        losses: 0,
    };
    guard.look().await.unwrap();
    assert!(b.door.is_open());
    b.bus.seen.lock().unwrap().truncate(1);
    guard.look().await.unwrap();
    while b.bus.payloads().len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(b.bus.payloads(), ["m1", "m2", "m3"]);
    let seen = b.bus.seen.lock().unwrap();
    let again = |n: usize| seen[n].headers.iter().any(|(h, _)| h == "Fed-Republished");
    assert_eq!([again(0), again(1), again(2)], [false, true, true]);
}

#[tokio::test]
async fn what_is_lost_while_a_loss_is_mended_is_mended_too() {
    let b = bench().await;
    let ids = ["m1", "m2", "m3", "m4", "m5", "m6"];
    for id in ids {
        assert_eq!(b.door.enter(event(id, id)).await, Entry::New);
    }
    settled(&b.store).await;
    b.bus.seen.lock().unwrap().clear();
    // Acknowledged are m1, m2 and m3; then the broker has m1 alone, and goes on past their places.
    *b.bus.rolls_back.lock().unwrap() = Some((3, 1));
    b.door.inner.state.ask_for_repair();
    let all = async {
        loop {
            let mut there = b.bus.payloads();
            there.sort();
            if there == ids {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .expect("each is there, once");
}

#[tokio::test]
async fn no_checkpoint_stands_below_what_a_repair_has_put_above_it() {
    let b = bench().await;
    let clock = Clock::fixed(NOW);
    let marks = || {
        let mut marks =
            super::marks::Marks::new(b.store.clone(), clock.clone(), Default::default());
        marks.known_mut(Way::In).created_ns = Some(1);
        marks.advance(Way::In, 7, "m7".into());
        marks.add(8);
        marks
    };
    let mut repairing = marks();
    repairing.give_way(Way::In);
    repairing.finish().await;
    let of_seven = |all: Vec<crate::store::Checkpoint>| all.iter().any(|c| c.tip.seq == 7);
    assert!(!of_seven(b.store.checkpoints(Way::In).await.unwrap()));
    marks().finish().await;
    assert!(of_seven(b.store.checkpoints(Way::In).await.unwrap()));
}

#[tokio::test]
async fn a_used_replay_id_refuses_the_event_and_leaves_nothing() {
    let b = bench().await;
    assert_eq!(b.door.enter(with_nonce("m1", 1)).await, Entry::New);
    assert_eq!(b.door.enter(with_nonce("m2", 1)).await, Entry::Replayed);
    assert_eq!(b.door.enter(with_nonce("m2", 2)).await, Entry::New);
    assert_eq!(b.bus.payloads(), ["m1", "m2"]);
}

#[tokio::test]
async fn an_event_the_broker_can_never_take_is_refused_at_once() {
    let b = bench().await;
    let big = event("m1", &"x".repeat(1025));
    assert_eq!(b.door.enter(big).await, Entry::TooLarge);
    assert!(!b.store.has_inbound("uam", "m1").await.unwrap());
}

#[tokio::test]
async fn a_closed_door_takes_nothing_and_a_store_that_is_gone_is_said_so() {
    let b = bench().await;
    b.store.close().await;
    let entry = b.door.enter(event("m1", "1")).await;
    assert!(matches!(entry, Entry::Unavailable { .. }), "{entry:?}");
    b.door.close().await;
    let entry = b.door.enter(event("m2", "2")).await;
    assert!(matches!(entry, Entry::Unavailable { .. }), "{entry:?}");
    assert!(b.bus.payloads().is_empty());
}
