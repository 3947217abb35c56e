//! The store's promises, against real database files and a real PostgreSQL: the same tests on both.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use drawbridge::clock::Clock;
use drawbridge::config::{StoreConfig, StorePlace};
use drawbridge::protocol::{PeerName, PeerRecord, Record, ReplayId};
use drawbridge::store::*;

mod support;
use support::postgres;

const DAY: i64 = 24 * 60 * 60 * 1000;
const NOW: i64 = 1_800_000_000_000;

struct Fixture {
    dir: tempfile::TempDir,
    clock: Clock,
    config: StoreConfig,
    store: Store,
}

impl Fixture {
    /// A store in a file.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::from(&dir.path().join("d.db"));
        Self::at(dir, config).await
    }

    /// A store on the shared server; `None` without one.
    async fn postgres() -> Option<Self> {
        let url = postgres::fresh().await?;
        let config = StoreConfig::parse(&url, Path::new("")).unwrap();
        Some(Self::at(tempfile::tempdir().unwrap(), config).await)
    }

    async fn at(dir: tempfile::TempDir, config: StoreConfig) -> Self {
        let clock = Clock::fixed(NOW);
        let store = Store::open(&config, clock.clone()).await.unwrap();
        Self {
            dir,
            clock,
            config,
            store,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("d.db")
    }

    /// Runs SQL on it as any other program would.
    async fn sql(&self, text: &str) {
        match &self.config.place {
            StorePlace::Sqlite(path) => sql(path, text).await,
            StorePlace::Postgres(url) => postgres::run(&url.0.0, text).await.unwrap(),
        }
    }

    async fn reopened(mut self) -> Self {
        self.store.close().await;
        self.store = Store::open(&self.config, self.clock.clone()).await.unwrap();
        self
    }
}

/// Runs each test on either database.
macro_rules! on_both {
    ($($name:ident,)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Fixture::new().await).await;
            })*
        }
        mod postgresql {
            $(#[tokio::test]
            async fn $name() {
                if let Some(f) = super::Fixture::postgres().await {
                    super::$name(f).await;
                }
            })*
        }
    };
}

on_both! {
    what_was_committed_is_there_after_reopening,
    an_acknowledged_commit_is_readable_by_another_process_at_once,
    an_outcome_handed_in_with_its_row_leaves_one_row_with_it,
    outcomes_come_and_go_as_attempts_are_made,
    a_message_known_at_a_peer_is_skipped_with_its_records,
    a_read_sees_everything_handed_in_before_it,
    a_body_sent_to_many_is_stored_once_and_goes_with_the_last_of_them,
    an_event_is_new_once_then_a_duplicate_that_says_whether_it_is_the_same,
    a_replay_id_counts_until_it_expires,
    a_replay_id_is_spent_by_one_of_many_whether_with_an_event_or_without,
    what_waits_at_closing_is_still_written,
    ledger_numbers_ascend_over_restarts_and_pruning,
    pruning_keeps_what_is_still_needed,
    lanes_tell_where_to_begin_and_when,
    peers_trust_records_and_keys_read_back_as_written,
    what_is_known_of_a_peer_goes_with_age_unless_it_is_needed,
    one_unreadable_peer_costs_no_other,
    outcomes_of_one_row_come_to_the_same_in_any_order,
    any_text_is_stored_and_read_back_as_it_was,
    a_second_writer_of_the_same_store_is_refused,
    a_store_of_a_newer_version_is_refused,
}

fn peer(name: &str) -> PeerName {
    PeerName::parse(name).unwrap()
}

fn new_row(store: &Store, msg_id: &str, to: &str) -> NewRow {
    NewRow {
        id: store.reserve_rows(1).start,
        protocol: "uam",
        peer: to.into(),
        msg_id: msg_id.into(),
        out_seq: 7,
        event_id: format!("e-{msg_id}"),
        event_type: "message".into(),
        order_key: "a>b".into(),
        body: Bytes::from(vec![b'x'; 1024]),
        created_ms: NOW,
        expires_ms: None,
        traceparent: None,
        state: RowState::Pending,
        reason: None,
        records: Vec::new(),
        room_event: None,
    }
}

fn settle(row: i64, outcome: Outcome) -> Settle {
    Settle {
        row,
        outcome,
        attempts: 1,
        attempt: None,
    }
}

fn dead(row: i64) -> Settle {
    let (code, reason) = ("gave_up".into(), "five attempts failed".into());
    settle(
        row,
        Outcome::Dead {
            at_ms: NOW,
            code,
            reason,
        },
    )
}

fn retry(row: i64, next_at_ms: i64) -> Settle {
    let outcome = Outcome::Retry {
        first_failed_ms: NOW,
        next_at_ms,
        peer_fault: true,
        code: "timeout".into(),
        reason: "no answer in 30 s".into(),
    };
    let attempt = AttemptRow {
        queue_id: row,
        number: 1,
        at_ms: NOW,
        duration_ms: 30_000,
        status: Some(503),
        code: "timeout".into(),
        detail: "no answer in 30 s".into(),
    };
    Settle {
        row,
        outcome,
        attempts: 1,
        attempt: Some(attempt),
    }
}

