//! Promise 2 against a broker that forgets: whatever was answered with success is on `fed.in`, once
//! per message id, after the broker came back with an older copy of its files; and what retention,
//! a purge or an operator took away stays away. Real nats-server, its own default of flushing.

#[macro_use]
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use drawbridge::inbound::Entry;
use futures_util::StreamExt;
use support::door::{World, event, text, within};

async fn jetstream(world: &World) -> jetstream::Context {
    jetstream::new(world.nats.client().await)
}

/// Stops the broker, keeps a copy of its files under this name, starts it again.
async fn save(world: &mut World, name: &str) {
    world.nats.stop().await;
    world.nats.save(&world.folder(name));
    world.nats.restart().await;
}

/// The broker comes back as it was when the copy was made.
async fn roll_back(world: &mut World, name: &str) {
    world.nats.stop().await;
    let copy = world.folder(name);
    world.nats.put_back(&copy);
    world.nats.restart().await;
}

/// Sends an event again and again until it is answered with success.
async fn passes(world: &World, id: &str) {
    within("events get through again", async || {
        let entry = world.door().enter(event("alpha.test", id)).await;
        matches!(entry, Entry::New | Entry::Duplicate).then_some(())
    })
    .await;
}

/// Waits until the bridge has seen that the broker was away, and has dealt with it.
async fn reconnected(world: &World) {
    passes(world, "hello again").await;
}

async fn an_older_broker_gets_back_what_it_lost_while_the_bridge_stays_up(mut world: World) {
    world.take(0..20).await;
    save(&mut world, "old").await;
    world.is_open().await;
    passes(&world, &text(20)).await;
    world.take_together(21..60).await;
    roll_back(&mut world, "old").await;
    let found = world.holds_once(0..60).await;
    assert!(found[..20].iter().all(|m| !m.republished));
    assert!(found[20..].iter().all(|m| m.republished));
    world.is_open().await;
    world.take(60..70).await;
    world.holds_once(0..70).await;
}

async fn an_older_broker_gets_back_what_it_lost_at_the_bridges_next_start(mut world: World) {
    world.take(0..20).await;
    world.close().await;
    save(&mut world, "old").await;
    world.open().await;
    world.take_together(20..60).await;
    world.close().await;
    roll_back(&mut world, "old").await;
    world.open().await;
    // All of it is there before the door opened.
    assert_eq!(world.on("FED_IN").await.len(), 60);
    world.take(60..61).await;
    world.holds_once(0..61).await;
    // Repaired is repaired: another start finds nothing to do.
    world.close().await;
    world.open().await;
    world.holds_once(0..61).await;
}

#[tokio::test]
async fn a_loss_of_the_last_moment_is_found_though_no_checkpoint_is_younger() {
    let mut world = World::start().await;
    world.take(0..5).await;
    world.close().await;
    save(&mut world, "old").await;
    world.open().await;
    // One event, marked within milliseconds; the bridge dies with it, the broker forgets it.
    world.take(5..6).await;
    world.close().await;
    roll_back(&mut world, "old").await;
    world.open().await;
    world.holds_once(0..6).await;
}

#[tokio::test]
async fn what_somebody_gave_the_older_broker_already_is_not_given_to_it_again() {
    let mut world = World::start().await;
    world.take(0..10).await;
    world.close().await;
    save(&mut world, "old").await;
    world.open().await;
    world.take(10..30).await;
    let before = world.on("FED_IN").await;
    world.close().await;
    roll_back(&mut world, "old").await;
    let js = jetstream(&world).await;
    for lost in before[10..30].iter().step_by(3) {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", lost.msg_id.as_str());
        js.publish_with_headers(lost.subject.clone(), headers, lost.payload.clone().into())
            .await
            .expect("published")
            .await
            .expect("acknowledged");
    }
    world.open().await;
    world.holds_once(0..30).await;
}

