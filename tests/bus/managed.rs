//! The nats-server that a bridge without `nats.url` runs for itself: started again, stopped with its
//! bridge, never twice.

use std::process::Stdio;

use drawbridge::bus::{Bus, BusErrorKind, ManagedServer};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::nats;
use crate::{bodies, open_again, send, soon, take};

#[tokio::test]
async fn the_managed_server_is_started_again_on_its_port_and_stopped_with_us() {
    let dir = tempfile::tempdir().expect("dir");
    let mut config = nats::config(None, dir.path().join("nats"));
    let guard = nats::drawbridge_binary();
    let server = ManagedServer::start_guarded_by(&config, &guard)
        .await
        .expect("started");
    assert_eq!(
        ManagedServer::running_url(&config.managed).await,
        Some(server.url())
    );
    config.url = Some(server.url());
    let bus = Bus::connect(&config).await.expect("connected");
    bus.apply_streams().await.expect("streams");
    assert_eq!(bus.server().max_payload, 16 * 1024 * 1024);
    send(&bus, "beta.com", 1).await;

    let second = ManagedServer::start_guarded_by(&config, &guard).await;
    assert_eq!(
        second.err().expect("same directory").kind,
        BusErrorKind::Config
    );

    let first = server.pid().expect("running");
    let mut pids = server.pid_changes();
    kill(first, "-KILL");
    let pid = soon(
        "started again",
        pids.wait_for(|pid| pid.is_some_and(|p| p != first)),
    )
    .await
    .expect("a change")
    .expect("running");
    let mut up = bus.connected_changes();
    soon("connected again", up.wait_for(|up| *up))
        .await
        .expect("a change");
    let mut intake = open_again(&bus, 1).await;
    assert_eq!(
        bodies(&take(&mut intake, 1).await),
        ["1"],
        "nothing was lost"
    );
    let url = server.url();
    soon("stops", server.stop()).await;
    assert!(!nats::alive(pid));
    assert_eq!(ManagedServer::running_url(&config.managed).await, None);

    let again = ManagedServer::start_guarded_by(&config, &guard)
        .await
        .expect("started");
    assert_eq!(again.url(), url, "the port is kept over runs");
    again.stop().await;
}

#[tokio::test]
async fn a_guard_that_is_killed_leaves_no_second_server_behind() {
    let dir = tempfile::tempdir().expect("dir");
    let config = nats::config(None, dir.path().join("nats"));
    let server = ManagedServer::start_guarded_by(&config, &nats::drawbridge_binary())
        .await
        .expect("started");
    let first = server.pid().expect("running");
    let parent = std::fs::read_to_string(format!("/proc/{first}/stat")).expect("its parent");
    let guard: u32 = parent
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(1))
        .and_then(|pid| pid.parse().ok())
        .expect("a process id");
    let mut pids = server.pid_changes();
    kill(guard, "-KILL");
    soon(
        "started again",
        pids.wait_for(|pid| pid.is_some_and(|p| p != first)),
    )
    .await
    .expect("a change");
    assert!(!nats::alive(first), "the old server was ended first");
    server.stop().await;
}

/// The test starts itself again as the bridge would run, kills that, and looks for the server.
#[tokio::test]
async fn the_managed_server_ends_when_its_bridge_is_killed() {
    const INNER: &str = "DRAWBRIDGE_TEST_INNER_STORE";
    if let Some(dir) = std::env::var_os(INNER) {
        let config = nats::config(None, dir.into());
        let server = ManagedServer::start_guarded_by(&config, &nats::drawbridge_binary())
            .await
            .expect("started");
        println!("\nserver {}", server.pid().expect("running"));
        std::future::pending::<()>().await;
    }
    let dir = tempfile::tempdir().expect("dir");
    let mut bridge = tokio::process::Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "managed::the_managed_server_ends_when_its_bridge_is_killed",
            "--nocapture",
        ])
        .env(INNER, dir.path().join("nats"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(bridge.stdout.take().expect("its output")).lines();
    let pid: u32 = soon("the server runs", async {
        loop {
            let line = lines.next_line().await.expect("a line").expect("more");
            if let Some(pid) = line.strip_prefix("server ") {
                break pid.parse().expect("a process id");
            }
        }
    })
    .await;
    assert!(nats::alive(pid));
    bridge.kill().await.expect("killed");
    nats::gone(pid).await;
}

fn kill(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill")
        .args([signal, &pid.to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success());
}
