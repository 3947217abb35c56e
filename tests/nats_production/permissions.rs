//! An account that may do only what the bridge needs (`config/nats/`).

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use drawbridge::bus::Bus;
use serde_json::{Value, json};

use crate::support::bridge::{self, Bridge};
use crate::support::custom_broker::CustomBroker;
use crate::support::sink::{self, SinkOptions};
use crate::support::uam_client;
use crate::{settings, until};

/// Needed only where a consumer's server may be silent while others answer.
const IN_A_CLUSTER: &str = "$JS.API.CONSUMER.NAMES.FED_OUT";

/// A peer served inside the test.
async fn peer(dir: &Path) -> (String, std::path::PathBuf) {
    let dir = dir.join("peer");
    std::fs::create_dir_all(&dir).expect("a folder");
    sink::set_mode(&dir, "ok");
    let options = SinkOptions {
        address: bridge::free_address(),
        domain: "beta.test".to_owned(),
        trusts: "alpha.test".into(),
        dir: dir.clone(),
    };
    let pin = bridge::pin("beta.test", options.address);
    let listener = tokio::net::TcpListener::bind(options.address)
        .await
        .expect("a listener");
    tokio::spawn(async move { sink::serve(listener, options).await });
    (pin, dir)
}

async fn client(broker: &CustomBroker, user: &str) -> async_nats::Client {
    async_nats::ConnectOptions::new()
        .user_and_password(user.to_owned(), format!("{user}-pw"))
        .custom_inbox_prefix(format!("_INBOX_{user}"))
        .request_timeout(Some(Duration::from_secs(2)))
        .connect(broker.url())
        .await
        .expect("connected")
}

