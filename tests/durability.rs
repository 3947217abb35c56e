//! What an acknowledgement of a broker is worth, told of real servers: one that flushes always, one
//! that does not, streams in memory, a cluster of three.

mod support {
    pub mod bridge;
    pub mod custom_broker;
    pub mod uam_client;
}

use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use drawbridge::bus::{Bus, Durability, Verdict};
use drawbridge::config::{Config, NatsConfig};
use support::bridge::{self, Bridge};
use support::custom_broker::CustomBroker;

fn settings(broker: &CustomBroker, more: &str) -> NatsConfig {
    let text = format!("[nats]\nurl = \"{}\"\n{more}", broker.url());
    Config::from_text(&text).expect("settings").nats
}

async fn verdict(nats: &NatsConfig) -> Durability {
    let bus = Bus::connect(nats).await.expect("connected");
    bus.apply_streams().await.expect("streams");
    bus.durability().await.expect("looked at")
}

/// A server with a monitoring port; `jetstream` goes into its block.
async fn server(dir: &Path, jetstream: &str) -> (CustomBroker, String) {
    let mut broker = CustomBroker::new(dir);
    let monitoring = bridge::free_port();
    let js = broker.jetstream(jetstream);
    broker
        .start(&format!("{js}\nhttp: \"127.0.0.1:{monitoring}\""))
        .await;
    (broker, format!("http://127.0.0.1:{monitoring}"))
}

async fn until(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !ask().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test]
async fn a_server_that_flushes_always_is_known_by_its_monitoring_port_only() {
    let dir = tempfile::tempdir().expect("folder");
    let (broker, monitoring) = server(dir.path(), "sync_interval: always").await;
    let seen = verdict(&settings(
        &broker,
        &format!("monitoring_url = \"{monitoring}\""),
    ))
    .await;
    assert_eq!(seen.verdict, Verdict::Fsync, "{seen:?}");
    assert!(seen.advice.is_empty());

    let blind = verdict(&settings(&broker, "")).await;
    assert_eq!(blind.verdict, Verdict::AtRisk, "{blind:?}");
    assert!(blind.advice.contains("nats.monitoring_url"), "{blind:?}");
    assert!(
        blind.sentence.contains("24 h"),
        "how far back it can be mended"
    );

    // A port where nobody answers proves nothing and is named.
    let dead = format!("http://127.0.0.1:{}", bridge::free_port());
    let seen = verdict(&settings(&broker, &format!("monitoring_url = \"{dead}\""))).await;
    assert_eq!(seen.verdict, Verdict::AtRisk);
    assert!(seen.sentence.contains(&dead), "{seen:?}");
}

#[tokio::test]
async fn the_default_of_a_server_is_a_risk_and_so_is_memory() {
    let dir = tempfile::tempdir().expect("folder");
    let (broker, monitoring) = server(dir.path(), "").await;
    let nats = settings(&broker, &format!("monitoring_url = \"{monitoring}\""));
    let seen = verdict(&nats).await;
    assert_eq!(seen.verdict, Verdict::AtRisk);
    assert!(seen.sentence.contains("120 s"), "{seen:?}");

    let dir = tempfile::tempdir().expect("folder");
    let (broker, monitoring) = server(dir.path(), "sync_interval: always").await;
    let js = jetstream::new(async_nats::connect(broker.url()).await.expect("connected"));
    js.create_stream(stream::Config {
        name: "FED_IN".to_owned(),
        subjects: vec!["fed.in.>".to_owned()],
        storage: stream::StorageType::Memory,
        ..Default::default()
    })
    .await
    .expect("made");
    let nats = settings(&broker, &format!("monitoring_url = \"{monitoring}\""));
    let seen = verdict(&nats).await;
    assert_eq!(seen.verdict, Verdict::AtRisk);
    assert!(
        seen.sentence.contains("FED_IN: it is kept in memory"),
        "{seen:?}"
    );
    assert!(seen.advice.contains("storage file"), "{seen:?}");
}

