//! The division is the broker's own.

use bytes::Bytes;
use drawbridge::cluster::units;

use crate::support::nats::NatsServer;

#[tokio::test]
async fn a_peers_part_is_the_partition_that_the_broker_stores_its_messages_under() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    bus.apply_streams().await.expect("streams");
    let mut peers: Vec<String> = (0..40).map(|n| format!("p{n}.example.org")).collect();
    peers.extend(["beta.com:8443", "xn--bcher-kva.example", "a.b", "[::1]:7"].map(str::to_owned));
    peers.push("x".repeat(200));
    for peer in &peers {
        bus.publish_out("uam", peer, "message", vec![], Bytes::from_static(b"{}"))
            .await
            .expect("stored");
    }
    let mut intake = bus
        .open_intake("store-1", 1, &["uam"], &[])
        .await
        .expect("intake");
    let mut met = 0;
    while met < peers.len() {
        for message in intake.next_batch(256).await.expect("messages") {
            assert_eq!(
                message.partition,
                units::part("uam", &peers[met]),
                "{}",
                peers[met]
            );
            met += 1;
        }
    }
}
