//! Restarts of the broker, and streams and consumers that are not there any more or not ours.

use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use drawbridge::bus::{Bus, BusErrorKind, BusMessage, TailFrom};

use crate::support::nats::{self, NatsServer};
use crate::{STORE, bodies, numbers, open, open_again, send, soon, take};

#[tokio::test]
async fn a_tail_neither_skips_nor_repeats_over_a_restart_of_the_broker() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let put = async |n: usize| {
        bus.publish(BusMessage {
            subject: "fed.in.uam.beta_com.message".to_owned(),
            headers: vec![],
            payload: Bytes::from(n.to_string()),
            stream: "FED_IN",
        })
        .await
        .expect("published")
    };
    put(0).await;
    let mut tail = bus.tail("fed.in.>", TailFrom::New).await.expect("tail");
    put(1).await;
    put(2).await;
    assert_eq!(soon("1", tail.next()).await.expect("read").payload, "1");
    let mut changes = bus.connected_changes();
    server.kill().await;
    soon("loss noticed", changes.wait_for(|up| !up))
        .await
        .expect("a change");
    server.restart().await;
    soon("back", changes.wait_for(|up| *up))
        .await
        .expect("a change");
    put(3).await;
    assert_eq!(soon("2", tail.next()).await.expect("read").payload, "2");
    assert_eq!(soon("3", tail.next()).await.expect("read").payload, "3");
    let js = jetstream::new(server.client().await);
    js.delete_stream("FED_IN").await.expect("deleted");
    let error = soon("the end", tail.next()).await.expect_err("gone");
    assert_eq!(error.kind, BusErrorKind::Stream, "{error}");
}

#[tokio::test]
async fn a_deleted_consumer_is_noticed() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    send(&bus, "beta.com", 0).await;
    take(&mut intake, 1).await;
    let js = jetstream::new(server.client().await);
    let stream = js.get_stream("FED_OUT").await.expect("stream");
    stream
        .delete_consumer("drawbridge-1")
        .await
        .expect("deleted");
    let error = soon("noticed", intake.next_batch(10))
        .await
        .err()
        .expect("an error");
    assert_eq!(error.kind, BusErrorKind::Unavailable, "{error}");
    let mut again = open(&bus, 2).await;
    assert_eq!(bodies(&take(&mut again, 1).await), ["0"]);
}

#[tokio::test]
async fn a_deleted_stream_is_noticed_and_made_again() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    let js = jetstream::new(server.client().await);
    js.delete_stream("FED_OUT").await.expect("deleted");
    let error = soon("noticed", intake.next_batch(10))
        .await
        .err()
        .expect("an error");
    assert_eq!(error.kind, BusErrorKind::Stream, "{error}");
    let refused = bus
        .open_intake(STORE, 2, &["uam"], &[])
        .await
        .err()
        .expect("no stream");
    assert_eq!(refused.kind, BusErrorKind::Stream, "{refused}");
    bus.apply_streams().await.expect("made again");
    let mut again = open(&bus, 3).await;
    send(&bus, "beta.com", 5).await;
    assert_eq!(bodies(&take(&mut again, 1).await), ["5"]);
}

#[tokio::test]
async fn a_consumer_of_another_store_is_refused_and_left_alone() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    let error = bus
        .open_intake("store-2", 9, &["uam"], &[])
        .await
        .err()
        .expect("foreign");
    assert_eq!(error.kind, BusErrorKind::Foreign);
    assert!(error.detail.contains(STORE), "{error}");
    send(&bus, "beta.com", 0).await;
    assert_eq!(bodies(&take(&mut intake, 1).await), ["0"]);
}

#[tokio::test]
async fn a_broker_that_is_killed_and_comes_back_is_connected_to_again() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let mut intake = open(&bus, 1).await;
    for n in 0..5 {
        send(&bus, "beta.com", n).await;
    }
    take(&mut intake, 3).await;
    let mut changes = bus.connected_changes();
    server.kill().await;
    soon("loss noticed", changes.wait_for(|up| !up))
        .await
        .expect("a change");
    assert!(!bus.connected());
    // What had arrived may still be handed out; then the loss is said.
    let kind = loop {
        match soon("intake ends", intake.next_batch(10)).await {
            Ok(_) => {}
            Err(e) => break e.kind,
        }
    };
    assert_eq!(kind, BusErrorKind::Unavailable);
    let refused = bus
        .open_intake(STORE, 2, &["uam"], &[])
        .await
        .err()
        .expect("down");
    assert_eq!(refused.kind, BusErrorKind::Unavailable);
    server.restart().await;
    soon("back", changes.wait_for(|up| *up))
        .await
        .expect("a change");
    let mut again = open_again(&bus, 3).await;
    assert_eq!(bodies(&take(&mut again, 5).await), numbers(0..5));
}

#[tokio::test]
async fn no_broker_is_an_error_within_the_patience_configured() {
    let dir = tempfile::tempdir().expect("dir");
    let mut config = nats::config(Some("nats://127.0.0.1:1".to_owned()), dir.path().into());
    config.connect_timeout = Duration::from_millis(300);
    let error = soon("gives up", Bus::connect(&config))
        .await
        .err()
        .expect("no broker");
    assert_eq!(error.kind, BusErrorKind::Unavailable);
}