/// The subjects that the bridge's user may publish, as `config/nats/accounts.conf` says.
fn allowed_to_bridge() -> Vec<String> {
    let text = include_str!("../../config/nats/accounts.conf");
    let (_, user) = text.split_once("user: bridge").expect("the bridge's user");
    let (list, _) = user.split_once("subscribe").expect("its lists");
    let quoted = list.split('"').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

/// The subjects that a user published, by the server's trace.
fn published(log: &str, user: &str) -> Vec<String> {
    let user = format!("user:{user}\"");
    let lines = log.lines().filter(|l| l.contains(&user));
    lines
        .filter_map(|l| {
            l.split_once("<<- [PUB ")
                .or_else(|| l.split_once("<<- [HPUB "))
        })
        .filter_map(|(_, rest)| rest.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// Whether a subject is covered by a pattern with `*` and `>`.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut p, mut s) = (pattern.split('.'), subject.split('.'));
    loop {
        match (p.next(), s.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[tokio::test]
async fn a_bridge_and_a_backend_that_may_do_only_what_they_need_exchange_messages() {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(&dir.path().join("broker"));
    let accounts = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/nats/accounts.conf");
    std::fs::copy(accounts, broker.dir.join("accounts.conf")).expect("copied");
    for user in ["bridge", "backend", "operator"] {
        let name = format!("{}_PASSWORD", user.to_uppercase());
        broker.env(&name, &format!("{user}-pw"));
    }
    let js = broker.jetstream("");
    broker
        .start(&format!("trace: true\n{js}\ninclude ./accounts.conf"))
        .await;

    let (pin, peer_dir) = peer(dir.path()).await;
    let login = |user: &str| {
        format!("\nuser = \"{user}\"\npassword = \"{user}-pw\"\ninbox_prefix = \"_INBOX_{user}\"\n")
    };
    let tables = format!("[log]\nlevel = \"trace\"\n{pin}");
    let url = broker.url();
    let mut bridge = Bridge::new(
        &dir.path().join("bridge"),
        "alpha.test",
        Some(&url),
        "",
        &tables,
    );
    let nats = |more: &str| format!("[nats]\nurl = \"{url}\"{more}");
    let plain = std::fs::read_to_string(bridge.config()).expect("the configuration");
    let with = |user: &str, streams: &str| {
        let more = format!(
            "{}streams = \"{streams}\"\nstuck_after = \"1s\"",
            login(user)
        );
        let text = plain.replace(&format!("[nats]\nurl = \"{url}\""), &nats(&more));
        std::fs::write(bridge.config(), text).expect("the configuration");
    };

    // The operator makes the streams; the bridge may not.
    with("operator", "ensure");
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .args(["streams", "apply", "--config"])
        .arg(bridge.config())
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(
        made.status.success() && said.contains("made FED_OUT"),
        "{said}"
    );
    with("bridge", "verify");
    bridge.start().await;

    // Out.
    let backend = client(&broker, "backend").await;
    let js = jetstream::new(backend.clone());
    let id = uam_client::message_id();
    let envelope = uam_client::envelope(&id, "ann::alpha.test", "bob::beta.test", "hello");
    js.publish("fed.out.uam.beta_test.message", envelope.to_string().into())
        .await
        .expect("published")
        .await
        .expect("acknowledged");
    until("the peer has it", async || {
        let lines = sink::read_log(&peer_dir);
        lines.iter().any(|l| l.id == id && l.status == 200)
    })
    .await;

    // In, and the backend registers its agent first.
    let put = json!({"address": "ann::alpha.test", "public_key": uam_client::public_of("ann")});
    let answer = backend
        .request("fed.do.uam.agent.put", put.to_string().into())
        .await
        .expect("answered");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!(answer["ok"], true, "{answer}");
    let id = uam_client::message_id();
    let envelope = uam_client::envelope(&id, "bob::beta.test", "ann::alpha.test", "hi");
    let delivery = uam_client::delivery("beta.test", &envelope, true);
    let http = bridge::client();
    let posted = uam_client::post(&http, &bridge.public_url(), &delivery).await;
    assert_eq!(posted, uam_client::Posted::Ok { duplicate: false });
    let stream = js.get_stream("FED_IN").await.expect("it may look");
    let consumer = stream
        .create_consumer(jetstream::consumer::pull::Config {
            durable_name: Some("backend".to_owned()),
            ..Default::default()
        })
        .await
        .expect("it may read");
    let mut batch = consumer
        .fetch()
        .max_messages(1)
        .messages()
        .await
        .expect("messages");
    let message = futures_util::StreamExt::next(&mut batch)
        .await
        .expect("one")
        .expect("a message");
    message.ack().await.expect("acknowledged");
    assert!(String::from_utf8_lossy(&message.payload).contains(&id));

    // What the backend may not do.
    for subject in [
        "fed.in.uam.evil_test.message",
        "fed.ops.trust.x",
        "fed.dead.uam.x.y",
    ] {
        let sent = js.publish(subject, "{}".into()).await.expect("sent");
        let short = Duration::from_millis(300);
        let sent = tokio::time::timeout(short, sent.into_future()).await;
        assert!(!matches!(sent, Ok(Ok(_))), "{subject} was taken");
    }
    let outsider = stream.delete_consumer("drawbridge-1").await;
    assert!(outsider.is_err());

    // Nothing was refused that the bridge needs, and nothing secret was logged.
    let operator = jetstream::new(client(&broker, "operator").await);
    let inbound = operator.get_stream("FED_IN").await.expect("it may look");
    assert_eq!(inbound.cached_info().state.messages, 1);
    let facts = operator.get_stream("FED_OUT").await.expect("it may look");
    until("the message was acknowledged", async || {
        let info = facts.get_info().await.expect("asked");
        info.state.messages == 0
    })
    .await;
    // A second start: the earlier consumer is deleted, what is on fed.in is looked at.
    bridge.kill9();
    bridge.start().await;
    js.publish("fed.out.nosuch.beta_test.message", "{}".into())
        .await
        .expect("published")
        .await
        .expect("acknowledged");
    let dead = operator.get_stream("FED_DEAD").await.expect("it may look");
    until("it is dead", async || {
        let info = dead.get_info().await.expect("asked");
        info.state.messages == 1
    })
    .await;
    // What it does on occasion: repair, release from quarantine, questions to backends.
    let bus = Bus::connect(&settings(&broker, &login("bridge")))
        .await
        .expect("connected");
    let mut seen = 0;
    let from = drawbridge::bus::ScanFrom::Seq(1);
    bus.scan("FED_IN", from, &mut |_, _| seen += 1)
        .await
        .expect("read");
    assert_eq!(seen, 1);
    let held = drawbridge::bus::BusMessage {
        subject: "fed.held.uam.x.y".to_owned(),
        headers: vec![],
        payload: Bytes::from_static(b"{}"),
        stream: "FED_HELD",
    };
    let (sequence, _) = bus.publish(held).await.expect("held");
    let read = bus.read_message("FED_HELD", sequence).await.expect("read");
    assert!(read.is_some());
    let tail = bus.tail("fed.held.>", drawbridge::bus::TailFrom::All).await;
    let mut tail = tail.expect("followed");
    assert_eq!(tail.next().await.expect("held").seq, sequence);
    let short = Duration::from_millis(500);
    assert!(bus.ask("uam", "nobody", Bytes::new(), short).await.is_err());
    let mut allowed = allowed_to_bridge();
    assert!(allowed.iter().any(|subject| subject == IN_A_CLUSTER));
    allowed.retain(|subject| subject != IN_A_CLUSTER);
    until("every permission was needed", async || {
        let seen = published(&broker.log(), "bridge");
        let unused = |pattern: &&String| !seen.iter().any(|subject| matches(pattern, subject));
        allowed.iter().find(unused).is_none()
    })
    .await;
    bridge.stop().await;
    let refusals: Vec<_> = broker
        .log()
        .lines()
        .filter(|l| l.contains("Violation") && l.contains("user:bridge"))
        .map(str::to_owned)
        .collect();
    assert!(refusals.is_empty(), "{refusals:#?}");
    assert!(
        !bridge.log().contains("bridge-pw"),
        "the log holds the password"
    );
}
