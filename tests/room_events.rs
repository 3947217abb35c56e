//! Events of rooms, kept for readers, on either database.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use drawbridge::clock::Clock;
use drawbridge::config::StoreConfig;
use drawbridge::protocol::{PeerName, Record, RoomEvent};
use drawbridge::store::*;

mod support;
use support::postgres;

const NOW: i64 = 1_800_000_000_000;
const DAY_MS: i64 = 86_400_000;
const ROOM: &str = "!1:alpha.test";

async fn stores(clock: &Clock) -> Vec<(Store, tempfile::TempDir)> {
    let dir = tempfile::tempdir().unwrap();
    let mut configs = vec![StoreConfig::from(&dir.path().join("d.db"))];
    if let Some(url) = postgres::fresh().await {
        configs.push(StoreConfig::parse(&url, Path::new("")).unwrap());
    }
    let mut dirs = vec![dir];
    let mut stores = Vec::new();
    for config in configs {
        let store = Store::open(&config, clock.clone()).await.unwrap();
        let dir = dirs.pop().unwrap_or_else(|| tempfile::tempdir().unwrap());
        stores.push((store, dir));
    }
    stores
}

fn kept(id: &str, origin: &str, position: i64) -> RoomEvent {
    RoomEvent {
        room: ROOM.into(),
        event_id: id.into(),
        origin: origin.into(),
        position,
        envelope: Bytes::from(format!("{{\"event_id\":{id:?}}}")),
    }
}

fn row(store: &Store, msg_id: &str, event: RoomEvent) -> NewRow {
    NewRow {
        id: store.reserve_rows(1).start,
        protocol: "paracord",
        peer: "beta.test".into(),
        msg_id: msg_id.into(),
        out_seq: 1,
        event_id: event.event_id.clone(),
        event_type: "m.message".into(),
        order_key: ROOM.into(),
        body: event.envelope.clone(),
        created_ms: NOW,
        expires_ms: None,
        traceparent: None,
        state: RowState::Pending,
        reason: None,
        records: vec![Record {
            kind: "scope",
            key: ROOM.into(),
            value: Some(event.position.to_string()),
        }],
        room_event: Some(event),
    }
}

fn inbound(event: RoomEvent) -> NewInbound {
    NewInbound {
        protocol: "paracord",
        peer: PeerName::parse(&event.origin).unwrap(),
        dedupe_key: format!("{}/{}", event.origin, event.event_id),
        event_id: event.event_id.clone(),
        event_type: "m.message".into(),
        subject: "fed.in.paracord.beta_test.m.message".into(),
        headers: vec![("Fed-Peer".into(), event.origin.clone())],
        payload: event.envelope.clone(),
        received_ms: NOW,
        hold: false,
        replay: Vec::new(),
        room_event: Some(event),
    }
}

async fn enqueue(store: &Store, row: NewRow) {
    store.enqueue(vec![row]).await.unwrap().await.unwrap();
}

async fn page(store: &Store, after: i64, limit: usize) -> Vec<(String, i64)> {
    let page = store.room_page("paracord", ROOM, after, limit).await;
    let page = page.unwrap().into_iter();
    page.map(|e| (e.event_id, e.position)).collect()
}

#[tokio::test]
async fn a_room_is_read_in_its_order_whoever_made_its_events() {
    let clock = Clock::fixed(NOW);
    for (store, _dir) in stores(&clock).await {
        enqueue(&store, row(&store, "m1", kept("$1", "alpha.test", 30))).await;
        enqueue(&store, row(&store, "m2", kept("$3", "alpha.test", 31))).await;
        for event in [kept("$2", "beta.test", 30), kept("$4", "beta.test", 7)] {
            let taken = store.accept(inbound(event)).await.unwrap().await.unwrap();
            assert!(matches!(taken, Accepted::New(_)));
        }
        let all = page(&store, 0, 10).await;
        let all: Vec<&str> = all.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(all, ["$4", "$1", "$2", "$3"]);
        assert_eq!(page(&store, 30, 10).await, [("$3".to_owned(), 31)]);
        assert_eq!(page(&store, 0, 2).await.len(), 2);
        let other = store.room_page("paracord", "!2:alpha.test", 0, 10).await;
        assert!(other.unwrap().is_empty());
        store.close().await;
    }
}

