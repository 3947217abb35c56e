//! Who gets in: operators, tokens, policy, limits, paths.

use std::sync::Arc;

use axum::body::Body;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::super::record::Status;
use super::super::{ID, routes};
use super::world::{SharedSecretText, Wires, bridge, bridge_with};
use crate::http::unrouted;

#[tokio::test]
async fn a_token_is_taken_once() {
    let wires = Arc::new(Wires::default());
    let a = bridge(&wires, "a.example").await;
    let text = "f".repeat(64);
    a.handshake(2, "m.example", &text, false).await;
    let peer = a.v.book.all()[0].clone();
    let secret = SharedSecretText::new(&text);
    let nonce = "2".repeat(32);
    assert_eq!(
        a.ping_as("m.example", &secret, &nonce).await.0,
        401,
        "not accepted yet"
    );
    a.operator("POST", &format!("/peers/{}/accept", peer.id), None)
        .await;
    let (status, answer) = a.ping_as("m.example", &secret, &nonce).await;
    assert_eq!(
        (status, &answer["host"]),
        (200, &json!("a.example")),
        "{answer}"
    );
    let again = a.ping_as("m.example", &secret, &nonce).await;
    assert_eq!(
        again,
        (
            401,
            json!({"error": "Missing or invalid federation credentials"})
        )
    );
    let strangers = a.ping_as("n.example", &secret, &"3".repeat(32)).await;
    assert_eq!(
        again, strangers,
        "a known host and an unknown one look alike"
    );
    a.stop().await;
}

#[tokio::test]
async fn guessing_and_flooding_are_bounded_by_client_and_by_host() {
    let wires = Arc::new(Wires::default());
    let a = bridge_with(&wires, "a.example", |config| {
        config.handshakes_per_minute = 20;
        config.max_pending = 30;
    })
    .await;
    a.handshake(2, "m.example", &"f".repeat(64), false).await;
    let mut answers = Vec::new();
    for guess in 0..14u8 {
        let secret = format!("{guess:064}");
        answers.push(a.handshake(10 + guess, "m.example", &secret, false).await.0);
    }
    assert_eq!(answers[..10], [401; 10], "from many addresses");
    assert_eq!(answers[10..], [429; 4]);
    let mut taken = 0;
    for n in 0..40 {
        let answer = a
            .handshake(99, &format!("s{n}.example"), &"f".repeat(64), false)
            .await
            .0;
        taken += usize::from(answer == 200);
    }
    assert_eq!(taken, 20, "one client");
    let mut refused = 0;
    for n in 0..20 {
        let answer = a
            .handshake(98, &format!("t{n}.example"), &"f".repeat(64), false)
            .await;
        refused += usize::from(answer == (400, json!({"error": "Failed to register peer"})));
    }
    assert_eq!(
        (a.v.book.all().len(), refused),
        (30, 11),
        "all clients together"
    );
    a.stop().await;
}

