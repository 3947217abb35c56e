//! `traceparent` bus → HTTP → bus, across two bridges.

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::world::{PATIENCE, World, broker};
use crate::support::bridge::{self, Bridge};
use crate::support::uam_client;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

async fn next(messages: &mut async_nats::Subscriber) -> async_nats::Message {
    tokio::time::timeout(PATIENCE, messages.next())
        .await
        .expect("a message in time")
        .expect("a message")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_passes_from_bus_to_bus_and_each_attempt_is_a_span_of_its_own() {
    let mut alpha = World::new("discovery = false", "").await;
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let mut beta = Bridge::new(
        &dir.path().join("bridge"),
        "beta.test",
        Some(&broker.url()),
        "discovery = false",
        &bridge::pin("alpha.test", alpha.bridge.public),
    );
    let to_beta = bridge::pin("beta.test", beta.public);
    alpha.rewrite(|text| format!("{text}\n{to_beta}"));
    alpha.bridge.start().await;
    beta.start().await;
    let agent = json!({"address": "alice::alpha.test", "public_key": uam_client::public_of("alice::alpha.test")});
    alpha
        .nats
        .request("fed.do.uam.agent.put", agent.to_string().into())
        .await
        .expect("the agent's key is known");

    let beta_nats = bridge::connect(&broker.url()).await;
    let mut arrivals = beta_nats.subscribe("fed.in.>").await.unwrap();
    let mut accepted = beta_nats.subscribe("fed.ops.ingest.>").await.unwrap();
    beta_nats.flush().await.unwrap();
    let mut delivered = alpha.nats.subscribe("fed.ops.delivery.>").await.unwrap();
    alpha.nats.flush().await.unwrap();

    let given = format!("00-{TRACE}-{PARENT}-01");
    let id = alpha.publish("beta.test", &[("traceparent", &given)]).await;
    let arrived = next(&mut arrivals).await;
    let headers = arrived.headers.expect("headers");
    assert_eq!(headers.get("Fed-Event-Id").unwrap().as_str(), id);
    let got = headers.get("traceparent").expect("a trace").as_str();
    let parts: Vec<&str> = got.split('-').collect();
    assert_eq!((parts[0], parts[1], parts[3]), ("00", TRACE, "01"));
    assert!(parts[2] != PARENT && parts[2].len() == 16, "{got}");

    for events in [&mut delivered, &mut accepted] {
        let event: Value = serde_json::from_slice(&next(events).await.payload).unwrap();
        assert_eq!(event["events"][0]["trace_id"], TRACE, "{event}");
    }
    assert!(alpha.logs("federation delivered").await.contains(TRACE));

    // A malformed one is dropped and stops nothing.
    for bad in ["00-xyz", &format!("00-{}-{PARENT}-01", "0".repeat(32))] {
        let id = alpha.publish("beta.test", &[("traceparent", bad)]).await;
        let headers = next(&mut arrivals).await.headers.expect("headers");
        assert_eq!(headers.get("Fed-Event-Id").unwrap().as_str(), id);
        assert!(headers.get("traceparent").is_none(), "{bad}");
    }
}
