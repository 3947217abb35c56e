//! A peer that is back gets its backlog.

use super::peer::{Peer, Say};
use super::world::Setup;

#[tokio::test(flavor = "multi_thread")]
async fn catch_up_begins_without_being_spoken_to() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    beta.down().await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["1h", "1h"]"#)
        .set("outbound.breaker_threshold", "1")
        .set("outbound.breaker_initial", r#""100ms""#)
        .set("outbound.breaker_max", r#""300ms""#)
        .peer(&beta)
        .start()
        .await;
    for n in 0..20 {
        world
            .send_as(&format!("a{}", n % 5), "beta.test", &n.to_string())
            .await;
    }
    world.event("peer.open").await;
    // Attempts that no row's schedule asked for, and none of them counted.
    for _ in 0..3 {
        world.event("peer.probed").await;
    }
    let counted = |rows: Vec<serde_json::Value>| -> Vec<_> {
        rows.iter().map(|r| r["attempts"].as_u64()).collect()
    };
    let before = counted(world.rows("pending").await);
    assert!(before.iter().all(|n| *n <= Some(1)), "{before:?}");
    // Every row that was tried waits for an hour; nobody publishes anything, nobody calls.
    beta.up().await;
    let seen = beta.saw(20).await;
    world.event("peer.recovered").await;
    for agent in 0..5 {
        let from = format!("a{agent}::alpha.test");
        let mut own = seen.iter().filter(|s| s.from() == from).map(|s| s.text());
        let wanted = (0..20)
            .filter(|n| n % 5 == agent)
            .map(|n: i32| n.to_string());
        assert!(wanted.eq(own.by_ref()), "in order");
    }
    world.no_dead().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_starts_no_catch_up_for_a_peer_that_is_well() {
    // One message is refused again and again for its own sake; others pass.
    let beta = Peer::start("beta.test", |seen, _| match seen.text().as_str() {
        "bad" => Say::Status(418, "", "not this one"),
        _ => Say::Delivered,
    })
    .await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["1h", "1h"]"#)
        .set("outbound.breaker_threshold", "1")
        .set("outbound.breaker_initial", r#""100ms""#)
        .set("outbound.breaker_max", r#""100ms""#)
        .peer(&beta)
        .start()
        .await;
    world.send_as("bad", "beta.test", "bad").await;
    world.event("delivery.retrying").await;
    for n in 0..5 {
        world.send_as("good", "beta.test", &n.to_string()).await;
        world.event("delivery.delivered").await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(beta.seen().len(), 6, "the bad one waits for its time");
}
