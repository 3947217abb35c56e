//! Polling against servers that answer as told, into a real store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use ::http::header;

use super::super::envelope::Envelope;
use super::super::rooms::Put;
use super::super::world::{NOW, Server, World, answer, page, served};
use super::*;
use crate::trust::Rule;

const ROOM: &str = "!9:b.example";

fn b() -> Server {
    Server::new("srv-b.example", "b.example")
}

/// A bridge that trusts B and follows a room of it.
async fn following() -> (World, Server) {
    let world = World::new().await;
    let b = b();
    world.trust(&b).await;
    world.p.rooms.follow(ROOM, None).await.unwrap();
    (world, b)
}

async fn beaten(world: &World, server: &Server) -> Vec<String> {
    beat(&world.p, &server.name).await;
    world.asked()
}

fn bodies(numbers: impl IntoIterator<Item = i64>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("n{n}")).collect()
}

fn reached(world: &World, server: &Server) -> i64 {
    world.p.polls.room(&server.name, ROOM).0
}

#[tokio::test]
async fn nobody_is_polled_while_nothing_is_followed_or_mirrored() {
    let world = World::new().await;
    let b = b();
    world.trust(&b).await;
    assert_eq!(beating(&world.p), []);
    world.p.rooms.follow(ROOM, None).await.unwrap();
    assert_eq!(beating(&world.p), std::slice::from_ref(&b.name));
    world.p.rooms.unfollow(ROOM).await.unwrap();
    assert_eq!(beating(&world.p), []);
    let key = "!7:chat.example";
    world.p.rooms.put(key, Put::default()).await.unwrap();
    assert_eq!(beating(&world.p), []);
    world.p.rooms.note_reader(key, &b.name);
    let mirrors = beating(&world.p);
    assert_eq!(
        mirrors,
        std::slice::from_ref(&b.name),
        "it mirrors our room"
    );
    let asked = beaten(&world, &b).await;
    assert_eq!(asked.len(), 1);
    assert!(
        asked[0].contains("room_id=!7:chat.example&since_depth=0&limit="),
        "{asked:?}"
    );
    world.stop().await;
}

#[tokio::test]
async fn a_blocked_server_is_not_polled() {
    let (world, b) = following().await;
    let added = world
        .p
        .trust
        .add(ID, Rule::Block, b.name.as_str(), Some("test"));
    added.await.unwrap();
    assert_eq!(beating(&world.p), []);
    assert_eq!(beaten(&world, &b).await, Vec::<String>::new());
    world.stop().await;
}

#[tokio::test]
async fn what_a_server_has_comes_once_in_order_and_a_restart_goes_on_where_it_was() {
    let (world, b) = following().await;
    let events: Vec<_> = (1..=300)
        .map(|n| b.message(ROOM, n, NOW - 90_000 + n))
        .collect();
    let all = Arc::new(Mutex::new(events));
    let serve = |all: &Arc<Mutex<Vec<Envelope>>>| {
        let all = Arc::clone(all);
        move |request: &crate::protocol::Request| Ok(served(&all.lock().unwrap(), request))
    };
    world.answers(serve(&all));
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies(1..=300));
    assert_eq!(reached(&world, &b), NOW - 90_000 + 300);
    beaten(&world, &b).await;
    assert_eq!(world.bodies().len(), 300, "once each");

    let world = world.again().await;
    world.answers(serve(&all));
    all.lock().unwrap().push(b.message(ROOM, 301, NOW - 1_000));
    let asked = beaten(&world, &b).await;
    let since = NOW - 90_000 + 300 - 5_000;
    assert!(
        asked[0].contains(&format!("since_depth={since}&")),
        "{asked:?}"
    );
    assert_eq!(world.bodies(), bodies(1..=301), "the rest is known");
    world.stop().await;
}

#[tokio::test]
async fn the_room_is_asked_for_under_the_servers_domain_with_a_signature_over_the_query() {
    let world = World::new().await;
    let b = b();
    world.trust(&b).await;
    world
        .p
        .rooms
        .follow("!9:srv-b.example", None)
        .await
        .unwrap();
    beat(&world.p, &b.name).await;
    let request = world.wire.asked.lock().unwrap()[0].clone();
    assert!(
        request.url.contains("/events?room_id=!9:b.example&"),
        "{}",
        request.url
    );
    let path = request.url.strip_prefix("https://srv-b.example").unwrap();
    let claim = super::super::transport::Claim::read(&request.headers).unwrap();
    let own = world.p.keys.active().key.public();
    assert!(claim.proves(&own, "GET", path, b"", None).is_some());
    world.stop().await;
}

