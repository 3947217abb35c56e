//! Invites, joins and leaves: of others in our rooms, ours in others'. Without a backend; with one, see
//! the tests of the whole bridge.

use serde_json::{Value, json};

use super::super::rooms::Put;
use super::super::world::{NOW, Server, World, answer};
use super::super::{ID, rooms};
use crate::protocol::{TransportError, TransportKind};
use crate::trust::Rule;

const ROOM: &str = "!7:chat.example";

fn b() -> Server {
    Server::new("srv-b.example", "b.example")
}

/// A bridge with a room that B, trusted, may enter.
async fn hosting() -> (World, Server) {
    hosting_with(|_| {}).await
}

async fn hosting_with(change: impl FnOnce(&mut crate::config::ParacordConfig)) -> (World, Server) {
    let world = World::with(change).await;
    let b = b();
    world.trust(&b).await;
    let put = Put {
        name: Some("Lab".into()),
        default_channel_id: Some(Some("71".into())),
        ..Put::default()
    };
    world.p.rooms.put(ROOM, put).await.unwrap();
    (world, b)
}

fn invite(room: &str, sender: &str) -> Value {
    json!({"origin_server": "srv-b.example", "room_id": room, "sender": sender})
}

fn membership(room: &str, user: &str) -> Value {
    json!({"origin_server": "srv-b.example", "room_id": room, "user_id": user})
}

fn refused(status: u16, code: &str, message: &str) -> (u16, Value) {
    let body = json!({"code": code, "details": null, "error": message, "message": message});
    (status, body)
}

fn forbidden() -> (u16, Value) {
    refused(403, "FORBIDDEN", "forbidden")
}

#[tokio::test]
async fn an_invite_shows_the_room_and_how_long_it_holds() {
    let (world, b) = hosting().await;
    let body = invite("!+7:NODE-A.example", "@eve:b.example");
    let (status, said) = world.post(&b, "/invite", &body).await;
    assert_eq!(status, 200);
    assert_eq!(
        said,
        json!({
            "accepted": true,
            "default_channel_id": "71",
            "expires_in_seconds": 3600,
            "guild_id": "7",
            "guild_name": "Lab",
            "join_endpoint": "/_paracord/federation/v1/join",
            "room_id": ROOM,
        })
    );
    for (wanted, held) in [
        (1, 60),
        (60, 60),
        (7_000, 7_000),
        (i64::MAX, 86_400),
        (i64::MIN, 60),
    ] {
        let mut body = invite(ROOM, "@eve:srv-b.example");
        body["max_age_seconds"] = wanted.into();
        let (_, said) = world.post(&b, "/invite", &body).await;
        assert_eq!(said["expires_in_seconds"], held, "{wanted}");
    }
    assert!(
        world.p.rooms.members(ROOM).is_empty(),
        "an invite keeps nothing"
    );
    world.stop().await;
}

#[tokio::test]
async fn an_invite_is_refused_in_the_sheets_order_and_words() {
    let (world, b) = hosting_with(|c| c.allowed_guild_ids = vec![300]).await;
    let bad = refused(400, "BAD_REQUEST", "bad request: Invalid room_id format");
    let gone = refused(404, "NOT_FOUND", "not found");
    for (room, sender, wanted) in [
        ("!1:other.example", "junk", forbidden()),
        (ROOM, "@eve:other.example", forbidden()),
        (ROOM, "@eve:chat.example", forbidden()),
        ("!1:other.example", "@eve:b.example", bad.clone()),
        ("!x:chat.example", "@eve:b.example", bad.clone()),
        ("", "@eve:b.example", bad),
        ("!5:chat.example", "@eve:b.example", forbidden()),
        ("!300:chat.example", "@eve:b.example", gone),
    ] {
        let said = world.post(&b, "/invite", &invite(room, sender)).await;
        assert_eq!(said, wanted, "{room} {sender}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_join_is_kept_before_it_is_answered_and_may_be_repeated() {
    let (world, b) = hosting().await;
    let body = membership(ROOM, "@eve:B.example");
    let (status, said) = world.post(&b, "/join", &body).await;
    assert_eq!(status, 200, "{said}");
    let members: Vec<_> = said.as_object().unwrap().keys().collect();
    assert_eq!(members, ["guild_id", "joined", "local_user_id", "room_id"]);
    assert_eq!(
        (&said["joined"], &said["room_id"]),
        (&json!(true), &json!(ROOM))
    );
    assert!(
        said["local_user_id"]
            .as_str()
            .unwrap()
            .parse::<i64>()
            .is_ok()
    );
    let again = world.post(&b, "/join", &body).await;
    assert_eq!(again, (200, said));
    let world = world.again().await;
    let members = world.p.rooms.members(ROOM);
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].0, "@eve:b.example");
    assert_eq!(world.p.rooms.member_servers(ROOM), ["b.example"]);
    world.stop().await;
}

