//! What others read of a room, while it is written.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::bridge::client;
use crate::support::para_world::{Message, Para, Setup};
use crate::support::paracord_client::{Identity, canonical, holds};

const SOON: Duration = Duration::from_secs(30);
const ROOM: &str = "!7010:bridge.test";

async fn world() -> (Para, Identity) {
    let node = Identity::new("node-a.test");
    let setup = Setup::new("bridge.test")
        .lifted()
        .line("allowed_guild_ids", "[\"7010\"]")
        .pinned(&node);
    let para = Para::here(setup).await;
    para.call(
        "room.put",
        json!({"room_id": ROOM, "name": "Harbour", "public": true}),
    )
    .await;
    (para, node)
}

fn text(n: usize) -> Message {
    Message::text("_room", ROOM, "@carol:bridge.test", &format!("{n}"))
}

/// A reader that keeps nothing but the largest depth it has seen, and never looks back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poller_never_sees_depth_6_before_5() {
    const COUNT: usize = 400;
    let (para, node) = world().await;
    let url = para.url();
    let poll = async {
        let (http, mut cursor, mut seen) = (client(), 0, Vec::new());
        let end = tokio::time::Instant::now() + SOON;
        while seen.len() < COUNT {
            assert!(
                tokio::time::Instant::now() < end,
                "{} of {COUNT} seen: what came late was passed over",
                seen.len()
            );
            let page = node.events(ROOM, cursor, 7).send(&http, &url).await;
            assert_eq!(page.status, 200, "{}", page.text);
            for event in page.json["events"].as_array().into_iter().flatten() {
                let depth = event["depth"].as_i64().unwrap_or_default();
                assert!(depth > cursor, "{event} after {cursor}");
                cursor = depth;
                seen.push(event.clone());
            }
        }
        seen
    };
    let write = async {
        // Several publishers at a time, as backends are.
        let parts = [0, 1, 2, 3].map(|part| {
            let messages = (part * COUNT / 4..(part + 1) * COUNT / 4).map(text);
            para.send_all(messages.collect())
        });
        futures_util::future::join_all(parts).await;
    };
    let (seen, _) = tokio::join!(poll, write);
    let ids: BTreeSet<_> = seen.iter().map(|e| e["event_id"].to_string()).collect();
    assert_eq!(ids.len(), COUNT);
    // Every one of them is signed with the key that is listed first.
    let key = &para.keys().await[0];
    let public = key["public_key"].as_str().unwrap_or_default();
    let id = key["key_id"].as_str().unwrap_or_default();
    for event in &seen {
        let signature = event["signatures"]["bridge.test"][id].as_str();
        let signature = signature.unwrap_or_default();
        assert!(
            holds(public, canonical(event).as_bytes(), signature),
            "{event}"
        );
    }
}

async fn read(para: &Para, node: &Identity) -> Vec<Value> {
    let page = para.ask(&node.events(ROOM, 0, 1000)).await;
    assert_eq!(page.status, 200, "{}", page.text);
    page.json["events"].as_array().cloned().unwrap_or_default()
}

async fn until_read(para: &Para, node: &Identity, count: usize) -> Vec<Value> {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let events = read(para, node).await;
        if events.len() >= count {
            return events;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "{} events of {count}; {:?}",
            events.len(),
            para.dead().await
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The stream is lost with what it held, and the backend publishes again what it has no answer to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_again_keeps_id_and_depth() {
    let (mut para, node) = world().await;
    let first = text(1).id("the same");
    // A reaction has its depth in its id.
    let reaction = Message::new(
        "_room",
        "m.reaction.add",
        ROOM,
        "@carol:bridge.test",
        json!({"guild_id": "7010", "channel_id": "20", "message_id": first.message_id(),
               "emoji": "👍"}),
    )
    .id("the reaction");
    para.send_all(vec![first.clone(), reaction.clone()]).await;
    let before = until_read(&para, &node, 2).await;
    para.js.delete_stream("FED_OUT").await.expect("deleted");
    para.restart().await;
    para.send_all(vec![reaction, first, text(2)]).await;
    let after = until_read(&para, &node, 3).await;
    assert_eq!(after.len(), 3);
    assert_eq!(after[..2], before[..]);
    assert!(after[2]["depth"].as_i64() > after[1]["depth"].as_i64());
    assert_eq!(after[2]["content"]["body"], "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_sent_is_dead_with_the_place_of_the_fault() {
    let (para, node) = world().await;
    let good = || text(0);
    let float = good().content("position", json!({"x": [1, 2.5]}));
    let number = good().content("message_id", json!(17));
    let foreign = Message::text("_room", ROOM, "@carol:elsewhere.test", "not ours");
    let no_room = Message::text("_room", "7010", "@carol:bridge.test", "no room");
    for (message, word) in [
        (float, "content.position.x"),
        (number, "message_id"),
        (foreign, "sender"),
        (no_room, "room_id"),
    ] {
        let count = para.dead().await.len();
        para.send(message).await;
        let dead = para.until_dead(count + 1).await;
        let (code, reason) = &dead[count];
        assert!(reason.contains(word), "{code}: {reason}: no {word}");
    }
    assert_eq!(read(&para, &node).await.len(), 0);
    // An id that was used is not used again.
    let message = text(1);
    para.send_all(vec![message.clone().id("one"), message.id("two")])
        .await;
    let dead = para.until_dead(5).await;
    assert_eq!(dead[4].0, "event_id_taken", "{dead:?}");
    assert_eq!(until_read(&para, &node, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_is_not_public_is_read_by_who_was_sent_an_event_of_it() {
    let (node, other) = (Identity::new("node-a.test"), Identity::new("node-b.test"));
    let setup = Setup::new("bridge.test")
        .lifted()
        .pinned(&node)
        .pinned(&other);
    let mut para = Para::here(setup).await;
    para.host(ROOM, "Harbour").await;
    let status = async |para: &Para, who: &Identity| {
        let answer = para.ask(&who.events(ROOM, 0, 10)).await;
        answer.status
    };
    assert_eq!(status(&para, &node).await, 404);
    let message = Message::text("node-a.test", ROOM, "@carol:bridge.test", "for a");
    para.send(message).await;
    let end = tokio::time::Instant::now() + SOON;
    while status(&para, &node).await != 200 {
        assert!(tokio::time::Instant::now() < end, "never a reader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status(&para, &other).await, 404);
    para.restart().await;
    assert_eq!(status(&para, &node).await, 200);
    assert_eq!(status(&para, &other).await, 404);
    // What it wrote itself is read by who wrote it.
    let event = other.event("!1:elsewhere.test", json!({}));
    assert_eq!(para.ask(&other.push(&event)).await.status, 202);
    // Other rooms of ours are not.
    para.host("!8:bridge.test", "Cellar").await;
    let cellar = para.ask(&node.events("!8:bridge.test", 0, 10)).await;
    assert_eq!(cellar.status, 404);
}