#[tokio::test]
async fn several_events_of_one_depth_are_all_taken_across_pages() {
    let (world, b) = following().await;
    let depth = |n: i64| NOW - 60_000 + 1_000 * ((n - 1) / 100);
    let events: Vec<_> = (1..=500).map(|n| b.message(ROOM, n, depth(n))).collect();
    world.answers(move |request| Ok(served(&events, request)));
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies(1..=500));
    world.stop().await;
}

#[tokio::test]
async fn an_event_that_comes_late_under_an_old_depth_is_not_missed() {
    let (world, b) = following().await;
    let first = b.message(ROOM, 1, NOW - 10_000);
    let late = b.message(ROOM, 2, NOW - 14_000);
    let (now, then) = (vec![first.clone()], vec![late, first]);
    world.answers(move |request| Ok(served(&now, request)));
    beaten(&world, &b).await;
    world.answers(move |request| Ok(served(&then, request)));
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies([1, 2]));
    world.stop().await;
}

#[tokio::test]
async fn an_event_of_the_far_future_is_taken_but_hides_nothing_that_comes_before_it() {
    let (world, b) = following().await;
    let future = b.message(ROOM, 1, i64::MAX);
    let (first, second) = (vec![future.clone()], vec![b.message(ROOM, 2, NOW), future]);
    world.answers(move |request| Ok(served(&first, request)));
    beaten(&world, &b).await;
    assert_eq!(reached(&world, &b), 0);
    world.answers(move |request| Ok(served(&second, request)));
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies([1, 2]));
    assert_eq!(reached(&world, &b), NOW);
    world.stop().await;
}

#[tokio::test]
async fn bad_events_are_passed_over_and_the_good_ones_beside_them_are_taken() {
    let (world, b) = following().await;
    let c = Server::new("c.example", "c.example");
    let at = |n: i64| NOW - 500_000 + n;
    let mut forged = b.message(ROOM, 2, at(2));
    forged.content["body"] = "forged".into();
    let other_room = b.message("!10:b.example", 3, at(3));
    let stranger = c.message(ROOM, 4, at(4));
    let ours = b.event("m.message", ROOM, 5, at(5), |e| {
        e.origin_server = "node-a.example".into();
    });
    let good = page(&[
        b.message(ROOM, 1, at(1)),
        forged,
        other_room,
        stranger,
        ours,
        b.message(ROOM, 6, at(6)),
    ]);
    let body = good.replacen("{\"events\":[", "{\"events\":[17,{\"depth\":3},", 1);
    world.answers(move |_| Ok(answer(200, &body)));
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies([1, 6]));
    assert_eq!(reached(&world, &b), at(6));
    world.stop().await;
}

#[tokio::test]
async fn an_event_whose_key_is_not_known_yet_is_asked_for_again() {
    let (world, b) = following().await;
    let mut next = Server::new("srv-b.example", "b.example");
    next.key = crate::identity::SigningKey::from_seed([3; 32]);
    let events = vec![
        next.message(ROOM, 1, NOW - 20_000),
        b.message(ROOM, 2, NOW - 10_000),
    ];
    world.answers(move |request| Ok(served(&events, request)));
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies([2]));
    assert!(reached(&world, &b) < NOW - 20_000);
    world.trust(&next).await;
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies([2, 1]));
    assert_eq!(reached(&world, &b), NOW - 10_000);
    world.stop().await;
}

#[tokio::test]
async fn what_the_store_cannot_take_is_not_passed() {
    let (world, b) = following().await;
    let events: Vec<_> = (1..=3).map(|n| b.message(ROOM, n, NOW - 10 + n)).collect();
    let all = events.clone();
    world.answers(move |request| Ok(served(&all, request)));
    world.p.door.close().await;
    beaten(&world, &b).await;
    assert_eq!(reached(&world, &b), 0);
    let world = world.again().await;
    world.answers(move |request| Ok(served(&events, request)));
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies(1..=3));
    world.stop().await;
}