async fn of_many_events_over_several_checkpoints_only_the_lost_ones_come_again_in_order(
    mut world: World,
) {
    for batch in 0..4 {
        world.take_together(batch * 100..batch * 100 + 100).await;
        // A checkpoint a second, or at a stop.
        world.close().await;
        if batch == 1 {
            save(&mut world, "old").await;
        }
        world.open().await;
    }
    let before = world.payloads("FED_IN").await;
    roll_back(&mut world, "old").await;
    let found = world.holds_once(0..400).await;
    let after: Vec<_> = found.iter().map(|m| m.payload.clone()).collect();
    assert_eq!(after, before, "the order of the ledger");
    assert_eq!(found.iter().filter(|m| m.republished).count(), 200);
}

#[tokio::test]
async fn nothing_that_was_answered_with_success_is_missing_though_events_kept_coming() {
    let mut world = World::start().await;
    world.take_together(0..100).await;
    save(&mut world, "old").await;
    passes(&world, &text(100)).await;
    // Four senders that never rest, through the roll-back and its repair.
    let next = Arc::new(AtomicU32::new(101));
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (next, stop, door) = (next.clone(), stop.clone(), world.door().clone());
        senders.spawn(async move {
            let mut taken = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let id = text(next.fetch_add(1, Ordering::Relaxed));
                match door.enter(event("alpha.test", &id)).await {
                    Entry::New | Entry::Duplicate => taken.push(id),
                    // What a peer does with a 503, only sooner.
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
            taken
        });
    }
    let before = next.load(Ordering::Relaxed);
    within("some events got through", async || {
        (next.load(Ordering::Relaxed) > before + 200).then_some(())
    })
    .await;
    roll_back(&mut world, "old").await;
    passes(&world, "hello again").await;
    let after = next.load(Ordering::Relaxed);
    within("more events got through", async || {
        (next.load(Ordering::Relaxed) > after + 50).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut taken: BTreeSet<String> = (0..=100).map(text).collect();
    while let Some(more) = senders.join_next().await {
        taken.extend(more.expect("a sender"));
    }
    world.close().await;
    let found = world.payloads("FED_IN").await;
    let there: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(there.len(), found.len(), "an event is there twice");
    let missing: Vec<_> = taken.difference(&there).collect();
    assert!(
        missing.is_empty(),
        "answered with success, lost: {missing:?}"
    );
}

#[tokio::test]
async fn a_purge_is_no_loss() {
    let mut world = World::start().await;
    world.take(0..20).await;
    let js = jetstream(&world).await;
    let stream = js.get_stream("FED_IN").await.expect("the stream");
    stream.purge().await.expect("purged");
    world.door().check_broker();
    passes(&world, &text(20)).await;
    world.close().await;
    // With the bridge away, and newer than any checkpoint.
    stream.purge().await.expect("purged");
    world.open().await;
    world.take(21..22).await;
    world.nats.restart().await;
    reconnected(&world).await;
    assert_eq!(
        world.payloads("FED_IN").await,
        [text(21), "hello again".to_owned()]
    );
}

async fn events_that_are_purged_in_the_moment_the_bridge_dies_stay_away(mut world: World) {
    world.take(0..10).await;
    let js = jetstream(&world).await;
    let stream = js.get_stream("FED_IN").await.expect("the stream");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    world.take_together(10..40).await;
    stream.purge().await.expect("purged");
    // No orderly end: what is known is what the last mark wrote.
    world.bridge().store.close().await;
    world.close().await;
    world.open().await;
    assert!(world.payloads("FED_IN").await.is_empty());
}

#[tokio::test]
async fn an_age_limit_is_no_loss() {
    let mut world = World::start().await;
    let js = jetstream(&world).await;
    let stream = js.get_stream("FED_IN").await.expect("the stream");
    let mut config = stream.cached_info().config.clone();
    config.max_age = Duration::from_millis(500);
    config.duplicate_window = Duration::from_millis(200);
    js.update_stream(config).await.expect("changed");
    world.take_together(0..50).await;
    within("the events expire", async || {
        world.payloads("FED_IN").await.is_empty().then_some(())
    })
    .await;
    world.door().check_broker();
    world.nats.restart().await;
    reconnected(&world).await;
    world.close().await;
    world.open().await;
    let left = world.on("FED_IN").await;
    assert!(left.iter().all(|m| m.payload == "hello again"), "{left:?}");
}

#[tokio::test]
async fn one_message_that_an_operator_deleted_stays_deleted() {
    let mut world = World::start().await;
    world.take(0..10).await;
    let js = jetstream(&world).await;
    let stream = js.get_stream("FED_IN").await.expect("the stream");
    stream.delete_message(10).await.expect("deleted");
    world.nats.restart().await;
    reconnected(&world).await;
    world.close().await;
    world.open().await;
    let found = world.payloads("FED_IN").await;
    assert!(!found.contains(&text(9)), "{found:?}");
    assert_eq!(found.len(), 10);
}

#[tokio::test]
async fn a_stream_deleted_under_a_running_bridge_is_made_and_filled_again() {
    let world = World::start().await;
    world.take(0..20).await;
    let js = jetstream(&world).await;
    js.delete_stream("FED_IN").await.expect("deleted");
    // The next event finds out.
    passes(&world, &text(20)).await;
    let found = world.holds_once(0..21).await;
    assert_eq!(found.iter().filter(|m| m.republished).count(), 20);
}

#[tokio::test]
async fn a_stream_made_again_behind_our_back_is_filled_again() {
    let world = World::start().await;
    world.take(0..20).await;
    let js = jetstream(&world).await;
    let stream = js.get_stream("FED_IN").await.expect("the stream");
    let config = stream.cached_info().config.clone();
    js.delete_stream("FED_IN").await.expect("deleted");
    js.create_stream(config).await.expect("made");
    // Its first PubAck counts from 1 again: nobody has to wait for the next look.
    world.take(20..21).await;
    world.holds_once(0..21).await;
}

#[tokio::test]
async fn a_missing_stream_that_we_may_not_make_shuts_the_door_with_the_reason() {
    let mut world = World::start().await;
    world.take(0..3).await;
    world.close().await;
    world.policy = drawbridge::config::StreamPolicy::Off;
    world.open().await;
    let health = drawbridge::ops::health::Health::new();
    world.door().report_to(health.clone());
    let js = jetstream(&world).await;
    let stream = js.get_stream("FED_IN").await.expect("the stream");
    let config = stream.cached_info().config.clone();
    js.delete_stream("FED_IN").await.expect("deleted");
    let entry = world.door().enter(event("alpha.test", &text(3))).await;
    assert!(matches!(entry, Entry::Unavailable { .. }), "{entry:?}");
    within("readiness says why", async || {
        let reasons = health.reasons();
        let reason = reasons.get("inbound")?;
        reason.contains("FED_IN does not exist").then_some(())
    })
    .await;
    js.create_stream(config).await.expect("made");
    passes(&world, &text(3)).await;
    world.holds_once(0..4).await;
    assert!(health.reasons().is_empty());
}

async fn a_loss_beyond_mending_is_counted_and_the_bridge_goes_on(mut world: World) {
    let subscriber = world.nats.client().await;
    let mut told = subscriber
        .subscribe("fed.ops.store.>")
        .await
        .expect("subscribed");
    support::nats::round_trip(&subscriber).await;
    world.take(0..20).await;
    world.close().await;
    // The bodies are older than they are kept; the ids stay.
    let store = world.store().await;
    let later = drawbridge::clock::Clock::system().now_ms() + 25 * 3_600_000;
    store.prune(later).await.expect("pruned");
    store.close().await;
    let js = jetstream(&world).await;
    js.delete_stream("FED_IN").await.expect("deleted");
    world.open().await;
    world.take(20..25).await;
    world.holds_once(20..25).await;
    world.bridge().ops.flush().await;
    let event = tokio::time::timeout(Duration::from_secs(10), told.next())
        .await
        .expect("in time")
        .expect("an ops event");
    let body: serde_json::Value = serde_json::from_slice(&event.payload).expect("JSON");
    assert_eq!(body["beyond_mending"], 20, "{body}");
    assert_eq!(body["republished"], 0, "{body}");
}

on_both_databases! {
    an_older_broker_gets_back_what_it_lost_while_the_bridge_stays_up
    an_older_broker_gets_back_what_it_lost_at_the_bridges_next_start
    of_many_events_over_several_checkpoints_only_the_lost_ones_come_again_in_order
    events_that_are_purged_in_the_moment_the_bridge_dies_stay_away
    a_loss_beyond_mending_is_counted_and_the_bridge_goes_on
}
