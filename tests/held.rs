//! Quarantine: verified events of a quarantined peer are answered with success and held on
//! `fed.held`; released they are on `fed.in`, in their order, once; dropped they never are.

#[macro_use]
mod support;

use std::time::Duration;

use drawbridge::inbound::Entry;
use drawbridge::store::HeldBatch;
use drawbridge::trust::Rule;
use support::door::{World, event, text, within};

const PEER: &str = "mallory.test:8443";

/// Waits until `fed.in` has this many events, then answers them in order.
async fn on_fed_in(world: &World, count: usize) -> Vec<String> {
    within("the events are on fed.in", async || {
        let found = world.payloads("FED_IN").await;
        (found.len() >= count).then_some(found)
    })
    .await
}

async fn hold(world: &World, ids: std::ops::Range<u32>) {
    for n in ids {
        let entry = world.door().hold(event(PEER, &text(n))).await;
        assert_eq!(entry, Entry::Held);
    }
}

async fn what_a_quarantined_peer_sends_is_on_fed_held_and_not_on_fed_in(world: World) {
    hold(&world, 0..3).await;
    assert_eq!(world.door().enter(event("b.test", "b")).await, Entry::New);
    assert_eq!(world.payloads("FED_IN").await, ["b"]);
    let held = world.on("FED_HELD").await;
    assert_eq!(held.len(), 3);
    assert_eq!(held[0].subject, "fed.held.uam.mallory_test:8443.message");
    assert!(held[0].msg_id.starts_with("uam:"));
    let counts = world.door().held().await.expect("counts");
    assert_eq!(counts.len(), 1);
    assert_eq!((counts[0].peer.as_str(), counts[0].events), (PEER, 3));
    let again = world.door().hold(event(PEER, &text(1))).await;
    assert_eq!(again, Entry::Duplicate);
    assert_eq!(world.on("FED_HELD").await.len(), 3);
}

async fn released_events_come_in_order_once_and_before_newer_ones(world: World) {
    hold(&world, 0..150).await;
    let ids: Vec<_> = world.on("FED_HELD").await;
    let (released, _) = tokio::join!(world.door().release("uam", PEER), async {
        // Not held any more by the rules, but behind those that still are.
        for n in 150..170 {
            let entry = world.door().enter(event(PEER, &text(n))).await;
            assert!(matches!(entry, Entry::New | Entry::Held), "{entry:?}");
        }
    });
    assert!(released.expect("released") >= 150);
    world.door().release("uam", PEER).await.expect("released");
    let found = on_fed_in(&world, 170).await;
    assert_eq!(found, (0..170).map(text).collect::<Vec<_>>());
    let there = world.on("FED_IN").await;
    assert!(
        there.iter().zip(&ids).all(|(a, b)| a.msg_id == b.msg_id),
        "a released event keeps its id"
    );
    assert!(world.door().held().await.expect("counts").is_empty());
    assert_eq!(
        world.door().enter(event(PEER, &text(3))).await,
        Entry::Duplicate
    );
}

async fn dropped_events_never_appear_and_stay_known(mut world: World) {
    hold(&world, 0..5).await;
    assert_eq!(world.door().drop_held("uam", "*.test").await.unwrap(), 5);
    assert_eq!(world.door().release("uam", PEER).await.unwrap(), 0);
    assert_eq!(
        world.door().enter(event(PEER, &text(2))).await,
        Entry::Duplicate
    );
    assert_eq!(world.door().enter(event(PEER, &text(9))).await, Entry::New);
    world.close().await;
    world.open().await;
    assert_eq!(world.payloads("FED_IN").await, [text(9)]);
}

async fn held_events_outlive_a_restart_and_a_release_that_was_cut_short(mut world: World) {
    hold(&world, 0..10).await;
    world.close().await;
    world.open().await;
    assert_eq!(world.door().held().await.unwrap()[0].events, 10);
    world.close().await;
    // The release got as far as the ledger for some of them, then the process died.
    let store = world.store().await;
    let batch = HeldBatch {
        protocol: "uam",
        peer: PEER.to_owned(),
        through: i64::MAX,
        limit: 4,
    };
    let released = store.release_held(batch).await.unwrap().await.unwrap();
    assert_eq!(released.count, 4);
    store.close().await;
    world.open().await;
    assert_eq!(
        world.payloads("FED_IN").await,
        (0..4).map(text).collect::<Vec<_>>()
    );
    // Ordinary again, but behind the six that are still held.
    let entry = world.door().enter(event(PEER, &text(10))).await;
    assert_eq!(entry, Entry::Held);
    world.door().release("uam", PEER).await.unwrap();
    let found = on_fed_in(&world, 11).await;
    assert_eq!(found, (0..11).map(text).collect::<Vec<_>>());
}

async fn the_end_of_the_quarantine_releases(world: World) {
    let bridge = world.bridge();
    bridge.door.follow(bridge.trust.clone());
    for rule in [Rule::Quarantine, Rule::Block] {
        let added = bridge.trust.add("uam", rule, "*.test", None).await;
        added.expect("a rule");
    }
    hold(&world, 0..3).await;
    let off = bridge.trust.remove("uam", Rule::Block, "*.test").await;
    assert!(off.expect("removed"));
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(
        world.payloads("FED_IN").await.is_empty(),
        "still quarantined"
    );
    let off = bridge.trust.remove("uam", Rule::Quarantine, "*.test").await;
    assert!(off.expect("removed"));
    let found = on_fed_in(&world, 3).await;
    assert_eq!(found, (0..3).map(text).collect::<Vec<_>>());
}

async fn an_older_broker_gets_back_what_is_held_too(mut world: World) {
    hold(&world, 0..3).await;
    world.close().await;
    world.nats.stop().await;
    world.nats.save(&world.folder("old"));
    world.nats.restart().await;
    world.open().await;
    hold(&world, 3..8).await;
    world.close().await;
    world.nats.stop().await;
    let copy = world.folder("old");
    world.nats.put_back(&copy);
    world.nats.restart().await;
    world.open().await;
    assert_eq!(
        world.payloads("FED_HELD").await,
        (0..8).map(text).collect::<Vec<_>>()
    );
    assert!(world.payloads("FED_IN").await.is_empty());
}

on_both_databases! {
    what_a_quarantined_peer_sends_is_on_fed_held_and_not_on_fed_in
    released_events_come_in_order_once_and_before_newer_ones
    dropped_events_never_appear_and_stay_known
    held_events_outlive_a_restart_and_a_release_that_was_cut_short
    the_end_of_the_quarantine_releases
    an_older_broker_gets_back_what_is_held_too
}