fn delivered(row: i64) -> Settle {
    settle(row, Outcome::Delivered { at_ms: NOW })
}

fn arrival(key: &str, nonce: &[u8]) -> NewInbound {
    NewInbound {
        protocol: "uam",
        peer: peer("alpha.test"),
        dedupe_key: key.into(),
        event_id: key.into(),
        event_type: "message".into(),
        subject: "fed.in.uam.alpha_test.message".into(),
        headers: vec![
            ("Fed-Peer".into(), "alpha.test".into()),
            ("Fed-Hops".into(), "1".into()),
        ],
        payload: Bytes::from_static(b"{\"hello\":1}"),
        received_ms: NOW,
        hold: false,
        replay: vec![ReplayId {
            scope: "alpha.test".into(),
            id: nonce.to_vec(),
            expires_ms: NOW + 600_000,
        }],
        room_event: None,
    }
}

async fn accept(store: &Store, event: NewInbound) -> Accepted {
    store.accept(event).await.unwrap().await.unwrap()
}

async fn what_was_committed_is_there_after_reopening(f: Fixture) {
    let row = new_row(&f.store, "m1", "beta.test");
    let id = row.id;
    f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
    let store_id = f.store.id().to_owned();
    let f = f.reopened().await;
    assert_eq!(f.store.id(), store_id);
    let rows = f
        .store
        .pending("uam", &peer("beta.test"), 0, 10)
        .await
        .unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].id, rows[0].body.len(), rows[0].out_seq),
        (id, 1024, 7)
    );
    assert_eq!(rows[0].event_id, "e-m1");
}

async fn an_acknowledged_commit_is_readable_by_another_process_at_once(f: Fixture) {
    let row = new_row(&f.store, "m1", "beta.test");
    f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
    let reader = Store::open_read_only(&f.config).await.unwrap();
    assert_eq!(
        reader.list_rows(&RowFilter::default()).await.unwrap().len(),
        1
    );
    assert_eq!(reader.id(), f.store.id());
    let refused = reader.noticed(vec![1]).await.unwrap().await.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Unavailable);
    reader.close().await;
}

#[tokio::test]
async fn a_copy_of_the_files_taken_at_any_moment_holds_everything_acknowledged() {
    // What a killed process leaves behind: the files as they are, nothing closed.
    let f = Fixture::new().await;
    for n in 0..50 {
        let row = new_row(&f.store, &format!("m{n}"), "beta.test");
        f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    for name in ["d.db", "d.db-wal"] {
        std::fs::copy(f.dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let other = Store::open(&copy.path().join("d.db"), Clock::system())
        .await
        .unwrap();
    assert_eq!(other.queue_counts().await.unwrap()[0].pending, 50);
    assert!(other.reserve_rows(1).start > f.store.reserve_rows(1).start);
}

async fn an_outcome_handed_in_with_its_row_leaves_one_row_with_it(f: Fixture) {
    let row = new_row(&f.store, "m1", "beta.test");
    let id = row.id;
    let inserted = f.store.enqueue(vec![row]).await.unwrap();
    let settled = f.store.settle(delivered(id)).await.unwrap();
    inserted.await.unwrap();
    settled.await.unwrap();
    let row = f.store.row(id).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.attempts, row.settled_ms),
        (RowState::Delivered, 1, Some(NOW))
    );
    assert!(row.body.is_empty());
    let known = f
        .store
        .known_messages("uam", vec!["m1".into(), "m2".into()])
        .await
        .unwrap();
    assert_eq!(known, HashSet::from(["m1".to_owned()]));
    // More than are asked about at once; one is there.
    let copy = |id: &str, peer: &str| (id.to_owned(), PeerName::parse(peer).unwrap());
    let mut copies: Vec<_> = (0..150)
        .map(|n| copy("m1", &format!("p{n}.test")))
        .collect();
    copies.extend([copy("m1", "beta.test"), copy("m2", "beta.test")]);
    let known = f.store.known_copies("uam", copies).await.unwrap();
    assert_eq!(known, HashSet::from([copy("m1", "beta.test")]));
}

async fn outcomes_come_and_go_as_attempts_are_made(f: Fixture) {
    let row = new_row(&f.store, "m1", "beta.test");
    let id = row.id;
    f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
    f.store
        .settle(retry(id, NOW + 30_000))
        .await
        .unwrap()
        .await
        .unwrap();
    let row = f.store.row(id).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.next_at_ms),
        (RowState::Pending, Some(NOW + 30_000))
    );
    assert!(row.peer_fault);
    assert_eq!(row.reason_code.as_deref(), Some("timeout"));
    assert_eq!(f.store.attempts_of(id).await.unwrap()[0].status, Some(503));

    f.store.settle(dead(id)).await.unwrap().await.unwrap();
    let unnoticed = f.store.unnoticed_dead(0, 10).await.unwrap();
    assert_eq!((unnoticed.len(), unnoticed[0].body.len()), (1, 1024));
    assert_eq!(unnoticed[0].first_failed_ms, Some(NOW));
    f.store.noticed(vec![id]).await.unwrap().await.unwrap();
    assert!(f.store.unnoticed_dead(0, 10).await.unwrap().is_empty());

    assert_eq!(f.store.redrive(vec![id]).await.unwrap().await.unwrap(), 1);
    let row = f.store.row(id).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.attempts, row.first_failed_ms),
        (RowState::Pending, 0, None)
    );
    f.store.settle(delivered(id)).await.unwrap().await.unwrap();
    f.store.settle(retry(id, 0)).await.unwrap().await.unwrap();
    let row = f.store.row(id).await.unwrap().unwrap();
    assert_eq!(row.state, RowState::Delivered, "delivered is final");
    assert!(row.body.is_empty());
    assert_eq!(f.store.drop_rows(vec![id]).await.unwrap().await.unwrap(), 0);
}