#[tokio::test]
async fn a_reader_reads_and_changes_nothing() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    a.ask(&b.host).await;
    let id = a.peer(&b).id.clone();
    let reader = Some("reader-token");
    assert_eq!(
        a.from(1, "GET", &format!("/peers/{id}"), reader, None)
            .await
            .0,
        200
    );
    for (method, path) in [
        ("POST", "/peers".to_owned()),
        ("POST", format!("/peers/{id}/accept")),
        ("POST", format!("/peers/{id}/reject")),
        ("DELETE", format!("/peers/{id}")),
    ] {
        let no = a.from(1, method, &path, reader, None).await;
        assert_eq!(
            no,
            (403, json!({"error": "Moderator access required"})),
            "{path}"
        );
        let nobody = a.from(1, method, &path, None, None).await;
        assert_eq!(
            nobody,
            (401, json!({"error": "Access token required"})),
            "{path}"
        );
        let wrong = a.from(1, method, &path, Some("x"), None).await;
        assert_eq!(
            wrong,
            (403, json!({"error": "Invalid or expired token"})),
            "{path}"
        );
    }
    assert_eq!(a.status(&b), Status::Requested);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_second_request_is_told_of_the_first_and_changes_nothing() {
    let wires = Arc::new(Wires::default());
    let (a, b) = (
        bridge(&wires, "a.example").await,
        bridge(&wires, "b.example").await,
    );
    let asked = a.ask(&b.host).await;
    let body = json!({"name": "Renamed", "url": "https://b.example"});
    let (status, answer) = a.operator("POST", "/peers", Some(body)).await;
    assert_eq!(
        (status, &answer["error"]),
        (409, &json!("Peer already exists"))
    );
    assert_eq!(answer["peer"], asked);
    assert!(!answer.to_string().contains(a.peer(&b).secret.as_text()));
    assert_eq!(wires.count("b.example", "/handshake"), 1);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn nobody_peers_with_itself_or_against_policy() {
    let wires = Arc::new(Wires::default());
    let a = bridge_with(&wires, "a.example", |config| {
        config.allowed_servers = vec!["*.fed.example".into(), "a.example".into()];
    })
    .await;
    let policy = (
        403,
        json!({"error": "Peer host is not allowed by federation policy"}),
    );
    for host in ["a.example", "m.example", "[::1]", "10.0.0.1"] {
        let body = json!({"name": "x", "host": host});
        assert_eq!(
            a.operator("POST", "/peers", Some(body)).await,
            policy,
            "{host}"
        );
        assert_eq!(
            a.handshake(2, host, &"f".repeat(64), false).await,
            policy,
            "{host}"
        );
    }
    assert!(a.v.book.all().is_empty());
    let bad = (400, json!({"error": "Invalid URL (HTTPS required)"}));
    for url in [
        "http://x.fed.example",
        "https://x.fed.example/p",
        "https://y.fed.example",
    ] {
        let body = json!({"name": "x", "host": "x.fed.example", "url": url});
        assert_eq!(a.operator("POST", "/peers", Some(body)).await, bad, "{url}");
    }
    a.handshake(2, "x.fed.example", &"f".repeat(64), false)
        .await;
    let peer = a.v.book.all()[0].clone();
    a.operator("POST", &format!("/peers/{}/accept", peer.id), None)
        .await;
    let secret = SharedSecretText::new(&"f".repeat(64));
    let ping = async |n: &str| a.ping_as("x.fed.example", &secret, &n.repeat(32)).await.0;
    assert_eq!(ping("1").await, 200);
    a.v.trust
        .add(ID, crate::trust::Rule::Block, "x.fed.example", None)
        .await
        .unwrap();
    assert_eq!(ping("2").await, 401, "blocked peers are not told so");
    a.stop().await;
}

#[tokio::test]
async fn our_paths_leave_those_of_others_alone() {
    let wires = Arc::new(Wires::default());
    let a = bridge(&wires, "a.example").await;
    let other = axum::Router::new()
        .route(
            "/.well-known/uam.json",
            axum::routing::get(|| async { "uam" }),
        )
        .route(
            "/api/v1/federation/deliver",
            axum::routing::post(|| async { "uam" }),
        )
        .route(
            "/api/v1/agents/{address}/public-key",
            axum::routing::get(|| async { "uam" }),
        )
        .route("/health", axum::routing::get(|| async { "uam" }));
    let both = unrouted::answered(other.merge(routes::router(Arc::clone(&a.v))));
    let ask = async |method: &str, path: &str| {
        let request = ::http::Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        let answer = both.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX)
            .await
            .unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    };
    for path in [
        "/.well-known/uam.json",
        "/api/v1/agents/a::b/public-key",
        "/health",
    ] {
        assert_eq!(ask("GET", path).await, (200, "uam".into()), "{path}");
    }
    assert_eq!(ask("GET", "/api/v1/federation/deliver").await.0, 405);
    let unknown = (404, "{\"detail\":\"Not Found\"}".to_owned());
    for path in [
        "/",
        "/x",
        "/x/y",
        "/x/y/z",
        "/api/v1/other",
        "/api/v1/federation/x",
    ] {
        assert_eq!(ask("GET", path).await, unknown, "{path}");
    }
    for path in [
        "/API/Federation/INFO/",
        "/.Well-Known/voltchat",
        "/.well-known/voltchat/",
        "/.well-known/voltchat/mainnet",
    ] {
        assert_eq!(ask("GET", path).await.0, 200, "{path}");
    }
    let (status, ours) = ask("GET", "/api/federation/nothing").await;
    let ours: Value = serde_json::from_str(&ours).unwrap();
    assert_eq!((status, &ours["code"]), (404, &json!(404)));
    assert!(ours["requestId"].is_string() && ours["timestamp"].is_string());
    a.stop().await;
}
