//! One peer's trouble stays its own.

use std::time::{Duration, Instant};

use drawbridge::outbound::{PeerOutlook, PeerState};
use serde_json::json;

use super::peer::{PATIENCE, Peer, Say};
use super::uam_client::{Posted, delivery, envelope, message_id, post, public_of};
use super::world::{Setup, World};

const FAR: &str = r#"["1h", "1h"]"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_eats_no_workers() {
    let hangs = Peer::start("hangs.test", |_, _| Say::Hang).await;
    let gone = Peer::start("gone.test", |_, _| Say::Hang).await;
    gone.down().await;
    let well = Peer::start("well.test", |_, _| Say::Delivered).await;
    let world = Setup::new()
        .set("http.connect_timeout", r#""300ms""#)
        .set("http.timeout", r#""300ms""#)
        .set("uam.retry_delays", FAR)
        .set("outbound.breaker_threshold", "3")
        .set("outbound.breaker_initial", r#""1h""#)
        .set("outbound.breaker_max", r#""1h""#)
        .peer(&hangs)
        .peer(&gone)
        .peer(&well)
        .start()
        .await;
    for n in 0..100 {
        for domain in ["hangs.test", "gone.test"] {
            world.send_as(&format!("agent{n}"), domain, "x").await;
        }
    }
    for n in 0..50 {
        world.send("well.test", &n.to_string()).await;
    }
    well.saw(50).await;
    // The last one was seen; its outcome may be on its way.
    wait_look(&world, "well.test", |p| p.lane.in_flight == 0).await;
    for domain in ["hangs.test", "gone.test"] {
        wait_look(&world, domain, |p| {
            p.state == PeerState::Open && p.lane.in_flight == 0
        })
        .await;
        let seen = world.look(domain).await;
        assert_eq!(
            seen.lane.in_memory, 0,
            "its messages wait on disk: {seen:?}"
        );
    }
    assert_eq!(world.rows("pending").await.len(), 200);
    assert!(hangs.seen().len() < 30, "{}", hangs.seen().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn throughput_to_one_peer_is_not_capped_by_its_round_trip() {
    // Each answer is withheld until eight requests are in hand.
    let beta = Peer::start("beta.test", |_, n| Say::HoldUntil(n.next_multiple_of(8))).await;
    let world = Setup::new()
        .set("http.timeout", r#""20s""#)
        .peer(&beta)
        .start()
        .await;
    for n in 0..64 {
        world.send_as(&format!("a{n}"), "beta.test", "x").await;
    }
    beta.saw(64).await;
    assert_eq!(world.look("beta.test").await.failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_failures_count_once() {
    let beta = Peer::start("beta.test", |_, _| Say::Hang).await;
    let mut world = Setup::new()
        .set("http.timeout", r#""700ms""#)
        .set("uam.retry_delays", FAR)
        .peer(&beta)
        .start()
        .await;
    for n in 0..8 {
        world.send_as(&format!("a{n}"), "beta.test", "x").await;
    }
    for _ in 0..8 {
        world.event("delivery.retrying").await;
    }
    assert_eq!(beta.seen().len(), 8);
    assert_eq!(world.look("beta.test").await.failures, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn inbound_traffic_does_not_reset_outbound_failure() {
    let beta = Peer::start("beta.test", |_, _| Say::Status(503, "", "not now")).await;
    let mut world = Setup::new()
        .set("uam.retry_delays", FAR)
        .set("outbound.breaker_threshold", "1")
        .set("outbound.breaker_initial", r#""1h""#)
        .set("outbound.breaker_max", r#""1h""#)
        .peer(&beta)
        .start()
        .await;
    world.send("beta.test", "one").await;
    world.event("peer.open").await;
    world.send_as("other", "beta.test", "two").await;
    world.acknowledged().await;
    // It can send, and takes nothing: one early attempt, however much it says.
    for n in 0..5 {
        says(&world, &beta).await;
        beta.saw(2).await;
        wait_look(&world, "beta.test", |p| p.lane.in_flight == 0).await;
        let seen = world.look("beta.test").await;
        assert_eq!((seen.state, seen.failures), (PeerState::Open, 1), "{n}");
        assert_eq!(beta.seen().len(), 2, "{n}");
    }
    let rows = world.rows("pending").await;
    let attempts: Vec<_> = rows.iter().map(|r| r["attempts"].as_u64()).collect();
    assert_eq!(attempts, [Some(1), Some(0)], "no message paid for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_from_a_peer_that_is_back_brings_it_its_backlog() {
    let beta = Peer::start("beta.test", |_, _| Say::Status(503, "", "not now")).await;
    let mut world = Setup::new()
        .set("uam.retry_delays", FAR)
        .peer(&beta)
        .start()
        .await;
    for n in 0..5 {
        world.send_as(&format!("a{n}"), "beta.test", "x").await;
        world.event("delivery.retrying").await;
    }
    beta.script(|_, _| Say::Delivered);
    says(&world, &beta).await;
    beta.saw(10).await;
    world.event("peer.recovered").await;
}

/// Looks until a peer is doing as wanted.
async fn wait_look(world: &World, peer: &str, enough: impl Fn(&PeerOutlook) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = world.look(peer).await;
        if enough(&seen) {
            return;
        }
        assert!(Instant::now() < end, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A peer shows the key of its agent, and delivers a message to us.
async fn says(world: &World, at_home: &Peer) {
    let peer = at_home.name;
    let agent = format!("bob::{peer}");
    at_home.page(
        &format!("/api/v1/agents/{agent}/public-key"),
        &json!({"address": agent, "public_key": public_of(&agent), "tier": 1, "verified_domain": null}),
    );
    let envelope = envelope(&message_id(), &agent, "alice::alpha.test", "hello");
    let at = world.bridge.as_ref().unwrap().public;
    let said = delivery(peer, &envelope, false);
    let client = reqwest::Client::new();
    let posted = post(&client, &format!("http://{at}"), &said).await;
    assert_eq!(posted, Posted::Ok { duplicate: false });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_200_from_a_parked_domain_is_not_success() {
    const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 24\r\n\r\n<html>For sale!</html>\r\n";
    const GONE: &str = "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 24\r\n\r\n<html>Not here</html>\r\n\r\n";
    const SHUT: &str = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: 24\r\n\r\n<html>Go away!</html>\r\n\r\n";
    for page in [PAGE, GONE, SHUT] {
        let beta = Peer::start("beta.test", move |_, _| Say::Raw(page)).await;
        let mut world = Setup::new()
            .set("outbound.breaker_threshold", "2")
            .set("uam.retry_delays", r#"["100ms", "1h"]"#)
            .peer(&beta)
            .start()
            .await;
        world.send("beta.test", "x").await;
        let event = world.event("peer.open").await;
        assert_eq!(event["failures"], 2, "{event}");
        assert_eq!(world.rows("delivered").await.len(), 0);
        assert_eq!(world.rows("failed").await.len(), 0, "nor is it given up");
        beta.script(|_, _| Say::Delivered);
        world.event("delivery.delivered").await;
        world.no_dead().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_resolves_only_to_closed_loopback_ports_is_not_hammered() {
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    let port = beta.address.port();
    beta.down().await;
    let key = public_of("closed.test");
    let mut world = Setup::new()
        .table("[http.hosts]\n\"closed.test\" = [\"127.0.0.1\"]\n")
        .set("uam.retry_delays", FAR)
        .set("outbound.breaker_threshold", "5")
        .set("outbound.breaker_initial", r#""30s""#)
        .set("outbound.breaker_max", r#""5m""#)
        .pin(
            "closed.test",
            &format!("http://closed.test:{port}"),
            Some(&key),
        )
        .start()
        .await;
    for n in 0..200 {
        world.send_as(&format!("a{n}"), "closed.test", "x").await;
    }
    world.event("peer.open").await;
    world.acknowledged().await;
    wait_look(&world, "closed.test", |p| p.lane.in_flight == 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let rows = world.rows("pending").await;
    assert_eq!(rows.len(), 200);
    let attempts: u64 = rows.iter().filter_map(|r| r["attempts"].as_u64()).sum();
    assert!(attempts <= 20, "{attempts} attempts at a closed port");
    let refused = &world.look("closed.test").await.last_failure_code;
    assert_eq!(refused.as_deref(), Some("connect"));
}
