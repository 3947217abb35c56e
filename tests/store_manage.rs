//! What an operator does to rows, on either database.

use std::path::Path;

use bytes::Bytes;
use drawbridge::clock::Clock;
use drawbridge::config::StoreConfig;
use drawbridge::protocol::PeerName;
use drawbridge::store::*;

mod support;
use support::postgres;

const NOW: i64 = 1_800_000_000_000;

async fn stores() -> Vec<(Store, tempfile::TempDir)> {
    let mut stores = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    let mut configs = vec![StoreConfig::from(&dir.path().join("d.db"))];
    if let Some(url) = postgres::fresh().await {
        configs.push(StoreConfig::parse(&url, Path::new("")).unwrap());
    }
    let mut dirs = vec![dir];
    for config in configs {
        let store = Store::open(&config, Clock::fixed(NOW)).await.unwrap();
        let dir = dirs.pop().unwrap_or_else(|| tempfile::tempdir().unwrap());
        stores.push((store, dir));
    }
    stores
}

async fn row(store: &Store, peer: &str, state: RowState) -> i64 {
    let id = store.reserve_rows(1).start;
    let row = NewRow {
        id,
        protocol: "uam",
        peer: peer.into(),
        msg_id: format!("m{id}"),
        out_seq: 1,
        event_id: format!("e{id}"),
        event_type: "message".into(),
        order_key: "k".into(),
        body: Bytes::from_static(b"body"),
        created_ms: NOW,
        expires_ms: None,
        traceparent: None,
        state,
        reason: None,
        records: Vec::new(),
        room_event: None,
    };
    store.enqueue(vec![row]).await.unwrap().await.unwrap();
    id
}

async fn retry(store: &Store, id: i64) {
    let settle = Settle {
        row: id,
        outcome: Outcome::Retry {
            first_failed_ms: NOW,
            next_at_ms: NOW + 60_000,
            peer_fault: true,
            code: "timeout".into(),
            reason: "no answer".into(),
        },
        attempts: 1,
        attempt: None,
    };
    store.settle(settle).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_row_made_due_keeps_its_attempts_and_its_schedule() {
    for (store, _dir) in stores().await {
        let id = row(&store, "a.test", RowState::Pending).await;
        let dead = row(&store, "a.test", RowState::Failed).await;
        retry(&store, id).await;
        let changed = store.due_now(vec![id, dead, 999_999]).await.unwrap();
        assert_eq!(changed.await.unwrap(), 1);
        let found = store.row(id).await.unwrap().unwrap();
        assert_eq!((found.attempts, found.first_failed_ms), (1, Some(NOW)));
        assert_eq!(found.next_at_ms, None);
        store.close().await;
    }
}

#[tokio::test]
async fn a_row_given_up_stays_so_when_an_attempt_in_flight_comes_back_failed() {
    for (store, _dir) in stores().await {
        let id = row(&store, "a.test", RowState::Pending).await;
        let given_up = store.give_up(vec![id], "dropped", "by hand").await.unwrap();
        assert_eq!(given_up.await.unwrap(), 1);
        retry(&store, id).await;
        let found = store.row(id).await.unwrap().unwrap();
        assert_eq!(found.state, RowState::Failed);
        assert_eq!(found.reason_code.as_deref(), Some("dropped"));
        let delivered = Settle {
            row: id,
            outcome: Outcome::Delivered { at_ms: NOW },
            attempts: 1,
            attempt: None,
        };
        store.settle(delivered).await.unwrap().await.unwrap();
        let found = store.row(id).await.unwrap().unwrap();
        assert_eq!(
            found.state,
            RowState::Delivered,
            "the peer has it all the same"
        );
        store.close().await;
    }
}

#[tokio::test]
async fn rows_are_counted_by_peer_and_state() {
    for (store, _dir) in stores().await {
        let first = row(&store, "a.test", RowState::Pending).await;
        for state in [RowState::Pending, RowState::Failed, RowState::Held] {
            row(&store, "a.test", state).await;
        }
        row(&store, "b.test", RowState::Failed).await;
        let counts = store.peer_counts().await.unwrap();
        let of = |n: usize| (counts[n].peer.as_str(), counts[n].pending, counts[n].failed);
        assert_eq!(counts.len(), 2);
        assert_eq!(of(0), ("a.test", 2, 1));
        assert_eq!((counts[0].held, counts[0].first_pending), (1, Some(first)));
        assert_eq!(of(1), ("b.test", 0, 1));
        store.close().await;
    }
}

#[tokio::test]
async fn an_inbound_event_is_found_by_the_time_it_was_received() {
    for (store, _dir) in stores().await {
        let mut ids = Vec::new();
        for n in 0..3 {
            let event = NewInbound {
                protocol: "uam",
                peer: PeerName::parse("a.test").unwrap(),
                dedupe_key: format!("k{n}"),
                event_id: format!("e{n}"),
                event_type: "message".into(),
                subject: "fed.in.uam.a_test.message".into(),
                headers: Vec::new(),
                payload: Bytes::from_static(b"{}"),
                received_ms: NOW + n * 1_000,
                replay: Vec::new(),
                hold: false,
                room_event: None,
            };
            match store.accept(event).await.unwrap().await.unwrap() {
                Accepted::New(id) => ids.push(id),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(store.inbound_since(0).await.unwrap(), Some(ids[0]));
        assert_eq!(store.inbound_since(NOW + 1).await.unwrap(), Some(ids[1]));
        assert_eq!(store.inbound_since(NOW + 9_000).await.unwrap(), None);
        store.close().await;
    }
}
