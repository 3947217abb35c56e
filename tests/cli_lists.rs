//! The commands as an operator types them: real processes against a running bridge, a real broker
//! and a peer that answers as it is told.

mod support {
    pub mod bridge;
    pub mod openapi;
    pub mod sink;
    pub mod uam_client;
}

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use support::bridge::{self, Bridge, Broker};
use support::sink::{self, SinkOptions};
use support::uam_client;

struct World {
    dir: tempfile::TempDir,
    _broker: Broker,
    bridge: Bridge,
    client: async_nats::Client,
    js: jetstream::Context,
    peer: PathBuf,
    sink: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.sink.abort();
    }
}

impl World {
    /// A bridge for `alpha.test` and a peer `beta.test`, which is pinned.
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = drawbridge::bus::find::default_cache_dir();
        let binary = drawbridge::bus::find::server_binary(None, &cache)
            .await
            .expect("a nats-server");
        let mut broker = Broker::new(binary, &dir.path().join("broker"));
        broker.start().await;
        let peer = dir.path().join("beta.test");
        std::fs::create_dir_all(&peer).expect("a folder");
        sink::set_mode(&peer, "ok");
        let options = SinkOptions {
            address: bridge::free_address(),
            domain: "beta.test".into(),
            trusts: "alpha.test".into(),
            dir: peer.clone(),
        };
        let pin = bridge::pin("beta.test", options.address);
        let listener = tokio::net::TcpListener::bind(options.address)
            .await
            .expect("a listener");
        let sink = tokio::spawn(async move {
            let _ = sink::serve(listener, options).await;
        });
        let mut bridge = Bridge::new(
            &dir.path().join("bridge"),
            "alpha.test",
            Some(&broker.url()),
            "retry_delays = [\"1h\", \"2h\"]",
            &pin,
        );
        bridge.start().await;
        let client = bridge::connect(&broker.url()).await;
        let js = jetstream::new(client.clone());
        Self {
            dir,
            _broker: broker,
            bridge,
            client,
            js,
            peer,
            sink,
        }
    }

    /// Publishes a message to an agent at `beta.test`; answers its id.
    async fn send(&self, text: &str) -> String {
        let id = uam_client::message_id();
        let envelope = uam_client::envelope(&id, "alice::alpha.test", "bob::beta.test", text);
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.as_str());
        let subject = "fed.out.uam.beta_test.message";
        let sent = self
            .js
            .publish_with_headers(subject, headers, envelope.to_string().into());
        sent.await.expect("published").await.expect("acknowledged");
        id
    }

    /// Delivers a message as `beta.test` does; answers its id.
    async fn receive(&self, text: &str) -> String {
        let id = uam_client::message_id();
        let envelope = uam_client::envelope(&id, "bob::beta.test", "alice::alpha.test", text);
        let delivery = uam_client::delivery("beta.test", &envelope, true);
        let http = bridge::client();
        let posted = uam_client::post(&http, &self.bridge.public_url(), &delivery).await;
        assert_eq!(posted, uam_client::Posted::Ok { duplicate: false });
        id
    }

    /// Event ids of a subject filter's stream, in order.
    async fn events(&self, what: &str) -> Vec<String> {
        let mut ids = Vec::new();
        let mut stream = self.js.get_stream(what).await.expect("the stream");
        let state = stream.info().await.expect("its state").state.clone();
        for seq in state.first_sequence.max(1)..=state.last_sequence {
            if let Ok(message) = stream.get_raw_message(seq).await {
                let id = message.headers.get("Fed-Event-Id");
                ids.push(id.map_or(String::new(), ToString::to_string));
            }
        }
        ids
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        run(self.bridge.config(), arguments).await
    }

    /// What a command prints; it must succeed.
    async fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{arguments:?}: {err}");
        out
    }

    /// The same as JSON lines.
    async fn lists(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.says(arguments).await;
        text.lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    /// Statuses with which the peer answered a message so far.
    fn answered(&self, id: &str) -> Vec<u16> {
        let log = sink::read_log(&self.peer);
        let of = log.iter().filter(|l| l.what == "arrival" && l.id == id);
        of.map(|l| l.status).collect()
    }
}

