//! SIGTERM: red first, nothing new, what is in hand is finished, once.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::world::{Peer, World, within};
use crate::support::sink;
use crate::support::uam_client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_bridge_answers_what_is_in_hand_and_records_what_is_in_flight() {
    let mut world = World::new("discovery = false", "").await;
    let beta = Peer::start(world.dir.path(), "beta.test", "slow 1500").await;
    world.rewrite(|text| format!("{text}\n{}", beta.pin));
    world.bridge.start().await;

    // A request in hand: its body is asked for, and only half of it is there.
    let envelope = uam_client::envelope(
        &uam_client::message_id(),
        "bob::beta.test",
        "alice::alpha.test",
        "hello",
    );
    let delivery = uam_client::delivery("beta.test", &envelope, false);
    let mut socket = TcpStream::connect(world.bridge.public).await.unwrap();
    let head = format!(
        "POST /api/v1/federation/deliver HTTP/1.1\r\nHost: alpha.test\r\nExpect: 100-continue\r\n\
         Content-Type: application/json\r\nX-UAM-Relay-Signature: {}\r\nContent-Length: {}\r\n\r\n",
        delivery.signature,
        delivery.body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    socket.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    let (half, rest) = delivery.body.as_bytes().split_at(100);
    socket.write_all(half).await.unwrap();

    // An attempt in flight.
    let id = world.publish("beta.test", &[]).await;
    beta.gets(&id).await;
    world.bridge.signal("TERM");

    within(
        "readiness is red while the process still works",
        async || {
            let (status, body) = world.readiness().await?;
            (status == 503 && body["reasons"]["drain"].is_string()).then_some(())
        },
    )
    .await;
    assert!(!world.bridge.ended());
    within("nobody is let in any more", async || {
        TcpStream::connect(world.bridge.public)
            .await
            .is_err()
            .then_some(())
    })
    .await;
    // Whether it is pulled or not, it must wait for the next start.
    let late = world.publish("beta.test", &[]).await;

    socket.write_all(rest).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("delivered"), "{answer}");

    let status = world.bridge.exit(Duration::from_secs(20)).await;
    assert!(status.success(), "{status}");
    assert!(beta.arrivals(&late).is_empty(), "nothing new was begun");

    sink::set_mode(&beta.dir, "ok");
    world.bridge.start().await;
    beta.gets(&late).await;
    assert_eq!(beta.arrivals(&id).len(), 1, "its outcome was recorded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() {
    let mut world = World::new("discovery = false", "").await;
    let beta = Peer::start(world.dir.path(), "beta.test", "slow 20000").await;
    world.rewrite(|text| format!("{text}\n{}", beta.pin));
    world.bridge.start().await;
    let id = world.publish("beta.test", &[]).await;
    beta.gets(&id).await;
    world.bridge.signal("TERM");
    world.logs("drawbridge is draining").await;
    assert!(!world.bridge.ended());
    let begun = Instant::now();
    world.bridge.signal("TERM");
    let status = world.bridge.exit(Duration::from_secs(10)).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(status.code(), Some(1));
    world.logs("stopped at once by a second signal").await;
}
