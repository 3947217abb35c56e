//! Delivering to peers that misbehave, by the bridge's own binary and a real broker: the schedule,
//! what ends as a dead letter, and whom one peer's trouble does not touch.

mod support {
    pub mod bridge;
    pub mod sink;
    pub mod uam_client;
}

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use support::bridge::{self, Bridge, Broker};
use support::sink::{self, Line, SinkOptions};
use support::uam_client;

/// A peer served inside the test.
struct Peer {
    name: String,
    dir: PathBuf,
    pin: String,
    task: tokio::task::JoinHandle<()>,
}

impl Peer {
    async fn start(root: &std::path::Path, name: &str, mode: &str) -> Self {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        sink::set_mode(&dir, mode);
        let options = SinkOptions {
            address: bridge::free_address(),
            domain: name.to_owned(),
            trusts: "alpha.test".into(),
            dir: dir.clone(),
        };
        let pin = bridge::pin(name, options.address);
        let listener = tokio::net::TcpListener::bind(options.address)
            .await
            .expect("a listener");
        let task = tokio::spawn(async move {
            let _ = sink::serve(listener, options).await;
        });
        Self {
            name: name.to_owned(),
            dir,
            pin,
            task,
        }
    }

    fn arrivals(&self, id: &str) -> Vec<Line> {
        let mut lines = sink::read_log(&self.dir);
        lines.retain(|l| l.what == "arrival" && l.id == id);
        lines
    }

