//! `drawbridge keys`: a rotation while messages pass both ways loses nothing and needs nobody, and a
//! peer that has pinned the old key is served with it and named.

mod support {
    pub mod bridge;
    pub mod sink;
    pub mod uam_client;
}

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use support::bridge::{self, Bridge, Broker};
use support::sink::{self, SinkOptions};
use support::uam_client::{self, public_of};

/// A bridge with a broker of its own.
struct Side {
    _broker: Broker,
    bridge: Bridge,
    nats: async_nats::Client,
}

impl Side {
    async fn start(dir: &Path, domain: &str) -> Self {
        let binary =
            drawbridge::bus::find::server_binary(None, &drawbridge::bus::find::default_cache_dir())
                .await
                .expect("a nats-server");
        let mut broker = Broker::new(binary, &dir.join(format!("{domain}.broker")));
        broker.start().await;
        let bridge = Bridge::new(
            &dir.join(domain),
            domain,
            Some(&broker.url()),
            "retry_delays = [\"200ms\", \"400ms\", \"1s\"]",
            "[outbound]\nbreaker_initial = \"50ms\"\nbreaker_max = \"100ms\"\n",
        );
        let nats = bridge::connect(&broker.url()).await;
        Self {
            _broker: broker,
            bridge,
            nats,
        }
    }

    /// Appends `[[peers]]`; before the start.
    fn knows(&self, pin: &str) {
        let mut text = std::fs::read_to_string(self.bridge.config()).expect("the configuration");
        text.push_str(pin);
        std::fs::write(self.bridge.config(), text).expect("the configuration");
    }

    async fn agent(&self, address: &str) {
        let body = json!({"address": address, "public_key": public_of(address)}).to_string();
        let answer = self
            .nats
            .request("fed.do.uam.agent.put", body.into())
            .await
            .expect("the bridge answers");
        let text = String::from_utf8_lossy(&answer.payload).into_owned();
        assert!(text.contains(&public_of(address)), "{text}");
    }

    async fn publish(&self, from: &str, to: &str, text: &str) -> String {
        let id = uam_client::message_id();
        let envelope = uam_client::envelope(&id, from, to, text);
        jetstream::new(self.nats.clone())
            .publish("fed.out.uam._to.message", envelope.to_string().into())
            .await
            .expect("published")
            .await
            .expect("acknowledged");
        id
    }

    /// How often each message id came in.
    async fn arrivals(&self) -> tokio::sync::watch::Receiver<HashMap<String, usize>> {
        let mut events = self.nats.subscribe("fed.in.>").await.expect("subscribed");
        self.nats.flush().await.expect("flushed");
        let (counts, seen) = tokio::sync::watch::channel(HashMap::new());
        tokio::spawn(async move {
            while let Some(message) = events.next().await {
                let body: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                let id = body["message_id"].as_str().unwrap_or_default().to_owned();
                counts.send_modify(|counts| *counts.entry(id).or_default() += 1);
            }
        });
        seen
    }

