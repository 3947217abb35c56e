//! Clients that take their time: each is cut off, and nobody waits for them.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Bridge, DELIVER, Request};

/// Sends `first`, then one byte at a time; answers how long the server bore it.
async fn dribble(bridge: &Bridge, first: &str) -> Duration {
    let mut stream = TcpStream::connect(bridge.addr).await.unwrap();
    stream.write_all(first.as_bytes()).await.unwrap();
    let started = Instant::now();
    let (mut read, mut write) = stream.into_split();
    let feeding = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if write.write_all(b"a").await.is_err() {
                return;
            }
        }
    });
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), read.read_to_end(&mut rest)).await;
    feeding.abort();
    started.elapsed()
}

#[tokio::test]
async fn a_slow_head_and_a_slow_body_are_cut_off_while_others_are_served() {
    let bridge = Bridge::start().await;
    let head = format!("POST {DELIVER} HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    let body = format!(
        "POST {DELIVER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: 100000\r\n\r\n{{"
    );
    let (slow_head, slow_body, reply) =
        tokio::join!(dribble(&bridge, &head), dribble(&bridge, &body), async {
            bridge.deliver(&Request::new("m1").sign()).await
        });
    assert!(slow_head < Duration::from_secs(5), "{slow_head:?}");
    assert!(slow_body < Duration::from_secs(5), "{slow_body:?}");
    assert_eq!(reply.status, 200);
    assert_eq!(bridge.published(), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_leaves_nothing_behind() {
    let bridge = Bridge::start().await;
    let signed = Request::new("m1").sign();
    let head = format!(
        "POST {DELIVER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         X-UAM-Relay-Signature: {}\r\nContent-Length: {}\r\n\r\n",
        signed.signature,
        signed.body.len()
    );
    for cut in [1, signed.body.len() / 2, signed.body.len() - 1] {
        let mut stream = TcpStream::connect(bridge.addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&signed.body[..cut]).await.unwrap();
        drop(stream);
    }
    bridge.still_works().await;
    assert_eq!(bridge.published(), 1);
}
