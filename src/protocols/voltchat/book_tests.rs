//! Peers outlive a restart, their secrets are in no file, and changes that meet leave one outcome.

use std::path::Path;

use super::*;
use crate::identity::hmac::SharedSecret;
use crate::protocols::voltchat::state::{Ask, Offer, Offered};

const NOW: UnixMs = 1_700_000_000_000;
const TEXT: &str = "feedfacefeedfacefeedfacefeedfacefeedfacefeedfacefeedfacefeedface";

async fn open(dir: &Path, max_pending: usize) -> (Book, Store) {
    let clock = Clock::fixed(NOW);
    let store = Store::open(&dir.join("d.db"), clock.clone()).await.unwrap();
    let vault = Vault::open_file(&dir.join("v.key")).unwrap();
    let book = Book::open(store.clone(), vault, Ops::silent(), clock, max_pending);
    (book.await.unwrap(), store)
}

fn name(host: &str) -> PeerName {
    PeerName::parse(host).unwrap()
}

fn offer(host: &str, text: &str) -> Offer {
    Offer {
        id: format!("peer_{host}"),
        name: "Volt".into(),
        host: name(host),
        url: format!("https://{host}"),
        secret: SharedSecret::new(text).unwrap(),
        features: serde_json::Map::new(),
        bridge: false,
        now_ms: NOW,
    }
}

/// A handshake; true: it was taken.
async fn offered(book: &Book, offer: Offer) -> bool {
    let host = offer.host.clone();
    let done = book.change(&host, move |known, room| {
        match state::offered(known, offer, &name("own.example"), room) {
            Offered::Asked(next) | Offered::Repeated(next) => (Change::put(next), true),
            Offered::OtherSecret(next) => (Change::put(next), false),
            Offered::Full => (Change::Keep, false),
            other => panic!("{other:?}"),
        }
    });
    done.await.unwrap().0
}

async fn accept(book: &Book, host: &str) {
    let host = name(host);
    let done = book.change(&host, |known, _| {
        (Change::to(known.map(|known| state::accept(known, NOW))), ())
    });
    done.await.unwrap();
}

async fn remove(book: &Book, host: &str) {
    let host = name(host);
    let done = book.change(&host, |_, _| (Change::Remove, ()));
    done.await.unwrap();
}

#[tokio::test]
async fn a_peer_survives_a_restart_with_its_secret_and_crossing_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 10).await;
    let host = name("m.example");
    let ask = Ask {
        id: "peer_1".into(),
        name: "M".into(),
        host: host.clone(),
        url: "https://m.example".into(),
        secret: SharedSecret::new(TEXT).unwrap(),
        now_ms: NOW,
    };
    let asked = book.change(&host, |known, _| {
        (Change::to(state::request(known, ask)), ())
    });
    asked.await.unwrap();
    let other = "another secret of sixteen or more";
    let crossing = offer("m.example", other);
    let crossed = book.change(&host, move |known, room| {
        match state::offered(known, crossing, &name("own.example"), room) {
            Offered::Crossing(next) => (Change::put(next), ()),
            other => panic!("{other:?}"),
        }
    });
    crossed.await.unwrap();
    let before = book.get(&host).unwrap();
    store.close().await;
    let (book, store) = open(dir.path(), 10).await;
    let after = book.by_id("peer_1").unwrap();
    assert_eq!(after.shown(), before.shown());
    assert_eq!(after.status, Status::Requested);
    assert!(after.secret.same(TEXT));
    assert!(after.candidates[0].secret.same(other));
    store.close().await;
}

#[tokio::test]
async fn no_secret_is_in_a_file_an_answer_or_a_log_line() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 10).await;
    assert!(offered(&book, offer("m.example", TEXT)).await);
    let peer = book.get(&name("m.example")).unwrap();
    for shown in [
        peer.shown().to_string(),
        peer.shown_to_operator().to_string(),
        format!("{peer:?}"),
    ] {
        assert!(!shown.contains("feedface"), "{shown}");
    }
    store.close().await;
    let mut looked_at = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(8).any(|part| part == b"feedface"));
        looked_at += usize::from(bytes.windows(9).any(|part| part == b"m.example"));
    }
    assert!(looked_at > 0, "the record is in one of the files");
}

#[tokio::test]
async fn another_key_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 10).await;
    offered(&book, offer("m.example", TEXT)).await;
    store.close().await;
    let clock = Clock::fixed(NOW);
    let store = Store::open(&dir.path().join("d.db"), clock.clone())
        .await
        .unwrap();
    let vault = Vault::open_file(&dir.path().join("other.key")).unwrap();
    let opened = Book::open(store.clone(), vault, Ops::silent(), clock, 10).await;
    let said = opened.err().unwrap().to_string();
    assert!(
        said.contains("other.key") && said.contains("m.example"),
        "{said}"
    );
    store.close().await;
}

