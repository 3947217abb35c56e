//! How fast a bridge sends, and what it makes of a server that says no.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::bridge::free_address;
use crate::support::para_world::{Message, Para, Setup};
use crate::support::paracord_client::Identity;
use crate::support::reference::{Options, Reference};

const SOON: Duration = Duration::from_secs(15);
const ROOM: &str = "!7010:bridge.test";

/// References of these names that trust a bridge, which hosts a room.
async fn around<const N: usize>(
    names: [&str; N],
    setup: Setup,
    change: impl Fn(Options) -> Options,
) -> (Para, [Reference; N]) {
    let mut setup = setup;
    let options = names.map(|name| {
        let mut options = Options::at(free_address(), Identity::new(name));
        options.every = None;
        change(options)
    });
    for (name, options) in names.iter().zip(&options) {
        setup = setup.peer(name, options.address);
    }
    let mut references = Vec::new();
    for options in options {
        references.push(Reference::start(options).await);
    }
    let para = Para::here(setup).await;
    for reference in &references {
        let url = para.url();
        let known = reference.add("bridge.test", "bridge.test", &url).await;
        assert!(known, "a key is listed");
    }
    para.host(ROOM, "Harbour").await;
    let references = references.try_into().map_err(|_| "as many as names");
    (para, references.expect("as many as names"))
}

fn messages(to: &str, count: usize) -> Vec<Message> {
    let text = |n| Message::text(to, ROOM, "@carol:bridge.test", &format!("{n}"));
    (0..count).map(text).collect()
}

fn bodies(reference: &Reference) -> Vec<String> {
    let taken = reference.taken();
    let body = |content: &Value| content["body"].as_str().unwrap_or_default().to_owned();
    taken.iter().map(|e| body(&e.content)).collect()
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_gets_fewer_than_120_events_a_minute_unless_its_answers_allow_more() {
    let setup = Setup::new("bridge.test");
    let (para, [slow, fast]) = around(["slow.test", "fast.test"], setup, |mut options| {
        if options.identity.name == "fast.test" {
            options.policy = Some("\"events\";q=60000;w=60".into());
        } else {
            options.limit = 120;
        }
        options
    })
    .await;
    para.send_all(messages("slow.test", 130)).await;
    para.send_all(messages("fast.test", 130)).await;
    fast.until("all of them", SOON, |f| f.taken().len() == 130)
        .await;
    assert_eq!(bodies(&fast), numbers(130));
    slow.until("the first ones", SOON, |s| s.taken().len() >= 20)
        .await;
    let from = slow.arrived().len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let more = slow.arrived().len() - from;
    // 1.6 a second.
    assert!(
        (2..=6).contains(&more),
        "{more} in three seconds, {from} before"
    );
    assert_eq!(bodies(&slow), numbers(from + more), "in order");
    let first = slow.arrived()[0].at;
    let last = slow.arrived().last().map_or(first, |a| a.at);
    let seconds = Duration::from_nanos(last - first).as_secs_f64();
    let most = 20.0 + 1.7 * (seconds + 1.0);
    assert!(
        (slow.arrived().len() as f64) <= most,
        "{} in {seconds} s",
        slow.arrived().len()
    );
    assert_eq!(slow.counts().limited, 0);
    assert_eq!(para.dead().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_429_is_left_alone_for_a_while_and_loses_nothing() {
    let setup = Setup::new("bridge.test").lifted();
    let (para, [peer]) = around(["node.test"], setup, |o| o).await;
    peer.mood(429);
    para.send_all(messages("node.test", 20)).await;
    peer.until("a try", SOON, |p| !p.arrived().is_empty()).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let tries = peer.arrived().len();
    assert!(
        tries <= 8,
        "{tries} tries in 1.5 s at a peer that asks for patience"
    );
    peer.mood(0);
    peer.until("all of them", SOON, |p| p.taken().len() == 20)
        .await;
    assert_eq!(bodies(&peer), numbers(20));
    assert_eq!(para.dead().await, []);
}

/// The receiving side of the same: what is over the limit is turned away, and comes later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_over_its_limit_is_told_429_and_how_many_it_may_send() {
    let node = Identity::new("node.test");
    let setup = Setup::new("bridge.test")
        .line("max_events_per_peer_per_minute", "5")
        .pinned(&node);
    let para = Para::here(setup).await;
    for n in 0..5 {
        let answer = para.ask(&node.push(&node.event(ROOM, json!({})))).await;
        assert_eq!(answer.status, 202, "{n}: {}", answer.text);
        assert_eq!(answer.header("ratelimit-policy"), "\"events\";q=5;w=60");
    }
    let event = node.event(ROOM, json!({}));
    let request = node.push(&event);
    let answer = para.ask(&request).await;
    assert_eq!(
        (answer.status, &answer.json["code"]),
        (429, &json!("RATE_LIMITED"))
    );
    // The refusal has spent the signature.
    assert_eq!(para.ask(&request).await.status, 409);
    // Somebody else is not concerned by it, nor are reads.
    let read = para.ask(&node.get("/event/$nothing:bridge.test")).await;
    assert_eq!(read.status, 404);
    assert_eq!(para.until_events(5, SOON).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_403_waits_for_an_operator_and_says_so() {
    let setup = Setup::new("bridge.test").lifted();
    let (para, [peer]) = around(["node.test"], setup, |o| o).await;
    peer.mood(403);
    para.send_all(messages("node.test", 3)).await;
    let held = para.until_said("delivery.held", |_| true).await;
    let sentence = held["detail"].as_str().unwrap_or_default().to_lowercase();
    assert!(sentence.contains("operator"), "{held}");
    let tries = peer.arrived().len();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(
        peer.arrived().len() <= tries + 3,
        "{} tries at a server that refuses us",
        peer.arrived().len()
    );
    assert_eq!(para.dead().await, []);
    let (status, list) = para.admin("GET", "/api/v1/queue?state=held").await;
    assert_eq!(status, 200);
    assert!(
        list.to_string().to_lowercase().contains("operator"),
        "{list}"
    );
    // The operator there has trusted us, and the one here says so.
    peer.mood(0);
    let (status, answer) = para
        .admin(
            "POST",
            "/api/v1/queue/retry?peer=node.test&protocol=paracord",
        )
        .await;
    assert_eq!(status, 200, "{answer}");
    peer.until("all of them", SOON, |p| p.taken().len() == 3)
        .await;
    assert_eq!(bodies(&peer), numbers(3));
}
