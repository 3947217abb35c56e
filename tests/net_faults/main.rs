//! The promises over wires that are late, reset, silent, slow, or cut in the moment of the answer:
//! between the bridge and a peer, its callers, its broker. Nothing is lost, order holds, an event is
//! on `fed.in` once, and what comes to a peer again was in flight when its wire was unwell.
//!
//! Real processes on loopback, each wire a proxy of the tests' own (`support/toxic.rs`); the crash
//! test has the same wires among its misfortunes, over all protocols and both stores.

mod world;

#[path = "../support"]
mod support {
    pub mod bridge;
    pub mod checker;
    pub mod sink;
    pub mod toxic;
    pub mod traffic;
    pub mod uam_client;
}

use std::time::Duration;

use support::checker::repeats;
use support::toxic::Mood;
use world::{To, World};

/// Every way to be unwell, each for a while and then well again.
const ILLNESSES: [Mood; 5] = [
    Mood::Late(Duration::from_millis(60)),
    Mood::Reset,
    Mood::Silent,
    Mood::Slow(Duration::from_millis(1)),
    Mood::Dropped,
];

/// How long each lasts.
const ILL: Duration = Duration::from_millis(350);

async fn endures(to: To) -> World {
    let mut world = World::start().await;
    for mood in ILLNESSES {
        world.unwell(to, mood, ILL).await;
    }
    world.end().await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_to_a_peer_that_fails_in_every_way_loses_nothing_and_keeps_the_order() {
    let world = endures(To::Relay).await;
    assert_eq!(world.found(), []);
    let dropped = world.wire(To::Relay).dropped();
    assert!(dropped > 0, "no answer was lost");
    // The peer stored it and nobody heard: it comes again, and only that.
    let again = repeats(&world.history);
    assert!(again > 0, "an event whose answer was lost was not repeated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_whose_answers_get_lost_come_again_and_their_events_are_there_once() {
    let world = endures(To::Door).await;
    assert_eq!(world.found(), []);
    let lost = world.wire(To::Door).dropped();
    assert!(lost > 0, "no answer was lost");
    assert_eq!(repeats(&world.history), 0, "outbound had no trouble");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_to_the_broker_that_fails_in_every_way_loses_and_repeats_nothing() {
    let world = endures(To::Broker).await;
    assert_eq!(world.found(), []);
    assert!(world.wire(To::Broker).resets() > 0, "nothing was cut");
    assert_eq!(repeats(&world.history), 0, "no attempt had any trouble");
}