#[tokio::test]
async fn one_id_of_two_servers_is_two_events_and_the_first_of_one_server_stands() {
    let clock = Clock::fixed(NOW);
    for (store, _dir) in stores(&clock).await {
        enqueue(&store, row(&store, "m1", kept("$1", "alpha.test", 30))).await;
        let theirs = inbound(kept("$1", "beta.test", 40));
        store.accept(theirs).await.unwrap().await.unwrap();
        enqueue(&store, row(&store, "m2", kept("$1", "alpha.test", 50))).await;
        let mut found = store.room_event("paracord", "$1").await.unwrap();
        found.sort_by(|a, b| a.origin.cmp(&b.origin));
        let found: Vec<_> = found.iter().map(|e| (&*e.origin, e.position)).collect();
        assert_eq!(found, [("alpha.test", 30), ("beta.test", 40)]);
        let ids = vec!["$1".to_owned(), "$9".to_owned()];
        let known = store.known_room_events("paracord", "alpha.test", ids).await;
        assert_eq!(known.unwrap().into_iter().collect::<Vec<_>>(), ["$1"]);
        store.close().await;
    }
}

#[tokio::test]
async fn a_message_that_has_its_row_brings_no_second_event() {
    let clock = Clock::fixed(NOW);
    for (store, _dir) in stores(&clock).await {
        enqueue(&store, row(&store, "m1", kept("$1", "alpha.test", 30))).await;
        enqueue(&store, row(&store, "m1", kept("$1b", "alpha.test", 31))).await;
        assert_eq!(page(&store, 0, 10).await, [("$1".to_owned(), 30)]);
        let scope = store.record("paracord", "scope", ROOM).await.unwrap();
        assert_eq!(scope.as_deref(), Some("30"), "nor a new state of the room");
        store.close().await;
    }
}

#[tokio::test]
async fn only_envelopes_are_pruned_and_only_where_the_protocol_says_so() {
    let clock = Clock::fixed(NOW);
    for (store, _dir) in stores(&clock).await {
        clock.set(NOW);
        enqueue(&store, row(&store, "m1", kept("$1", "alpha.test", 30))).await;
        let theirs = inbound(kept("$2", "beta.test", 40));
        let taken = store.accept(theirs.clone()).await.unwrap().await.unwrap();
        let Accepted::New(id) = taken else {
            panic!("{taken:?}");
        };
        let other = NewInbound {
            protocol: "uam",
            room_event: None,
            ..theirs.clone()
        };
        let Accepted::New(uam) = store.accept(other.clone()).await.unwrap().await.unwrap() else {
            panic!("not new");
        };
        store.published(vec![id, uam]).await.unwrap().await.unwrap();

        clock.set(NOW + 400 * DAY_MS);
        let keeping = |room_events| {
            vec![Keeping {
                protocol: "paracord",
                ids: true,
                room_events,
            }]
        };
        store.keep(keeping(None));
        while store.prune(clock.now_ms()).await.unwrap() > 0 {}
        assert_eq!(page(&store, 0, 10).await.len(), 2);
        let again = store.accept(theirs).await.unwrap().await.unwrap();
        assert!(matches!(again, Accepted::Duplicate { .. }), "its id stayed");
        let again = store.accept(other).await.unwrap().await.unwrap();
        assert!(matches!(again, Accepted::New(_)), "the other's went");

        store.keep(keeping(Some(Duration::from_secs(86_400))));
        while store.prune(clock.now_ms()).await.unwrap() > 0 {}
        assert!(page(&store, 0, 10).await.is_empty());
        let found = store.room_event("paracord", "$1").await.unwrap();
        assert!(found.len() == 1 && found[0].envelope.is_empty());
        store.close().await;
    }
}