    /// Waits until a message was taken.
    async fn takes(&self, id: &str) -> Line {
        within(20, &format!("{} takes {id}", self.name), async || {
            self.arrivals(id).into_iter().find(|l| l.status == 200)
        })
        .await
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks again and again until there is an answer.
async fn within<T>(seconds: u64, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct World {
    _dir: tempfile::TempDir,
    _broker: Broker,
    bridge: Bridge,
    js: jetstream::Context,
}

impl World {
    async fn start(dir: tempfile::TempDir, peers: &[&Peer], uam: &str, tables: &str) -> Self {
        let cache = drawbridge::bus::find::default_cache_dir();
        let binary = drawbridge::bus::find::server_binary(None, &cache)
            .await
            .expect("a nats-server");
        let mut broker = Broker::new(binary, &dir.path().join("broker"));
        broker.start().await;
        let pins: String = peers.iter().map(|p| p.pin.as_str()).collect();
        let mut bridge = Bridge::new(
            &dir.path().join("bridge"),
            "alpha.test",
            Some(&broker.url()),
            &format!("retry_delays = [\"300ms\", \"600ms\"]\n{uam}"),
            &format!(
                "[outbound]\nbreaker_initial = \"50ms\"\nbreaker_max = \"100ms\"\njitter = 0.1\n{tables}\n{pins}"
            ),
        );
        bridge.env("DRAWBRIDGE_HTTP__CONNECT_TIMEOUT", "1s");
        bridge.env("DRAWBRIDGE_HTTP__TIMEOUT", "2s");
        bridge.start().await;
        let js = jetstream::new(bridge::connect(&broker.url()).await);
        Self {
            _dir: dir,
            _broker: broker,
            bridge,
            js,
        }
    }

    /// Publishes one message of `from` to an agent at `domain`; answers its id.
    async fn publish(
        &self,
        from: &str,
        domain: &str,
        text: &str,
        headers: &[(&str, &str)],
    ) -> String {
        let id = uam_client::message_id();
        let envelope = uam_client::envelope(
            &id,
            &format!("{from}::alpha.test"),
            &format!("bob::{domain}"),
            text,
        );
        let mut map = async_nats::HeaderMap::new();
        map.insert("Nats-Msg-Id", id.as_str());
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let subject = format!("fed.out.uam.{}.message", domain.replace('.', "_"));
        self.js
            .publish_with_headers(subject, map, envelope.to_string().into())
            .await
            .expect("published")
            .await
            .expect("acknowledged");
        id
    }

    /// The headers of a message's dead letter.
    async fn dead(&self, id: &str) -> HashMap<String, String> {
        let log = || bridge::tail(&self.bridge.log());
        let what = format!("dead letter of {id}\n{}", log());
        within(30, &what, async || {
            let mut stream = self.js.get_stream("FED_DEAD").await.ok()?;
            let state = stream.info().await.ok()?.state.clone();
            for seq in state.first_sequence..=state.last_sequence {
                let Ok(message) = stream.get_raw_message(seq).await else {
                    continue;
                };
                let headers: HashMap<String, String> = message
                    .headers
                    .iter()
                    .filter_map(|(k, v)| Some((k.to_string(), v.first()?.to_string())))
                    .collect();
                if headers.get("Fed-Msg-Id").map(String::as_str) == Some(id) {
                    return Some(headers);
                }
            }
            None
        })
        .await
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn gaps(lines: &[Line]) -> Vec<Duration> {
    lines
        .windows(2)
        .map(|pair| Duration::from_nanos(pair[1].t - pair[0].t))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_misbehaving_peer_is_tried_by_the_schedule_and_then_dead_with_a_reason_while_others_get_theirs()
 {
    let dir = folder();
    let root = dir.path().to_owned();
    let good = Peer::start(&root, "good.test", "ok").await;
    let secret = Peer::start(&root, "loopback.test", "ok").await;
    let redirect = format!(
        "redirect http://{}/api/v1/federation/deliver",
        secret
            .pin
            .split("http://")
            .nth(1)
            .and_then(|s| s.split('"').next())
            .unwrap_or_default()
    );
    let mut bad = Vec::new();
    for (name, mode, code) in [
        ("html.test", "html", "not_uam"),
        ("endless.test", "endless", "timeout"),
        ("flood.test", "flood", "answer_too_large"),
        ("cut.test", "cut", "connection_broken"),
        ("redirect.test", redirect.as_str(), "redirect"),
        ("failing.test", "status 500", "server_error"),
    ] {
        bad.push((Peer::start(&root, name, mode).await, code));
    }
    let mut peers: Vec<&Peer> = bad.iter().map(|(p, _)| p).collect();
    peers.push(&good);
    let gone = bridge::pin("gone.test", bridge::free_address());
    let world = World::start(dir, &peers, "discovery = false", &gone).await;
    let mut ids = Vec::new();
    for (peer, code) in &bad {
        ids.push((
            peer,
            *code,
            world.publish("alice", &peer.name, "hello", &[]).await,
        ));
    }
    let to_gone = world.publish("alice", "gone.test", "hello", &[]).await;
    let begun = Instant::now();
    let fine = world.publish("alice", "good.test", "hello", &[]).await;
    good.takes(&fine).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "one peer's trouble is its own"
    );

    for (peer, code, id) in ids {
        let letter = world.dead(&id).await;
        assert_eq!(letter["Fed-Reason-Code"], code, "{}: {letter:?}", peer.name);
        assert!(!letter["Fed-Reason"].is_empty());
        assert_eq!(letter["Fed-Attempts"], "3", "{}", peer.name);
        let arrivals = peer.arrivals(&id);
        assert_eq!(arrivals.len(), 3, "{}: {arrivals:?}", peer.name);
        let gaps = gaps(&arrivals);
        let least = [Duration::from_millis(300), Duration::from_millis(600)];
        assert!(
            gaps[0] >= least[0] && gaps[1] >= least[1],
            "{}: {gaps:?}",
            peer.name
        );
    }
    assert_eq!(world.dead(&to_gone).await["Fed-Reason-Code"], "connect");
    assert!(
        sink::read_log(&secret.dir).is_empty(),
        "a redirect was followed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_429_moves_the_attempt_as_it_asks_and_uses_none_up() {
    let dir = folder();
    let peer = Peer::start(dir.path(), "busy.test", "status 429 2").await;
    let world = World::start(dir, &[&peer], "discovery = false", "").await;
    let id = world.publish("alice", "busy.test", "hello", &[]).await;
    within(20, "the first attempt", async || {
        (!peer.arrivals(&id).is_empty()).then_some(())
    })
    .await;
    sink::set_mode(&peer.dir, "ok");
    peer.takes(&id).await;
    let gaps = gaps(&peer.arrivals(&id));
    assert_eq!(gaps.len(), 1);
    assert!(
        gaps[0] >= Duration::from_secs(2),
        "Retry-After was not obeyed: {gaps:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_retried_blocks_its_own_key_and_no_other() {
    let dir = folder();
    let peer = Peer::start(dir.path(), "beta.test", "ok").await;
    let world = World::start(dir, &[&peer], "discovery = false", "").await;
    let head = world.publish("alice", "beta.test", "flaky", &[]).await;
    let behind = world.publish("alice", "beta.test", "second", &[]).await;
    let other = world.publish("carol", "beta.test", "other key", &[]).await;
    let same_room = world
        .publish("carol", "beta.test", "flaky", &[("Fed-Order", "room")])
        .await;
    let behind_in_room = world
        .publish("dave", "beta.test", "second", &[("Fed-Order", "room")])
        .await;
    let (head, behind) = (peer.takes(&head).await, peer.takes(&behind).await);
    let other = peer.takes(&other).await;
    assert!(other.t < head.t, "another key had to wait");
    assert!(head.t < behind.t, "the key's order was broken");
    let (first, second) = (
        peer.takes(&same_room).await,
        peer.takes(&behind_in_room).await,
    );
    assert!(first.t < second.t, "Fed-Order was not kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_delivered_at_all_is_dead_at_once_and_says_why() {
    let dir = folder();
    let peer = Peer::start(dir.path(), "beta.test", "ok").await;
    let tables = "[http.hosts]\n\"private.test\" = [\"10.1.2.3\"]\n";
    let world = World::start(dir, &[&peer], "", tables).await;
    let refused = world
        .publish("alice", "beta.test", "refuse this", &[])
        .await;
    let late = world
        .publish(
            "alice",
            "beta.test",
            "late",
            &[("Fed-Expires", "2020-01-01T00:00:00Z")],
        )
        .await;
    let private = world.publish("alice", "private.test", "hello", &[]).await;

    let letter = world.dead(&refused).await;
    assert_eq!(letter["Fed-Reason-Code"], "refused_400");
    assert_eq!(letter["Fed-Attempts"], "1");
    assert_eq!(letter["Fed-Peer"], "beta.test");
    assert_eq!(letter["Fed-Event-Id"], refused);
    assert!(
        letter["Fed-Out-Seq"]
            .parse::<u64>()
            .is_ok_and(|seq| seq > 0)
    );
    assert_eq!(peer.arrivals(&refused).len(), 1);

    assert!(world.dead(&late).await["Fed-Reason-Code"].contains("expired"));
    assert_eq!(peer.arrivals(&late).len(), 0);

    let letter = world.dead(&private).await;
    assert!(
        letter["Fed-Reason"].contains("private.test") || letter["Fed-Reason"].contains("10.1.2.3"),
        "{letter:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_peer_survives_a_stop_and_leaves_in_order_when_the_peer_is_back() {
    let dir = folder();
    let peer = Peer::start(dir.path(), "beta.test", "status 503").await;
    let delays = "discovery = false\n";
    let mut world = World::start(dir, &[&peer], delays, "").await;
    // A schedule that outlives the outage.
    let text = std::fs::read_to_string(world.bridge.config()).expect("the configuration");
    let longer = text.replace(
        "[\"300ms\", \"600ms\"]",
        "[\"300ms\", \"600ms\", \"20s\", \"60s\"]",
    );
    std::fs::write(world.bridge.config(), longer).expect("the configuration");
    world.bridge.stop().await;
    world.bridge.start().await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(
            world
                .publish("alice", "beta.test", &format!("message {n}"), &[])
                .await,
        );
    }
    within(20, "a first attempt", async || {
        (!peer.arrivals(&ids[0]).is_empty()).then_some(())
    })
    .await;
    world.bridge.kill9();
    sink::set_mode(&peer.dir, "ok");
    world.bridge.start().await;
    let mut last = 0;
    for id in &ids {
        let line = peer.takes(id).await;
        assert!(line.t > last, "out of order after the restart");
        last = line.t;
    }
}
