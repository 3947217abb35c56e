//! Two bridges with one another: rooms on both sides, members of each in the other's, traffic both
//! ways while they are restarted, killed, and while their clocks jump.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::para_world::{Event, Message, Para, Setup};
use crate::support::paracord_client::{fresh, guild_of};

const HOUR: i64 = 3_600_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Two setups that trust each other, with pacing and limits lifted.
fn pair() -> (Setup, Setup) {
    let a = Setup::new("alpha.test").lifted();
    let b = Setup::new("beta.test").lifted();
    let (at_a, at_b) = (a.address, b.address);
    (a.peer("beta.test", at_b), b.peer("alpha.test", at_a))
}

/// Half of the rooms live at each side, and a user of the other side is invited to and joins each.
async fn rooms(a: &Para, b: &Para, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    for n in 0..count {
        let (home, other) = if n % 2 == 0 { (a, b) } else { (b, a) };
        let room = format!("!{}:{}", 7100 + n, home.name());
        home.host(&room, &format!("Room {n}")).await;
        let user = other.user("visitor");
        let invite = json!({"room_id": room, "sender": user});
        let preview = other.call("invite", invite).await;
        assert_eq!(preview["accepted"], true, "{preview}");
        assert_eq!(preview["guild_name"], format!("Room {n}"), "{preview}");
        let joined = other
            .call("join", json!({"room_id": room, "user_id": user}))
            .await;
        assert_eq!(joined["joined"], true, "{joined}");
        all.push(room);
    }
    all
}

/// The `n`th thing that somebody does in a room: of ten, six messages, an edit, two reactions, a
/// deletion.
fn deed(here: &Para, room: &str, n: usize, last: &mut BTreeMap<String, String>) -> Message {
    let sender = here.user("user");
    let target = last.get(room).cloned().unwrap_or_else(fresh);
    let mut content = json!({
        "guild_id": guild_of(room),
        "channel_id": "20",
        "message_id": target,
        "n": n,
    });
    let kind = match n % 10 {
        6 => {
            content["body"] = json!(format!("edited {n}"));
            "m.message.edit"
        }
        7 => {
            content["emoji"] = json!("👍");
            "m.reaction.add"
        }
        8 => {
            content["emoji"] = json!("👍");
            "m.reaction.remove"
        }
        9 => "m.message.delete",
        _ => {
            let id = fresh();
            content["body"] = json!(format!("message {n} <b>\u{7f}\"\\"));
            content["msgtype"] = json!("m.text");
            content["message_id"] = json!(id);
            last.insert(room.to_owned(), id);
            "m.message"
        }
    };
    Message::new("_room", kind, room, &sender, content).id(&format!("{}-{room}-{n}", here.name()))
}

/// Everything that one side does in these rooms, from deed `from` to deed `to` in each, rooms mixed.
async fn act(here: &Para, rooms: &[String], from: usize, to: usize) {
    let mut last = BTreeMap::new();
    let mut messages = Vec::new();
    for n in from..to {
        for room in rooms {
            messages.push(deed(here, room, n, &mut last));
        }
    }
    here.send_all(messages).await;
}

/// None lost, none twice, ours not among them, order kept and depth rising in each room.
fn judge(events: &[Event], from: &Para, rooms: &[String], each: usize) {
    let mut by_room: BTreeMap<&str, Vec<(i64, i64)>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for event in events {
        assert_eq!(event.text_of("origin_server"), from.name(), "an echo");
        assert!(
            ids.insert(event.text_of("event_id")),
            "{} came twice",
            event.text_of("event_id")
        );
        let n = event.payload["content"]["n"].as_i64().unwrap_or(-1);
        let depth = event.payload["depth"].as_i64().unwrap_or(-1);
        let ts = event.payload["origin_ts"].as_i64().unwrap_or(i64::MAX);
        assert!(ts <= depth, "{}", event.text);
        by_room
            .entry(event.text_of("room_id"))
            .or_default()
            .push((n, depth));
    }
    assert_eq!(by_room.len(), rooms.len());
    for room in rooms {
        let came = &by_room[room.as_str()];
        let numbers: Vec<_> = came.iter().map(|(n, _)| *n).collect();
        let all: Vec<_> = (0..i64::try_from(each).unwrap_or(0)).collect();
        assert_eq!(numbers, all, "lost, or out of order, in {room}");
        let rising = came.windows(2).all(|pair| pair[0].1 < pair[1].1);
        assert!(rising, "depth does not rise in {room}: {came:?}");
    }
}

