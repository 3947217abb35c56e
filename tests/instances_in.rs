//! Several instances as processes, inbound: a rule made at one is in force at all, and whatever any of
//! them was told 200 for is on `fed.in`, once, though one is killed, frozen or shut out meanwhile.
//! PostgreSQL, a real nats-server, the bridge's own binary.

mod support {
    pub mod bridge;
    pub mod checker;
    pub mod postgres;
    pub mod sink;
    pub mod traffic;
    pub mod uam_client;
}

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use support::bridge::{self, Bridge, Broker};
use support::postgres;
use support::sink::{self, SinkOptions};
use support::uam_client::{self, Posted};

/// A peer, a broker, a database and instances.
struct World {
    broker: Broker,
    server: postgres::Server,
    bridges: Vec<Bridge>,
    dir: tempfile::TempDir,
}

impl World {
    /// With so many instances at work; `None` where there is no PostgreSQL.
    async fn of(instances: usize) -> Option<Self> {
        let server = postgres::Server::start_own().await?;
        let dir = tempfile::tempdir().expect("a folder");
        let cache = drawbridge::bus::find::default_cache_dir();
        let binary = drawbridge::bus::find::server_binary(None, &cache).await;
        let mut broker = Broker::new(binary.expect("a nats-server"), &dir.path().join("broker"));
        broker.start().await;
        // Whose agents' keys are looked up.
        let address = bridge::free_address();
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .expect("a port");
        let options = SinkOptions {
            address,
            domain: "beta.test".into(),
            trusts: "alpha.test".into(),
            dir: dir.path().join("sink"),
        };
        std::fs::create_dir_all(&options.dir).expect("a folder");
        tokio::spawn(sink::serve(listener, options));
        let store = format!("[store]\nurl = \"{}\"\nshared = true\n", server.url());
        let tables = store + &bridge::pin("beta.test", address);
        let uam = "discovery = false\nrelay_rate_limit = 10000000\nunproven_per_minute = 1000000";
        let mut bridges = Vec::new();
        for n in 0..instances {
            let at = dir.path().join(format!("instance{n}"));
            let mut bridge = Bridge::new(&at, "alpha.test", Some(&broker.url()), uam, &tables);
            bridge.spawn();
            bridges.push(bridge);
        }
        for bridge in &mut bridges {
            bridge.ready().await;
        }
        Some(Self {
            broker,
            server,
            bridges,
            dir,
        })
    }

    fn urls(&self) -> Vec<String> {
        self.bridges.iter().map(Bridge::public_url).collect()
    }

    /// How often each event is on `fed.in`.
    async fn on_the_bus(&self) -> BTreeMap<String, usize> {
        let js = jetstream::new(bridge::connect(&self.broker.url()).await);
        let (_, found) = support::traffic::scan(&js, 1).await;
        let mut times = BTreeMap::new();
        for event in found {
            *times.entry(event.id).or_insert(0) += 1;
        }
        times
    }
}

fn envelope(name: &str, n: usize) -> serde_json::Value {
    let from = format!("{name}::beta.test");
    let id = uam_client::message_id();
    uam_client::envelope(&id, &from, "alice::alpha.test", &format!("in {n}"))
}