async fn a_message_known_at_a_peer_is_skipped_with_its_records(f: Fixture) {
    let record = |value: &str| Record {
        kind: "room",
        key: "r1".into(),
        value: Some(value.into()),
    };
    let mut first = new_row(&f.store, "m1", "beta.test");
    first.records = vec![record("one")];
    let kept = first.id;
    let mut second = new_row(&f.store, "m1", "beta.test");
    second.records = vec![record("two")];
    let other_peer = new_row(&f.store, "m1", "gamma.test");
    let a = f.store.enqueue(vec![first]).await.unwrap();
    let b = f.store.enqueue(vec![second, other_peer]).await.unwrap();
    a.await.unwrap();
    b.await.unwrap();
    let rows = f.store.list_rows(&RowFilter::default()).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].id, kept);
    assert_eq!(
        f.store
            .record("uam", "room", "r1")
            .await
            .unwrap()
            .as_deref(),
        Some("one")
    );
}

async fn a_read_sees_everything_handed_in_before_it(f: Fixture) {
    for n in 0..500 {
        let row = new_row(&f.store, &format!("m{n}"), "beta.test");
        // The commit is not awaited.
        drop(f.store.enqueue(vec![row]).await.unwrap());
    }
    let rows = f
        .store
        .pending("uam", &peer("beta.test"), 0, 1000)
        .await
        .unwrap();
    assert_eq!(rows.len(), 500);
    assert!(rows.windows(2).all(|w| w[0].id < w[1].id));
}

async fn a_body_sent_to_many_is_stored_once_and_goes_with_the_last_of_them(f: Fixture) {
    let rows: Vec<_> = (0..40)
        .map(|n| NewRow {
            body: Bytes::from(vec![b'y'; 60_000]),
            ..new_row(&f.store, "all", &format!("p{n}.test"))
        })
        .collect();
    let ids: Vec<_> = rows.iter().map(|r| r.id).collect();
    f.store.enqueue(rows).await.unwrap().await.unwrap();
    let row = f.store.row(ids[39]).await.unwrap().unwrap();
    assert_eq!(row.body.len(), 60_000);
    for id in &ids[1..] {
        f.store.settle(delivered(*id)).await.unwrap().await.unwrap();
    }
    f.store.prune(NOW).await.unwrap();
    assert_eq!(
        f.store.row(ids[0]).await.unwrap().unwrap().body.len(),
        60_000
    );
    f.store
        .settle(delivered(ids[0]))
        .await
        .unwrap()
        .await
        .unwrap();
    assert_eq!(f.store.prune(NOW).await.unwrap(), 1, "the body went");
    f.store.close().await;
    let size = std::fs::metadata(f.path()).map_or(0, |file| file.len());
    assert!(size < 40 * 60_000 / 2, "{size} bytes for one body");
}

async fn an_event_is_new_once_then_a_duplicate_that_says_whether_it_is_the_same(f: Fixture) {
    // Handed in together, so decided within one batch.
    let first = f.store.accept(arrival("k1", b"n1")).await.unwrap();
    let second = f.store.accept(arrival("k1", b"n2")).await.unwrap();
    let third = f.store.accept(arrival("k2", b"n1")).await.unwrap();
    let Accepted::New(id) = first.await.unwrap() else {
        panic!("not new")
    };
    let again = Accepted::Duplicate {
        id,
        published: false,
        same: true,
    };
    assert_eq!(second.await.unwrap(), again);
    assert_eq!(third.await.unwrap(), Accepted::Replayed);
    assert!(!f.store.has_inbound("uam", "k2").await.unwrap());

    let waiting = f.store.unpublished(0, 10).await.unwrap();
    assert_eq!((waiting.len(), waiting[0].id), (1, id));
    assert_eq!(waiting[0].headers[1], ("Fed-Hops".into(), "1".into()));
    assert_eq!(&waiting[0].payload[..], b"{\"hello\":1}");
    f.store.published(vec![id]).await.unwrap().await.unwrap();
    assert!(f.store.unpublished(0, 10).await.unwrap().is_empty());

    let mut other = arrival("k1", b"n3");
    other.payload = Bytes::from_static(b"{\"hello\":2}");
    let found = accept(&f.store, other).await;
    assert_eq!(
        found,
        Accepted::Duplicate {
            id,
            published: true,
            same: false
        }
    );
    let n3 = ReplayId {
        scope: "alpha.test".into(),
        id: b"n3".to_vec(),
        expires_ms: 0,
    };
    assert!(
        !f.store.replay_seen("uam", &n3).await.unwrap(),
        "a duplicate leaves no id"
    );
}