async fn settled(a: &Para, b: &Para, rooms: &[String], each: usize) {
    let count = rooms.len() * each;
    tokio::join!(
        a.until_events(count, PATIENCE),
        b.until_events(count, PATIENCE)
    );
    // What might come twice has a moment to do so: by polling, several rounds of it.
    tokio::time::sleep(Duration::from_millis(700)).await;
    for (here, there) in [(a, b), (b, a)] {
        assert_eq!(here.dead().await, [], "at {}", here.name());
        judge(&here.events(), there, rooms, each);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_events_each_way_in_twenty_rooms_survive_restarts_and_an_hour_of_clock_jump() {
    const EACH: usize = 50;
    let (a, b) = pair();
    let (mut a, mut b) = tokio::join!(Para::here(a), Para::here(b));
    tokio::join!(a.until_known("beta.test"), b.until_known("alpha.test"));
    let rooms = rooms(&a, &b, 20).await;
    let begun = Instant::now();
    tokio::join!(act(&a, &rooms, 0, EACH / 2), act(&b, &rooms, 0, EACH / 2));
    b.until_events(rooms.len() * EACH / 8, PATIENCE).await;
    a.restart().await;
    // One clock is an hour ahead, the other follows: what was sent in between is refused and has to
    // be sent again.
    a.clock.shift(HOUR);
    let publish = async {
        tokio::join!(
            act(&a, &rooms, EACH / 2, EACH),
            act(&b, &rooms, EACH / 2, EACH)
        )
    };
    let follow = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        b.clock.shift(HOUR);
    };
    tokio::join!(publish, follow);
    a.until_events(rooms.len() * EACH / 2, PATIENCE).await;
    b.restart().await;
    // And back, both at about one time.
    a.clock.shift(-HOUR);
    b.clock.shift(-HOUR);
    settled(&a, &b, &rooms, EACH).await;
    eprintln!("{} each way in {:?}", rooms.len() * EACH, begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_bridge_loses_nothing_and_repeats_nothing() {
    const EACH: usize = 50;
    let (a, b) = pair();
    let (mut a, mut b) = tokio::join!(Para::process(a), Para::process(b));
    tokio::join!(a.until_known("beta.test"), b.until_known("alpha.test"));
    let rooms = rooms(&a, &b, 4).await;
    tokio::join!(act(&a, &rooms, 0, EACH / 2), act(&b, &rooms, 0, EACH / 2));
    b.until_events(rooms.len() * EACH / 8, PATIENCE).await;
    let publish = async {
        // Published while one side is down and the other cannot reach it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        act(&b, &rooms, EACH / 2, EACH).await;
    };
    tokio::join!(a.killed(Duration::from_millis(300)), publish);
    act(&a, &rooms, EACH / 2, EACH).await;
    b.killed(Duration::from_millis(100)).await;
    settled(&a, &b, &rooms, EACH).await;
}

/// A member that leaves is no reason any more to send events to its server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_goes_to_the_servers_that_have_members_in_it() {
    let (a, b) = pair();
    let c = Setup::new("gamma.test").lifted();
    let (at_a, at_c) = (a.address, c.address);
    let (a, c) = (a.peer("gamma.test", at_c), c.peer("alpha.test", at_a));
    let (a, b, c) = tokio::join!(Para::here(a), Para::here(b), Para::here(c));
    tokio::join!(a.until_known("beta.test"), a.until_known("gamma.test"));
    tokio::join!(b.until_known("alpha.test"), c.until_known("alpha.test"));
    let room = "!7500:alpha.test";
    a.host(room, "Quay").await;
    let member = |para: &Para| json!({"room_id": room, "user_id": para.user("visitor")});
    b.call("join", member(&b)).await;
    let say = async |body: &str| {
        let message = Message::text("_room", room, "@host:alpha.test", body);
        a.send(message).await;
    };
    say("for b").await;
    b.until_events(1, PATIENCE).await;
    c.call("join", member(&c)).await;
    say("for both").await;
    c.until_events(1, PATIENCE).await;
    b.until_events(2, PATIENCE).await;
    let left = b.call("leave", member(&b)).await;
    assert_eq!(left["left"], true, "{left}");
    say("for c").await;
    c.until_events(3, PATIENCE).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let bodies = |para: &Para| -> Vec<String> {
        let events = para.events();
        events.iter().map(|e| e.body().to_owned()).collect()
    };
    assert_eq!(bodies(&b), ["for b", "for both"]);
    // Who joins reads what was said before, by polling.
    let at_c: BTreeSet<String> = bodies(&c).into_iter().collect();
    assert_eq!(
        at_c.into_iter().collect::<Vec<_>>(),
        ["for b", "for both", "for c"]
    );
    assert_eq!(c.events().len(), 3);
    let event = &c.events()[0];
    assert_eq!(event.header("Fed-Peer"), "alpha.test");
    assert_eq!(event.subject, "fed.in.paracord.alpha_test.m.message");
    assert_eq!(event.text_of("sender"), "@host:alpha.test");
}

/// One looked for the other before it was there, and hears of it a moment after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bridges_that_start_one_after_the_other_need_no_operator() {
    let (a, b) = pair();
    let b = Para::here(b).await;
    b.until_said_of("alpha.test").await;
    let a = Para::here(a).await;
    a.host("!7600:alpha.test", "Pier").await;
    let message = Message::text("beta.test", "!7600:alpha.test", "@host:alpha.test", "hello");
    a.send(message).await;
    let events = b.until_events(1, Duration::from_secs(20)).await;
    assert_eq!(events[0].body(), "hello");
    assert!(a.said("delivery.held").is_empty());
}
