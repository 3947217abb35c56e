//! Servers outlive a restart, and of the trusted ones no two share a name.

use std::path::Path;

use super::*;
use crate::clock::Clock;
use crate::protocols::paracord::record::TrustedBy;

const NOW: UnixMs = 1_795_246_080_000;

fn name(text: &str) -> PeerName {
    PeerName::parse(text).unwrap()
}

fn own() -> Own {
    Own {
        name: name("para-a.example"),
        domain: "a.example".to_owned(),
        url: "https://para-a.example".to_owned(),
    }
}

async fn open(dir: &Path) -> (Book, Store) {
    let clock = Clock::fixed(NOW);
    let store = Store::open(&dir.join("d.db"), clock).await.unwrap();
    let book = Book::open(store.clone(), Ops::silent(), own());
    (book.await.unwrap(), store)
}

async fn trust(book: &Book, server: &str, domain: &str) -> Result<(), BookError> {
    let (server, domain) = (name(server), domain.to_owned());
    let wanted = server.clone();
    let done = book.change(&wanted, move |known| {
        let endpoint = format!("https://{server}/_paracord/federation/v1");
        let known = known.cloned();
        let known = known.unwrap_or_else(|| Peer::new(server, endpoint, NOW));
        let next = Peer {
            status: Status::Trusted,
            trusted_by: Some(TrustedBy::Operator),
            domain,
            ..known
        };
        (Change::put(next), ())
    });
    done.await.map(|_| ())
}

#[tokio::test]
async fn a_trusted_server_is_found_by_name_and_domain_and_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path()).await;
    trust(&book, "para-b.example", "B.example").await.unwrap();
    store.close().await;
    let (book, store) = open(dir.path()).await;
    for server in ["para-b.example", "b.EXAMPLE", "PARA-B.example"] {
        assert!(book.of_server(server).is_some(), "{server}");
    }
    assert_eq!(book.trusted(), [name("para-b.example")]);
    assert!(book.by_text("para-b.example").is_some());
    assert!(book.by_text("PARA-B.example").is_none(), "byte for byte");
    assert!(book.by_text("no name").is_none());
    store.close().await;
}

#[tokio::test]
async fn a_name_or_domain_that_another_or_we_have_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path()).await;
    trust(&book, "para-b.example", "b.example").await.unwrap();
    let cases = [
        ("para-c.example", "B.EXAMPLE"),
        ("para-c.example", "para-b.example"),
        ("b.example", "elsewhere.example"),
        ("para-c.example", "A.example"),
        ("para-c.example", "para-a.example"),
        ("a.example", "c.example"),
    ];
    for (server, domain) in cases {
        let error = trust(&book, server, domain).await.unwrap_err();
        assert!(
            matches!(error, BookError::Taken { .. }),
            "{server} {domain}"
        );
        assert!(book.get(&name(server)).is_none());
    }
    let owner = book.of_server("b.example").unwrap();
    assert_eq!(owner.name, name("para-b.example"));
    trust(&book, "para-c.example", "c.example").await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn who_is_no_longer_trusted_gives_its_names_back() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path()).await;
    trust(&book, "para-b.example", "b.example").await.unwrap();
    trust(&book, "para-b.example", "b2.example").await.unwrap();
    assert!(book.of_server("b.example").is_none());
    trust(&book, "para-c.example", "b.example").await.unwrap();
    let b = name("para-b.example");
    let gone = book.change(&b, |_| (Change::Remove, ()));
    gone.await.unwrap();
    assert!(book.of_server("b2.example").is_none());
    let c = name("para-c.example");
    let rejected = book.change(&c, |known| {
        let next = known.cloned().map(|known| Peer {
            status: Status::Rejected,
            ..known
        });
        (Change::to(next), ())
    });
    rejected.await.unwrap();
    assert!(book.of_server("b.example").is_none());
    assert!(book.get(&name("para-c.example")).is_some());
    store.close().await;
}

#[tokio::test]
async fn of_two_that_want_one_domain_at_once_one_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path()).await;
    let names: Vec<String> = (0..8).map(|n| format!("p{n}.example")).collect();
    let each = names.iter().map(|n| trust(&book, n, "one.example"));
    let done = futures_util::future::join_all(each).await;
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1);
    assert_eq!(book.trusted().len(), 1);
    store.close().await;
}

#[tokio::test]
async fn moments_are_written_at_an_orderly_stop_and_lost_by_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path()).await;
    let b = name("para-b.example");
    trust(&book, b.as_str(), "b.example").await.unwrap();
    book.seen(&b, NOW + 5_000);
    book.seen(&b, NOW + 5_001);
    book.fetched_ours(&b, NOW + 7_000);
    book.seen(&name("stranger.example"), NOW);
    assert_eq!(book.get(&b).unwrap().last_seen_ms, Some(NOW + 5_000));
    book.flush().await;
    store.close().await;
    let (book, store) = open(dir.path()).await;
    let peer = book.get(&b).unwrap();
    assert_eq!(peer.last_seen_ms, Some(NOW + 5_000));
    assert_eq!(peer.fetched_ours_ms, Some(NOW + 7_000));
    store.close().await;
}

#[tokio::test]
async fn nothing_changes_when_the_store_does_not_take_it() {
    let dir = tempfile::tempdir().unwrap();
    let (book, store) = open(dir.path()).await;
    store.close().await;
    assert!(trust(&book, "para-b.example", "b.example").await.is_err());
    assert!(book.of_server("b.example").is_none());
    assert!(book.get(&name("para-b.example")).is_none());
}