async fn a_replay_id_counts_until_it_expires(f: Fixture) {
    accept(&f.store, arrival("k1", b"n1")).await;
    let id = arrival("", b"n1").replay.remove(0);
    assert!(f.store.replay_seen("uam", &id).await.unwrap());
    assert_eq!(
        accept(&f.store, arrival("k2", b"n1")).await,
        Accepted::Replayed
    );
    f.clock.set(NOW + 600_000);
    assert!(!f.store.replay_seen("uam", &id).await.unwrap());
    let mut later = arrival("k2", b"n1");
    later.replay[0].expires_ms = NOW + 1_200_000;
    assert!(matches!(accept(&f.store, later).await, Accepted::New(_)));
    assert!(f.store.replay_seen("uam", &id).await.unwrap());
}

async fn a_replay_id_is_spent_by_one_of_many_whether_with_an_event_or_without(f: Fixture) {
    let claim = async |id: ReplayId| {
        let commit = f.store.claim_replay("uam", id).await.unwrap();
        commit.await.unwrap()
    };
    let id = arrival("", b"n1").replay.remove(0);
    let all = futures_util::future::join_all((0..16).map(|_| claim(id.clone()))).await;
    assert_eq!(all.iter().filter(|won| **won).count(), 1);
    assert_eq!(
        accept(&f.store, arrival("k1", b"n1")).await,
        Accepted::Replayed,
        "what a claim has spent carries no event"
    );
    accept(&f.store, arrival("k2", b"n2")).await;
    let carried = arrival("", b"n2").replay.remove(0);
    assert!(
        !claim(carried).await,
        "what an event has spent is claimed no more"
    );
    let other = ReplayId {
        scope: "another.test".into(),
        ..id.clone()
    };
    assert!(claim(other).await, "another peer's id is another id");
    f.clock.set(NOW + 600_000);
    let later = ReplayId {
        expires_ms: NOW + 1_200_000,
        ..id
    };
    assert!(claim(later.clone()).await, "its time was over");
    assert!(!claim(later).await);
}