#[tokio::test]
async fn three_replicas_in_a_cluster_are_replicated_and_one_is_a_risk() {
    let root = tempfile::tempdir().expect("folder");
    let mut nodes: Vec<_> = (0..3)
        .map(|n| CustomBroker::new(&root.path().join(format!("n{n}"))))
        .collect();
    let routes: Vec<_> = nodes.iter().map(|_| bridge::free_port()).collect();
    let list: Vec<_> = routes
        .iter()
        .map(|port| format!("\"nats://127.0.0.1:{port}\""))
        .collect();
    let list = list.join(", ");
    for (n, node) in nodes.iter_mut().enumerate() {
        let js = node.jetstream("");
        node.start(&format!(
            "server_name: n{n}\n{js}\ncluster {{ name: c, listen: \"127.0.0.1:{}\", routes: [{list}] }}",
            routes[n]
        ))
        .await;
    }
    let nats = settings(&nodes[0], "request_timeout = \"2s\"");
    let js = jetstream::new(
        async_nats::connect(nodes[0].url())
            .await
            .expect("connected"),
    );
    // The cluster has to find its leader first.
    let mut wanted = stream::Config {
        name: "FED_IN".to_owned(),
        subjects: vec!["fed.in.>".to_owned()],
        num_replicas: 3,
        ..Default::default()
    };
    until("the cluster takes a stream", async || {
        js.create_stream(wanted.clone()).await.is_ok()
    })
    .await;
    for name in ["held", "dead"] {
        wanted.name = format!("FED_{}", name.to_uppercase());
        wanted.subjects = vec![format!("fed.{name}.>")];
        js.create_stream(wanted.clone()).await.expect("made");
    }
    wanted.name = "FED_OUT".to_owned();
    wanted.subjects = vec!["fed.out.>".to_owned()];
    wanted.retention = stream::RetentionPolicy::WorkQueue;
    wanted.discard = stream::DiscardPolicy::New;
    js.create_stream(wanted.clone()).await.expect("made");
    let seen = verdict(&nats).await;
    assert_eq!(seen.verdict, Verdict::Replicated, "{seen:?}");

    js.delete_stream("FED_IN").await.expect("deleted");
    // `ensure` makes it with one replica.
    let seen = verdict(&nats).await;
    assert_eq!(seen.verdict, Verdict::AtRisk, "{seen:?}");
    assert!(seen.sentence.contains("FED_IN: 1 replica"), "{seen:?}");
}

#[tokio::test]
async fn require_refuses_to_start_says_what_to_change_and_a_later_change_is_not_ready() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut broker, monitoring) =
        server(&dir.path().join("broker"), "sync_interval: always").await;
    let mut bridge = Bridge::new(
        &dir.path().join("bridge"),
        "alpha.test",
        Some(&broker.url()),
        "",
        "",
    );
    bridge.env("DRAWBRIDGE_NATS__DURABILITY", "require");
    bridge.spawn();
    until("it ends", async || bridge.ended()).await;
    let log = bridge.log();
    assert!(log.contains("nats.durability = \"require\""), "{log}");
    assert!(log.contains("sync_interval: always"), "{log}");

    bridge.env("DRAWBRIDGE_NATS__MONITORING_URL", &monitoring);
    bridge.start().await;
    let readyz = format!("{}/readyz", bridge.admin_url());
    let http = bridge::client();
    let ask = async || {
        let answer = http.get(&readyz).send().await.ok()?;
        let status = answer.status().as_u16();
        let text = answer.text().await.ok()?;
        let body: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some((status, body))
    };
    let (status, body) = ask().await.expect("an answer");
    assert_eq!(status, 200);
    assert_eq!(body["durability"]["verdict"], "fsync", "{body}");
    let gauge = "drawbridge_broker_durability{verdict=\"fsync\"} 1";
    assert!(bridge.metrics().await.contains(gauge));

    // The broker comes back with another configuration.
    let port = monitoring.rsplit(':').next().expect("a port").to_owned();
    let js = broker.jetstream("sync_interval: 10s");
    broker
        .start(&format!("{js}\nhttp: \"127.0.0.1:{port}\""))
        .await;
    until("readiness tells", async || {
        matches!(ask().await, Some((503, body)) if body["reasons"]["durability"].is_string()
            && body["durability"]["verdict"] == "at_risk")
    })
    .await;
    let gauge = "drawbridge_broker_durability{verdict=\"at_risk\"} 1";
    assert!(bridge.metrics().await.contains(gauge));
}