#[tokio::test]
async fn a_server_that_asks_for_patience_is_left_alone_so_long() {
    let (world, b) = following().await;
    world.answers(|_| {
        let mut answer = answer(429, "");
        let seconds = header::HeaderValue::from_static("77");
        answer.headers.insert(header::RETRY_AFTER, seconds);
        Ok(answer)
    });
    assert_eq!(beaten(&world, &b).await.len(), 1);
    assert_eq!(beating(&world.p), []);
    assert_eq!(beaten(&world, &b).await.len(), 0);
    let at = |s| Instant::now() + Duration::from_secs(s);
    assert!(world.p.polls.is_quiet(&b.name, at(75)));
    assert!(!world.p.polls.is_quiet(&b.name, at(78)));
    world.stop().await;
}

#[tokio::test]
async fn garbage_and_floods_cost_a_bound() {
    for body in [
        "<html>".to_owned(),
        "[]".to_owned(),
        "{\"events\":7}".to_owned(),
    ] {
        let (world, b) = following().await;
        world.answers(move |_| Ok(answer(200, &body)));
        assert_eq!(beaten(&world, &b).await.len(), 1);
        assert_eq!(beating(&world.p), [], "it is left alone");
        world.stop().await;
    }
    // More than may be read: ever smaller pages, then the room waits and others do not.
    let (world, b) = following().await;
    world.p.rooms.follow("!8:b.example", None).await.unwrap();
    let flood = "x".repeat(10 * 1024 * 1024);
    let good = vec![b.message("!8:b.example", 1, NOW)];
    world.answers(move |request| match request.url.contains("!8:") {
        true => Ok(served(&good, request)),
        false => Ok(answer(200, &flood)),
    });
    let asked = beaten(&world, &b).await;
    assert!((3..10).contains(&asked.len()), "{asked:?}");
    assert_eq!(world.bodies(), bodies([1]));
    let asked = beaten(&world, &b).await;
    assert_eq!(asked.len(), 1, "only the other room: {asked:?}");
    world.stop().await;
    // Pages without an end.
    let (world, b) = following().await;
    let mut number = 0;
    world.answers(move |_| {
        number += 1;
        let event = |n: i64| json!({"depth": n, "origin_ts": n}).to_string();
        let events: Vec<_> = (0..1_000).map(|n| event(number * 1_000 + n)).collect();
        Ok(answer(
            200,
            &format!("{{\"events\":[{}]}}", events.join(",")),
        ))
    });
    assert!(beaten(&world, &b).await.len() <= MORE_PAGES + 1);
    world.stop().await;
}

#[tokio::test]
async fn large_events_come_in_smaller_pages() {
    let (world, b) = following().await;
    let large = |n: i64| {
        b.event("m.message", ROOM, n, NOW - 100 + n, |e| {
            e.content["pad"] = "x".repeat(900 * 1024).into();
        })
    };
    // More than one answer may hold.
    let events: Vec<_> = (1..=8).map(large).collect();
    world.answers(move |request| Ok(served(&events, request)));
    beaten(&world, &b).await;
    assert_eq!(world.bodies(), bodies(1..=8));
    world.stop().await;
}

#[tokio::test]
async fn every_room_has_its_turn_when_there_are_more_than_a_beat_holds() {
    let (world, b) = following().await;
    for n in 100..200 {
        let room = format!("!{n}:b.example");
        world.p.rooms.follow(&room, None).await.unwrap();
    }
    world.answers(|_| Ok(answer(200, "{\"events\":[]}")));
    let mut asked: HashMap<String, usize> = HashMap::new();
    for _ in 0..4 {
        let urls = beaten(&world, &b).await;
        assert_eq!(urls.len(), state::ROOMS);
        for url in urls {
            *asked.entry(url).or_default() += 1;
        }
    }
    assert_eq!(asked.len(), 101);
    assert!(asked.values().all(|n| (2..=3).contains(n)), "{asked:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_room_that_is_not_there_does_not_keep_others_waiting() {
    let (world, b) = following().await;
    world.p.rooms.follow("!8:b.example", None).await.unwrap();
    let good = vec![b.message(ROOM, 1, NOW)];
    world.answers(move |request| match request.url.contains("!8:") {
        true => Ok(answer(404, "")),
        false => Ok(served(&good, request)),
    });
    assert_eq!(beaten(&world, &b).await.len(), 2);
    assert_eq!(world.bodies(), bodies([1]));
    assert_eq!(beaten(&world, &b).await.len(), 1);
    world.stop().await;
}
