//! Who reads what.

use std::sync::Arc;

use ::http::Method;
use serde_json::{Value, json};

use super::super::record::Status;
use super::super::request::READ_TOKEN;
use super::super::transport::SIGNATURE;
use super::super::{BASE, ID, ParacordConfig};
use super::world::*;
use crate::config::Secret;
use crate::protocol::PeerName;

const PAGE: &str = "/events?room_id=!7:us.example&since_depth=0&limit=5";

/// Some events of [`THEM`] in [`ROOM`].
async fn filled(world: &World, count: u32) {
    for n in 1..=count {
        let envelope = event(THEM, &format!("${n}:x"), |e| {
            e.room_id = ROOM.to_owned();
            e.depth = i64::from(n);
        });
        assert_eq!(world.push(&envelope).await.0, TAKEN);
    }
}

fn ids(page: &Value) -> Vec<&str> {
    let events = page["events"].as_array().unwrap().iter();
    events.map(|e| e["event_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_room_is_read_by_its_members_servers_and_by_no_other() {
    let world = world().await;
    filled(&world, 2).await;
    let page = Ask::get(PAGE, "third.example");
    world
        .server("third.example", "third.example", Status::Trusted)
        .await;
    assert_eq!(code(&world.send(&page).await), NOT_FOUND);
    world
        .p
        .rooms
        .join(ROOM, "@bob:third.example", None)
        .await
        .unwrap();
    let (status, body) = world.send(&page).await;
    assert_eq!((status, ids(&body)), (200, vec!["$1:x", "$2:x"]));
    world
        .p
        .rooms
        .leave(ROOM, "@bob:third.example")
        .await
        .unwrap();
    assert_eq!(code(&world.send(&page).await), NOT_FOUND);
    let third = PeerName::parse("third.example").unwrap();
    world.p.rooms.note_reader(ROOM, &third);
    assert_eq!(world.send(&page).await.0, 200, "it was sent an event of it");
}

#[tokio::test]
async fn a_public_room_is_read_by_every_trusted_server() {
    let world = world().await;
    let page = Ask::get(PAGE, THEM);
    assert_eq!(code(&world.send(&page).await), NOT_FOUND);
    world.room(true).await;
    let (status, body) = world.send(&page).await;
    assert_eq!((status, body), (200, json!({"events": []})));
    let stranger = Ask::get(PAGE, "stranger.example");
    assert_eq!(code(&world.send(&stranger).await), FORBIDDEN);
}

#[tokio::test]
async fn what_is_read_still_verifies() {
    let world = world().await;
    world.room(true).await;
    filled(&world, 1).await;
    let (_, body) = world.send(&Ask::get(PAGE, THEM)).await;
    let envelope: super::super::envelope::Envelope =
        serde_json::from_value(body["events"][0].clone()).unwrap();
    let signature = envelope.signature().unwrap().bytes.unwrap();
    assert!(envelope.check(&key(THEM).public(), &signature).is_ok());
    let (status, one) = world.send(&Ask::get("/event/%241%3Ax", THEM)).await;
    assert_eq!((status, one), (200, body["events"][0].clone()));
}

#[tokio::test]
async fn an_event_is_read_by_who_reads_its_room_or_made_it() {
    let world = world().await;
    world
        .server("third.example", "third.example", Status::Trusted)
        .await;
    filled(&world, 1).await;
    let of = |by: &str| Ask::get("/event/$1:x", by);
    assert_eq!(world.send(&of(THEM)).await.0, 200, "it made it");
    assert_eq!(code(&world.send(&of("third.example")).await), NOT_FOUND);
    world
        .p
        .rooms
        .join(ROOM, "@bob:third.example", None)
        .await
        .unwrap();
    assert_eq!(world.send(&of("third.example")).await.0, 200);
    let none = Ask::get("/event/none", THEM);
    assert_eq!(code(&world.send(&none).await), NOT_FOUND);
    assert_eq!(
        code(&world.send(&none).await),
        NOT_FOUND,
        "reads are not remembered"
    );
}

#[tokio::test]
async fn a_page_goes_on_where_the_last_one_ended() {
    let world = world().await;
    world.room(true).await;
    filled(&world, 7).await;
    let mut seen = Vec::new();
    let mut since = 0;
    loop {
        let path = format!("/events?room_id=!7:us.example&since_depth={since}&limit=3");
        let (status, body) = world.send(&Ask::get(&path, THEM)).await;
        assert_eq!(status, 200);
        let Some(last) = body["events"].as_array().unwrap().last() else {
            break;
        };
        since = last["depth"].as_i64().unwrap();
        seen.extend(ids(&body).into_iter().map(str::to_owned));
    }
    let wanted: Vec<String> = (1..=7).map(|n| format!("${n}:x")).collect();
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn more_events_of_one_position_than_a_step_holds_are_all_read() {
    let world = world().await;
    world.room(true).await;
    for n in 0..70 {
        let envelope = event(THEM, &format!("${n:03}:x"), |e| {
            e.room_id = ROOM.to_owned();
            e.depth = 9;
        });
        assert_eq!(world.push(&envelope).await.0, TAKEN);
    }
    let (_, body) = world
        .send(&Ask::get("/events?room_id=!7:us.example", THEM))
        .await;
    assert_eq!(ids(&body).len(), 70);
}

#[tokio::test]
async fn the_query_is_read_before_anything_is_asked_of_the_sender() {
    let world = world().await;
    let ask = Ask::get("/events", THEM).with(SIGNATURE, None);
    let (status, body) = world.send(&ask).await;
    assert_eq!(status, 400);
    assert!(body.is_string(), "plain text: {body}");
}

#[tokio::test]
async fn the_query_is_signed_in_a_page_and_not_in_an_event() {
    let world = world().await;
    world.room(true).await;
    filled(&world, 1).await;
    let mut page = Ask::get("/events", THEM);
    page.path = format!("{BASE}{PAGE}");
    assert_eq!(code(&world.send(&page).await), FORBIDDEN);
    let mut one = Ask::get("/event/$1:x", THEM);
    one.path.push_str("?x=1");
    assert_eq!(world.send(&one).await.0, 200);
}

fn with_token(config: &mut ParacordConfig) {
    config.read_token = Some(Secret("the token of readers".to_owned().into()));
    config.unproven_per_minute = 2;
}

#[tokio::test]
async fn the_read_token_reads_everything_and_a_wrong_one_costs() {
    let world = world_with(with_token).await;
    filled(&world, 1).await;
    let mut ask = Ask::get(PAGE, THEM);
    ask.headers.clear();
    let right = ask.clone().with(READ_TOKEN, Some("the token of readers"));
    let (status, body) = world.send(&right).await;
    assert_eq!((status, ids(&body)), (200, vec!["$1:x"]));
    let mut of_no_room = right.clone();
    of_no_room.path = format!("{BASE}/events?room_id=none");
    assert_eq!(world.send(&of_no_room).await.1, json!({"events": []}));
    let wrong = ask.with(READ_TOKEN, Some("the token of writers"));
    for _ in 0..2 {
        assert_eq!(code(&world.send(&wrong).await), UNAUTHORIZED);
    }
    assert_eq!(code(&world.send(&wrong).await), LIMITED);
    let mut post = pushed(&message(9), THEM).with(SIGNATURE, None);
    post = post.with(READ_TOKEN, Some("the token of readers"));
    post.method = Method::POST;
    assert_eq!(world.send(&post).await.0, 429);
}

#[tokio::test]
async fn an_envelope_no_longer_kept_is_not_there() {
    let world = world().await;
    world.room(true).await;
    filled(&world, 1).await;
    let kept = world.p.store.room_event(ID, "$1:x").await.unwrap();
    assert_eq!(kept.len(), 1);
    let p = Arc::clone(&world.p);
    assert!(p.store.room_event(ID, "$2:x").await.unwrap().is_empty());
    assert_eq!(
        code(&world.send(&Ask::get("/event/$2:x", THEM)).await),
        NOT_FOUND
    );
}
