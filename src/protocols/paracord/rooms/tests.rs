//! Rooms over a real store.

use std::path::Path;

use serde_json::json;

use super::super::envelope::Envelope;
use super::hosted::CHUNK;
use super::record::{Member, pair, row};
use super::*;
use crate::config::Config;
use crate::protocol::PeerName;

const NOW: i64 = 1_700_000_000_000;

async fn open_with(dir: &Path, change: impl FnOnce(&mut ParacordConfig)) -> (Rooms, Store) {
    let clock = Clock::fixed(NOW);
    let file = dir.join("d.db");
    let store = Store::open(&file, clock.clone()).await.unwrap();
    let mut config = Config::from_text("").unwrap().paracord;
    config.server_name = Some("node-a.example".into());
    config.domain = Some("chat.example".into());
    change(&mut config);
    let own = Own::of(&config).unwrap();
    let ops = Ops::silent();
    let rooms = Rooms::open(store.clone(), clock, own, ops, &config)
        .await
        .unwrap();
    (rooms, store)
}

async fn open(dir: &Path) -> (Rooms, Store) {
    open_with(dir, |_| {}).await
}

fn room(id: &str) -> Room {
    Room::parse(id).unwrap()
}

fn peer(name: &str) -> PeerName {
    PeerName::parse(name).unwrap()
}

fn named(named: &'static str) -> impl Fn(&str) -> bool {
    move |server| server == named
}

#[tokio::test]
async fn a_room_of_ours_has_one_key_whichever_of_our_names_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    for id in [
        "!7:chat.example",
        "!+7:NODE-A.example",
        "!007: Chat.Example ",
    ] {
        assert_eq!(rooms.key_of(id).unwrap(), "!7:chat.example", "{id}");
        assert!(rooms.is_ours(&room(id)));
    }
    assert_eq!(rooms.key_of("!7:B.example").unwrap(), "!7:b.example");
    assert_eq!(rooms.key_of("7:b.example"), None);
    store.close().await;
}

#[tokio::test]
async fn a_room_is_allowed_by_its_own_word_or_by_the_list_and_only_if_it_is_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open_with(dir.path(), |c| c.allowed_guild_ids = vec![300]).await;
    assert!(rooms.is_allowed(&room("!300:chat.example")));
    assert!(!rooms.is_allowed(&room("!300:other.example")));
    assert!(!rooms.is_allowed(&room("!5:chat.example")));
    let put = |allowed| Put {
        allowed: Some(allowed),
        ..Put::default()
    };
    rooms.put("!5:chat.example", put(true)).await.unwrap();
    assert!(rooms.is_allowed(&room("!5:node-a.example")));
    rooms.put("!5:chat.example", put(false)).await.unwrap();
    assert!(!rooms.is_allowed(&room("!5:chat.example")));
    store.close().await;
}

#[tokio::test]
async fn what_a_put_does_not_name_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    let key = "!7:chat.example";
    let first = Put {
        name: Some("Lab".into()),
        default_channel_id: Some(Some("71".into())),
        public: Some(true),
        allowed: None,
    };
    let made = rooms.put(key, first).await.unwrap();
    assert!(made.allowed, "a room is open to others unless it says not");
    let next = Put {
        public: Some(false),
        ..Put::default()
    };
    let changed = rooms.put(key, next).await.unwrap();
    assert_eq!(
        *changed,
        Hosted {
            public: false,
            ..Hosted::clone(&made)
        }
    );
    store.close().await;
}

#[tokio::test]
async fn everything_of_a_room_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    let key = "!7:chat.example";
    rooms.put(key, Put::default()).await.unwrap();
    let (id, new) = rooms.join(key, "@eve:b.example", None).await.unwrap();
    assert!(new);
    rooms
        .follow("!9:c.example", Some(peer("d.example")))
        .await
        .unwrap();
    rooms
        .joined_there("!8:b.example", "@al:chat.example", None)
        .await
        .unwrap();
    let reader = Rooms::reader_record(key, &peer("r.example"));
    store
        .put_records(ID, vec![reader])
        .await
        .unwrap()
        .await
        .unwrap();
    store.close().await;

    let (rooms, store) = open(dir.path()).await;
    assert_eq!(rooms.hosted(key).unwrap().name, "7");
    assert_eq!(rooms.members(key), [("@eve:b.example".to_owned(), NOW)]);
    assert_eq!(rooms.member_servers(key), ["b.example"]);
    assert_eq!(rooms.local_user_id("@eve:b.example"), Some(id));
    assert!(rooms.is_reader(key, &peer("r.example")));
    assert_eq!(
        rooms.followed("!9:c.example").unwrap().peer,
        Some(peer("d.example"))
    );
    assert!(rooms.followed("!8:b.example").unwrap().joined);
    store.close().await;
}

