//! What is not delivered, and that it is said: refused messages, hops, loops, strangers, peers removed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::bridge::free_address;
use crate::support::mainline::{Mainline, Options};
use crate::support::volt_world::{Message, Setup, Volt};

const SOON: Duration = Duration::from_secs(10);

/// A server whose relay routes can be reached.
fn repaired() -> Options {
    let mut options = Options::at(free_address());
    options.published = false;
    options.every = None;
    options
}

async fn meet(a: &Volt, mainline: &Mainline) {
    a.request("Volt M", &mainline.url()).await;
    mainline.accept(&a.host).await;
    a.until_status(&mainline.host(), "connected").await;
}

fn numbers(mainline: &Mainline) -> Vec<u64> {
    let taken = mainline.taken();
    taken
        .iter()
        .filter_map(|m| m.payload["n"].as_u64())
        .collect()
}

fn named(to: &str, id: &str, payload: Value) -> Message {
    Message::new(to, "announcement", payload).with(&[("Nats-Msg-Id", id)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_refused_never_blocks_the_ones_behind_it() {
    let options = repaired();
    let setup = Setup::new("Volt A").allow(options.address.to_string());
    let mainline = Mainline::start(options).await;
    let a = Volt::start(&setup).await;
    meet(&a, &mainline).await;
    let to = mainline.host();
    a.publish_all(vec![
        named(&to, "m1", json!({"n": 1})),
        named(&to, "m2", json!({"n": 2, "answer": 400})),
        named(&to, "m3", json!({"n": 3, "flaky": 2})),
        named(&to, "m4", json!({"n": 4, "answer": 413})),
        named(&to, "m5", json!({"n": 5})),
    ])
    .await;
    mainline
        .until("the others came", SOON, |m| m.taken().len() == 3)
        .await;
    let order = numbers(&mainline);
    assert!(
        order == [1, 3, 5],
        "a message that is tried again keeps its place: {order:?}"
    );
    let dead = a.until_dead(2).await;
    let ids: Vec<_> = dead.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["m2", "m4"], "{dead:?}");
    // A later good answer: the peer is not in error.
    assert_eq!(a.peer(&to).await.unwrap()["status"], "connected");
    assert_eq!(mainline.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hops_end_and_nothing_goes_back_to_where_it_came_from() {
    let (one, other) = (repaired(), repaired());
    let setup = Setup::new("Volt A")
        .allow(one.address.to_string())
        .allow(other.address.to_string());
    let one = Mainline::start(one).await;
    let other = Mainline::start(other).await;
    let a = Volt::start(&setup).await;
    meet(&a, &one).await;
    meet(&a, &other).await;
    let (to, host) = (one.host(), other.host());

    let hops =
        |id: &str, n: u64, hops: &str| named(&to, id, json!({"n": n})).with(&[("Fed-Hops", hops)]);
    a.publish_all(vec![
        hops("far", 1, "3"),
        hops("near", 2, "2"),
        hops("odd", 3, "many"),
    ])
    .await;
    one.until("what has not come far arrives", SOON, |m| {
        numbers(m).contains(&2)
    })
    .await;
    let dead = a.until_dead(1).await;
    assert!(
        dead.iter()
            .any(|(id, why)| id == "far" && why == "hop_limit"),
        "{dead:?}"
    );
    assert!(!numbers(&one).contains(&1));

    // From a peer and back to it: by the header, and by the body of a relayed event.
    let before = a.dead().await.len();
    let relayed = |id: &str, to: &str, n: u64| Message {
        peer: to.to_owned(),
        kind: "announcement".into(),
        body: json!({"id": "relay_1", "type": "announcement", "fromHost": host,
                     "fromMainline": "Volt M", "payload": {"n": n}})
        .to_string(),
        headers: vec![("Nats-Msg-Id".into(), id.to_owned())],
    };
    a.publish_all(vec![
        named(&host, "back", json!({"n": 10})).with(&[("Fed-Peer", host.as_str())]),
        relayed("back by body", &host, 11),
        named("_all", "on", json!({"n": 12})).with(&[("Fed-Peer", host.as_str())]),
        relayed("on by body", "_all", 13),
        named("_all", "all", json!({"n": 14})),
    ])
    .await;
    other
        .until("what is for all arrives", SOON, |m| {
            numbers(m).contains(&14)
        })
        .await;
    one.until("the other gets all three", SOON, |m| {
        [12, 13, 14].iter().all(|n| numbers(m).contains(n))
    })
    .await;
    let dead = a.until_dead(before + 2).await;
    assert_eq!(numbers(&other), [14], "{dead:?}");
    for id in ["back", "back by body"] {
        assert!(
            dead.iter().any(|(d, why)| d == id && !why.is_empty()),
            "{id}: {dead:?}"
        );
    }

    // What comes from a peer says how far it has come.
    one.relay(&a.host, "announcement", "{\"n\":20}");
    one.round().await;
    let events = a.until_events(1, SOON).await;
    assert_eq!(events[0].header("Fed-Hops"), "1");
    assert_eq!(events[0].header("Fed-Peer"), to);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_accepted_peers_get_messages_and_a_removed_one_gets_none() {
    let options = Options {
        published: true,
        ..repaired()
    };
    let host = options.address.to_string();
    let setup = Setup::new("Volt A").allow(&host);
    let mainline = Mainline::start(options).await;
    let a = Volt::start(&setup).await;

    a.publish_all(vec![named("volt-x.example", "unknown", json!({"n": 1}))])
        .await;
    mainline.request(&a.url()).await.unwrap();
    a.until_status(&host, "pending").await;
    a.publish_all(vec![named(&host, "pending", json!({"n": 2}))])
        .await;
    let dead = a.until_dead(2).await;
    for id in ["unknown", "pending"] {
        let found = dead
            .iter()
            .any(|(d, why)| d == id && why == "peer_not_connected");
        assert!(found, "{id}: {dead:?}");
    }
    // `_all` means those that were accepted.
    a.publish_all(vec![named("_all", "all", json!({"n": 3}))])
        .await;

    a.accept(&host).await;
    a.until_status(&host, "connected").await;
    a.publish_all(vec![named(&host, "m1", json!({"n": 4}))])
        .await;
    mainline
        .until("its push was refused", SOON, |m| m.counts().pushes_in > 0)
        .await;
    a.remove(&host).await;
    assert_eq!(a.peer(&host).await, None);
    a.publish_all(vec![named(&host, "m2", json!({"n": 5}))])
        .await;
    // The fifth is what was for all when there was nobody.
    let dead = a.until_dead(5).await;
    assert!(
        dead.iter().any(|(d, _)| d == "m1") && dead.iter().any(|(d, _)| d == "m2"),
        "{dead:?}"
    );
    mainline.round().await;
    assert_eq!(
        mainline.peer(&a.host).unwrap().last_error.as_deref(),
        Some("Request failed with status code 401")
    );
    mainline.relay(&a.host, "announcement", "{\"n\":6}");
    mainline.round().await;
    assert_eq!(mainline.taken().len(), 0);
    assert_eq!(a.events().len(), 0);
    // It may ask anew, with any secret, and finds an empty mailbox.
    mainline.forget(&a.host);
    mainline.request(&a.url()).await.unwrap();
    a.until_status(&host, "pending").await;
    a.accept(&host).await;
    for _ in 0..3 {
        mainline.round().await;
    }
    assert_eq!(mainline.taken().len(), 0);
    assert_eq!(mainline.complaints(), [""; 0]);
}