#[test]
fn sixty_four_tasks_on_four_runtimes_share_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.db");
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let main = runtime();
    let store = main
        .block_on(Store::open(&path, Clock::fixed(NOW)))
        .unwrap();
    let threads: Vec<_> = (0..4)
        .map(|t| {
            let store = store.clone();
            std::thread::spawn(move || {
                runtime().block_on(async move {
                    let tasks = (0..16).map(|n| {
                        let store = store.clone();
                        tokio::spawn(async move {
                            for i in 0..10 {
                                let row = new_row(&store, &format!("{t}-{n}-{i}"), "beta.test");
                                let id = row.id;
                                let commit = store.enqueue(vec![row]).await.unwrap();
                                let settled = store.settle(delivered(id)).await.unwrap();
                                commit.await.unwrap();
                                settled.await.unwrap();
                                let row = store.row(id).await.unwrap().unwrap();
                                assert_eq!(row.state, RowState::Delivered);
                            }
                        })
                    });
                    for task in tasks.collect::<Vec<_>>() {
                        task.await.unwrap();
                    }
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    main.block_on(async {
        let all = RowFilter {
            limit: 1000,
            ..RowFilter::default()
        };
        assert_eq!(store.list_rows(&all).await.unwrap().len(), 640);
        store.close().await;
        let late = store.settle(delivered(1)).await.err().unwrap();
        assert_eq!(late.kind, StoreErrorKind::Closed);
        let late = store.row(1).await.unwrap_err();
        assert_eq!(late.kind, StoreErrorKind::Closed);
    });
}

async fn what_waits_at_closing_is_still_written(f: Fixture) {
    let mut commits = Vec::new();
    for n in 0..300 {
        let row = new_row(&f.store, &format!("m{n}"), "beta.test");
        commits.push(f.store.enqueue(vec![row]).await.unwrap());
    }
    let f = f.reopened().await;
    for commit in commits {
        commit.await.unwrap();
    }
    assert_eq!(f.store.queue_counts().await.unwrap()[0].pending, 300);
}

/// Runs SQL on the file as any other program would.
async fn sql(path: &Path, sql: &str) {
    use sqlx::Connection;
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let mut conn = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let text = sqlx::AssertSqlSafe(sql.to_owned());
    sqlx::query(text).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

#[tokio::test]
async fn a_file_of_something_else_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    sql(&path, "CREATE TABLE theirs (x INTEGER)").await;
    let refused = Store::open(&path, Clock::system()).await.err().unwrap();
    assert_eq!(refused.kind, StoreErrorKind::Corrupt);
    let path = dir.path().join("text.db");
    std::fs::write(
        &path,
        "not a database, but long enough to look like a file of one\n".repeat(99),
    )
    .unwrap();
    let refused = Store::open(&path, Clock::system()).await.err().unwrap();
    assert_eq!(refused.kind, StoreErrorKind::Corrupt);
}

/// Returns when the store has noticed whether it takes writes.
async fn healthy(store: &Store, wanted: bool) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while store.healthy() != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_full_disk_keeps_rows_in_order_turns_events_away_and_heals_by_itself() {
    let f = Fixture::new().await;
    f.store.limit_size(Some(400 << 10)).await.unwrap();
    let mut waiting = None;
    let mut kept = 0;
    for n in 0..200 {
        let mut row = new_row(&f.store, &format!("m{n}"), "beta.test");
        row.body = Bytes::from(vec![b'z'; 16 << 10]);
        let id = row.id;
        let mut commit = f.store.enqueue(vec![row]).await.unwrap();
        tokio::select! {
            done = &mut commit => done.unwrap(),
            () = healthy(&f.store, false) => {
                waiting = Some((id, commit));
                break;
            }
        }
        kept += 1;
    }
    let (row, commit) = waiting.unwrap();
    // Its outcome waits behind it, and does not pass for written.
    let settled = f.store.settle(delivered(row)).await.unwrap();
    let refused = f.store.accept(arrival("k1", b"n1")).await.unwrap().await;
    assert_eq!(refused.unwrap_err().kind, StoreErrorKind::Unavailable);
    // Reading goes on, but what must see the rows on their way says that it cannot.
    assert_eq!(f.store.queue_counts().await.unwrap()[0].pending, kept);
    let unseen = f.store.row(row).await.unwrap_err();
    assert_eq!(unseen.kind, StoreErrorKind::Unavailable);
    f.store.limit_size(None).await.unwrap();
    commit.await.unwrap();
    settled.await.unwrap();
    assert!(f.store.healthy());
    let written = f.store.row(row).await.unwrap().unwrap();
    assert_eq!(written.state, RowState::Delivered);
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_taken_away_is_noticed_and_missed_until_it_is_back() {
    let f = Fixture::new().await;
    let away = f.dir.path().join("away.db");
    std::fs::rename(f.path(), &away).unwrap();
    let row = new_row(&f.store, "m1", "beta.test");
    let commit = f.store.enqueue(vec![row]).await.unwrap();
    healthy(&f.store, false).await;
    std::fs::rename(&away, f.path()).unwrap();
    // The store finds out by itself, and writes what waited.
    commit.await.unwrap();
    healthy(&f.store, true).await;
}

async fn ledger_numbers_ascend_over_restarts_and_pruning(f: Fixture) {
    let row = new_row(&f.store, "m1", "beta.test");
    let id = row.id;
    f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
    f.store.settle(delivered(id)).await.unwrap().await.unwrap();
    let Accepted::New(event) = accept(&f.store, arrival("k1", b"n1")).await else {
        panic!()
    };
    f.store.published(vec![event]).await.unwrap().await.unwrap();
    let f = f.reopened().await;
    f.store.prune(NOW + 9 * DAY).await.unwrap();
    assert!(f.store.row(id).await.unwrap().is_none());
    assert!(!f.store.has_inbound("uam", "k1").await.unwrap());
    let f = f.reopened().await;
    let next = f.store.reserve_rows(3);
    assert_eq!(next.start, id + 1, "a clean stop leaves no gap");
    assert_eq!(f.store.reserve_rows(1).start, next.end);
    let Accepted::New(later) = accept(&f.store, arrival("k1", b"n1")).await else {
        panic!()
    };
    assert!(later > event);
}

async fn pruning_keeps_what_is_still_needed(f: Fixture) {
    let mut ids = Vec::new();
    for n in 0..5 {
        let row = new_row(&f.store, &format!("m{n}"), "beta.test");
        ids.push(row.id);
        f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
    }
    f.store
        .settle(delivered(ids[0]))
        .await
        .unwrap()
        .await
        .unwrap();
    f.store.settle(dead(ids[1])).await.unwrap().await.unwrap();
    let (code, reason) = ("key_changed".into(), "an operator must look".into());
    let held = settle(ids[2], Outcome::Held { code, reason });
    f.store.settle(held).await.unwrap().await.unwrap();
    let Accepted::New(shown) = accept(&f.store, arrival("k1", b"n1")).await else {
        panic!()
    };
    f.store.published(vec![shown]).await.unwrap().await.unwrap();
    accept(&f.store, arrival("k2", b"n2")).await;

    assert_eq!(
        f.store.prune(NOW + DAY - 1).await.unwrap(),
        2,
        "two replay ids"
    );
    assert_eq!(f.store.inbound_after(0, 10).await.unwrap().len(), 2);
    assert_eq!(
        f.store.prune(NOW + DAY + 1).await.unwrap(),
        2,
        "a row and a body"
    );
    assert!(f.store.row(ids[0]).await.unwrap().is_none());
    assert_eq!(f.store.inbound_after(0, 10).await.unwrap().len(), 1);
    assert!(f.store.has_inbound("uam", "k1").await.unwrap());
    assert_eq!(f.store.prune(NOW + 29 * DAY).await.unwrap(), 1, "an id");
    assert!(f.store.row(ids[1]).await.unwrap().is_some());
    assert_eq!(
        f.store.prune(NOW + 400 * DAY).await.unwrap(),
        0,
        "FED_DEAD has no notice of the dead row yet"
    );
    let noticed = f.store.noticed(vec![ids[1]]).await.unwrap();
    noticed.await.unwrap();
    assert_eq!(
        f.store.prune(NOW + 400 * DAY).await.unwrap(),
        1,
        "the dead row"
    );
    let left: Vec<_> = f.store.list_rows(&RowFilter::default()).await.unwrap();
    assert_eq!(left.iter().map(|r| r.id).collect::<Vec<_>>(), ids[2..]);
    assert_eq!(f.store.unpublished(0, 10).await.unwrap().len(), 1);
    let counts = &f.store.queue_counts().await.unwrap()[0];
    assert_eq!((counts.pending, counts.failed, counts.held), (2, 0, 1));
    assert_eq!(counts.oldest_pending_ms, Some(NOW));
}

async fn what_is_known_of_a_peer_goes_with_age_unless_it_is_needed(f: Fixture) {
    for (name, via) in [
        ("old.test", "dns-srv"),
        ("waited-for.test", "dns-srv"),
        ("pinned.test", "config"),
    ] {
        let record = PeerRecord {
            protocol: "uam",
            name: peer(name),
            endpoint: format!("https://{name}/"),
            alternatives: Vec::new(),
            public_key: None,
            discovered_via: via.into(),
            last_verified_ms: NOW,
            ttl_ms: None,
            facts: serde_json::Map::new(),
        };
        f.store.put_peer(record).await.unwrap().await.unwrap();
    }
    let row = new_row(&f.store, "m1", "waited-for.test");
    f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
    assert_eq!(f.store.prune(NOW + 89 * DAY).await.unwrap(), 0);
    assert_eq!(f.store.prune(NOW + 91 * DAY).await.unwrap(), 1);
    let left = f.store.peers().await.unwrap();
    let left: Vec<_> = left.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(left, ["pinned.test", "waited-for.test"]);
}

async fn one_unreadable_peer_costs_no_other(f: Fixture) {
    let record = |name: &str| PeerRecord {
        protocol: "uam",
        name: peer(name),
        endpoint: format!("https://{name}/"),
        alternatives: Vec::new(),
        public_key: None,
        discovered_via: "dns-srv".into(),
        last_verified_ms: NOW,
        ttl_ms: None,
        facts: serde_json::Map::new(),
    };
    for name in ["a.test", "b.test"] {
        f.store.put_peer(record(name)).await.unwrap().await.unwrap();
    }
    f.sql("UPDATE known_relays SET facts = 'no json' WHERE domain = 'a.test'")
        .await;
    assert_eq!(f.store.peers().await.unwrap(), [record("b.test")]);
}

async fn outcomes_of_one_row_come_to_the_same_in_any_order(f: Fixture) {
    let row = new_row(&f.store, "m1", "beta.test");
    let id = row.id;
    f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
    let settle = async |settle| f.store.settle(settle).await.unwrap().await.unwrap();
    let third = Settle {
        attempts: 3,
        ..retry(id, NOW + 3)
    };
    settle(third).await;
    // The second attempt's outcome, late.
    settle(Settle {
        attempts: 2,
        ..retry(id, NOW + 2)
    })
    .await;
    let row = f.store.row(id).await.unwrap().unwrap();
    assert_eq!((row.attempts, row.next_at_ms), (3, Some(NOW + 3)));
    settle(dead(id)).await;
    settle(retry(id, NOW + 9)).await;
    let row = f.store.row(id).await.unwrap().unwrap();
    assert_eq!((row.state, row.next_at_ms), (RowState::Failed, None));
    // It was delivered after all: that is the truth, and the end.
    settle(delivered(id)).await;
    settle(dead(id)).await;
    let row = f.store.row(id).await.unwrap().unwrap();
    assert_eq!(row.state, RowState::Delivered);
}

async fn any_text_is_stored_and_read_back_as_it_was(f: Fixture) {
    const ODD: &str = "nul \0, \u{10FFFD}0, \u{10FFFF}, \u{FEFF} and 🙂";
    let mut row = new_row(&f.store, ODD, "beta.test");
    row.order_key = ODD.into();
    row.traceparent = Some(ODD.into());
    row.records = vec![Record {
        kind: "room",
        key: ODD.into(),
        value: Some(ODD.into()),
    }];
    let id = row.id;
    // In one batch with another: it must not take that one down.
    let odd = f.store.enqueue(vec![row]).await.unwrap();
    let plain = new_row(&f.store, "plain", "beta.test");
    let plain = f.store.enqueue(vec![plain]).await.unwrap();
    odd.await.unwrap();
    plain.await.unwrap();
    let mut settle = retry(id, NOW + 1);
    if let Outcome::Retry { reason, .. } = &mut settle.outcome {
        *reason = ODD.into();
    }
    f.store.settle(settle).await.unwrap().await.unwrap();
    let row = f.store.row(id).await.unwrap().unwrap();
    assert_eq!((row.msg_id.as_str(), row.order_key.as_str()), (ODD, ODD));
    assert_eq!(row.reason.as_deref(), Some(ODD));
    assert_eq!(row.traceparent.as_deref(), Some(ODD));
    let known = f.store.known_messages("uam", vec![ODD.to_owned()]).await;
    assert!(known.unwrap().contains(ODD));
    let of_key = f
        .store
        .pending_of_key("uam", &peer("beta.test"), ODD, 0, 10)
        .await
        .unwrap();
    assert_eq!(of_key.len(), 1);
    let value = f.store.record("uam", "room", ODD).await.unwrap();
    assert_eq!(value.as_deref(), Some(ODD));

    let mut event = arrival(ODD, b"n1");
    event.event_id = ODD.into();
    event.headers = vec![("Fed-Origin".into(), ODD.into())];
    let Accepted::New(_) = accept(&f.store, event.clone()).await else {
        panic!("not new")
    };
    event.replay.clear();
    let again = accept(&f.store, event).await;
    assert!(matches!(again, Accepted::Duplicate { .. }), "{again:?}");
    let read = &f.store.inbound_after(0, 10).await.unwrap()[0];
    assert_eq!((read.event_id.as_str(), &*read.headers[0].1), (ODD, ODD));
}

async fn a_second_writer_of_the_same_store_is_refused(f: Fixture) {
    let refused = Store::open(&f.config, Clock::system()).await.err().unwrap();
    assert_eq!(refused.kind, StoreErrorKind::InUse);
    assert!(
        refused.to_string().contains("in use by another drawbridge"),
        "{refused}"
    );
    f.reopened().await;
}

async fn a_store_of_a_newer_version_is_refused(f: Fixture) {
    f.store.close().await;
    let late = match f.config.place {
        StorePlace::Sqlite(_) => "x'00', 0)",
        StorePlace::Postgres(_) => "'\\x00', 0)",
    };
    f.sql(&format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'later', true, {late}"
    ))
    .await;
    let refused = Store::open(&f.config, Clock::system()).await.err().unwrap();
    assert_eq!(refused.kind, StoreErrorKind::Newer);
    let refused = Store::open_read_only(&f.config).await.err().unwrap();
    assert_eq!(refused.kind, StoreErrorKind::Newer);
}

async fn lanes_tell_where_to_begin_and_when(f: Fixture) {
    for (n, to) in ["b.test", "a.test", "a.test"].into_iter().enumerate() {
        let mut row = new_row(&f.store, &format!("m{n}"), to);
        row.order_key = format!("key{n}");
        row.expires_ms = Some(NOW + 1000 * n as i64);
        let id = row.id;
        f.store.enqueue(vec![row]).await.unwrap().await.unwrap();
        if to == "a.test" {
            let at = NOW + 1000 * id;
            f.store.settle(retry(id, at)).await.unwrap().await.unwrap();
        }
    }
    let lanes = f.store.lanes().await.unwrap();
    let seen: Vec<_> = lanes
        .iter()
        .map(|l| (l.peer.as_str(), l.first_id, l.rows, l.next_at_ms))
        .collect();
    assert_eq!(seen, [("a.test", 2, 2, NOW + 2000), ("b.test", 1, 1, 0)]);
    let keyed = f
        .store
        .pending_of_key("uam", &peer("a.test"), "key2", 0, 10)
        .await
        .unwrap();
    assert_eq!(keyed.iter().map(|r| r.id).collect::<Vec<_>>(), [3]);
    let expired = f.store.expired(NOW + 1000, &["uam"], 10).await.unwrap();
    assert_eq!(expired.iter().map(|r| r.id).collect::<Vec<_>>(), [1, 2]);
    let filter = RowFilter {
        peer: Some("a.test".into()),
        states: HashSet::from([RowState::Pending, RowState::Held]),
        after: 2,
        ..RowFilter::default()
    };
    assert_eq!(f.store.list_rows(&filter).await.unwrap().len(), 1);
}

async fn peers_trust_records_and_keys_read_back_as_written(f: Fixture) {
    let mut record = PeerRecord {
        protocol: "uam",
        name: peer("beta.test:8443"),
        endpoint: "https://beta.test:8443/api/v1/federation/deliver".into(),
        alternatives: vec!["https://b2.test/".into()],
        public_key: Some([7; 32]),
        discovered_via: "dns-srv".into(),
        last_verified_ms: NOW,
        ttl_ms: Some(3_600_000),
        facts: serde_json::Map::from_iter([("dialect".into(), "nonce".into())]),
    };
    f.store
        .put_peer(record.clone())
        .await
        .unwrap()
        .await
        .unwrap();
    record.ttl_ms = None;
    f.store
        .put_peer(record.clone())
        .await
        .unwrap()
        .await
        .unwrap();
    assert_eq!(f.store.peers().await.unwrap(), [record]);

    let mut rule = TrustRow {
        id: 0,
        protocol: "uam".into(),
        pattern: "*.bad.test".into(),
        rule: "block".into(),
        reason: Some("spam".into()),
        created_ms: NOW,
        ends_ms: None,
    };
    f.store
        .put_trust(rule.clone())
        .await
        .unwrap()
        .await
        .unwrap();
    rule.reason = None;
    f.store
        .put_trust(rule.clone())
        .await
        .unwrap()
        .await
        .unwrap();
    rule.id = 1;
    assert_eq!(f.store.trust_rules().await.unwrap(), [rule]);
    let remove = || f.store.remove_trust("uam", "*.bad.test", "block");
    assert!(remove().await.unwrap().await.unwrap());
    assert!(!remove().await.unwrap().await.unwrap());

    f.store
        .put_score("uam", "beta.test", 40)
        .await
        .unwrap()
        .await
        .unwrap();
    f.store
        .put_score("uam", "beta.test", 41)
        .await
        .unwrap()
        .await
        .unwrap();
    let scores = f.store.scores().await.unwrap();
    assert_eq!(scores, [("uam".to_owned(), "beta.test".to_owned(), 41)]);

    let facts = HealthRow {
        protocol: "uam".into(),
        peer: "beta.test".into(),
        facts: "{\"failures\":2}".into(),
    };
    f.store
        .put_health(facts.clone())
        .await
        .unwrap()
        .await
        .unwrap();
    assert_eq!(f.store.health().await.unwrap(), [facts]);

    let put = |key: &str, value: Option<&str>| Record {
        kind: "agent",
        key: key.into(),
        value: value.map(Into::into),
    };
    let records = vec![
        put("a", Some("1")),
        put("b", Some("2")),
        put("a", Some("3")),
    ];
    f.store
        .put_records("uam", records)
        .await
        .unwrap()
        .await
        .unwrap();
    f.store
        .put_records("uam", vec![put("b", None)])
        .await
        .unwrap()
        .await
        .unwrap();
    let found = f.store.records("uam", "agent").await.unwrap();
    assert_eq!(found, [("a".to_owned(), "3".to_owned())]);

    f.store
        .put_server_key("uam", "k1", "00ff")
        .await
        .unwrap()
        .await
        .unwrap();
    f.clock.set(NOW + 5);
    f.store
        .put_server_key("uam", "k1", "00ff")
        .await
        .unwrap()
        .await
        .unwrap();
    let keys = f.store.server_keys("uam").await.unwrap();
    assert_eq!(keys, [("k1".to_owned(), "00ff".to_owned(), NOW)]);

    assert_eq!(f.store.next_epoch().await.unwrap(), 1);
    let f = f.reopened().await;
    assert_eq!(f.store.next_epoch().await.unwrap(), 2);
}

#[tokio::test]
async fn who_hands_in_more_than_there_is_room_for_waits() {
    use sqlx::Connection;
    let f = Fixture::new().await;
    // Another program holds the file, so nothing is committed for the moment.
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(f.path());
    let mut other = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    let big = |n: usize| NewRow {
        body: Bytes::from(vec![b'b'; 10 << 20]),
        ..new_row(&f.store, &format!("m{n}"), "beta.test")
    };
    let mut commits = Vec::new();
    for n in 0..3 {
        commits.push(f.store.enqueue(vec![big(n)]).await.unwrap());
    }
    let fourth = f.store.enqueue(vec![big(3)]);
    tokio::pin!(fourth);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut fourth).await;
    assert!(early.is_err(), "there was room for 40 MiB");
    assert_eq!(f.store.waiting(), 3);
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    commits.push(fourth.await.unwrap());
    for commit in commits {
        commit.await.unwrap();
    }
    assert_eq!(f.store.waiting(), 0);
}