#[tokio::test]
async fn a_removed_room_takes_its_members_and_readers_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    let key = "!7:chat.example";
    rooms.put(key, Put::default()).await.unwrap();
    let rows = (0..CHUNK + 5).map(|n| {
        let member = Member { since_ms: n as i64 };
        row(MEMBER, pair(key, &format!("@u{n}:b.example")), &member).unwrap()
    });
    let rows: Vec<_> = rows
        .chain([Rooms::reader_record(key, &peer("r.example"))])
        .collect();
    store.put_records(ID, rows).await.unwrap().await.unwrap();
    store.close().await;

    let (rooms, store) = open(dir.path()).await;
    assert_eq!(rooms.member_count(key), CHUNK + 5);
    assert!(rooms.remove(key).await.unwrap());
    assert!(!rooms.remove(key).await.unwrap());
    store.close().await;

    let (rooms, store) = open(dir.path()).await;
    assert!(rooms.hosted(key).is_none());
    assert_eq!((rooms.member_count(key), rooms.readers(key)), (0, vec![]));
    assert!(rooms.wanted().is_empty());
    store.close().await;
}

#[tokio::test]
async fn a_room_is_followed_while_a_user_of_ours_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    let key = "!8:b.example";
    rooms
        .joined_there(key, "@al:chat.example", None)
        .await
        .unwrap();
    rooms
        .joined_there(key, "@bo:node-a.example", None)
        .await
        .unwrap();
    let left = rooms.leave(key, "@al:chat.example").await.unwrap();
    assert!(left.was_in && !left.unfollowed);
    assert!(rooms.followed(key).is_some());
    let left = rooms.leave(key, "@bo:node-a.example").await.unwrap();
    assert!(left.was_in && left.unfollowed);
    assert!(rooms.followed(key).is_none());
    let again = rooms.leave(key, "@bo:node-a.example").await.unwrap();
    assert!(!again.was_in);
    store.close().await;
}

#[tokio::test]
async fn a_room_an_operator_follows_stays_followed_when_its_members_leave() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    let key = "!8:b.example";
    rooms
        .joined_there(key, "@al:chat.example", None)
        .await
        .unwrap();
    rooms.follow(key, None).await.unwrap();
    let left = rooms.leave(key, "@al:chat.example").await.unwrap();
    assert!(left.was_in && !left.unfollowed);
    assert!(rooms.followed(key).is_some());
    assert!(rooms.unfollow(key).await.unwrap());
    assert!(!rooms.unfollow(key).await.unwrap());
    store.close().await;
}

#[tokio::test]
async fn a_room_is_read_by_members_readers_its_host_and_by_all_if_it_is_public() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    let key = "!7:chat.example";
    rooms.put(key, Put::default()).await.unwrap();
    rooms.join(key, "@eve:b-chat.example", None).await.unwrap();
    rooms.note_reader(key, &peer("r.example"));
    let may =
        |key: &str, name: &str, is: &'static str| rooms.may_be_read(key, &peer(name), named(is));
    assert!(may(key, "b.example", "b-chat.example"), "a member's server");
    assert!(may(key, "r.example", "r.example"), "a reader");
    assert!(!may(key, "x.example", "x.example"), "a stranger");
    assert!(may("!9:h.example", "h.example", "h.example"), "the host");
    assert!(!may("!9:h.example", "x.example", "x.example"));
    let public = Put {
        public: Some(true),
        ..Put::default()
    };
    rooms.put(key, public).await.unwrap();
    assert!(may(key, "x.example", "x.example"), "it is public");
    store.close().await;
}

#[tokio::test]
async fn a_user_keeps_the_id_it_was_given_here() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    let (key, user) = ("!7:chat.example", "@eve:b.example");
    let (made, _) = rooms.join(key, user, None).await.unwrap();
    assert!(made.parse::<i64>().unwrap() >= 0);
    let (given, new) = rooms.join(key, user, Some("42".into())).await.unwrap();
    assert_eq!((given.as_str(), new), ("42", false));
    rooms.leave(key, user).await.unwrap();
    let (kept, new) = rooms.join(key, user, None).await.unwrap();
    assert_eq!((kept.as_str(), new), ("42", true));
    store.close().await;
}

