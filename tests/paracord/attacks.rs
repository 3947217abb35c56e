//! People who mean no good, each with what the protocol lets them try. One server is trusted, its key
//! is in bad hands or its operator is curious; what must not happen does not.

use std::time::Duration;

use drawbridge::clock::Clock;
use serde_json::{Value, json};

use crate::support::bridge::free_address;
use crate::support::para_world::{Message, Para, Setup};
use crate::support::paracord_client::{Answer, Identity, hex, now_ms, ordered, wire};
use crate::support::reference::{Options, Reference};

const ROOM: &str = "!7010:bridge.test";
const SOON: Duration = Duration::from_secs(15);

fn node_a() -> Identity {
    Identity::new("node-a.test")
}

fn node_b() -> Identity {
    Identity::new("node-b.test")
}

/// A bridge that trusts two servers and hosts a room.
async fn bridge() -> Para {
    bridge_with(Setup::new("bridge.test")).await
}

async fn bridge_with(setup: Setup) -> Para {
    let para = Para::here(setup.pinned(&node_a()).pinned(&node_b())).await;
    para.host(ROOM, "Harbour").await;
    para
}

/// Status and code of a refusal.
fn refusal(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.json["code"].as_str().unwrap_or(""))
}

const FORBIDDEN: (u16, &str) = (403, "FORBIDDEN");
const CONFLICT: (u16, &str) = (409, "CONFLICT");
const NOT_FOUND: (u16, &str) = (404, "NOT_FOUND");

fn taken(answer: &Answer) -> (u16, &Value) {
    (answer.status, &answer.json["inserted"])
}