#[tokio::test]
async fn a_join_is_refused_in_the_sheets_order_and_words() {
    let (world, b) = hosting_with(|c| c.allowed_guild_ids = vec![300]).await;
    let bad_user = refused(400, "BAD_REQUEST", "bad request: Invalid user_id");
    let bad_room = refused(400, "BAD_REQUEST", "bad request: Invalid room_id format");
    let gone = refused(404, "NOT_FOUND", "not found");
    let long = format!("@{}:b.example", "e".repeat(rooms::MAX_USER_ID));
    for (room, user, wanted) in [
        ("!1:other.example", "eve", bad_user.clone()),
        (ROOM, long.as_str(), bad_user),
        ("!1:other.example", "@al:other.example", forbidden()),
        (ROOM, "@al:chat.example", forbidden()),
        ("!1:other.example", "@eve:b.example", bad_room),
        ("!5:chat.example", "@eve:b.example", forbidden()),
        ("!300:chat.example", "@eve:b.example", gone),
    ] {
        let said = world.post(&b, "/join", &membership(room, user)).await;
        assert_eq!(said, wanted, "{room} {user}");
    }
    assert!(world.p.rooms.members(ROOM).is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_server_brings_only_so_many_new_users_an_hour() {
    let (world, b) = hosting_with(|c| c.max_user_creates_per_peer_per_hour = 2).await;
    let join = |n: u32| membership(ROOM, &format!("@u{n}:b.example"));
    for n in 1..=2 {
        assert_eq!(world.post(&b, "/join", &join(n)).await.0, 200);
    }
    let said = world.post(&b, "/join", &join(3)).await;
    assert_eq!(said, refused(429, "RATE_LIMITED", "rate limited"));
    assert_eq!(
        world.post(&b, "/join", &join(2)).await.0,
        200,
        "known already"
    );
    world.clock.set(NOW + 3_600_000);
    // Keys are listed for a day; nothing else depends on the hour.
    assert_eq!(world.post(&b, "/join", &join(3)).await.0, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_leave_says_whether_the_user_was_ever_here() {
    let (world, b) = hosting().await;
    let eve = membership(ROOM, "@eve:b.example");
    let left = |left: bool| (200, json!({"guild_id": "7", "left": left, "room_id": ROOM}));
    assert_eq!(world.post(&b, "/leave", &eve).await, left(false));
    world.post(&b, "/join", &eve).await;
    assert_eq!(world.post(&b, "/leave", &eve).await, left(true));
    assert!(world.p.rooms.members(ROOM).is_empty());
    assert_eq!(
        world.post(&b, "/leave", &eve).await,
        left(true),
        "as the reference has it"
    );
    let other = world
        .post(&b, "/leave", &membership(ROOM, "@al:other.example"))
        .await;
    assert_eq!(other, forbidden());
    world.stop().await;
}

#[tokio::test]
async fn nothing_of_this_is_for_a_server_that_is_blocked_or_under_quarantine() {
    for rule in [Rule::Block, Rule::Quarantine] {
        let (world, b) = hosting().await;
        let added = world.p.trust.add(ID, rule, b.name.as_str(), Some("test"));
        added.await.unwrap();
        let eve = membership(ROOM, "@eve:b.example");
        assert_eq!(world.post(&b, "/join", &eve).await, forbidden());
        assert_eq!(world.post(&b, "/leave", &eve).await, forbidden());
        let body = invite(ROOM, "@eve:b.example");
        assert_eq!(world.post(&b, "/invite", &body).await, forbidden());
        world.stop().await;
    }
}

#[tokio::test]
async fn a_join_of_ours_is_remembered_and_its_room_followed_until_the_last_leaves() {
    let world = World::new().await;
    let b = b();
    world.trust(&b).await;
    let said = json!({"guild_id": "9", "joined": true, "local_user_id": "5", "room_id": "!9:b.example", "more": 1});
    let told = said.clone();
    world.answers(move |request| {
        let left = json!({"guild_id": "9", "left": true, "room_id": "!9:b.example"});
        let body = if request.url.ends_with("/leave") {
            &left
        } else {
            &told
        };
        Ok(answer(200, &body.to_string()))
    });
    let call = json!({"room_id": "!9:srv-b.example", "user_id": "@al:chat.example"});
    assert_eq!(
        world.call("join", call.clone()).await,
        Ok(said),
        "passed on as it is"
    );
    let sent = std::mem::take(&mut *world.wire.asked.lock().unwrap());
    assert_eq!(
        sent[0].url,
        "https://srv-b.example/_paracord/federation/v1/join"
    );
    assert_eq!(
        std::str::from_utf8(&sent[0].body).unwrap(),
        r#"{"origin_server":"node-a.example","room_id":"!9:b.example","user_id":"@al:chat.example"}"#,
        "the normal form, the room as its own server writes it"
    );
    let followed = world.p.rooms.followed("!9:b.example").unwrap();
    assert!(followed.joined);
    assert_eq!(world.p.rooms.member_count("!9:b.example"), 1);
    let world = world.again().await;
    assert!(world.p.rooms.followed("!9:b.example").is_some(), "durable");
    world.answers(|_| {
        Ok(answer(
            200,
            r#"{"guild_id":"9","left":false,"room_id":"x"}"#,
        ))
    });
    assert!(world.call("leave", call).await.is_ok());
    assert!(world.p.rooms.followed("!9:b.example").is_none());
    world.stop().await;
}

#[tokio::test]
async fn what_a_server_refuses_comes_back_in_its_words_and_changes_nothing() {
    let world = World::new().await;
    let b = b();
    world.trust(&b).await;
    let call = json!({"room_id": "!9:b.example", "user_id": "@al:chat.example"});
    for (status, body, code) in [
        (403, r#"{"message":"forbidden"}"#, "remote_forbidden"),
        (404, r#"{"error":"not found"}"#, "remote_not_found"),
        (400, "plain", "remote_bad_request"),
        (401, "", "remote_unauthorized"),
        (429, "", "remote_rate_limited"),
        (500, "", "remote_failed"),
        (302, "", "remote_failed"),
        (200, "", "remote_garbage"),
        (200, r#"{"joined":false}"#, "remote_garbage"),
    ] {
        world.answers(move |_| Ok(answer(status, body)));
        let refusal = world.call("join", call.clone()).await.unwrap_err();
        assert_eq!(refusal.code, code, "{status} {body}");
        assert!(
            refusal.detail.starts_with("srv-b.example answered"),
            "{refusal}"
        );
    }
    world.answers(|_| Ok(answer(403, r#"{"message":"forbidden"}"#)));
    let refusal = world.call("join", call.clone()).await.unwrap_err();
    assert_eq!(refusal.detail, "srv-b.example answered 403: forbidden");
    world.answers(|_| {
        Err(TransportError {
            kind: TransportKind::Timeout,
            detail: "no answer in time".into(),
        })
    });
    let refusal = world.call("join", call).await.unwrap_err();
    assert_eq!(refusal.code, "remote_unreachable");
    assert!(world.p.rooms.all_followed().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_call_that_cannot_be_meant_is_refused_before_anything_is_sent() {
    let world = World::new().await;
    let b = b();
    world.trust(&b).await;
    let al = "@al:chat.example";
    for (method, body, code) in [
        ("join", json!({"room_id": "!9:b.example"}), "bad_request"),
        (
            "join",
            json!({"room_id": "!9:b.example", "user_id": al, "x": 1}),
            "bad_request",
        ),
        ("join", json!({"room_id": "9", "user_id": al}), "bad_room"),
        (
            "join",
            json!({"room_id": "!9:b.example", "user_id": "@al:b.example"}),
            "bad_user",
        ),
        (
            "leave",
            json!({"room_id": "!9:chat.example", "user_id": al}),
            "own_room",
        ),
        (
            "leave",
            json!({"room_id": "!9:x.example", "user_id": al}),
            "unknown_peer",
        ),
        (
            "invite",
            json!({"room_id": "!9:b.example", "sender": "al"}),
            "bad_user",
        ),
        (
            "room.put",
            json!({"room_id": "!9:b.example"}),
            "foreign_room",
        ),
        ("room.put", json!({"guild_id": "x"}), "bad_room"),
        (
            "room.put",
            json!({"guild_id": 7, "name": " "}),
            "bad_request",
        ),
        (
            "room.put",
            json!({"guild_id": 7, "room_id": ROOM}),
            "bad_request",
        ),
        ("room.follow", json!({"room_id": ROOM}), "own_room"),
        (
            "room.follow",
            json!({"room_id": "!9:b.example", "peer": "x.example"}),
            "unknown_peer",
        ),
        (
            "room.follow",
            json!({"room_id": "!9:b example"}),
            "bad_room",
        ),
    ] {
        let refusal = world.call(method, body.clone()).await.unwrap_err();
        assert_eq!(refusal.code, code, "{method} {body}");
    }
    assert!(world.asked().is_empty());
    let added = world
        .p
        .trust
        .add(ID, Rule::Block, b.name.as_str(), Some("test"));
    added.await.unwrap();
    let join = json!({"room_id": "!9:b.example", "user_id": al});
    let refusal = world.call("join", join).await.unwrap_err();
    assert_eq!(refusal.code, "peer_blocked");
    world.stop().await;
}

#[tokio::test]
async fn rooms_are_put_listed_followed_and_forgotten_by_calls() {
    let world = World::new().await;
    let b = b();
    world.trust(&b).await;
    let put = json!({"guild_id": 7, "name": "Lab", "default_channel_id": 71, "public": true});
    let room = world.call("room.put", put).await.unwrap();
    assert_eq!(
        (
            &room["room_id"],
            &room["default_channel_id"],
            &room["allowed"]
        ),
        (&json!(ROOM), &json!("71"), &json!(true))
    );
    let put = json!({"room_id": ROOM, "default_channel_id": null});
    let room = world.call("room.put", put).await.unwrap();
    assert_eq!(
        (&room["name"], &room["default_channel_id"]),
        (&json!("Lab"), &Value::Null)
    );
    let follow = json!({"room_id": "!9:srv-b.example"});
    let followed = world.call("room.follow", follow.clone()).await.unwrap();
    assert_eq!(followed["room_id"], "!9:b.example", "as its events have it");
    assert_eq!(followed["peer"], "srv-b.example");
    let list = world.call("room.list", json!({})).await.unwrap();
    let kinds: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["kind"])
        .collect();
    assert_eq!(kinds, ["hosted", "followed"]);
    world
        .post(&b, "/join", &membership(ROOM, "@eve:b.example"))
        .await;
    let members = world
        .call("room.members", json!({"guild_id": "7"}))
        .await
        .unwrap();
    assert_eq!(members[0]["user_id"], "@eve:b.example");
    let gone = world.call("room.unfollow", follow).await.unwrap();
    assert_eq!(gone["unfollowed"], true);
    let gone = world
        .call("room.remove", json!({"room_id": ROOM}))
        .await
        .unwrap();
    assert_eq!(gone, json!({"room_id": ROOM, "removed": true}));
    assert_eq!(world.call("room.list", json!({})).await.unwrap(), json!([]));
    world.stop().await;
}
