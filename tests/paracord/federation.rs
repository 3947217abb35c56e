//! The scripted reference and a bridge: whatever a reference does, and does not do, events go both
//! ways.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::bridge::free_address;
use crate::support::para_world::{Message, Para, Setup};
use crate::support::paracord_client::Identity;
use crate::support::reference::{Options, Reference};

const PATIENCE: Duration = Duration::from_secs(60);
/// Lives at the bridge; the reference mirrors it.
const OURS: &str = "!7010:bridge.test";
/// Lives at the reference, whose domain is another than its name.
const THEIRS: &str = "!9000:chat.test";
const NODE: &str = "node.test";

/// A bridge and a reference that know each other; a user of each is in the other's room.
pub async fn joined(change: impl FnOnce(Options) -> Options) -> (Para, Reference) {
    let identity = Identity::with_domain(NODE, "chat.test");
    let options = change(Options::at(free_address(), identity).guild(9000, "Far guild"));
    let setup = Setup::new("bridge.test")
        .lifted()
        .peer(NODE, options.address)
        .domain("chat.test");
    let (para, reference) = tokio::join!(Para::here(setup), Reference::start(options));
    assert!(
        reference
            .add("bridge.test", "bridge.test", &para.url())
            .await,
        "a key is listed"
    );
    para.host(OURS, "Harbour").await;
    let (status, preview) = reference.invite("bridge.test", OURS).await;
    assert_eq!(status, 200, "{preview}");
    assert_eq!(preview["guild_name"], "Harbour");
    assert_eq!(preview["room_id"], OURS);
    // Not in the order in which it is signed: what is proven is the normal form.
    reference.reorder_once();
    let (status, answer) = reference.join("bridge.test", OURS, "@rita:chat.test").await;
    assert_eq!((status, &answer["joined"]), (200, &json!(true)), "{answer}");
    for member in ["guild_id", "local_user_id", "room_id"] {
        assert!(answer[member].is_string(), "{answer}");
    }
    let user = "@carol:bridge.test";
    let answer = para
        .call("join", json!({"room_id": THEIRS, "user_id": user}))
        .await;
    assert_eq!(answer["joined"], true, "{answer}");
    let member = (THEIRS.to_owned(), user.to_owned());
    assert!(reference.members().contains(&member));
    (para, reference)
}

/// The `n`th of the bridge's messages: two of five in the reference's room.
fn ours(n: usize) -> Message {
    let room = if n % 5 < 2 { THEIRS } else { OURS };
    Message::text("_room", room, "@carol:bridge.test", &format!("ours {n}"))
        .id(&format!("ours-{n}"))
}

