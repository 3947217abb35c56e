//! What a mainline fetches, and what becomes of it when answers get lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::bridge::free_address;
use crate::support::mainline::{Mainline, Options, Status};
use crate::support::volt_world::{self, Message, Setup, Volt};

const SOON: Duration = Duration::from_secs(10);

/// A bridge and a mainline that are connected.
async fn connected(options: Options, change: impl FnOnce(Setup) -> Setup) -> (Volt, Mainline) {
    let setup = change(Setup::new("Volt A").allow(options.address.to_string()));
    let mainline = Mainline::start(options).await;
    let a = Volt::start(&setup).await;
    a.request("Volt M", &mainline.url()).await;
    mainline.accept(&a.host).await;
    a.until_status(&mainline.host(), "connected").await;
    (a, mainline)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_messages_each_way_survive_answers_that_get_lost() {
    const COUNT: usize = 500;
    let (seed, _) = volt_world::dice("five hundred each way");
    let mut options = Options::at(free_address());
    options.name = "\"\\ud800 \\\"Volt\\\" \\u2028 M/\\udfff\"".into();
    options.seed = seed;
    options.losses = 10;
    options.fetch_losses = 40;
    options.every = Some(Duration::from_millis(30));
    options.turned = 20;
    let (a, mainline) = connected(options, |s| s.line("fetch_batch", "20")).await;
    let to = mainline.host();
    let begun = Instant::now();
    for chunk in 0..5 {
        let message =
            |n: usize| Message::new(&to, "announcement", json!({"n": n, "text": "a = 5"}));
        let numbers = chunk * COUNT / 5..(chunk + 1) * COUNT / 5;
        for n in numbers.clone() {
            let payload = format!("{{\"n\":{n},\"half\":\"\\udbff\",\"text\":\"x\\u0000y\"}}");
            mainline.relay(&a.host, "user:presence", &payload);
        }
        a.publish_all(numbers.map(message).collect()).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let patience = Duration::from_secs(40);
    mainline
        .until("everything is fetched", patience, |m| {
            m.taken().len() >= COUNT
        })
        .await;
    a.until_events(COUNT, patience).await;
    mainline
        .until("both sides have settled", patience, |m| {
            m.counts().last_batch == 0 && m.waiting(&a.host) == 0
        })
        .await;
    eprintln!(
        "{COUNT} each way in {:?}: {:?}",
        begun.elapsed(),
        mainline.counts()
    );
    let taken: Vec<_> = mainline.taken();
    let numbers: Vec<_> = taken
        .iter()
        .filter_map(|m| m.payload["n"].as_u64())
        .collect();
    let all: Vec<u64> = (0..COUNT as u64).collect();
    assert_eq!(numbers, all, "at the mainline, seed {seed}");
    assert_eq!(taken[0].payload["text"], "a = 5");
    let events = a.events();
    let numbers: Vec<_> = events
        .iter()
        .filter_map(|e| e.payload["payload"]["n"].as_u64())
        .collect();
    assert_eq!(numbers, all, "at the bridge, seed {seed}");
    let ids: BTreeSet<_> = events.iter().map(|e| e.payload["id"].to_string()).collect();
    assert_eq!(ids.len(), COUNT);
    assert!(events.iter().all(|e| e.payload["fromHost"] == to.as_str()));
    assert_eq!(mainline.complaints(), [""; 0], "seed {seed}");
    assert_eq!(a.dead().await, []);
    let counts = mainline.counts();
    assert!(counts.losses > 20 && counts.lost_batches > 2, "{counts:?}");
    mainline
        .until("the last lost answer is forgotten", patience, |m| {
            m.status(&a.host) == Some(Status::Connected)
        })
        .await;
}

/// The one lost answer of the promise, at each place where it can be lost, with one message only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_single_lost_answer_is_made_good_by_the_next_fetch() {
    let mut options = Options::at(free_address());
    options.every = None;
    let (a, mainline) = connected(options, |s| s).await;
    // The first push is refused, and from then on messages wait.
    for (n, loss) in mainline.every_loss().into_iter().enumerate() {
        a.publish(&mainline.host(), "announcement", json!({"n": n}), &[])
            .await;
        mainline.until_fetched_and_lost(&a.host, loss).await;
        let end = Instant::now() + SOON;
        while mainline.taken().len() <= n {
            assert!(Instant::now() < end, "{loss:?} lost a message");
            mainline.round().await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
    assert_eq!(mainline.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_handed_out_in_two_fetches_and_then_no_more() {
    let mut options = Options::at(free_address());
    options.every = None;
    let (a, mainline) = connected(options, |s| s.line("handout_gap", "\"400ms\"")).await;
    a.publish(&mainline.host(), "announcement", json!({"n": 1}), &[])
        .await;
    let end = Instant::now() + SOON;
    while mainline.arrived().is_empty() {
        assert!(
            Instant::now() < end,
            "never handed out\n{}",
            crate::support::bridge::tail(&a.bridge.log())
        );
        mainline.round().await;
    }
    // At once it is there again; a fetch after the gap is the second that counts.
    let first = Instant::now();
    mainline.round().await;
    while first.elapsed() < Duration::from_millis(500) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    mainline.round().await;
    let so_far = mainline.arrived().len();
    assert!(so_far >= 2, "handed out {so_far} times");
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..3 {
        mainline.round().await;
    }
    assert_eq!(
        mainline.arrived().len(),
        so_far,
        "settled, and yet handed out"
    );
    assert_eq!(mainline.taken().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mailbox_nobody_fetches_is_bounded_by_count_and_says_so() {
    let mut options = Options::at(free_address());
    options.every = None;
    let (a, mainline) = connected(options, |s| {
        // The bounds are looked at four times in the shortest age.
        s.line("mailbox_max_messages", "10")
            .line("mailbox_max_age", "\"20s\"")
    })
    .await;
    let message = |n: i64| {
        let id = format!("m{n}");
        Message::new(&mainline.host(), "announcement", json!({"n": n}))
            .with(&[("Nats-Msg-Id", id.as_str())])
    };
    a.publish_all((0..16).map(message).collect()).await;
    let dead = a.until_dead(6).await;
    assert!(
        dead.iter().all(|(_, why)| why.contains("mailbox")),
        "{dead:?}"
    );
    let gone: BTreeSet<_> = dead.into_iter().map(|(id, _)| id).collect();
    let end = Instant::now() + SOON;
    while mainline.taken().len() < 10 {
        assert!(
            Instant::now() < end,
            "{} of 10 kept",
            mainline.taken().len()
        );
        mainline.round().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let kept: BTreeSet<_> = mainline
        .taken()
        .iter()
        .map(|m| format!("m{}", m.payload["n"]))
        .collect();
    assert!(
        kept.is_disjoint(&gone) && kept.len() + gone.len() == 16,
        "{kept:?} {gone:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_nobody_fetches_in_time_is_a_dead_letter() {
    let mut options = Options::at(free_address());
    options.every = None;
    let (a, mainline) = connected(options, |s| s.line("mailbox_max_age", "\"1s\"")).await;
    a.publish(
        &mainline.host(),
        "announcement",
        json!({"n": 1}),
        &[("Nats-Msg-Id", "old")],
    )
    .await;
    let dead = a.until_dead(1).await;
    assert_eq!(dead[0].0, "old");
    assert!(!dead[0].1.is_empty());
    mainline.round().await;
    assert_eq!(mainline.taken().len(), 0, "dead and handed out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_at_a_server_that_hands_it_out_is_fetched() {
    let mut options = Options::at(free_address());
    options.published = false;
    options.every = None;
    let (a, mainline) = connected(options, |s| s).await;
    for n in 0..120 {
        mainline.relay(&a.host, "announcement", &format!("{{\"n\":{n}}}"));
    }
    let events = a.until_events(120, SOON).await;
    let numbers: Vec<_> = events
        .iter()
        .filter_map(|e| e.payload["payload"]["n"].as_u64())
        .collect();
    assert_eq!(numbers, (0..120).collect::<Vec<_>>());
    assert_eq!(events[0].payload["fromHost"], mainline.host().as_str());
    assert_eq!(mainline.complaints(), [""; 0]);
}
