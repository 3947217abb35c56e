//! `drawbridge store …`: a copy made beside a running bridge, and the move from SQLite to PostgreSQL,
//! which leaves nothing out, nothing half done, and nothing in a place that is in use.

use std::path::Path;
use std::process::{Command, Output};

use bytes::Bytes;
use drawbridge::clock::Clock;
use drawbridge::config::StoreConfig;
use drawbridge::protocol::{PeerName, PeerRecord, Record, ReplayId};
use drawbridge::store::*;

mod support;
use support::postgres;

const NOW: i64 = 1_800_000_000_000;

fn drawbridge(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .arg("store")
        .args(arguments)
        .env("DRAWBRIDGE_DATA_DIR", dir)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A store with something of everything.
async fn filled(dir: &Path) -> Store {
    let store = Store::open(&dir.join("drawbridge.db"), Clock::fixed(NOW))
        .await
        .unwrap();
    let row = |n: usize, peer: &str| NewRow {
        id: store.reserve_rows(1).start,
        protocol: "uam",
        peer: peer.into(),
        msg_id: format!("m{n}\0"),
        out_seq: 7,
        event_id: format!("e{n}"),
        event_type: "message".into(),
        order_key: "a>b".into(),
        body: Bytes::from(vec![0xff; 1024]),
        created_ms: NOW,
        expires_ms: None,
        traceparent: None,
        state: RowState::Pending,
        reason: None,
        records: vec![Record {
            kind: "room",
            key: format!("r{n}"),
            value: Some("{}".into()),
        }],
        room_event: None,
    };
    let rows: Vec<_> = (0..120).map(|n| row(n, "beta.test")).collect();
    let failed = rows[3].id;
    let shared = vec![row(900, "b.test"), row(900, "c.test")];
    store.enqueue(rows).await.unwrap().await.unwrap();
    store.enqueue(shared).await.unwrap().await.unwrap();
    let settle = Settle {
        row: failed,
        outcome: Outcome::Dead {
            at_ms: NOW,
            code: "gave_up".into(),
            reason: "five attempts".into(),
        },
        attempts: 5,
        attempt: Some(AttemptRow {
            queue_id: failed,
            number: 5,
            at_ms: NOW,
            duration_ms: 3,
            status: None,
            code: "timeout".into(),
            detail: "late".into(),
        }),
    };
    store.settle(settle).await.unwrap().await.unwrap();
    for n in 0..3 {
        let event = NewInbound {
            protocol: "uam",
            peer: PeerName::parse("alpha.test").unwrap(),
            dedupe_key: format!("k{n}"),
            event_id: format!("k{n}"),
            event_type: "message".into(),
            subject: "fed.in.uam.alpha_test.message".into(),
            headers: vec![("Fed-Hops".into(), "1".into())],
            payload: Bytes::from_static(b"{\"hello\":1}"),
            received_ms: NOW,
            hold: n == 2,
            replay: vec![ReplayId {
                scope: "alpha.test".into(),
                id: vec![n, 0, 255],
                expires_ms: NOW + 1000,
            }],
            room_event: None,
        };
        store.accept(event).await.unwrap().await.unwrap();
    }
    let record = PeerRecord {
        protocol: "uam",
        name: PeerName::parse("beta.test").unwrap(),
        endpoint: "https://beta.test/".into(),
        alternatives: Vec::new(),
        public_key: Some([7; 32]),
        discovered_via: "dns-srv".into(),
        last_verified_ms: NOW,
        ttl_ms: Some(1),
        facts: serde_json::Map::new(),
    };
    store.put_peer(record).await.unwrap().await.unwrap();
    let rule = TrustRow {
        id: 0,
        protocol: "uam".into(),
        pattern: "*.bad.test".into(),
        rule: "block".into(),
        reason: None,
        created_ms: NOW,
        ends_ms: None,
    };
    store.put_trust(rule).await.unwrap().await.unwrap();
    store
}

#[tokio::test]
async fn a_store_moves_to_postgresql_whole_and_only_once() {
    let Some(url) = postgres::fresh().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let id = store.id().to_owned();
    let next = store.reserve_rows(1).start;

    let running = drawbridge(dir.path(), &["migrate", "--to", &url]);
    assert!(!running.status.success());
    assert!(said(&running).contains("in use by another drawbridge"));
    let before = info(&StoreConfig::from(&dir.path().join("drawbridge.db")))
        .await
        .unwrap();
    let rows = store.list_rows(&RowFilter::default()).await.unwrap();
    let events = store.inbound_after(0, 10).await.unwrap();
    store.close().await;

    let moved = drawbridge(dir.path(), &["migrate", "--to", &url]);
    assert!(moved.status.success(), "{}", said(&moved));
    assert!(
        said(&moved).contains("federation_queue"),
        "{}",
        said(&moved)
    );
    let config = StoreConfig::parse(&url, Path::new("")).unwrap();
    let after = info(&config).await.unwrap();
    assert_eq!(after.tables, before.tables);
    assert!(
        before
            .tables
            .iter()
            .any(|t| t.table == "federation_held" && t.rows == 1)
    );

    let store = Store::open(&config, Clock::fixed(NOW)).await.unwrap();
    assert_eq!(store.id(), id, "it is the same store elsewhere");
    assert!(
        store.reserve_rows(1).start > next,
        "no number is used twice"
    );
    let found = store.list_rows(&RowFilter::default()).await.unwrap();
    assert_eq!(
        format!("{found:?}"),
        format!("{rows:?}"),
        "every row as it was"
    );
    let found = store.inbound_after(0, 10).await.unwrap();
    assert_eq!(format!("{found:?}"), format!("{events:?}"));
    // What PostgreSQL numbers itself goes on where SQLite was.
    let mut rule = store.trust_rules().await.unwrap().remove(0);
    rule.pattern = "*.worse.test".into();
    store.put_trust(rule).await.unwrap().await.unwrap();
    assert_eq!(store.trust_rules().await.unwrap().len(), 2);
    store.close().await;

    let again = drawbridge(dir.path(), &["migrate", "--to", &url]);
    assert!(!again.status.success());
    assert!(said(&again).contains("is not empty"), "{}", said(&again));
}

#[tokio::test]
async fn a_move_that_fails_leaves_nothing_behind_and_can_be_repeated() {
    let Some(url) = postgres::fresh().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await.close().await;
    let config = StoreConfig::parse(&url, Path::new("")).unwrap();
    // The schema is there, and one table takes nothing.
    let store = Store::open(&config, Clock::fixed(NOW)).await.unwrap();
    store.close().await;
    postgres::run(
        &url,
        "DELETE FROM meta; ALTER TABLE known_relays ADD CONSTRAINT none CHECK (domain = '')",
    )
    .await
    .unwrap();
    let failed = drawbridge(dir.path(), &["migrate", "--to", &url]);
    assert!(!failed.status.success());
    assert!(said(&failed).contains("known_relays"), "{}", said(&failed));
    let left = "SELECT COUNT(*) FROM federation_queue";
    assert_eq!(postgres::number(&url, left).await, 0);
    postgres::run(&url, "ALTER TABLE known_relays DROP CONSTRAINT none")
        .await
        .unwrap();
    let moved = drawbridge(dir.path(), &["migrate", "--to", &url]);
    assert!(moved.status.success(), "{}", said(&moved));
    assert_eq!(postgres::number(&url, left).await, 122);
}

#[tokio::test]
async fn a_backup_is_taken_while_the_store_is_written_and_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let copy = dir.path().join("copy.db");
    let done = drawbridge(dir.path(), &["backup", copy.to_str().unwrap()]);
    assert!(done.status.success(), "{}", said(&done));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "others could read it");
    let other = Store::open(&copy, Clock::fixed(NOW)).await.unwrap();
    assert_eq!(other.id(), store.id());
    assert_eq!(
        format!("{:?}", other.list_rows(&RowFilter::default()).await),
        format!("{:?}", store.list_rows(&RowFilter::default()).await)
    );
    other.close().await;
    let again = drawbridge(dir.path(), &["backup", copy.to_str().unwrap()]);
    assert!(!again.status.success(), "a file that is there is kept");
    let shown = drawbridge(dir.path(), &["info", "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["id"], store.id());
    store.close().await;
}

#[tokio::test]
async fn postgresql_is_backed_up_by_the_command_that_is_said() {
    let Some(server) = postgres::Server::start_own().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig::parse(&server.url(), Path::new("")).unwrap();
    let store = Store::open(&config, Clock::fixed(NOW)).await.unwrap();
    let file = dir.path().join("it's.dump");
    let Backup::Command(command) = backup(&config, &file).await.unwrap() else {
        panic!("no file is written for PostgreSQL");
    };
    let path = format!(
        "{}:{}",
        server.bin().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    if server.bin().join("pg_dump").exists() {
        let done = Command::new("sh")
            .args(["-c", &command])
            .env("PATH", path)
            .output();
        let done = done.unwrap();
        assert!(done.status.success(), "{command}: {}", said(&done));
        assert!(std::fs::metadata(&file).unwrap().len() > 0);
    }
    store.close().await;
}