/// A reference's users write in both rooms; a reaction stands between messages now and then, since
/// their times are cut to whole seconds and its is not.
async fn write(reference: &Reference, from: usize, to: usize) {
    for n in from..to {
        let room = if n % 2 == 0 { THEIRS } else { OURS };
        if n % 10 > 7 {
            let content = json!({"guild_id": "1", "channel_id": "20", "emoji": "🎈",
                                 "message_id": format!("{n}"), "body": format!("theirs {n}")});
            reference.write(room, "rita", "m.reaction.add", content);
        } else {
            reference.say(room, &format!("theirs {n}"));
        }
        if n % 25 == 0 {
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_events_each_way_with_a_reference_that_polls_and_loses_answers() {
    const COUNT: usize = 500;
    let (mut para, mut reference) = joined(|mut options| {
        options.losses = 5;
        options
    })
    .await;
    let begun = Instant::now();
    let publish = async |para: &Para, from: usize, to: usize| {
        para.send_all((from..to).map(ours).collect()).await;
    };
    tokio::join!(
        publish(&para, 0, COUNT / 2),
        write(&reference, 0, COUNT / 2)
    );
    reference
        .until("a fifth is there", PATIENCE, |r| {
            r.taken().len() >= COUNT / 5
        })
        .await;
    assert!(reference.mirrors("bridge.test", 7010));
    let options = reference.options();
    reference = Reference::resume(options, reference.stop().await).await;
    tokio::join!(
        publish(&para, COUNT / 2, COUNT),
        write(&reference, COUNT / 2, COUNT)
    );
    para.until_events(COUNT / 2, PATIENCE).await;
    para.restart().await;
    reference
        .until("everything is there", PATIENCE, |r| {
            r.taken().len() >= COUNT
        })
        .await;
    para.until_events(COUNT, PATIENCE).await;
    // What might come twice has a moment to do so.
    tokio::time::sleep(Duration::from_millis(700)).await;
    eprintln!(
        "{COUNT} each way in {:?}, {:?}",
        begun.elapsed(),
        reference.counts()
    );

    let bodies: BTreeSet<String> = reference
        .taken()
        .iter()
        .map(|e| e.content["body"].as_str().unwrap_or_default().to_owned())
        .collect();
    let all: BTreeSet<String> = (0..COUNT).map(|n| format!("ours {n}")).collect();
    assert_eq!(bodies, all);
    assert_eq!(reference.taken().len(), COUNT, "none under two ids");
    assert_eq!(reference.complaints(), [""; 0]);
    assert!(reference.counts().losses > 0, "no answer was lost");
    // Nothing that was answered is pushed again.
    let mut answered = BTreeMap::new();
    for push in reference.arrived().iter().filter(|a| !a.polled) {
        if push.answered.is_some() {
            *answered.entry(push.envelope.event_id.clone()).or_insert(0) += 1;
        }
    }
    answered.retain(|_, times| *times > 1);
    // A push may be answered in the moment in which the bridge is stopped.
    assert!(answered.len() <= 2, "{answered:?}");

    let events = para.events();
    let came: Vec<&str> = events.iter().map(|e| e.body()).collect();
    let once: BTreeSet<String> = came.iter().map(|b| (*b).to_owned()).collect();
    let all: BTreeSet<String> = (0..COUNT).map(|n| format!("theirs {n}")).collect();
    assert_eq!(once, all);
    assert_eq!(came.len(), COUNT, "some came twice");
    for event in &events {
        assert_eq!(event.text_of("origin_server"), NODE);
        assert_eq!(event.header("Fed-Peer"), NODE);
    }
    assert_eq!(para.dead().await, []);
}

/// Polled, pushed by other means, carried by itself again: one event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_polled_and_pushed_comes_once() {
    let (para, reference) = joined(|o| o).await;
    let event = reference.say(THEIRS, "by both ways");
    let polled = para.until_events(1, PATIENCE).await;
    let (status, answer) = reference.push("bridge.test", &event).await;
    assert_eq!(
        (status, &answer["inserted"]),
        (202, &json!(false)),
        "{answer}"
    );
    let second = reference.write(
        OURS,
        "rita",
        "m.custom.thing",
        json!({"body": "pushed first"}),
    );
    reference.run(false);
    reference.reorder_once();
    let (status, answer) = reference.push("bridge.test", &second).await;
    assert_eq!(status, 202, "{answer}");
    para.until_events(2, PATIENCE).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let events = para.events();
    assert_eq!(events.len(), 2);
    assert_eq!(polled[0].text, events[0].text);
    assert_eq!(
        events[1].subject,
        "fed.in.paracord.node_test.m.custom.thing"
    );
    assert_eq!(reference.complaints(), [""; 0]);
}

/// A reference takes back nobody: a leave at its room ends what the bridge asks it for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_polled_when_nobody_follows() {
    let (para, reference) = joined(|mut options| {
        options.every = None;
        options
    })
    .await;
    reference
        .until("a poll", PATIENCE, |r| r.counts().read > 2)
        .await;
    let carol = json!({"room_id": THEIRS, "user_id": "@carol:bridge.test"});
    let left = para.call("leave", carol).await;
    assert_eq!(left["left"], true, "{left}");
    let (status, answer) = reference
        .leave("bridge.test", OURS, "@rita:chat.test")
        .await;
    assert_eq!((status, &answer["left"]), (200, &json!(true)), "{answer}");
    // What was under way.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let before = reference.counts().read;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(reference.counts().read, before, "polls go on");
}

/// Others may follow a room without any member: an operator's or a backend's word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_followed_by_word_alone() {
    let mut options = Options::at(free_address(), Identity::with_domain(NODE, "chat.test"));
    options.every = None;
    let options = options.guild(9000, "Far guild");
    let setup = Setup::new("bridge.test")
        .lifted()
        .peer(NODE, options.address)
        .domain("chat.test");
    let (para, reference) = tokio::join!(Para::here(setup), Reference::start(options));
    assert!(
        reference
            .add("bridge.test", "bridge.test", &para.url())
            .await
    );
    reference.say(THEIRS, "before anybody looked");
    para.call("room.follow", json!({"room_id": THEIRS})).await;
    let first = para.until_events(1, PATIENCE).await;
    assert_eq!(first[0].body(), "before anybody looked");
    para.call("room.unfollow", json!({"room_id": THEIRS})).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    reference.say(THEIRS, "nobody looks");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(para.events().len(), 1);
}
