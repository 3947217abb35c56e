//! What the admin API works on, over a real store and with nothing running beside it.

use std::sync::Arc;

use drawbridge::admin::AdminState;
use drawbridge::clock::Clock;
use drawbridge::config::{PeerPin, Secret};
use drawbridge::ops::Ops;
use drawbridge::ops::health::Health;
use drawbridge::peers::Peers;
use drawbridge::store::Store;
use drawbridge::trust::Trust;

/// The time it is.
pub const NOW: i64 = 1_800_000_000_000;
/// The token that opens it.
pub const TOKEN: &str = "a-token-of-these-tests-alone";

/// A state with one pinned peer, and the folder it lives in.
pub async fn state(pinned: &str) -> (AdminState, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let store = Store::open(&dir.path().join("d.sqlite"), clock.clone())
        .await
        .unwrap();
    let pin = Arc::new(PeerPin {
        protocol: "uam".into(),
        name: pinned.into(),
        endpoint: Some(format!("https://relay.{pinned}")),
        public_key: None,
        key_id: None,
        domain: None,
        accepted: true,
    });
    let peers = Peers::open(store.clone(), &[pin], clock.clone())
        .await
        .unwrap();
    let trust = Trust::open(store.clone(), clock.clone()).await.unwrap();
    let state = AdminState {
        store,
        peers,
        trust,
        door: None,
        lanes: None,
        health: Health::new(),
        ops: Ops::silent(),
        clock,
        protocols: vec!["uam"],
        speakers: Vec::new(),
        token: Secret(TOKEN.to_owned().into()),
        metrics_open: true,
        loopback_only: true,
    };
    (state, dir)
}
