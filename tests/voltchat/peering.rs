//! Peering with a mainline, from either side.

use std::time::Duration;

use serde_json::json;

use crate::support::bridge::free_address;
use crate::support::mainline::{Mainline, Options, Status};
use crate::support::volt_world::{MODERATOR, Setup, Volt};

const SOON: Duration = Duration::from_secs(10);

async fn both(options: Options) -> (Volt, Mainline) {
    let setup = Setup::new("Volt A").allow(options.address.to_string());
    let mainline = Mainline::start(options).await;
    (Volt::start(&setup).await, mainline)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mainline_that_asks_is_connected_when_the_operator_accepts() {
    let mut options = Options::at(free_address());
    options.name = "\"half a \\ud83d pair\"".into();
    let (a, mainline) = both(options).await;
    mainline.request(&a.url()).await.unwrap();
    let waiting = a.until_status(&mainline.host(), "pending").await;
    assert_eq!(waiting["direction"], "incoming");
    // It believes itself connected, and is told 401 until it is.
    let refused = "Request failed with status code 401";
    mainline
        .until("its ping is refused", SOON, |m| {
            m.peer(&a.host).unwrap().last_error.as_deref() == Some(refused)
        })
        .await;
    a.accept(&mainline.host()).await;
    mainline
        .until("the acceptance ping came", SOON, |m| {
            m.counts().pings_in > 0
        })
        .await;
    mainline
        .until("its ping is taken", SOON, |m| {
            m.status(&a.host) == Some(Status::Connected)
        })
        .await;
    mainline.relay(&a.host, "announcement", "{\"text\":\"half \\udc00\"}");
    let events = a.until_events(1, SOON).await;
    assert_eq!(events[0].payload["fromHost"], mainline.host().as_str());
    assert_eq!(mainline.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mainline_that_is_asked_connects_with_its_first_ping() {
    let (a, mainline) = both(Options::at(free_address())).await;
    a.request("Volt M", &mainline.url()).await;
    mainline
        .until("the handshake came", SOON, |m| m.status(&a.host).is_some())
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let peer = a.peer(&mainline.host()).await.unwrap();
    assert_eq!(peer["status"], "pending", "{peer}");
    mainline.accept(&a.host).await;
    a.until_status(&mainline.host(), "connected").await;
    // As published it takes neither pushes nor fetches; that is no fault of the peer.
    a.publish(&mainline.host(), "announcement", json!({"n": 1}), &[])
        .await;
    mainline
        .until("the message is fetched", SOON, |m| m.taken().len() == 1)
        .await;
    let peer = a.peer(&mainline.host()).await.unwrap();
    assert_eq!(
        (&peer["status"], &peer["lastError"]),
        (&json!("connected"), &json!(null))
    );
    assert_eq!(mainline.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_stays_rejected_whatever_is_sent_again() {
    let (a, mainline) = both(Options::at(free_address())).await;
    mainline.run(false);
    mainline.request(&a.url()).await.unwrap();
    let secret = mainline.peer(&a.host).unwrap().secret;
    let id = a.id_of(&mainline.host()).await;
    a.moderate("POST", &format!("/peers/{id}/reject"), None)
        .await;
    mainline.forget(&a.host);
    mainline.request_with(&a.url(), &secret).await.unwrap();
    let peer = a.peer(&mainline.host()).await.unwrap();
    assert_eq!(peer["status"], "rejected", "{peer}");
    // Another secret is no way in either.
    mainline.forget(&a.host);
    let other = mainline.request(&a.url()).await;
    assert_eq!(other, Err("Request failed with status code 401".into()));
    a.accept(&mainline.host()).await;
}

/// A mainline that keeps its peers in memory has forgotten us after a restart and sends the same
/// handshake again, or a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_handshake_does_not_cost_an_accepted_peer_its_state() {
    let (a, mainline) = both(Options::at(free_address())).await;
    mainline.run(false);
    mainline.request(&a.url()).await.unwrap();
    let secret = mainline.peer(&a.host).unwrap().secret;
    a.accept(&mainline.host()).await;
    a.until_status(&mainline.host(), "connected").await;
    mainline.forget(&a.host);
    mainline.request_with(&a.url(), &secret).await.unwrap();
    let peer = a.peer(&mainline.host()).await.unwrap();
    assert_ne!(peer["status"], "pending", "{peer}");
    mainline.round().await;
    assert_eq!(mainline.status(&a.host), Some(Status::Connected));
    mainline.forget(&a.host);
    let other = mainline.request(&a.url()).await;
    assert_eq!(other, Err("Request failed with status code 401".into()));
    let peer = a.peer(&mainline.host()).await.unwrap();
    assert_ne!(peer["status"], "pending", "{peer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dangling_peer_at_the_mainline_is_named_in_the_error() {
    let (a, mainline) = both(Options::at(free_address())).await;
    mainline.dangle(&a.url());
    let peer = a.request("Volt M", &mainline.url()).await;
    assert_eq!(peer["status"], "pending");
    let said = peer["lastError"].as_str().unwrap_or_default();
    assert!(said.contains("401") || said.contains("rejected"), "{peer}");
    let own = json!({"name": "me", "url": a.url()});
    let (status, _) = a.api("POST", "/peers", Some(MODERATOR), Some(own)).await;
    assert!(
        (400..500).contains(&status),
        "a bridge is no peer of its own: {status}"
    );
}
