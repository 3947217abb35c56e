//! A database that goes away and comes back, under a store: nothing acknowledged is lost, whoever
//! asks is told to come again, and it heals by itself. (A full disk and a moved file: tests/store.rs.)

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use drawbridge::clock::Clock;
use drawbridge::config::StoreConfig;
use drawbridge::protocol::PeerName;
use drawbridge::store::*;

mod support;
use support::postgres::{self, Server};

const NOW: i64 = 1_800_000_000_000;

async fn open(server: &Server, timeout: Duration) -> Store {
    let mut config = StoreConfig::parse(&server.url(), Path::new("")).unwrap();
    config.timeout = timeout;
    Store::open(&config, Clock::fixed(NOW)).await.unwrap()
}

fn row(store: &Store, msg_id: &str) -> NewRow {
    NewRow {
        id: store.reserve_rows(1).start,
        protocol: "uam",
        peer: "beta.test".into(),
        msg_id: msg_id.into(),
        out_seq: 1,
        event_id: msg_id.into(),
        event_type: "message".into(),
        order_key: "k".into(),
        body: Bytes::from_static(b"{}"),
        created_ms: NOW,
        expires_ms: None,
        traceparent: None,
        state: RowState::Pending,
        reason: None,
        records: Vec::new(),
        room_event: None,
    }
}

fn arrival(key: &str) -> NewInbound {
    NewInbound {
        protocol: "uam",
        peer: PeerName::parse("alpha.test").unwrap(),
        dedupe_key: key.into(),
        event_id: key.into(),
        event_type: "message".into(),
        subject: "fed.in.uam.alpha_test.message".into(),
        headers: Vec::new(),
        payload: Bytes::from_static(b"{}"),
        received_ms: NOW,
        hold: false,
        replay: Vec::new(),
        room_event: None,
    }
}

async fn accept(store: &Store, key: &str) -> Result<Accepted, StoreError> {
    store.accept(arrival(key)).await.unwrap().await
}

async fn healthy(store: &Store, wanted: bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while store.healthy() != wanted {
        assert!(Instant::now() < end, "the store's health stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_server_that_is_killed_and_started_again_costs_nothing_that_was_acknowledged() {
    let Some(mut server) = Server::start_own().await else {
        return;
    };
    let store = open(&server, Duration::from_secs(5)).await;
    let first = row(&store, "m1");
    let id = first.id;
    store.enqueue(vec![first]).await.unwrap().await.unwrap();
    assert!(matches!(accept(&store, "k1").await, Ok(Accepted::New(_))));

    server.kill9().await;
    let refused = accept(&store, "k2").await.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Unavailable, "{refused}");
    assert!(!store.healthy());
    let unread = store.queue_counts().await.unwrap_err();
    assert_eq!(unread.kind, StoreErrorKind::Unavailable, "{unread}");
    // What must be written sooner or later waits, and keeps its order.
    let second = row(&store, "m2");
    let later = second.id;
    let waits = store.enqueue(vec![second]).await.unwrap();
    let outcome = Settle {
        row: id,
        outcome: Outcome::Delivered { at_ms: NOW },
        attempts: 1,
        attempt: None,
    };
    let settled = store.settle(outcome).await.unwrap();

    server.start().await;
    waits.await.unwrap();
    settled.await.unwrap();
    healthy(&store, true).await;
    let state = async |id| store.row(id).await.unwrap().unwrap().state;
    assert_eq!(state(id).await, RowState::Delivered);
    assert_eq!(state(later).await, RowState::Pending);
    let again = accept(&store, "k1").await.unwrap();
    assert!(matches!(again, Accepted::Duplicate { .. }), "{again:?}");
    assert!(matches!(accept(&store, "k2").await, Ok(Accepted::New(_))));

    // Once more, with nothing to be written: an idle store finds out by itself.
    server.kill9().await;
    accept(&store, "k3").await.unwrap_err();
    server.start().await;
    healthy(&store, true).await;
    store.close().await;
}

#[tokio::test]
async fn a_server_that_hangs_does_not_hang_the_writer() {
    let Some(server) = Server::start_own().await else {
        return;
    };
    let store = open(&server, Duration::from_millis(500)).await;
    accept(&store, "k1").await.unwrap();
    server.freeze(true);
    let begun = Instant::now();
    let refused = accept(&store, "k2").await.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Unavailable, "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{begun:?}");
    server.freeze(false);
    healthy(&store, true).await;
    accept(&store, "k2").await.unwrap();
    store.close().await;
}

/// The sessions that hold the lock of a schema's store.
const HOLDERS: &str = "FROM pg_locks WHERE locktype = 'advisory' \
     AND objid::bigint = hashtext(current_schema()::text)::bigint & 4294967295";

#[tokio::test]
async fn a_session_that_was_ended_takes_the_lock_again_before_it_writes() {
    let Some(url) = postgres::fresh().await else {
        return;
    };
    let config = StoreConfig::parse(&url, Path::new("")).unwrap();
    let store = Store::open(&config, Clock::fixed(NOW)).await.unwrap();
    accept(&store, "k1").await.unwrap();
    let holders = format!("SELECT COUNT(*) {HOLDERS}");
    assert_eq!(postgres::number(&url, &holders).await, 1);
    let end = format!("SELECT pg_terminate_backend(pid) {HOLDERS}");
    postgres::run(&url, &end).await.unwrap();
    accept(&store, "k2").await.unwrap_err();
    healthy(&store, true).await;
    accept(&store, "k2").await.unwrap();
    assert_eq!(postgres::number(&url, &holders).await, 1);
    store.close().await;
}

