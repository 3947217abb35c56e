//! The scripted mainline against itself: what it does is what the sheet says of the real one.

use std::time::Duration;

use crate::support::bridge::free_address;
use crate::support::mainline::{Mainline, Options, Status};

const SOON: Duration = Duration::from_secs(5);

async fn two(published: bool) -> (Mainline, Mainline) {
    let options = || {
        let mut options = Options::at(free_address());
        options.every = None;
        options.published = published;
        options
    };
    let (a, b) = (options(), options());
    let a = Mainline::start(a).await;
    let b = Mainline::start(b).await;
    a.request(&b.url()).await.expect("received");
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_mainlines_as_published_never_exchange_a_message() {
    let (a, b) = two(true).await;
    assert_eq!(a.status(&b.host()), Some(Status::Connected));
    a.round().await;
    // Pending there.
    assert_eq!(a.status(&b.host()), Some(Status::Error));
    b.accept(&a.host()).await;
    assert_eq!(a.status(&b.host()), Some(Status::Connected));
    a.relay(&b.host(), "announcement", "{\"n\":1}");
    a.round().await;
    assert_eq!((b.taken().len(), a.waiting(&b.host())), (0, 1));
    assert_eq!(a.status(&b.host()), Some(Status::Error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_repaired_mainlines_exchange_them_with_double_pushes() {
    let (a, b) = two(false).await;
    b.accept(&a.host()).await;
    for n in 0..20 {
        a.relay(&b.host(), "announcement", &format!("{{\"n\":{n}}}"));
    }
    a.round().await;
    b.until("everything came", SOON, |b| b.taken().len() == 20)
        .await;
    let taken = b.taken();
    let numbers: Vec<_> = taken.iter().map(|m| m.payload["n"].as_u64()).collect();
    assert_eq!(numbers, (0..20).map(Some).collect::<Vec<_>>());
    assert_eq!(b.arrived().len(), 40, "each twice");
    assert_eq!(b.complaints(), [""; 0]);
    assert_eq!(a.complaints(), [""; 0]);
}

/// What makes our own mailbox necessary: a mainline forgets what it hands out before it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_of_a_mainline_is_lost_for_good() {
    let (a, b) = two(false).await;
    b.accept(&a.host()).await;
    for loss in a.every_loss() {
        b.relay(&a.host(), "announcement", "{\"n\":1}");
        a.until_fetched_and_lost(&b.host(), loss).await;
        assert_eq!(b.waiting(&a.host()), 0);
    }
    a.round().await;
    assert_eq!(a.taken().len(), 0);
}