#[tokio::test]
async fn only_new_users_are_counted_against_a_servers_hour() {
    let dir = tempfile::tempdir().unwrap();
    let one = |c: &mut ParacordConfig| c.max_user_creates_per_peer_per_hour = 1;
    let (rooms, store) = open_with(dir.path(), one).await;
    assert!(rooms.may_make("@a:b.example", "b.example"));
    rooms
        .join("!7:chat.example", "@a:b.example", None)
        .await
        .unwrap();
    assert!(!rooms.may_make("@b:b.example", "b.example"));
    assert!(rooms.may_make("@a:b.example", "b.example"));
    store.close().await;
}

#[tokio::test]
async fn a_server_is_asked_for_what_it_hosts_and_for_what_it_mirrors_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    assert!(rooms.wanted().is_empty(), "nothing is followed");
    rooms.put("!1:chat.example", Put::default()).await.unwrap();
    rooms.put("!2:chat.example", Put::default()).await.unwrap();
    rooms.put("!3:chat.example", Put::default()).await.unwrap();
    rooms
        .join("!1:chat.example", "@eve:b-chat.example", None)
        .await
        .unwrap();
    rooms.note_reader("!2:chat.example", &peer("b.example"));
    rooms.follow("!4:b.example", None).await.unwrap();
    rooms.follow("!5:c.example", None).await.unwrap();
    rooms
        .follow("!6:c.example", Some(peer("b.example")))
        .await
        .unwrap();
    let is_b = |server: &str| ["b.example", "b-chat.example"].contains(&server);
    let polled = rooms.polled(&peer("b.example"), "b-chat.example", is_b);
    let polled: Vec<_> = polled
        .iter()
        .map(|p| (p.key.as_str(), p.room_id.as_str()))
        .collect();
    assert_eq!(
        polled,
        [
            ("!1:chat.example", "!1:chat.example"),
            ("!2:chat.example", "!2:chat.example"),
            ("!4:b.example", "!4:b-chat.example"),
            ("!6:c.example", "!6:c.example"),
        ]
    );
    let mut wanted: Vec<_> = rooms.wanted().into_iter().collect();
    wanted.sort();
    assert_eq!(wanted, ["b-chat.example", "b.example", "c.example"]);
    store.close().await;
}

#[test]
fn a_user_has_one_spelling_and_a_sane_length() {
    assert_eq!(
        user_key("@Eve:B.Example").as_deref(),
        Some("@Eve:b.example")
    );
    assert_eq!(user_key("eve"), None);
    assert_eq!(
        user_key(&format!("@{}:b.example", "e".repeat(MAX_USER_ID))),
        None
    );
}

fn event(kind: &str, room_id: &str, sender: &str) -> Envelope {
    Envelope {
        event_id: "$1:b.example".into(),
        room_id: room_id.into(),
        event_type: kind.into(),
        sender: sender.into(),
        origin_server: "b.example".into(),
        origin_ts: NOW,
        content: json!({}),
        depth: NOW,
        state_key: None,
        signatures: json!({}),
    }
}

#[tokio::test]
async fn a_member_event_moves_its_sender_in_a_room_of_ours_that_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let (rooms, store) = open(dir.path()).await;
    let key = "!7:chat.example";
    rooms.put(key, Put::default()).await.unwrap();
    let closed = Put {
        allowed: Some(false),
        ..Put::default()
    };
    rooms.put("!8:chat.example", closed).await.unwrap();
    for (room, sender) in [
        ("!7:node-a.example", "@eve:b.example"),
        ("!7:chat.example", "@al:chat.example"),
        ("!7:chat.example", "nobody"),
        ("!8:chat.example", "@eve:b.example"),
        ("!9:chat.example", "@eve:b.example"),
        ("!7:b.example", "@eve:b.example"),
    ] {
        let join = event("m.member.join", room, sender);
        rooms.member_event("m.member.join", &join).await;
    }
    assert_eq!(rooms.members(key), [("@eve:b.example".to_owned(), NOW)]);
    for other in ["!8:chat.example", "!9:chat.example", "!7:b.example"] {
        assert_eq!(rooms.member_count(other), 0, "{other}");
    }
    let other = event("m.message", key, "@eve:b.example");
    rooms.member_event("m.message", &other).await;
    assert_eq!(rooms.member_count(key), 1);
    let leave = event("m.member.leave", key, "@eve:b.example");
    rooms.member_event("m.member.leave", &leave).await;
    assert_eq!(rooms.member_count(key), 0);
    store.close().await;
}