#[tokio::test]
async fn of_two_handshakes_at_once_for_one_host_one_secret_wins() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 10).await;
    for round in 0..10 {
        let host = format!("m{round}.example");
        let both = (0..8).map(|n| offered(&book, offer(&host, &format!("{n}{TEXT}"))));
        let taken = futures_util::future::join_all(both).await;
        let first = taken.iter().position(|taken| *taken).unwrap();
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
        let peer = book.get(&name(&host)).unwrap();
        assert!(peer.secret.same(&format!("{first}{TEXT}")));
    }
    store.close().await;
}

#[tokio::test]
async fn strangers_that_wait_are_bounded_even_when_they_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 5).await;
    let flood = async |from: usize| {
        let all = (from..from + 40).map(|n| offer(&format!("m{n}.example"), TEXT));
        let all = all.map(|offer| offered(&book, offer));
        let taken = futures_util::future::join_all(all).await;
        taken.iter().filter(|taken| **taken).count()
    };
    assert_eq!(flood(0).await, 5);
    let waiting = book.all()[0].host.clone();
    accept(&book, waiting.as_str()).await;
    assert_eq!(flood(100).await, 1, "one who is decided about makes room");
    assert_eq!(book.sweep(NOW + state::STRANGER_AGE_MS).await, 5);
    assert_eq!(book.accepted(), [waiting]);
    assert_eq!(flood(200).await, 5);
    store.close().await;
}

#[tokio::test]
async fn an_accept_beside_repeated_handshakes_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 10).await;
    offered(&book, offer("m.example", TEXT)).await;
    let again = (0..8).map(|_| offered(&book, offer("m.example", TEXT)));
    let (taken, ()) = futures_util::future::join(
        futures_util::future::join_all(again),
        accept(&book, "m.example"),
    )
    .await;
    assert!(taken.iter().all(|taken| *taken));
    assert_eq!(book.accepted(), [name("m.example")]);
    store.close().await;
    let (book, store) = open(dir.path(), 10).await;
    assert_eq!(book.accepted(), [name("m.example")], "in the store, too");
    store.close().await;
}

#[tokio::test]
async fn what_is_learned_of_a_removed_peer_brings_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 10).await;
    let host = name("m.example");
    offered(&book, offer("m.example", TEXT)).await;
    accept(&book, "m.example").await;
    let old = book.get(&host).unwrap();
    remove(&book, "m.example").await;
    book.failed_as(&old, "no answer").await;
    assert!(!book.contact(&old, Contact::Ping, NOW).await);
    assert!(book.get(&host).is_none());
    // One of the same name that came in its place is another.
    let anew = Offer {
        id: "peer_new".into(),
        ..offer("m.example", &format!("x{TEXT}"))
    };
    assert!(offered(&book, anew).await);
    accept(&book, "m.example").await;
    book.failed_as(&old, "no answer").await;
    assert_eq!(book.get(&host).unwrap().status, Status::Connected);
    store.close().await;
    let (book, store) = open(dir.path(), 10).await;
    assert_eq!(book.get(&host).unwrap().id, "peer_new");
    store.close().await;
}

#[tokio::test]
async fn a_change_is_done_even_when_who_asked_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 10).await;
    offered(&book, offer("m.example", TEXT)).await;
    let asked = tokio::spawn({
        let book = book.clone();
        async move { accept(&book, "m.example").await }
    });
    tokio::task::yield_now().await;
    asked.abort();
    let _ = asked.await;
    // Whether it was begun or not: memory and store agree.
    book.flush().await;
    let there = book
        .change(&name("m.example"), |_, _| (Change::Keep, ()))
        .await
        .unwrap();
    let in_memory = there.1.unwrap().status;
    store.close().await;
    let (book, store) = open(dir.path(), 10).await;
    assert_eq!(book.get(&name("m.example")).unwrap().status, in_memory);
    store.close().await;
}

#[tokio::test]
async fn when_a_peer_was_last_seen_is_written_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path(), 10).await;
    let host = name("m.example");
    offered(&book, offer("m.example", TEXT)).await;
    book.seen(&host, NOW + 5).await;
    assert_eq!(book.get(&host).unwrap().last_seen_ms, None, "it only waits");
    accept(&book, "m.example").await;
    book.seen(&host, NOW + 5_000).await;
    book.seen(&host, NOW + 5_001).await;
    book.synced(&host, NOW + 6_000).await;
    let seen = |book: &Book| {
        let peer = book.get(&host).unwrap();
        (peer.last_seen_ms, peer.last_synced_ms)
    };
    assert_eq!(seen(&book), (Some(NOW + 6_000), Some(NOW + 6_000)));
    book.flush().await;
    store.close().await;
    let (book, store) = open(dir.path(), 10).await;
    assert_eq!(seen(&book), (Some(NOW + 6_000), Some(NOW + 6_000)));
    book.failed(&host, "no answer").await;
    book.seen(&host, NOW + 7_000).await;
    store.close().await;
    let (book, store) = open(dir.path(), 10).await;
    assert_eq!(
        book.get(&host).unwrap().status,
        Status::Connected,
        "at once"
    );
    store.close().await;
}
