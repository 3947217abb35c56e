//! What an offline peer's backlog costs.

use futures_util::StreamExt as _;

use super::bridge::{Bridge, connect, free_address, pin};
use super::nats::NatsServer;
use super::uam_client::{envelope, message_id};

/// Characters of each message.
const SIZE: usize = 32_000;
/// Enough to fill every cache that has a bound (the database's own is the largest).
const FIRST: usize = 1_200;
const MORE: usize = 1_200;
/// What the process may grow by, bytes: the backlog is several times as much.
const MOST: u64 = 12 << 20;

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
    bridge.start().await;
    let js = async_nats::jetstream::new(connect(&nats.url()).await);
    publish(&js, FIRST).await;
    rows(&bridge, &js, FIRST).await;
    let pid = bridge.pid().unwrap();
    let before = resident(pid);
    publish(&js, MORE).await;
    rows(&bridge, &js, FIRST + MORE).await;
    let after = resident(pid);
    let grown = after.saturating_sub(before);
    println!(
        "resident: {before} B with {FIRST} rows, {after} B with {}",
        FIRST + MORE
    );
    assert!(
        grown < MOST,
        "{grown} bytes more for {MORE} messages of {SIZE} bytes"
    );
    bridge.stop().await;
}
