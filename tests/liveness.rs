//! Liveness means progress: `/healthz` of a real bridge whose consumer delivers nothing.

mod support {
    pub mod bridge;
    pub mod custom_broker;
    pub mod uam_client;
}

use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use support::bridge::{self, Bridge};
use support::custom_broker::CustomBroker;

async fn until(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !ask().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn publish(js: &jetstream::Context) {
    js.publish("fed.out.nosuch.beta_test.message", "{}".into())
        .await
        .expect("published")
        .await
        .expect("acknowledged");
}

/// Pauses every consumer of FED_OUT for ten minutes.
async fn pause(js: &jetstream::Context) {
    let stream = js.get_stream("FED_OUT").await.expect("the stream");
    let names: Vec<String> = stream.consumer_names().try_collect().await.expect("listed");
    assert!(!names.is_empty());
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(600);
    for name in names {
        let subject = format!("CONSUMER.PAUSE.FED_OUT.{name}");
        let wanted = json!({"pause_until": until.to_string()});
        let answer: Value = js.request(subject, &wanted).await.expect("asked");
        assert_eq!(answer["paused"], true, "{answer}");
    }
}

#[tokio::test]
async fn liveness_goes_red_when_the_consumer_is_stuck() {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(&dir.path().join("broker"));
    let jetstream = broker.jetstream("");
    // Whoever may not ask for messages gets none, from any consumer.
    let account = |deny: &str| {
        format!(
            "{jetstream}\nauthorization {{ users: [ \
             {{ user: bridge, password: b, permissions: {{ publish: {{ deny: [{deny}] }} }} }}, \
             {{ user: backend, password: b }} ] }}"
        )
    };
    let good = account("\"nothing.at.all\"");
    broker.start(&good).await;
    let url = format!("nats://bridge:b@127.0.0.1:{}", broker.port);
    let mut bridge = Bridge::new(&dir.path().join("bridge"), "alpha.test", Some(&url), "", "");
    bridge.env("DRAWBRIDGE_NATS__STUCK_AFTER", "2s");
    bridge.start().await;
    let healthz = format!("{}/healthz", bridge.admin_url());
    let http = bridge::client();
    let alive = async || match http.get(&healthz).send().await {
        Ok(answer) => answer.status() == 200,
        Err(_) => false,
    };
    let login = async_nats::ConnectOptions::with_user_and_password("backend".into(), "b".into());
    let js = jetstream::new(login.connect(broker.url()).await.expect("connected"));
    let stream = js.get_stream("FED_OUT").await.expect("the stream");
    let empty = async || {
        let info = stream.get_info().await.expect("asked");
        info.state.messages == 0
    };

    // A consumer that is paused once is healed: a new one takes its place.
    pause(&js).await;
    publish(&js).await;
    until("it heals by itself", empty).await;
    assert!(alive().await);

    // No consumer delivers, whatever the bridge does.
    broker.reload(&account("\"$JS.API.CONSUMER.MSG.NEXT.>\""));
    // What was asked for before would be served still.
    let names: Vec<String> = stream.consumer_names().try_collect().await.expect("listed");
    for name in names {
        stream.delete_consumer(&name).await.expect("deleted");
    }
    publish(&js).await;
    until("red", async || !alive().await).await;
    let text = http.get(&healthz).send().await.expect("an answer");
    let text = text.text().await.expect("its body");
    assert!(text.contains("messages wait"), "{text}");

    broker.reload(&good);
    until("green again", async || alive().await && empty().await).await;
}

#[tokio::test]
async fn an_idle_bridge_is_alive() {
    let dir = tempfile::tempdir().expect("folder");
    let mut broker = CustomBroker::new(&dir.path().join("broker"));
    let js = broker.jetstream("");
    broker.start(&js).await;
    let mut bridge = Bridge::new(
        &dir.path().join("bridge"),
        "alpha.test",
        Some(&broker.url()),
        "",
        "",
    );
    bridge.env("DRAWBRIDGE_NATS__STUCK_AFTER", "1s");
    bridge.start().await;
    let healthz = format!("{}/healthz", bridge.admin_url());
    let http = bridge::client();
    let end = Instant::now() + Duration::from_millis(2_500);
    while Instant::now() < end {
        let answer = http.get(&healthz).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
