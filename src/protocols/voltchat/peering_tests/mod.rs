//! Bridges that peer with one another, and with somebody who means no good.

mod guarded;
mod world;

use std::sync::Arc;

use serde_json::json;

use super::record::Status;
use super::{answer, heartbeat};
use crate::protocol::PeerName;

use world::{SharedSecretText, Wires, bridge, until};

#[tokio::test]
async fn two_bridges_peer_by_the_documented_lines() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    let asked = a.ask(&b.host).await;
    assert_eq!(
        (&asked["status"], &asked["direction"]),
        (&json!("pending"), &json!("outgoing"))
    );
    let (_, list) = b.from(1, "GET", "/peers", Some("reader-token"), None).await;
    assert_eq!(list[0]["host"], "a.example");
    assert_eq!(list[0]["status"], "pending");
    assert_eq!(asked["remotePeerId"], list[0]["id"]);
    assert_eq!(a.status(&b), Status::Requested);
    let id = list[0]["id"].as_str().unwrap();
    let (status, accepted) = b
        .operator("POST", &format!("/peers/{id}/accept"), None)
        .await;
    assert_eq!((status, &accepted["status"]), (200, &json!("connected")));
    assert_eq!(a.status(&b), Status::Connected, "by its first ping");
    for side in [&a, &b] {
        let (_, list) = side.operator("GET", "/peers", None).await;
        assert!(!list.to_string().contains(a.peer(&b).secret.as_text()));
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn crossing_requests_of_two_bridges_end_connected_by_themselves() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    for host in ["a.example", "b.example"] {
        wires.down(host, true);
    }
    a.ask(&b.host).await;
    let failed = b.ask(&a.host).await;
    assert!(failed["lastError"].is_string());
    wires.down("a.example", false);
    wires.down("b.example", false);
    // Only the one whose secret does not stand sends its handshake again.
    b.call("peer.handshake", json!({"peer": "a.example"}))
        .await
        .unwrap();
    until("both are connected", || {
        a.status(&b) == Status::Connected && b.status(&a) == Status::Connected
    })
    .await;
    assert!(a.peer(&b).secret.same(b.peer(&a).secret.as_text()));
    assert!(b.peer(&a).candidates.is_empty());
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_crossing_whose_winning_handshake_is_lost_is_settled_by_the_heartbeats() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    wires.down("b.example", true);
    a.ask(&b.host).await;
    b.ask(&a.host).await;
    until("it was sent again at once, in vain", || {
        wires.count("b.example", "/handshake") == 2
    })
    .await;
    wires.down("b.example", false);
    assert_eq!(a.v.book.beating(), [b.host.clone()]);
    heartbeat::beat(&a.v, &b.host).await;
    until("both are connected", || {
        a.status(&b) == Status::Connected && b.status(&a) == Status::Connected
    })
    .await;
    assert!(a.peer(&b).secret.same(b.peer(&a).secret.as_text()));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn handshakes_that_cross_on_the_wire_end_connected_too() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    wires.held.send_replace(Some("/handshake"));
    let both = async { futures_util::join!(a.ask(&b.host), b.ask(&a.host)) };
    let release = async {
        until("both are asked", || {
            wires.count("a.example", "/handshake") + wires.count("b.example", "/handshake") == 2
        })
        .await;
        wires.held.send_replace(None);
    };
    futures_util::join!(both, release);
    until("both are connected", || {
        a.status(&b) == Status::Connected && b.status(&a) == Status::Connected
    })
    .await;
    assert!(a.peer(&b).secret.same(b.peer(&a).secret.as_text()));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn whoever_speaks_in_the_name_of_a_host_we_asked_gets_nothing() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    a.ask(&b.host).await;
    let theirs = "e".repeat(64);
    let (status, _) = a.handshake(66, "b.example", &theirs, false).await;
    assert_eq!(status, 200, "answered as usual");
    until("it was tried at the real host", || {
        wires.count("b.example", "/ping") >= 2
    })
    .await;
    let secret = SharedSecretText::new(&theirs);
    assert_eq!(
        a.ping_as("b.example", &secret, "1".repeat(32).as_str())
            .await
            .0,
        401
    );
    assert_eq!(a.status(&b), Status::Requested);
    let id = b.peer(&a).id.clone();
    b.operator("POST", &format!("/peers/{id}/accept"), None)
        .await;
    assert_eq!(a.status(&b), Status::Connected, "under our own secret");
    assert!(a.peer(&b).candidates.is_empty());
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_server_that_takes_any_ping_proves_no_secret() {
    let wires = Arc::new(Wires::default());
    let a = bridge(&wires, "a.example").await;
    let lax = axum::Router::new().fallback(|| async { answer::ok(&json!({"accepted": true})) });
    wires
        .servers
        .lock()
        .unwrap()
        .insert("old.example".into(), lax);
    let host = PeerName::parse("old.example").unwrap();
    a.ask(&host).await;
    a.handshake(66, "old.example", &"e".repeat(64), false).await;
    heartbeat::beat(&a.v, &host).await;
    let peer = a.v.book.get(&host).unwrap();
    assert_eq!(peer.status, Status::Requested);
    assert!(!peer.secret.same(&"e".repeat(64)));
    a.stop().await;
}

#[tokio::test]
async fn a_peer_removed_during_a_beat_stays_removed() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    a.ask(&b.host).await;
    b.call("peer.accept", json!({"peer": "a.example"}))
        .await
        .unwrap();
    for (answers, down) in [("yes", false), ("no", true)] {
        let before = wires.count("b.example", "/ping");
        wires.held.send_replace(Some("/ping"));
        let remove = async {
            until("the ping is on its way", || {
                wires.count("b.example", "/ping") > before
            })
            .await;
            a.call("peer.remove", json!({"peer": "b.example"}))
                .await
                .unwrap();
            wires.down("b.example", down);
            wires.held.send_replace(None);
        };
        let (took, ()) = futures_util::join!(heartbeat::beat(&a.v, &b.host), remove);
        assert!(took.is_none(), "{answers}");
        assert!(a.v.book.get(&b.host).is_none(), "{answers}");
        wires.down("b.example", false);
        a.ask(&b.host).await;
        // There it is connected still, under the old secret; here an operator may insist.
        a.call("peer.accept", json!({"peer": "b.example"}))
            .await
            .unwrap();
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_ping_that_nobody_answers_makes_an_error_that_the_next_one_ends() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    a.ask(&b.host).await;
    wires.down("a.example", true);
    let accepted = b
        .call("peer.accept", json!({"peer": "a.example"}))
        .await
        .unwrap();
    assert_eq!(
        (&accepted["status"], &accepted["state"]),
        (&json!("error"), &json!("error"))
    );
    assert!(
        accepted["lastError"]
            .as_str()
            .unwrap()
            .contains("a.example is down")
    );
    assert_eq!(a.status(&b), Status::Requested);
    wires.down("a.example", false);
    assert!(heartbeat::beat(&b.v, &a.host).await.is_some());
    assert_eq!(
        (a.status(&b), b.status(&a)),
        (Status::Connected, Status::Connected)
    );
    a.v.store.close().await;
    assert!(
        heartbeat::beat(&b.v, &a.host).await.is_none(),
        "a store that is away"
    );
    assert_eq!(b.status(&a), Status::Error);
    b.stop().await;
}

#[tokio::test]
async fn an_operator_sees_what_is_odd_before_accepting() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    a.handshake(2, "b.example", &"f".repeat(64), false).await;
    b.ask(&a.host).await;
    let seen = a
        .call("peer.inspect", json!({"peer": "b.example"}))
        .await
        .unwrap();
    assert_eq!(seen["info"]["host"], "b.example");
    let warned = seen["warnings"].to_string();
    assert!(
        warned.contains("changed secret") && warned.contains("calls itself"),
        "{warned}"
    );
    assert!(!seen.to_string().contains(&"f".repeat(64)));
    let seen = b
        .call("peer.inspect", json!({"peer": "a.example"}))
        .await
        .unwrap();
    assert!(seen["warnings"].to_string().contains("dangling"), "{seen}");
    wires.down("a.example", true);
    let seen = b
        .call("peer.inspect", json!({"peer": "a.example"}))
        .await
        .unwrap();
    assert!(seen["info"].is_null() && seen["infoError"].is_string());
    a.stop().await;
    b.stop().await;
}
