//! What an offline peer's backlog costs.

use futures_util::StreamExt as _;

use super::bridge::{Bridge, connect, free_address, pin};
use super::nats::NatsServer;
use super::uam_client::{envelope, message_id};

/// Characters of each message.
const SIZE: usize = 16_000;
/// Messages of one round, 16 MB.
const ROUND: usize = 1_000;
/// Rounds within which every cache that has a bound (the database's own is the largest) is full.
const ROUNDS: usize = 6;
/// What the process may grow by in a round then, bytes.
const MOST: u64 = 1 << 20;

/// Resident bytes of a process.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("a running process has a resident size") * 1024
}

async fn publish(js: &async_nats::jetstream::Context, n: usize) {
    let text = "x".repeat(SIZE);
    let sent = futures_util::stream::iter(0..n).map(|n| {
        let from = format!("agent{}::alpha.test", n % 500);
        let body = envelope(&message_id(), &from, "bob::gone.test", &text);
        async move {
            let ack = js.publish("fed.out.uam._to.message", body.to_string().into());
            ack.await.unwrap().await.unwrap();
        }
    });
    sent.buffer_unordered(64).collect::<Vec<()>>().await;
}

/// Rows that wait, by the bridge's own gauge once `FED_OUT` is empty.
async fn rows(bridge: &Bridge, js: &async_nats::jetstream::Context, wanted: usize) {
    let end = std::time::Instant::now() + super::bridge::PATIENCE;
    loop {
        let mut stream = js.get_stream("FED_OUT").await.unwrap();
        if stream.info().await.unwrap().state.messages == 0 {
            break;
        }
        assert!(std::time::Instant::now() < end);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let database = bridge.dir.join("drawbridge.db");
    let store = drawbridge::store::Store::open_read_only(&database)
        .await
        .unwrap();
    let counts = store.queue_counts().await.unwrap();
    let pending: u64 = counts.iter().map(|c| c.pending).sum();
    assert_eq!(pending, wanted as u64, "every message is a row");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_an_offline_peers_backlog() {
    let nats = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let gone = pin("gone.test", free_address());
    let tables = format!("[log]\nlevel = \"error\"\n{gone}");
    let mut bridge = Bridge::new(dir.path(), "alpha.test", Some(&nats.url()), "", &tables);
    // What was given back leaves the process, so that its size tells what is in use.
    bridge.env("MALLOC_ARENA_MAX", "1");
    bridge.env("MALLOC_TRIM_THRESHOLD_", "131072");
    bridge.start().await;
    let js = async_nats::jetstream::new(connect(&nats.url()).await);
    let pid = bridge.pid().unwrap();
    let (mut size, mut grown) = (resident(pid), u64::MAX);
    for round in 1..=ROUNDS {
        publish(&js, ROUND).await;
        rows(&bridge, &js, ROUND * round).await;
        let now = resident(pid);
        grown = now.saturating_sub(size);
        size = now;
        println!(
            "{} rows: {size} bytes resident, {grown} more",
            ROUND * round
        );
        if grown < MOST {
            break;
        }
    }
    assert!(
        grown < MOST,
        "it grows with every round, at last by {grown} bytes"
    );
    bridge.stop().await;
}