async fn run(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drawbridge"));
    command.args(arguments).arg("--config").arg(config);
    tokio::task::spawn_blocking(move || command.output().expect("the command runs"))
        .await
        .expect("the command ends")
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Asks again and again until there is an answer.
async fn within<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_shown_and_redriven_under_its_event_id() {
    let w = World::start().await;
    sink::set_mode(&w.peer, "status 400");
    let id = w.send("hello").await;
    let dead = within("a dead letter", async || {
        w.lists(&["dead", "list", "--peer", "beta.test", "--json"])
            .await
            .pop()
    })
    .await;
    assert_eq!(
        (&dead["msg_id"], &dead["state"]),
        (&json!(id), &json!("failed"))
    );
    let number = dead["id"].to_string();
    let shown = w.says(&["dead", "show", &number, "--body"]).await;
    assert!(
        shown.contains(&id) && shown.contains("bob::beta.test"),
        "{shown}"
    );
    let peer = w.says(&["peers", "show", "beta.test"]).await;
    assert!(peer.contains("1 dead") && peer.contains("pinned"), "{peer}");

    sink::set_mode(&w.peer, "ok");
    let refused = w.run(&["dead", "redrive"]).await;
    let (_, err) = texts(&refused);
    assert!(
        !refused.status.success() && err.contains("give a filter"),
        "{err}"
    );
    let tried = w.says(&["dead", "redrive", "--older-than", "1h"]).await;
    assert_eq!(tried.trim(), "0 rows sent again");
    let done = w.says(&["dead", "redrive", &number]).await;
    assert_eq!(done.trim(), "1 rows sent again");
    within("the redriven message", async || {
        w.answered(&id).contains(&200).then_some(())
    })
    .await;
    let delivered = ["queue", "list", "--state", "delivered", "--json"];
    let row = within("the outcome", async || w.lists(&delivered).await.pop()).await;
    assert_eq!(
        (&row["id"], &row["event_id"]),
        (&dead["id"], &dead["event_id"])
    );
    assert!(w.lists(&["dead", "list", "--json"]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_retried_now_or_dropped_as_a_dead_letter() {
    let w = World::start().await;
    sink::set_mode(&w.peer, "status 503");
    let id = w.send("hello").await;
    let waiting = ["queue", "list", "--json"];
    let row = within("a row that waits for its retry", async || {
        let rows = w.lists(&waiting).await;
        rows.into_iter().find(|row| row["attempts"] == 1)
    })
    .await;
    let tried = w.answered(&id).len();
    let number = row["id"].to_string();
    let shown = w.says(&["queue", "show", &number]).await;
    assert!(shown.contains("503") && shown.contains("in 1 h"), "{shown}");
    assert_eq!(
        w.says(&["queue", "retry", &number]).await.trim(),
        "1 rows due now"
    );
    within("another attempt at once", async || {
        (w.answered(&id).len() > tried).then_some(())
    })
    .await;
    within("the row to wait again", async || {
        let rows = w.lists(&waiting).await;
        rows.into_iter().find(|row| row["attempts"] != 1)
    })
    .await;
    let other = w.says(&["queue", "drop", "--peer", "other.test"]).await;
    assert_eq!(other.trim(), "0 rows dropped");
    let done = w
        .says(&["queue", "drop", "--peer", "beta.test", "--json"])
        .await;
    assert_eq!(serde_json::from_str::<Value>(&done).unwrap()["changed"], 1);
    let dead = w
        .lists(&["dead", "list", "--reason", "dropped", "--json"])
        .await;
    assert_eq!(dead[0]["msg_id"], json!(id));
    within("its notice on FED_DEAD", async || {
        let stream = w.js.get_stream("FED_DEAD").await.ok()?;
        let subject = "fed.dead.uam.beta_test.message";
        let notice = stream.get_last_raw_message_by_subject(subject).await.ok()?;
        let code = notice.headers.get("Fed-Reason-Code")?.to_string();
        (code == "dropped").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_paused_explained_resumed_and_every_order_answers_as_documented() {
    let w = World::start().await;
    let said = w
        .says(&["peers", "pause", "beta.test", "--reason", "moving house"])
        .await;
    assert!(said.contains("beta.test is paused"), "{said}");
    let id = w.send("hello").await;
    within("a row that waits", async || {
        w.lists(&["queue", "list", "--json"]).await.pop()
    })
    .await;
    let shown = w.says(&["peers", "show", "beta.test"]).await;
    for part in [
        "paused by an operator",
        "(moving house), until it is resumed",
        "1 pending",
        "Next attempt: when it is resumed",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let refused = w.run(&["peers", "probe", "beta.test"]).await;
    assert!(
        texts(&refused).1.contains("resume it first"),
        "{}",
        texts(&refused).1
    );
    let table = w.says(&["peers", "list"]).await;
    assert!(table.contains("paused"), "{table}");
    assert!(w.answered(&id).is_empty());
    w.says(&["peers", "resume", "beta.test"]).await;
    within("the message", async || w.answered(&id).pop()).await;

    let document: Value = serde_json::from_str(drawbridge::admin::OPENAPI).unwrap();
    for (path, _) in document["paths"].as_object().unwrap() {
        let Some(order) = path.strip_prefix("/api/v1/peers/{protocol}/{name}") else {
            continue;
        };
        let method = if order.is_empty() { "GET" } else { "POST" };
        let asked = format!("/api/v1/peers/uam/beta.test{order}");
        let (status, answer) = w.bridge.admin_api(method, &asked).await;
        assert_eq!(status, 200, "{asked}: {answer}");
        if order == "/pause" {
            let resume = "/api/v1/peers/uam/beta.test/resume";
            assert_eq!(w.bridge.admin_api("POST", resume).await.0, 200);
        }
        let operation = &document["paths"][path][method.to_lowercase()];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        let mut wrong = Vec::new();
        support::openapi::check(&document, schema, &answer, "answer", &mut wrong);
        assert!(wrong.is_empty(), "{asked}: {wrong:#?}\n{answer:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_made_listed_and_released_and_told_on_the_bus() {
    let w = World::start().await;
    let mut told = w
        .client
        .subscribe("fed.ops.trust.>")
        .await
        .expect("subscribed");
    bridge_round_trip(&w.client).await;
    let made = w
        .says(&[
            "trust",
            "quarantine",
            "*.spam.test",
            "--reason",
            "new",
            "--for",
            "2h",
        ])
        .await;
    assert!(
        made.starts_with("quarantine *.spam.test over uam until 20"),
        "{made}"
    );
    w.says(&["trust", "block", "bad.spam.test"]).await;
    let rules = w.lists(&["trust", "list", "--json"]).await;
    assert_eq!(rules.len(), 2);
    assert_eq!(
        (&rules[0]["reason"], &rules[0]["in_force"]),
        (&json!("new"), &json!(true))
    );
    let event = told.next().await.expect("an event");
    assert_eq!(
        event.subject.as_str(),
        "fed.ops.trust.added.uam.=2A_spam_test"
    );
    let table = w.says(&["trust", "list", "--rule", "block"]).await;
    assert!(
        table.contains("bad.spam.test") && !table.contains("*.spam.test"),
        "{table}"
    );
    let shown = w.says(&["peers", "show", "bad.spam.test"]).await;
    assert!(
        shown.contains("blocked") && shown.contains("nothing waits"),
        "{shown}"
    );
    let released = w.says(&["trust", "release", "bad.spam.test"]).await;
    assert!(
        released.contains("quarantine *.spam.test still speaks of it"),
        "{released}"
    );
    let wrong = w.run(&["trust", "release", "bad.spam.test"]).await;
    assert!(!wrong.status.success() && texts(&wrong).1.contains("no such rule"));
    let wrong = w.run(&["trust", "allow", "*"]).await;
    assert!(texts(&wrong).1.contains("is neither a server name"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_quarantined_peer_sends_is_held_until_it_is_released_in_order_or_dropped() {
    let w = World::start().await;
    w.says(&["trust", "quarantine", "beta.test", "--reason", "odd"])
        .await;
    let mut sent = Vec::new();
    for n in 1..=3 {
        sent.push(w.receive(&format!("held {n}")).await);
    }
    let held = w.lists(&["trust", "held", "--json"]).await;
    assert_eq!(
        (&held[0]["peer"], &held[0]["events"]),
        (&json!("beta.test"), &json!(3))
    );
    let shown = w.says(&["peers", "show", "beta.test"]).await;
    assert!(shown.contains("3 of its events are held"), "{shown}");
    assert!(w.events("FED_IN").await.is_empty());
    let said = w.says(&["trust", "release", "beta.test"]).await;
    assert!(said.contains("3 held events let in"), "{said}");
    within("the released events on fed.in, in order", async || {
        (w.events("FED_IN").await == sent).then_some(())
    })
    .await;

    w.says(&["trust", "quarantine", "*.test"]).await;
    w.receive("never").await;
    let said = w.says(&["trust", "release", "*.test", "--drop"]).await;
    assert!(said.contains("1 held events forgotten"), "{said}");
    let last = w.receive("ordinary again").await;
    within("the next event on fed.in", async || {
        (w.events("FED_IN").await.last() == Some(&last)).then_some(())
    })
    .await;
    assert_eq!(w.events("FED_IN").await.len(), 4);

    // The stream is emptied; the ledger still has what went to the backends, and nothing else.
    let ledger = ["replay", "--from", "1h", "--ledger", "--json"];
    let ids = |rows: &[Value]| -> Vec<String> {
        let id = |row: &Value| row["headers"]["Fed-Event-Id"].as_str().map(str::to_owned);
        rows.iter().filter_map(id).collect()
    };
    let stream = w.js.get_stream("FED_IN").await.expect("the stream");
    stream.purge().await.expect("emptied");
    sent.push(last);
    assert_eq!(ids(&w.lists(&ledger).await), sent);
    let other = [&ledger[..], &["--peer", "other.test"]].concat();
    assert!(w.lists(&other).await.is_empty());
    let mut copies = w.client.subscribe("again.>").await.expect("subscribed");
    bridge_round_trip(&w.client).await;
    let to = ["replay", "--from", "1h", "--ledger", "--to", "again"];
    assert_eq!(w.says(&to).await.trim(), "4 events replayed");
    let copy = copies.next().await.expect("a copy");
    assert_eq!(copy.subject.as_str(), "again.uam.beta_test.message");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbound_events_are_replayed_from_a_place_to_whoever_asks() {
    let w = World::start().await;
    // As the bridge would publish them: three before a moment, two after it.
    let store = async |n: u32, peer: &str| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Fed-Event-Id", format!("e{n}"));
        let subject = format!("fed.in.uam.{peer}.message");
        let body = format!("{{\"n\":{n}}}");
        let sent = w.js.publish_with_headers(subject, headers, body.into());
        sent.await.expect("published").await.expect("acknowledged");
    };
    for n in 1..=3 {
        store(n, "beta_test").await;
    }
    let stream = w.js.get_stream("FED_IN").await.expect("the stream");
    let third = stream.get_raw_message(3).await.expect("stored").time;
    // A place between two events: the broker's own clock says when it is past.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let moment = jiff::Timestamp::from_nanosecond(third.unix_timestamp_nanos()).expect("a time")
        + Duration::from_millis(10);
    store(4, "gamma_test").await;
    store(5, "beta_test").await;

    let numbers = |rows: &[Value]| -> Vec<u64> {
        rows.iter().filter_map(|row| row["seq"].as_u64()).collect()
    };
    let all = w.lists(&["replay", "--from", "1h", "--json"]).await;
    assert_eq!(numbers(&all), [1, 2, 3, 4, 5]);
    let after = w
        .lists(&["replay", "--from", &moment.to_string(), "--json"])
        .await;
    assert_eq!(numbers(&after), [4, 5]);
    let before = [
        "replay",
        "--from",
        "2",
        "--until",
        &moment.to_string(),
        "--json",
    ];
    assert_eq!(numbers(&w.lists(&before).await), [2, 3]);
    let beta = ["replay", "--from", "3", "--peer", "beta.test", "--json"];
    assert_eq!(numbers(&w.lists(&beta).await), [3, 5]);
    let none = ["replay", "--from", "1", "--peer", "nobody.test", "--json"];
    assert!(w.lists(&none).await.is_empty());

    let mut copies = w.client.subscribe("again.>").await.expect("subscribed");
    bridge_round_trip(&w.client).await;
    let said = w.says(&["replay", "--from", "4", "--to", "again"]).await;
    assert_eq!(said.trim(), "2 events replayed");
    let copy = copies.next().await.expect("a copy");
    assert_eq!(copy.subject.as_str(), "again.uam.gamma_test.message");
    let headers = copy.headers.expect("headers");
    assert_eq!(headers.get("Fed-Event-Id").map(|v| v.as_str()), Some("e4"));
    assert_eq!(headers.get("Fed-Replayed").map(|v| v.as_str()), Some("4"));
    let wrong = w.run(&["replay", "--from", "4", "--to", "fed.in"]).await;
    assert!(texts(&wrong).1.contains("own subjects"));

    let made = [
        "replay",
        "--from",
        "3",
        "--consumer",
        "backend",
        "--peer",
        "beta.test",
    ];
    let said = w.says(&made).await;
    assert!(
        said.contains("begins at sequence 3; 2 events wait for it"),
        "{said}"
    );
    let again = w.run(&made).await;
    assert!(texts(&again).1.contains("--force"), "{}", texts(&again).1);
    w.says(&[&made[..], &["--force"]].concat()).await;
    let consumer: jetstream::consumer::PullConsumer =
        stream.get_consumer("backend").await.expect("the consumer");
    let mut messages = consumer.messages().await.expect("messages");
    let first = messages.next().await.expect("one").expect("read");
    assert_eq!(first.payload.as_ref(), b"{\"n\":3}");
}

/// Everything asked of the broker so far is done.
async fn bridge_round_trip(client: &async_nats::Client) {
    client.flush().await.expect("the broker answers");
}

#[tokio::test]
async fn without_a_bridge_a_command_says_where_it_looked_and_what_to_do() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("bridge.toml");
    let address = bridge::free_address();
    let text = format!(
        "data_dir = {:?}\n[admin]\naddress = \"{address}\"\n",
        dir.path()
    );
    std::fs::write(&config, &text).expect("a configuration");
    let output = run(&config, &["queue", "list"]).await;
    assert!(!output.status.success());
    let (_, err) = texts(&output);
    assert!(
        err.contains("admin.token") && err.contains("none ever ran"),
        "{err}"
    );
    let text = text.replace("[admin]", "[admin]\ntoken = \"0123456789abcdef\"");
    std::fs::write(&config, text).expect("a configuration");
    let (_, err) = texts(&run(&config, &["peers", "list"]).await);
    assert!(
        err.contains(&format!("no bridge answers at http://{address}")),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_is_made_once_for_its_owner_and_another_opens_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let w = World::start().await;
    let file = w.bridge.dir.join("admin.token");
    let mode = std::fs::metadata(&file)
        .expect("the file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!w.bridge.log().contains(&w.bridge.admin_token()));
    let other = w.dir.path().join("other.toml");
    let text = format!(
        "data_dir = {:?}\n[admin]\naddress = \"{}\"\ntoken = \"not-the-token-it-made\"\n",
        w.dir.path(),
        w.bridge.admin
    );
    std::fs::write(&other, text).expect("a configuration");
    let output = run(&other, &["queue", "list"]).await;
    let (_, err) = texts(&output);
    assert!(err.contains("this is not the admin API's token"), "{err}");
    assert_eq!(w.bridge.admin_api("GET", "/api/v1/keys").await.0, 200);
}