const NEW: (u16, &Value) = (202, &Value::Bool(true));
const KNOWN: (u16, &Value) = (202, &Value::Bool(false));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_one_with_the_signature_in_upper_case_too() {
    let para = bridge().await;
    let event = node_a().event(ROOM, json!({}));
    let request = node_a().push(&event);
    assert_eq!(taken(&para.ask(&request).await), NEW);
    let text = request.value("signature").to_owned();
    let mixed = format!("{}{}", text[..64].to_ascii_uppercase(), &text[64..]);
    for signature in [text.clone(), text.to_ascii_uppercase(), mixed] {
        let again = request.clone().header("signature", &signature);
        let answer = para.ask(&again).await;
        assert_eq!(refusal(&answer), CONFLICT, "{signature}");
        let words = "conflict: replayed federation transport signature";
        assert_eq!(answer.json["message"], words);
    }
    // The same for a call that changes something.
    let join = json!({"origin_server": "node-a.test", "room_id": ROOM,
                      "user_id": "@alice:node-a.test"});
    let members = ["origin_server", "room_id", "user_id"];
    let request = node_a().post("/join", ordered(&join, &members));
    assert_eq!(para.ask(&request).await.status, 200);
    let upper = request.value("signature").to_ascii_uppercase();
    let again = para.ask(&request.header("signature", &upper)).await;
    assert_eq!(refusal(&again), CONFLICT);
    let events = para.until_events(1, SOON).await;
    assert_eq!(events.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_one_after_a_restart() {
    let mut para = bridge().await;
    let request = node_a().push(&node_a().event(ROOM, json!({})));
    assert_eq!(taken(&para.ask(&request).await), NEW);
    // Refused after its signature held: spent all the same.
    let deep = node_a().event(ROOM, json!({"content": {"a": nested(40)}}));
    let refused = node_a().push(&deep);
    assert_eq!(para.ask(&refused).await.status, 400);
    para.restart().await;
    for request in [request, refused] {
        let upper = request.value("signature").to_ascii_uppercase();
        let answer = para.ask(&request.header("signature", &upper)).await;
        assert_eq!(refusal(&answer), CONFLICT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_of_another_origin_needs_that_origins_signature() {
    let para = bridge().await;
    // B says that A wrote it, and signs for A.
    let mut forged = node_a().draft(ROOM);
    node_b().sign(&mut forged);
    let answer = para.ask(&node_b().push(&forged)).await;
    assert_eq!(refusal(&answer), FORBIDDEN);
    // A server nobody trusts wrote it; B carries it.
    let stranger = Identity::new("nobody.test").event(ROOM, json!({}));
    let answer = para.ask(&node_b().push(&stranger)).await;
    assert_eq!(refusal(&answer), FORBIDDEN);
    // We wrote it, says B.
    let mut ours = node_b().draft(ROOM);
    ours["origin_server"] = json!("bridge.test");
    ours["sender"] = json!("@root:bridge.test");
    node_b().sign(&mut ours);
    let answer = para.ask(&node_b().push(&ours)).await;
    assert_eq!(refusal(&answer), FORBIDDEN);
    // The origin in other letters is another origin.
    let mut capital = node_b().draft(ROOM);
    capital["origin_server"] = json!("Node-B.test");
    node_b().sign(&mut capital);
    let answer = para.ask(&node_b().push(&capital)).await;
    assert_eq!(refusal(&answer), FORBIDDEN);
    // What A did write, B may carry.
    let relayed = node_a().event(ROOM, json!({}));
    assert_eq!(taken(&para.ask(&node_b().push(&relayed)).await), NEW);
    let events = para.until_events(1, SOON).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].text_of("origin_server"), "node-a.test");
    assert!(
        events[0].subject.contains(".node-a_test."),
        "{:?}",
        events[0]
    );
    // The wire says nothing; an operator hears the reason.
    para.until_said("ingest.rejected", |said| said["peer"] == "node-b.test")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_of_another_server_is_refused() {
    let para = bridge().await;
    for sender in [
        "@alice:node-b.test",
        "@alice:bridge.test",
        "@alice:node-a.test.evil.test",
        "@alice:x:node-a.test",
        "alice",
        "@:node-a.test",
        "@alice:",
        "",
    ] {
        let event = node_a().event(ROOM, json!({"sender": sender}));
        let answer = para.ask(&node_a().push(&event)).await;
        assert_eq!(refusal(&answer), FORBIDDEN, "{sender:?}");
    }
    let mut ours = json!({"origin_server": "node-a.test", "room_id": ROOM,
                      "sender": "@alice:node-b.test", "max_age_seconds": null});
    let members = ["origin_server", "room_id", "sender", "max_age_seconds"];
    let invite = node_a().post("/invite", ordered(&ours, &members));
    assert_eq!(refusal(&para.ask(&invite).await), FORBIDDEN);
    ours["sender"] = json!("@alice:node-a.test");
    let invite = node_a().post("/invite", ordered(&ours, &members));
    let answer = para.ask(&invite).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(para.events().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn depth_zero_and_the_ends_of_the_number_line_do_no_harm() {
    let para = bridge().await;
    let extremes = [0, -1, 1, i64::MIN, i64::MAX];
    let mut ids = Vec::new();
    for depth in extremes {
        for ts in [0, i64::MIN, i64::MAX] {
            let event = node_a().event(ROOM, json!({"depth": depth, "origin_ts": ts}));
            let answer = para.ask(&node_a().push(&event)).await;
            assert_eq!(
                taken(&answer),
                NEW,
                "depth {depth} ts {ts}: {}",
                answer.text
            );
            ids.push(event["event_id"].as_str().unwrap_or_default().to_owned());
        }
    }
    let events = para.until_events(ids.len(), SOON).await;
    assert_eq!(events.len(), ids.len());
    // Our own events go on as if nothing had been said.
    let before = now_ms();
    let message = Message::text("node-a.test", ROOM, "@carol:bridge.test", "on we go");
    let message_id = message.message_id();
    para.send(message).await;
    let ours = format!("${message_id}:bridge.test");
    let envelope = until_event(&para, &node_a(), &ours).await;
    let depth = envelope["depth"].as_i64().unwrap_or_default();
    assert!(
        (before - 1_000..now_ms() + 60_000).contains(&depth),
        "{envelope}"
    );
    assert!(envelope["origin_ts"].as_i64().unwrap_or(i64::MAX) <= depth);
    // Who reads goes on from the deepest event it saw: none is given one that lies far ahead.
    let page = para.ask(&node_a().events(ROOM, 0, 1000)).await;
    let events = page.json["events"].as_array().cloned();
    for event in events.unwrap_or_default() {
        let place = event["depth"].as_i64().max(event["origin_ts"].as_i64());
        assert!(place <= Some(now_ms() + 60_000), "{event}");
    }
    // Readers may ask with such numbers too.
    for since in extremes {
        let answer = para.ask(&node_a().events(ROOM, since, 1000)).await;
        assert_eq!(answer.status, 200, "{since}: {}", answer.text);
    }
    for limit in ["0", "-1", "9223372036854775807"] {
        let path = format!("/events?room_id={ROOM}&since_depth=0&limit={limit}");
        let answer = para.ask(&node_a().get(&path)).await;
        assert!(
            [200, 400].contains(&answer.status),
            "{limit}: {}",
            answer.text
        );
    }
    // So may a clock.
    for timestamp in [0, -1, i64::MIN, i64::MAX] {
        let mut request = node_a().push(&node_a().event(ROOM, json!({})));
        node_a().dress(&mut request, timestamp);
        let answer = para.ask(&request).await;
        assert_eq!(refusal(&answer), (401, "UNAUTHORIZED"), "{timestamp}");
    }
    for age in [0, i64::MIN, i64::MAX] {
        let body = json!({"origin_server": "node-a.test", "room_id": ROOM,
                          "sender": "@alice:node-a.test", "max_age_seconds": age});
        let members = ["origin_server", "room_id", "sender", "max_age_seconds"];
        let answer = para
            .ask(&node_a().post("/invite", ordered(&body, &members)))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let expires = answer.json["expires_in_seconds"].as_i64().unwrap_or(0);
        assert!((60..=86_400).contains(&expires), "{age}: {expires}");
    }
}

/// An event of the bridge's as a server may read it, as soon as it may.
async fn until_event(para: &Para, reader: &Identity, id: &str) -> Value {
    let end = std::time::Instant::now() + SOON;
    loop {
        let answer = para.ask(&reader.get(&format!("/event/{id}"))).await;
        if answer.status == 200 {
            return answer.json;
        }
        assert!(
            std::time::Instant::now() < end,
            "{id}: {} {}\n{:?}",
            answer.status,
            answer.text,
            para.dead().await
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_used_again_with_another_content_changes_nothing() {
    let para = bridge().await;
    let event = node_a().event(ROOM, json!({"content": {"body": "first"}}));
    assert_eq!(taken(&para.ask(&node_a().push(&event)).await), NEW);
    let id = event["event_id"].clone();
    let other = node_a().event(ROOM, json!({"event_id": id, "content": {"body": "second"}}));
    let answer = para.ask(&node_a().push(&other)).await;
    assert_eq!(taken(&answer), KNOWN, "{}", answer.text);
    assert_eq!(answer.json["event_id"], id);
    para.until_said("ingest.conflict", |_| true).await;
    // Another server's event of that id is another event.
    let theirs = node_b().event(ROOM, json!({"event_id": id, "content": {"body": "third"}}));
    assert_eq!(taken(&para.ask(&node_b().push(&theirs)).await), NEW);
    let events = para.until_events(2, SOON).await;
    let bodies: Vec<_> = events.iter().map(|e| e.body()).collect();
    assert_eq!(bodies, ["first", "third"]);
    // What is read by others is the first one too.
    join(&para, &node_a()).await;
    let read = until_event(&para, &node_a(), id.as_str().unwrap_or_default()).await;
    assert_ne!(read["content"]["body"], "second");
}

/// Makes a user of a server a member of the room.
async fn join(para: &Para, who: &Identity) -> Answer {
    let body = json!({"origin_server": who.name, "room_id": ROOM, "user_id": who.user("alice")});
    let members = ["origin_server", "room_id", "user_id"];
    let answer = para.ask(&who.post("/join", ordered(&body, &members))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

fn listed(server: &str, id: &str, public: &str) -> Value {
    json!({"key_id": id, "public_key": public, "server_name": server,
           "valid_until": now_ms() + 86_400_000})
}

/// A server of its own making, which says of its keys what it likes, and a bridge that trusts it and A.
async fn liar(keys: Value) -> (Para, Reference) {
    let mut options = Options::at(free_address(), Identity::new("liar.test"));
    options.every = None;
    let address = options.address;
    let liar = Reference::start(options).await;
    liar.list_keys(keys);
    let setup = Setup::new("bridge.test").peer("liar.test", address);
    (bridge_with(setup).await, liar)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_listed_for_another_server_is_nobodys() {
    let me = Identity::new("liar.test");
    let (para, liar) = liar(json!([
        listed("node-a.test", "ed25519:auto", &me.public()),
        listed("bridge.test", "ed25519:auto", &me.public()),
        listed("liar.test", "ed25519:mine", &me.public()),
    ]))
    .await;
    // In its own name under the id that is its own: whoever it is, its key is known now.
    let mut own = me.clone();
    own.key_id = "ed25519:mine".into();
    let answer = para.ask(&own.push(&own.event(ROOM, json!({})))).await;
    assert_eq!(taken(&answer), NEW, "{}", answer.text);
    assert!(liar.counts().keys_fetched > 0);
    for victim in ["node-a.test", "bridge.test"] {
        let mut thief = Identity::new(victim);
        thief.key = me.key.clone();
        let answer = para.ask(&thief.push(&thief.event(ROOM, json!({})))).await;
        assert_eq!(refusal(&answer), FORBIDDEN, "{victim}");
        // And carried by the liar in its own name.
        let answer = para.ask(&own.push(&thief.event(ROOM, json!({})))).await;
        assert_eq!(refusal(&answer), FORBIDDEN, "{victim}");
    }
    // Its own key under the id of a key listed for somebody else.
    let answer = para.ask(&me.push(&me.event(ROOM, json!({})))).await;
    assert_eq!(refusal(&answer), FORBIDDEN);
    assert_eq!(para.until_events(1, SOON).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_keys_under_one_id_are_each_tried_and_no_third() {
    let me = Identity::new("liar.test");
    let (mut second, mut third) = (me.clone(), me.clone());
    second.key = Identity::new("second").key;
    third.key = Identity::new("third").key;
    let (para, _liar) = liar(json!([
        listed("liar.test", "ed25519:auto", &me.public()),
        listed("liar.test", "ed25519:auto", &second.public()),
    ]))
    .await;
    for who in [&me, &second] {
        let answer = para.ask(&who.push(&who.event(ROOM, json!({})))).await;
        assert_eq!(taken(&answer), NEW, "{}", answer.text);
    }
    let answer = para.ask(&third.push(&third.event(ROOM, json!({})))).await;
    assert_eq!(refusal(&answer), FORBIDDEN);
    // Signed by one key under another id that is listed for nothing.
    let mut other = me.clone();
    other.key_id = "ed25519:other".into();
    let answer = para.ask(&other.push(&other.event(ROOM, json!({})))).await;
    assert_eq!(refusal(&answer), FORBIDDEN);
    assert_eq!(para.until_events(2, SOON).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_order_key_verifies_nothing() {
    // The identity point: any message verifies under it with the identity point and a scalar of zero,
    // unless one is strict.
    let identity = format!("01{}", "00".repeat(31));
    // Another encoding, and a point of order 8.
    let weak = [
        identity.clone(),
        format!("01{}80", "00".repeat(30)),
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05".to_owned(),
        "00".repeat(32),
    ];
    let me = Identity::new("liar.test");
    let mut keys: Vec<_> = weak
        .iter()
        .map(|key| listed("liar.test", "ed25519:weak", key))
        .collect();
    keys.push(listed("liar.test", "ed25519:auto", &me.public()));
    let (para, _liar) = liar(json!(keys)).await;
    let answer = para.ask(&me.push(&me.event(ROOM, json!({})))).await;
    assert_eq!(
        taken(&answer),
        NEW,
        "its good key is known: {}",
        answer.text
    );
    for point in &weak {
        let signature = format!("{point}{}", "00".repeat(32));
        let mut envelope = me.draft(ROOM);
        envelope["signatures"] = json!({"liar.test": {"ed25519:weak": signature}});
        let request = me
            .push(&envelope)
            .header("key-id", "ed25519:weak")
            .header("signature", &signature);
        assert_eq!(refusal(&para.ask(&request).await), FORBIDDEN, "{point}");
        // The request is good, the envelope weak.
        let answer = para.ask(&me.push(&envelope)).await;
        assert_eq!(refusal(&answer), FORBIDDEN, "{point}");
    }
    assert_eq!(para.until_events(1, SOON).await.len(), 1);
}

/// So many objects in one another.
fn nested(levels: usize) -> Value {
    (0..levels).fold(json!("core"), |inner, _| json!({ "a": inner }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_three_levels_are_one_too_many() {
    let para = bridge().await;
    for (levels, status) in [(31, 202), (32, 400)] {
        // The content itself is level 1.
        let event = node_a().event(ROOM, json!({"content": {"a": nested(levels)}}));
        let answer = para.ask(&node_a().push(&event)).await;
        assert_eq!(answer.status, status, "{levels}: {}", answer.text);
    }
    let mut list = json!([]);
    for _ in 0..31 {
        list = json!([list]);
    }
    let event = node_a().event(ROOM, json!({"content": {"a": list}}));
    let answer = para.ask(&node_a().push(&event)).await;
    assert_eq!(refusal(&answer), (400, "BAD_REQUEST"));
    // So deep that the reader itself gives up: words of no protocol, and nobody crashes.
    let text = wire(&node_a().event(ROOM, json!({})));
    let deep = text.replace(
        "\"body\":\"hello\"",
        &format!("\"body\":{}1{}", "[".repeat(10_000), "]".repeat(10_000)),
    );
    let answer = para.ask(&node_a().post("/event", deep)).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert_eq!(para.until_events(1, SOON).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_and_one_elements_are_one_too_many() {
    let para = bridge().await;
    let list = |n: usize| json!({"content": {"list": vec![0; n]}});
    let object = |n: usize| {
        let members: serde_json::Map<String, Value> =
            (0..n).map(|i| (format!("k{i}"), json!(i))).collect();
        json!({"content": {"map": members}})
    };
    for (changes, status) in [
        (list(10_000), 202),
        (list(10_001), 400),
        (object(10_000), 202),
        (object(10_001), 400),
    ] {
        let event = node_a().event(ROOM, changes);
        let answer = para.ask(&node_a().push(&event)).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        if status == 400 {
            assert_eq!(answer.json["code"], "BAD_REQUEST");
        }
    }
    // A mebibyte of content is what there may be.
    let long = node_a().event(ROOM, json!({"content": {"body": "x".repeat(1_048_577)}}));
    let answer = para.ask(&node_a().push(&long)).await;
    assert_eq!(refusal(&answer), (400, "BAD_REQUEST"));
    assert_eq!(para.until_events(2, SOON).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_sixty_seconds_off_passes_and_a_millisecond_more_does_not() {
    let now = now_ms();
    let setup = Setup::new("bridge.test").pinned(&node_a());
    let para = Para::by_clock(setup, Clock::fixed(now)).await;
    for (off, passes) in [
        (60_000, true),
        (-60_000, true),
        (60_001, false),
        (-60_001, false),
    ] {
        let mut request = node_a().push(&node_a().event(ROOM, json!({})));
        node_a().dress(&mut request, now + off);
        let answer = para.ask(&request).await;
        if passes {
            assert_eq!(taken(&answer), NEW, "{off}: {}", answer.text);
        } else {
            assert_eq!(refusal(&answer), (401, "UNAUTHORIZED"), "{off}");
        }
    }
    // Text that stands for the same number passes, and is the number in what is signed.
    let mut request = node_a().push(&node_a().event(ROOM, json!({})));
    node_a().dress(&mut request, now);
    for text in [format!("+{now}"), format!("000{now}")] {
        let answer = para.ask(&request.clone().header("timestamp", &text)).await;
        assert!(
            [202, 409].contains(&answer.status),
            "{text}: {}",
            answer.text
        );
    }
    for text in ["99999999999999999999", "1e12", "", "now"] {
        let answer = para.ask(&request.clone().header("timestamp", text)).await;
        assert_eq!(refusal(&answer), (401, "UNAUTHORIZED"), "{text:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_not_read_by_a_server_without_a_member() {
    let token = "the-read-token-of-these-tests";
    let setup = Setup::new("bridge.test").line("read_token", &format!("{token:?}"));
    let para = bridge_with(setup).await;
    join(&para, &node_a()).await;
    let message = Message::text("node-a.test", ROOM, "@carol:bridge.test", "among us");
    let id = format!("${}:bridge.test", message.message_id());
    para.send(message).await;
    until_event(&para, &node_a(), &id).await;
    let page = para.ask(&node_a().events(ROOM, 0, 100)).await;
    let events = page.json["events"].as_array().cloned().unwrap_or_default();
    assert!(
        events.iter().any(|e| e["event_id"] == id.as_str()),
        "{}",
        page.text
    );
    // B is trusted, and has nothing to do with the room.
    assert_eq!(
        refusal(&para.ask(&node_b().events(ROOM, 0, 100)).await),
        NOT_FOUND
    );
    let one = para.ask(&node_b().get(&format!("/event/{id}"))).await;
    assert_eq!(refusal(&one), NOT_FOUND);
    let none = para.ask(&node_b().get("/event/$nothing:bridge.test")).await;
    assert_eq!(one.text, none.text, "whether it exists is not told");
    // By any other name of the room neither.
    for room in [
        "!7010:BRIDGE.test",
        "!+7010:bridge.test",
        "!7010: bridge.test",
    ] {
        let room = room.replace(' ', "%20").replace('+', "%2B");
        let answer = para.ask(&node_b().events(&room, 0, 100)).await;
        assert_eq!(answer.status, 404, "{room}: {}", answer.text);
    }
    // A stranger is told nothing either, whoever shows the token everything.
    let nobody = Identity::new("nobody.test");
    assert_eq!(
        refusal(&para.ask(&nobody.events(ROOM, 0, 100)).await),
        FORBIDDEN
    );
    let mut bearer = nobody.events(ROOM, 0, 100);
    bearer.headers.clear();
    assert_eq!(para.ask(&bearer).await.status, 401);
    for (shown, status) in [(token, 200), ("another-token-of-these-tests", 401)] {
        let mut request = bearer.clone();
        request
            .headers
            .insert("x-paracord-federation-token".into(), shown.into());
        assert_eq!(para.ask(&request).await.status, status, "{shown}");
    }
    // A member makes the difference.
    join(&para, &node_b()).await;
    assert_eq!(para.ask(&node_b().events(ROOM, 0, 100)).await.status, 200);
    assert_eq!(
        para.ask(&node_b().get(&format!("/event/{id}")))
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_joins_in_the_name_of_anothers_user() {
    let para = bridge().await;
    let ask = async |route: &str, origin: &str, user: &str| {
        let body = json!({"origin_server": origin, "room_id": ROOM, "user_id": user});
        let members = ["origin_server", "room_id", "user_id"];
        para.ask(&node_a().post(route, ordered(&body, &members)))
            .await
    };
    for route in ["/join", "/leave"] {
        for user in [
            "@bob:node-b.test",
            "@root:bridge.test",
            "@alice:node-a.test:x",
            "@alice:x:node-a.test",
        ] {
            let answer = ask(route, "node-a.test", user).await;
            assert_eq!(refusal(&answer), FORBIDDEN, "{route} {user}");
        }
        for user in ["alice", "@", "@:node-a.test", "@alice:", ""] {
            let answer = ask(route, "node-a.test", user).await;
            assert_eq!(refusal(&answer), (400, "BAD_REQUEST"), "{route} {user}");
            assert_eq!(answer.json["message"], "bad request: Invalid user_id");
        }
        // The body names another server than the headers.
        let answer = ask(route, "node-b.test", "@bob:node-b.test").await;
        assert_eq!(refusal(&answer), FORBIDDEN);
    }
    let answer = ask("/join", "node-a.test", "@alice:NODE-A.test").await;
    assert_eq!(answer.status, 200, "case is ignored: {}", answer.text);
    // Nobody of B's is in the room for all that.
    assert_eq!(
        refusal(&para.ask(&node_b().events(ROOM, 0, 10)).await),
        NOT_FOUND
    );
}

/// Bytes that are no request of anybody's; each is turned away and nothing falls over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_that_is_none_is_refused_in_one_way() {
    let para = bridge().await;
    let good = node_a().push(&node_a().event(ROOM, json!({})));
    let text = good.value("signature").to_owned();
    let other = hex(&[7; 64]);
    let mut words = Vec::new();
    for signature in [
        &text[..126],
        &format!("{text}00"),
        &format!("+{}", &text[1..]),
        &format!("{}zz", &text[..126]),
        &other,
        "00",
    ] {
        let answer = para.ask(&good.clone().header("signature", signature)).await;
        assert_eq!(refusal(&answer), FORBIDDEN, "{signature}");
        words.push(answer.text);
    }
    // A server nobody knows: the same words.
    let stranger = Identity::new("nobody.test");
    let event = stranger.event(ROOM, json!({}));
    words.push(para.ask(&stranger.push(&event)).await.text);
    words.dedup();
    assert_eq!(words.len(), 1, "{words:?}");
    assert_eq!(taken(&para.ask(&good).await), NEW);
}
