//! The scripted reference against itself: what it does is what the sheet says of the real one.

use std::time::Duration;

use serde_json::json;

use crate::support::bridge::{client, free_address};
use crate::support::paracord_client::{Identity, wire};
use crate::support::reference::{Options, Reference};

const SOON: Duration = Duration::from_secs(5);

async fn two() -> (Reference, Reference) {
    let options = |name: &str, domain: &str| {
        let identity = Identity::with_domain(name, domain);
        Options::at(free_address(), identity)
    };
    let a = options("node-a.test", "chat-a.test").guild(7001, "Guild A");
    let b = options("node-b.test", "node-b.test").guild(7002, "Guild B");
    let (a, b) = (Reference::start(a).await, Reference::start(b).await);
    assert!(a.add("node-b.test", "node-b.test", &b.url()).await);
    assert!(b.add("node-a.test", "chat-a.test", &a.url()).await);
    (a, b)
}

/// The own row of a reference is made once, valid for a day, and never renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_believes_no_reference_whose_listed_key_has_expired() {
    let (a, b) = two().await;
    let room = "!7001:chat-a.test";
    let event = a.say(room, "hello");
    let (status, answer) = a.push("node-b.test", &event).await;
    assert_eq!((status, &answer["code"]), (403, &json!("FORBIDDEN")));
    assert_eq!(b.taken().len(), 0);
    assert_eq!(b.complaints().len(), 1);
}

/// A server that lists a key for long: one pushed event makes the other poll the room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pushed_event_makes_a_reference_poll_the_room() {
    let (a, b) = two().await;
    for (here, there) in [(&a, "node-b.test"), (&b, "node-a.test")] {
        here.trust_key_of(there);
    }
    let room = "!7001:chat-a.test";
    let first = a.say(room, "one");
    a.say(room, "two");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(b.taken().len(), 0, "nothing is pushed");
    let (status, answer) = a.push("node-b.test", &first).await;
    assert_eq!((status, &answer["inserted"]), (202, &json!(true)));
    b.until("the second is polled", SOON, |b| b.taken().len() == 2)
        .await;
    // By the second name of the server too, which has no such room.
    b.until("both names", SOON, |b| b.counts().polls >= 2).await;
    assert_eq!(b.complaints(), [""; 0]);
    // What is written in the mirror stays where it was written, as an event of the room.
    let echo = b.say(room, "three");
    assert!(echo.event_id.starts_with("$m_message:"), "{echo:?}");
    assert_eq!(a.taken().len(), 0);
    a.mirror("node-b.test", 7001);
    let read = a.identity().events(room, 0, 10);
    let answer = read.send(&client(), &b.url()).await;
    assert_eq!(answer.json["events"].as_array().map(Vec::len), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_hashes_what_it_would_have_sent_itself() {
    let (a, b) = two().await;
    b.trust_key_of("node-a.test");
    let me = Identity::with_domain("node-a.test", "chat-a.test");
    let (client, room) = (client(), "!7001:chat-a.test");
    let event = me.event(room, json!({}));
    let sorted = me.post("/event", event.to_string());
    assert_eq!(sorted.send(&client, &b.url()).await.status, 403);
    let mut over_normal = me.post("/event", event.to_string());
    let path = over_normal.path.clone();
    let normal = wire(&event);
    let now = crate::support::paracord_client::now_ms();
    me.dress_over(&mut over_normal, now, &path, normal.as_bytes());
    let answer = over_normal.send(&client, &b.url()).await;
    assert_eq!(
        (answer.status, &answer.json["inserted"]),
        (202, &json!(true))
    );
    // The replay memory goes by the signature's text.
    let again = over_normal.send(&client, &b.url()).await;
    assert_eq!(again.status, 409);
    let upper = over_normal.value("signature").to_ascii_uppercase();
    let upper = over_normal.header("signature", &upper);
    let answer = upper.send(&client, &b.url()).await;
    assert_eq!(
        (answer.status, &answer.json["inserted"]),
        (202, &json!(false))
    );
    assert_eq!(b.taken().len(), 1);
    drop(a);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_keeps_its_tables_over_a_restart_and_can_lose_answers() {
    let (_a, b) = two().await;
    b.trust_key_of("node-a.test");
    let me = Identity::with_domain("node-a.test", "chat-a.test");
    let event = me.event("!7001:chat-a.test", json!({}));
    let mut options = b.options();
    let state = b.stop().await;
    options.losses = 100;
    let b = Reference::resume(options.clone(), state).await;
    let lost = me.push(&event).try_send(&client(), &b.url()).await;
    assert!(lost.is_err(), "{lost:?}");
    options.losses = 0;
    let b = Reference::resume(options, b.stop().await).await;
    let answer = me.push(&event).send(&client(), &b.url()).await;
    assert_eq!(
        (answer.status, &answer.json["inserted"]),
        (202, &json!(false))
    );
    assert_eq!((b.taken().len(), b.arrived().len()), (1, 2));
}