#[tokio::test]
async fn instances_share_a_database_and_keep_out_who_wants_it_alone() {
    let Some(url) = postgres::fresh().await else {
        return;
    };
    let mut alone = StoreConfig::parse(&url, Path::new("")).unwrap();
    alone.timeout = Duration::from_millis(500);
    let mut shared = alone.clone();
    shared.shared = true;
    let clock = || Clock::fixed(NOW);
    let (first, second) =
        tokio::join!(Store::open(&shared, clock()), Store::open(&shared, clock()));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(first.shared() && first.id() == second.id());
    let refused = Store::open(&alone, clock()).await.err().unwrap();
    assert_eq!(refused.kind, StoreErrorKind::InUse, "{refused}");
    assert!(refused.to_string().contains("store.shared"), "{refused}");
    first.close().await;
    second.close().await;
    let only = Store::open(&alone, clock()).await.unwrap();
    // It may pass: that one may only be setting the database up.
    let refused = Store::open(&shared, clock()).await.err().unwrap();
    assert_eq!(refused.kind, StoreErrorKind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("wants it alone"), "{refused}");
    only.close().await;
    Store::open(&shared, clock()).await.unwrap().close().await;
}

#[tokio::test]
async fn a_store_that_another_process_had_meanwhile_is_not_written_any_more() {
    let Some(url) = postgres::fresh().await else {
        return;
    };
    let config = StoreConfig::parse(&url, Path::new("")).unwrap();
    let store = Store::open(&config, Clock::fixed(NOW)).await.unwrap();
    accept(&store, "k1").await.unwrap();
    // As if another one had opened and closed it while the connection was gone.
    let other = format!(
        "UPDATE meta SET value = '77' WHERE name = 'openings'; SELECT pg_terminate_backend(pid) {HOLDERS}"
    );
    postgres::run(&url, &other).await.unwrap();
    accept(&store, "k2").await.unwrap_err();
    let refused = accept(&store, "k3").await.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Unavailable);
    let said = "another drawbridge used this database";
    let refused = refused.to_string();
    assert!(
        refused.contains(said) || refused.contains("takes no writes"),
        "{refused}"
    );
    let accepted = "SELECT COUNT(*) FROM federation_events";
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!store.healthy(), "the store is not ours any more");
    assert_eq!(postgres::number(&url, accepted).await, 1);
    store.close().await;
}

#[tokio::test]
async fn what_is_acknowledged_is_on_the_disk_however_the_server_is_set() {
    let Some(url) = postgres::fresh().await else {
        return;
    };
    // The server's own default here is synchronous_commit = off.
    let default =
        "SELECT COUNT(*) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'";
    assert_eq!(postgres::number(&url, default).await, 1);
    let config = StoreConfig::parse(&url, Path::new("")).unwrap();
    let store = Store::open(&config, Clock::fixed(NOW)).await.unwrap();
    // A trigger sees the session that writes.
    postgres::run(
        &url,
        "CREATE TABLE seen (setting TEXT); \
         CREATE FUNCTION note() RETURNS trigger AS $$ BEGIN \
         INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$ \
         LANGUAGE plpgsql; \
         CREATE TRIGGER note AFTER INSERT ON federation_events EXECUTE FUNCTION note()",
    )
    .await
    .unwrap();
    accept(&store, "k1").await.unwrap();
    let on = "SELECT COUNT(*) FROM seen WHERE setting = 'on'";
    assert_eq!(postgres::number(&url, on).await, 1);
    store.close().await;
}

#[tokio::test]
async fn the_server_is_spoken_to_over_tls_and_only_if_it_is_the_right_one() {
    let Some(mut server) = Server::start_own().await else {
        return;
    };
    let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let (own, other) = (made("localhost"), made("localhost"));
    let dir = tempfile::tempdir().unwrap();
    let root = |name: &str, pem: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, pem).unwrap();
        file.display().to_string()
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    server.stop();
    server.with_tls(port, &own.cert.pem(), &own.signing_key.serialize_pem());
    server.start().await;
    let open = async |root: String| {
        let url = format!(
            "postgres://bridge@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={root}"
        );
        let config = StoreConfig::parse(&url, Path::new("")).unwrap();
        Store::open(&config, Clock::fixed(NOW)).await
    };
    let refused = open(root("other.pem", &other.cert.pem())).await.err();
    assert_eq!(refused.unwrap().kind, StoreErrorKind::Unavailable);
    let store = open(root("own.pem", &own.cert.pem())).await.unwrap();
    accept(&store, "k1").await.unwrap();
    let encrypted = "SELECT COUNT(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE ssl AND application_name = 'drawbridge'";
    assert!(postgres::number(&server.url(), encrypted).await > 0);
    store.close().await;
}

#[tokio::test]
async fn the_session_of_a_process_that_was_just_killed_is_waited_for() {
    let Some(server) = Server::start_own().await else {
        return;
    };
    let patience = Duration::from_secs(10);
    open(&server, patience).await.close().await;
    let url = server.url();
    // Such a session: the lock is its own until its statement has ended.
    let lingering = tokio::spawn(async move {
        let sql =
            "SELECT pg_advisory_lock(1685223266, hashtext(current_schema()::text)), pg_sleep(1)";
        postgres::run(&url, sql).await
    });
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    while postgres::number(&server.url(), locks).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    open(&server, patience).await.close().await;
    lingering.await.unwrap().unwrap();
}
