//! What waits for a peer that fetches, on either database.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use drawbridge::clock::Clock;
use drawbridge::config::StoreConfig;
use drawbridge::ops::Ops;
use drawbridge::outbound::Mailbox;
use drawbridge::outbound::mailbox::Rules;
use drawbridge::protocol::PeerName;
use drawbridge::store::*;

mod support;
use support::postgres;

const NOW: i64 = 1_800_000_000_000;
const RULES: Rules = Rules {
    fresh: 3,
    outstanding: 10,
    bytes: 1 << 20,
    gap: Duration::from_secs(10),
};

async fn stores(clock: &Clock) -> Vec<(Store, tempfile::TempDir)> {
    let mut stores = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    let mut configs = vec![StoreConfig::from(&dir.path().join("d.db"))];
    if let Some(url) = postgres::fresh().await {
        configs.push(StoreConfig::parse(&url, Path::new("")).unwrap());
    }
    let mut dirs = vec![dir];
    for config in configs {
        let store = Store::open(&config, clock.clone()).await.unwrap();
        let dir = dirs.pop().unwrap_or_else(|| tempfile::tempdir().unwrap());
        stores.push((store, dir));
    }
    stores
}

fn peer() -> PeerName {
    PeerName::parse("m.example").unwrap()
}

async fn add(store: &Store, bodies: &[&'static str]) -> Vec<i64> {
    let ids: Vec<i64> = store.reserve_rows(bodies.len()).collect();
    let rows = ids.iter().zip(bodies).map(|(id, body)| NewRow {
        id: *id,
        protocol: "voltchat",
        peer: peer().to_string(),
        msg_id: format!("m{id}"),
        out_seq: 1,
        event_id: format!("e{id}"),
        event_type: "x".into(),
        order_key: String::new(),
        body: Bytes::from_static(body.as_bytes()),
        created_ms: NOW,
        expires_ms: None,
        traceparent: None,
        state: RowState::Pending,
        reason: None,
        records: Vec::new(),
        room_event: None,
    });
    let rows: Vec<_> = rows.collect();
    store.enqueue(rows).await.unwrap().await.unwrap();
    ids
}

async fn fetch(mailbox: &Mailbox) -> drawbridge::outbound::mailbox::Handout {
    mailbox.hand_out("voltchat", &peer(), &RULES).await.unwrap()
}

fn texts(handout: &drawbridge::outbound::mailbox::Handout) -> Vec<String> {
    let text = |b: &Bytes| String::from_utf8(b.to_vec()).unwrap();
    handout.bodies().map(text).collect()
}

#[tokio::test]
async fn a_message_leaves_with_its_second_answer_and_one_lost_answer_loses_nothing() {
    let clock = Clock::fixed(NOW);
    for (store, _dir) in stores(&clock).await {
        clock.set(NOW);
        let mailbox = Mailbox::new(store.clone(), Ops::silent(), clock.clone());
        let ids = add(&store, &["a", "b", "c", "d"]).await;

        drop(fetch(&mailbox).await); // its connection broke
        let first = fetch(&mailbox).await;
        assert_eq!(texts(&first), ["a", "b", "c"]);
        mailbox.has_left(first).await;

        clock.set(NOW + 9_999);
        let soon = fetch(&mailbox).await;
        assert_eq!(
            texts(&soon),
            ["a", "b", "c", "d"],
            "all again, and what is new"
        );
        mailbox.has_left(soon).await;
        let row = store.row(ids[0]).await.unwrap().unwrap();
        assert_eq!((row.state, row.attempts), (RowState::Pending, 1));

        clock.set(NOW + 10_000);
        let second = fetch(&mailbox).await;
        assert_eq!(texts(&second), ["a", "b", "c", "d"]);
        mailbox.has_left(second).await;
        assert_eq!(
            texts(&fetch(&mailbox).await),
            ["d"],
            "d has been in one that counts"
        );
        let row = store.row(ids[0]).await.unwrap().unwrap();
        assert_eq!((row.state, row.attempts), (RowState::Delivered, 2));

        clock.set(NOW + 19_999);
        let last = fetch(&mailbox).await;
        mailbox.has_left(last).await;
        assert!(fetch(&mailbox).await.is_empty());
        store.close().await;
    }
}

#[tokio::test]
async fn what_was_handed_out_is_known_after_a_restart() {
    let clock = Clock::fixed(NOW);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.db");
    let store = Store::open(&path, clock.clone()).await.unwrap();
    let mailbox = Mailbox::new(store.clone(), Ops::silent(), clock.clone());
    let ids = add(&store, &["a"]).await;
    let first = fetch(&mailbox).await;
    mailbox.has_left(first).await;
    store.close().await;

    clock.set(NOW + 10_000);
    let store = Store::open(&path, clock.clone()).await.unwrap();
    let mailbox = Mailbox::new(store.clone(), Ops::silent(), clock.clone());
    let second = fetch(&mailbox).await;
    mailbox.has_left(second).await;
    let row = store.row(ids[0]).await.unwrap().unwrap();
    assert_eq!(row.state, RowState::Delivered);
}

#[tokio::test]
async fn a_message_that_is_driven_again_is_handed_out_as_if_for_the_first_time() {
    let clock = Clock::fixed(NOW);
    for (store, _dir) in stores(&clock).await {
        clock.set(NOW);
        let mailbox = Mailbox::new(store.clone(), Ops::silent(), clock.clone());
        let ids = add(&store, &["a"]).await;
        let first = fetch(&mailbox).await;
        mailbox.has_left(first).await;
        let gone = store.give_up(ids.clone(), "mailbox_expired", "old").await;
        assert_eq!(gone.unwrap().await.unwrap(), 1);
        assert!(fetch(&mailbox).await.is_empty(), "it is dead");
        store.redrive(ids.clone()).await.unwrap().await.unwrap();
        clock.set(NOW + 60_000);
        let again = fetch(&mailbox).await;
        mailbox.has_left(again).await;
        let row = store.row(ids[0]).await.unwrap().unwrap();
        assert_eq!(row.state, RowState::Pending, "one answer is not enough");
        store.close().await;
    }
}
