//! Order per key, windows, and what one peer's trouble costs the others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;

use super::peer::{Peer, Say, Seen};
use super::world::{Setup, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_head_blocks_its_own_key_only_and_keeps_its_order() {
    let beta = Peer::start("beta.test", |seen, n| match n {
        _ if seen.from().starts_with("good") => Say::Delivered,
        n if n < 4 && seen.text() == "b0" => Say::Status(500, "", "boom"),
        _ => Say::Delivered,
    })
    .await;
    let gamma = Peer::start("gamma.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new()
        .set("uam.retry_delays", r#"["300ms", "300ms", "300ms", "30s"]"#)
        .peer(&beta)
        .peer(&gamma)
        .start()
        .await;
    world.send_as("bad", "beta.test", "b0").await;
    world.event("delivery.retrying").await;
    for n in 1..5 {
        world.send_as("bad", "beta.test", &format!("b{n}")).await;
        world.send_as("good", "beta.test", &format!("g{n}")).await;
        world.send_as("good", "gamma.test", &format!("o{n}")).await;
    }
    let all = wait_for(&beta, 9, |seen| texts(seen, "b4") == 1).await;
    gamma.saw(4).await;
    let bad: Vec<String> = of(&all, "bad");
    let mut first_arrivals = bad.clone();
    first_arrivals.dedup();
    assert_eq!(first_arrivals, ["b0", "b1", "b2", "b3", "b4"]);
    assert!(bad.len() > 5, "the head was repeated");
    assert_eq!(of(&all, "good"), ["g1", "g2", "g3", "g4"]);
    let last_good = all.iter().rposition(|s| s.text() == "g4").unwrap();
    let second_bad = all.iter().position(|s| s.text() == "b1").unwrap();
    assert!(last_good < second_bad, "the other key did not wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_head_frees_its_key() {
    let beta = Peer::start("beta.test", |seen, _| match seen.text().as_str() {
        "1" => Say::Status(400, "", "no"),
        _ => Say::Delivered,
    })
    .await;
    let mut world = Setup::new().peer(&beta).start().await;
    for n in 0..4 {
        world.send("beta.test", &n.to_string()).await;
    }
    let seen = beta.saw(4).await;
    assert_eq!(of(&seen, "alice"), ["0", "1", "2", "3"]);
    assert_eq!(world.dead().await.code(), "refused_400");
}

#[tokio::test(flavor = "multi_thread")]
async fn fed_order_decides_which_messages_stand_in_one_line() {
    let beta = Peer::start("beta.test", |seen, _| match seen.text().as_str() {
        "head" => Say::Hang,
        _ => Say::Delivered,
    })
    .await;
    let world = Setup::new()
        .set("http.timeout", r#""5s""#)
        .peer(&beta)
        .start()
        .await;
    for (agent, order, text) in [
        ("a", "line", "head"),
        ("b", "line", "behind"),
        ("a", "other", "beside"),
    ] {
        let body = World::envelope_of(agent, "beta.test", text).to_string();
        let headers = [("Fed-Order", order)];
        world
            .publish("fed.out.uam._to.message", &headers, body.into())
            .await;
    }
    let seen = beta.saw(2).await;
    let texts: HashSet<String> = seen.iter().map(Seen::text).collect();
    assert_eq!(texts, HashSet::from(["head".into(), "beside".into()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_gets_as_many_at_once_as_its_window_is_wide() {
    let beta = Peer::start("beta.test", |_, _| Say::HoldUntil(8)).await;
    let world = Setup::new()
        .set("outbound.peer_window", "8")
        .set("http.timeout", r#""20s""#)
        .peer(&beta)
        .start()
        .await;
    for n in 0..8 {
        world.send_as(&format!("agent{n}"), "beta.test", "x").await;
    }
    let seen = beta.saw(8).await;
    let agents: HashSet<_> = seen.iter().map(Seen::from).collect();
    assert_eq!(agents.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_is_never_exceeded() {
    let beta = Peer::start("beta.test", |_, _| Say::Hang).await;
    let mut world = Setup::new()
        .set("outbound.peer_window", "3")
        .set("http.timeout", r#""500ms""#)
        .set("uam.retry_delays", r#"["30s"]"#)
        .peer(&beta)
        .start()
        .await;
    for n in 0..10 {
        world.send_as(&format!("agent{n}"), "beta.test", "x").await;
    }
    world.event("delivery.retrying").await; // the first answer's time is over
    let seen = beta.saw(4).await;
    assert!(seen[3].at - seen[0].at >= Duration::from_millis(450));
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_and_dead_peers_do_not_delay_a_healthy_one() {
    let beta = Peer::start("beta.test", |_, _| Say::Hang).await;
    let delta = Peer::start("delta.test", |_, _| Say::Hang).await;
    let gone = Peer::start("gone.test", |_, _| Say::Hang).await;
    gone.down().await;
    let gamma = Peer::start("gamma.test", |_, _| Say::Delivered).await;
    let mut world = Setup::new()
        .set("outbound.global_window", "20")
        .set("http.timeout", r#""3s""#)
        .set("uam.retry_delays", r#"["100ms", "30s"]"#)
        .peer(&beta)
        .peer(&delta)
        .peer(&gone)
        .peer(&gamma)
        .start()
        .await;
    for n in 0..30 {
        for domain in ["beta.test", "delta.test", "gone.test"] {
            world.send_as(&format!("agent{n}"), domain, "x").await;
        }
    }
    beta.saw(8).await;
    delta.saw(2).await;
    // Now in the window: hanging attempts. A healthy peer's messages pass all the same, and go on
    // to pass after the others are known to be slow.
    let begun = std::time::Instant::now();
    for n in 0..20 {
        world.send_as("quick", "gamma.test", &n.to_string()).await;
    }
    gamma.saw(20).await;
    assert!(
        begun.elapsed() < Duration::from_millis(2500),
        "{:?}",
        begun.elapsed()
    );
    loop {
        let event = world.event("delivery.retrying").await;
        if event["code"] == "timeout" {
            break;
        }
    }
    let begun = std::time::Instant::now();
    for n in 20..40 {
        world.send_as("quick", "gamma.test", &n.to_string()).await;
    }
    let seen = gamma.saw(40).await;
    assert!(
        begun.elapsed() < Duration::from_millis(2500),
        "{:?}",
        begun.elapsed()
    );
    let order: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    assert_eq!(of(&seen, "quick"), order);
}

/// More rows than a lane keeps in memory: the tail is on disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_arrives_promptly_in_order_and_once_when_the_peer_is_back() {
    const ROWS: usize = 2_000;
    const KEYS: usize = 20;
    let up = Arc::new(AtomicBool::new(false));
    let open = up.clone();
    let beta = Peer::start("beta.test", move |_, _| {
        if open.load(Ordering::Relaxed) {
            Say::Delivered
        } else {
            Say::Status(503, "", "out of order")
        }
    })
    .await;
    let mut world = Setup::new()
        .set("outbound.lane_head", "64")
        .set("http.timeout", r#""10s""#)
        .set("outbound.breaker_threshold", "3")
        .set("outbound.breaker_initial", r#""200ms""#)
        .set("outbound.breaker_max", r#""500ms""#)
        .set(
            "uam.retry_delays",
            r#"["300ms", "300ms", "300ms", "300ms", "1h"]"#,
        )
        .peer(&beta)
        .start()
        .await;
    backlog(&world, ROWS, KEYS).await;
    world.event("peer.open").await;
    world.acknowledged().await;
    let failed = beta.seen().len();
    assert!(failed < 100, "an open peer is only probed: {failed}");
    up.store(true, Ordering::Relaxed);
    let back = std::time::Instant::now();
    complete(&beta, ROWS, KEYS, failed).await;
    assert!(
        back.elapsed() < Duration::from_secs(15),
        "{:?}",
        back.elapsed()
    );
    world.event("peer.recovered").await;
    world.no_dead().await;
    wait_settled(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_survives_a_restart_in_order_and_once() {
    const ROWS: usize = 500;
    const KEYS: usize = 7;
    let beta = Peer::start("beta.test", |_, _| Say::Delivered).await;
    beta.down().await;
    let mut world = Setup::new()
        .set("outbound.lane_head", "64")
        .set("http.timeout", r#""10s""#)
        .set("outbound.breaker_threshold", "3")
        .set(
            "uam.retry_delays",
            r#"["300ms", "300ms", "300ms", "300ms", "1h"]"#,
        )
        .peer(&beta)
        .start()
        .await;
    backlog(&world, ROWS, KEYS).await;
    world.acknowledged().await;
    world.close().await;
    beta.up().await;
    world.open().await;
    complete(&beta, ROWS, KEYS, 0).await;
    world.no_dead().await;
    wait_settled(&world).await;
}

/// Publishes `rows` messages over `keys` agents, in one stream without waiting for each.
async fn backlog(world: &World, rows: usize, keys: usize) {
    let mut sent = Vec::with_capacity(rows);
    for n in 0..rows {
        let envelope = World::envelope_of(&format!("k{}", n % keys), "beta.test", &n.to_string());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", envelope["message_id"].as_str().unwrap());
        let ack = world
            .js
            .publish_with_headers(
                "fed.out.uam.beta_test.message",
                headers,
                envelope.to_string().into(),
            )
            .await
            .unwrap();
        sent.push(ack);
    }
    for ack in sent {
        ack.await.unwrap();
    }
}

/// Waits for all of a backlog; deliveries up to `failed` were refused for sure, after them each row
/// is taken exactly once (a refusal in between only repeats, in order).
async fn complete(beta: &Peer, rows: usize, keys: usize, failed: usize) {
    let all = wait_for(beta, failed + rows, |seen| {
        seen[failed.min(seen.len())..]
            .iter()
            .map(Seen::id)
            .collect::<HashSet<_>>()
            .len()
            >= rows
    })
    .await;
    let mut taken: HashMap<String, usize> = HashMap::new();
    let mut per_key: HashMap<String, Vec<usize>> = HashMap::new();
    for seen in &all[failed..] {
        *taken.entry(seen.id()).or_default() += 1;
        let line = per_key.entry(seen.from()).or_default();
        let n: usize = seen.text().parse().unwrap();
        if line.last() != Some(&n) {
            line.push(n);
        }
    }
    // Between reading `failed` and the peer's return one more probe may have been refused.
    let twice = taken.values().filter(|n| **n > 1).count();
    assert!(twice <= usize::from(failed > 0), "{twice} came twice");
    assert_eq!(per_key.len(), keys);
    for (key, line) in per_key {
        assert!(line.is_sorted(), "{key}: {line:?}");
    }
}

async fn wait_settled(world: &World) {
    let wait = async {
        while !world.rows("pending").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(super::peer::PATIENCE, wait)
        .await
        .expect("every outcome is recorded");
}

/// Waits until what the peer saw, at least `n` deliveries, satisfies `enough`.
async fn wait_for(peer: &Peer, mut n: usize, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
    loop {
        let seen = peer.saw(n).await;
        if enough(&seen) {
            return seen;
        }
        n = seen.len() + 1;
    }
}

fn texts(seen: &[Seen], text: &str) -> usize {
    seen.iter().filter(|s| s.text() == text).count()
}

/// The texts of one agent, in order of arrival.
fn of(seen: &[Seen], agent: &str) -> Vec<String> {
    let from = format!("{agent}::alpha.test");
    seen.iter()
        .filter(|s| s.from() == from)
        .map(Seen::text)
        .collect()
}
