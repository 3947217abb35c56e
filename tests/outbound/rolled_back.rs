//! `FED_OUT` comes back as it was earlier: what was delivered is not delivered again, and what is new
//! is, though it stands where something else stood.

use async_nats::jetstream;

use super::peer::{Peer, Say, Seen};
use super::world::{Setup, World};

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_a_rolled_back_broker_shows_again_are_acknowledged_and_not_sent_again() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new().peer(&beta).broker().await;
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("old");
    world.open().await;
    world.close().await;
    for n in 0..3 {
        unnamed(&world, &format!("m{n}")).await;
    }
    world.nats.stop().await;
    world.nats.save(&copy);
    world.nats.restart().await;
    world.js = jetstream::new(world.nats.client().await);
    world.open().await;
    beta.saw(3).await;
    unnamed(&world, "m3").await;
    unnamed(&world, "m4").await;
    beta.saw(5).await;
    world.acknowledged().await;

    world.nats.stop().await;
    world.nats.put_back(&copy);
    world.nats.restart().await;
    world.js = jetstream::new(world.nats.client().await);
    world.acknowledged().await;
    // These take the sequences that m3 and m4 had.
    unnamed(&world, "m5").await;
    unnamed(&world, "m6").await;
    let seen = beta.saw(7).await;
    let mut texts: Vec<_> = seen.iter().map(Seen::text).collect();
    texts.sort();
    assert_eq!(texts, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    world.close().await;
    assert_eq!(beta.saw(7).await.len(), 7);
}

/// A message without an id of the backend's: the bridge makes one.
async fn unnamed(world: &World, text: &str) {
    let body = World::envelope("beta.test", text).to_string();
    let new = world
        .publish("fed.out.uam._to.message", &[], body.into_bytes())
        .await;
    assert!(new);
}