    /// `keys …` of this bridge's configuration; what it prints as JSON, a line each.
    async fn keys(&self, arguments: &[&str]) -> Vec<Value> {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
            .arg("keys")
            .args(arguments)
            .args(["--json", "--config"])
            .arg(self.bridge.config())
            .output()
            .await
            .expect("the command runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// The key that its well-known file shows.
    async fn published(&self) -> String {
        let url = format!("{}/.well-known/uam-relay.json", self.bridge.public_url());
        let text = bridge::client()
            .get(url)
            .send()
            .await
            .expect("an answer")
            .text()
            .await
            .expect("a body");
        let page: Value = serde_json::from_str(&text).expect("JSON");
        page["public_key"].as_str().expect("a key").to_owned()
    }

    async fn dead(&self) -> u64 {
        let js = jetstream::new(self.nats.clone());
        let mut stream = js.get_stream("FED_DEAD").await.expect("the stream");
        stream.info().await.expect("its state").state.messages
    }
}

/// A peer of whom only the address is known, so that its key is fetched.
fn by_address(name: &str, side: &Side) -> String {
    format!(
        "[[peers]]\nprotocol = \"uam\"\nname = \"{name}\"\nendpoint = \"http://{}\"\n",
        side.bridge.public
    )
}

async fn within(seconds: u64, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !holds().await {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_with_messages_in_flight_both_ways_loses_nothing_and_needs_nobody() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut alpha = Side::start(dir.path(), "alpha.test").await;
    let mut beta = Side::start(dir.path(), "beta.test").await;
    alpha.knows(&by_address("beta.test", &beta));
    beta.knows(&by_address("alpha.test", &alpha));
    alpha.bridge.start().await;
    beta.bridge.start().await;
    alpha.agent("ann::alpha.test").await;
    beta.agent("bob::beta.test").await;
    let (at_alpha, at_beta) = (alpha.arrivals().await, beta.arrivals().await);

    let sending = async {
        let (mut to_beta, mut to_alpha) = (Vec::new(), Vec::new());
        for n in 0..120 {
            let text = format!("message {n}");
            to_beta.push(
                alpha
                    .publish("ann::alpha.test", "bob::beta.test", &text)
                    .await,
            );
            to_alpha.push(
                beta.publish("bob::beta.test", "ann::alpha.test", &text)
                    .await,
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (to_beta, to_alpha)
    };
    let turning = async {
        for (side, arrivals) in [(&alpha, &at_beta), (&beta, &at_alpha)] {
            within(20, "messages pass", async || arrivals.borrow().len() > 10).await;
            let plan = side.keys(&["rotate"]).await;
            assert_eq!(plan[0]["done"], "nothing");
            assert_eq!(plan[0]["peers"][0]["how"], "first_message");
            assert_eq!(side.published().await, public_of(&side.bridge.domain));
            let done = side.keys(&["rotate", "--yes"]).await;
            assert_eq!(done[0]["done"], "switched");
        }
    };
    let ((to_beta, to_alpha), ()) = tokio::join!(sending, turning);

    for (sent, arrivals, side) in [(&to_beta, &at_beta, &alpha), (&to_alpha, &at_alpha, &beta)] {
        within(30, "every message arrives", async || {
            arrivals.borrow().len() >= sent.len()
        })
        .await;
        let counts = arrivals.borrow().clone();
        assert!(
            sent.iter().all(|id| counts.get(id) == Some(&1)),
            "once each"
        );
        assert_eq!(side.dead().await, 0);
        let keys = side.keys(&["list"]).await;
        let states: Vec<_> = keys.iter().map(|k| k["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["active", "old"]);
        assert_eq!(keys[1]["public_key"], public_of(&side.bridge.domain));
        assert_eq!(keys[0]["public_key"], side.published().await);
        assert!(keys[1]["until_ms"].as_i64() > keys[1]["since_ms"].as_i64());
    }
    // The next start signs with the new key and knows it for its own.
    let now = alpha.published().await;
    alpha.bridge.stop().await;
    let offline = alpha.keys(&["list"]).await;
    assert_eq!(offline[0]["public_key"], now);
    alpha.bridge.start().await;
    assert_eq!(alpha.published().await, now);
    assert!(!alpha.bridge.log().contains("has a new identity"));
    let last = alpha
        .publish("ann::alpha.test", "bob::beta.test", "after")
        .await;
    within(20, "a message after the start", async || {
        at_beta.borrow().contains_key(&last)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_pinned_the_old_key_is_named_and_served_with_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let gamma = SinkOptions {
        address: bridge::free_address(),
        domain: "gamma.test".into(),
        // For ever the key that alpha has now.
        trusts: "alpha.test".into(),
        dir: dir.path().join("gamma"),
    };
    std::fs::create_dir_all(&gamma.dir).expect("a folder");
    sink::set_mode(&gamma.dir, "ok");
    let arrivals = gamma.dir.clone();
    let mut alpha = Side::start(dir.path(), "alpha.test").await;
    alpha.knows(&bridge::pin("gamma.test", gamma.address));
    let listener = tokio::net::TcpListener::bind(gamma.address)
        .await
        .expect("a port");
    let serving = tokio::spawn(async move { sink::serve(listener, gamma).await });
    alpha.bridge.start().await;
    let mut events = alpha
        .nats
        .subscribe("fed.ops.key.>")
        .await
        .expect("subscribed");
    alpha.nats.flush().await.expect("flushed");
    let taken = |id: &str| {
        sink::read_log(&arrivals)
            .iter()
            .filter(|l| l.what == "arrival" && l.status == 200 && l.id == id)
            .count()
    };
    let forged = || {
        sink::read_log(&arrivals)
            .iter()
            .filter(|l| l.what == "forged")
            .count()
    };

    let first = alpha
        .publish("ann::alpha.test", "bob::gamma.test", "before")
        .await;
    within(20, "the first message", async || taken(&first) == 1).await;

    // Told beforehand: the next key is made, nothing else changes.
    let prepared = alpha.keys(&["rotate", "--prepare"]).await;
    assert_eq!(prepared[0]["done"], "prepared");
    let next = prepared[0]["keys"][1].clone();
    assert_eq!(next["state"], "next");
    assert_eq!(alpha.published().await, public_of("alpha.test"));
    let peer = &prepared[0]["peers"][0];
    assert_eq!(
        (peer["peer"].as_str(), peer["how"].as_str()),
        (Some("gamma.test"), Some("operator"))
    );

    let done = alpha.keys(&["rotate", "--yes"]).await;
    assert_eq!(done[0]["keys"][0]["public_key"], next["public_key"]);
    assert_eq!(
        alpha.published().await,
        next["public_key"].as_str().unwrap()
    );
    let mut told = Vec::new();
    for n in 0..5 {
        let id = alpha
            .publish("ann::alpha.test", "bob::gamma.test", &format!("after {n}"))
            .await;
        within(20, "a message after the switch", async || taken(&id) == 1).await;
    }
    assert_eq!(
        forged(),
        1,
        "the new key is tried once, not with every message"
    );
    while told.len() < 2 {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next())
            .await
            .expect("an event in time")
            .expect("an event");
        told.push(event.subject.to_string());
    }
    assert_eq!(
        told,
        [
            "fed.ops.key.rotated.uam.alpha_test",
            "fed.ops.key.unnoticed.uam.gamma_test"
        ]
    );
    assert_eq!(alpha.dead().await, 0);
    let plan = alpha.keys(&["rotate"]).await;
    assert_eq!(plan[0]["peers"][0]["knows_old_only"], true);

    // A key that is no longer ours alone is not used again, not even for such a peer.
    let replaced = alpha.keys(&["rotate", "--yes", "--revoke"]).await;
    assert_eq!(
        replaced[0]["keys"].as_array().map(Vec::len),
        Some(1),
        "no old key is left"
    );
    serving.abort();
}