/// Delivers one event, at another instance after each failure; answers when it was told 200.
async fn deliver(
    client: &reqwest::Client,
    urls: &[String],
    first: usize,
    event: &serde_json::Value,
) {
    let end = Instant::now() + Duration::from_secs(60);
    for (at, _) in (first..).zip(0..) {
        let delivery = uam_client::delivery("beta.test", event, true);
        match uam_client::post(client, &urls[at % urls.len()], &delivery).await {
            Posted::Ok { .. } => return,
            Posted::Refused(status, text) if status != 429 => panic!("{status} {text}"),
            other => assert!(Instant::now() < end, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Traffic of so many senders over all instances; answers the ids told 200.
fn traffic(
    urls: &[String],
    senders: usize,
    each: usize,
) -> Vec<tokio::task::JoinHandle<BTreeSet<String>>> {
    (0..senders)
        .map(|sender| {
            let urls = urls.to_vec();
            tokio::spawn(async move {
                let client = bridge::client();
                let mut told = BTreeSet::new();
                for n in 0..each {
                    let event = envelope(&format!("sender{sender}"), n);
                    deliver(&client, &urls, sender + n, &event).await;
                    told.insert(event["message_id"].as_str().unwrap_or_default().to_owned());
                }
                told
            })
        })
        .collect()
}

/// Waits for the senders; every event told 200 is on `fed.in`, and none twice.
async fn judge(world: &World, senders: Vec<tokio::task::JoinHandle<BTreeSet<String>>>) {
    let mut told = BTreeSet::new();
    for sender in senders {
        told.append(&mut sender.await.expect("a sender"));
    }
    let found = world.on_the_bus().await;
    let lost: Vec<_> = told.iter().filter(|id| !found.contains_key(*id)).collect();
    assert!(lost.is_empty(), "told 200 and not on fed.in: {lost:?}");
    let twice: Vec<_> = found.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "on fed.in more than once: {twice:?}");
}

#[tokio::test]
async fn a_block_at_one_instance_refuses_at_all_within_two_seconds() {
    let Some(world) = World::of(2).await else {
        return;
    };
    let client = bridge::client();
    let urls = world.urls();
    deliver(&client, &urls[1..], 0, &envelope("before", 0)).await;
    let rule = serde_json::json!({"protocol": "uam", "rule": "block", "pattern": "beta.test"});
    let added = client
        .post(format!("{}/api/v1/trust", world.bridges[0].admin_url()))
        .bearer_auth(world.bridges[0].admin_token())
        .header("content-type", "application/json")
        .body(rule.to_string())
        .send()
        .await
        .expect("an answer");
    assert_eq!(added.status(), 201);
    let begun = Instant::now();
    loop {
        let delivery = uam_client::delivery("beta.test", &envelope("after", 1), true);
        match uam_client::post(&client, &urls[1], &delivery).await {
            Posted::Refused(403, _) => break,
            Posted::Ok { .. } => {}
            other => panic!("{other:?}"),
        }
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "the other still takes it in"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(world);
}

#[tokio::test]
#[ignore = "takes half a minute; .ci/run names it"]
async fn of_what_three_instances_were_told_nothing_is_lost_when_one_is_killed_and_one_is_frozen() {
    let Some(mut world) = World::of(3).await else {
        return;
    };
    let urls = world.urls();
    let senders = traffic(&urls, 8, 150);
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.bridges[0].kill9();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Longer than a turn of mending lasts, and than a transaction may hang.
    world.bridges[1].signal("STOP");
    tokio::time::sleep(Duration::from_secs(8)).await;
    world.bridges[1].signal("CONT");
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.bridges[0].start().await;
    judge(&world, senders).await;
}

#[tokio::test]
#[ignore = "takes half a minute; .ci/run names it"]
async fn a_broker_rolled_back_under_three_instances_gets_back_all_that_was_told() {
    let Some(mut world) = World::of(3).await else {
        return;
    };
    let urls = world.urls();
    let (data, copy) = (
        world.dir.path().join("broker/store"),
        world.dir.path().join("copy"),
    );
    let before = traffic(&urls, 6, 30);
    let mut senders = Vec::new();
    for sender in before {
        let told = sender.await.expect("a sender");
        senders.push(tokio::spawn(async { told }));
    }
    world.broker.stop().await;
    copy_all(&data, &copy);
    world.broker.start().await;
    senders.extend(traffic(&urls, 6, 120));
    tokio::time::sleep(Duration::from_secs(3)).await;
    // One of the instances dies with the broker.
    world.broker.kill9();
    world.bridges[2].kill9();
    std::fs::remove_dir_all(&data).expect("the broker's files");
    copy_all(&copy, &data);
    world.broker.start().await;
    world.bridges[2].start().await;
    judge(&world, senders).await;
    assert!(world.server.url().starts_with("postgres"));
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}
