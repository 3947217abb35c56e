//! The relay lists over HTTP, and the agents' keys that others ask for.

use bytes::Bytes;
use drawbridge::protocol::Protocol;
use drawbridge::trust::Standing;

use crate::harness::{Bridge, Reply, Request, alice_key};

const LIST: &str = "/api/v1/admin/relay-blocklist";
const KEY: &str = "admin_api_key = \"correct horse\"";

async fn ask(bridge: &Bridge, method: &str, path: &str, key: &str, body: &str) -> Reply {
    let raw = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    bridge.raw(raw.as_bytes()).await
}

#[tokio::test]
async fn the_lists_are_closed_without_a_key_and_to_a_wrong_one() {
    let bridge = Bridge::start().await;
    let reply = ask(&bridge, "GET", LIST, "X-Admin-Key: x\r\n", "").await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (503, "Admin API not configured")
    );
    let bridge = Bridge::with(KEY).await;
    let doubled = "X-Admin-Key: correct horse\r\nX-Admin-Key: correct horse\r\n";
    for key in [
        "",
        "X-Admin-Key: \r\n",
        "X-Admin-Key: correct hors\r\n",
        doubled,
    ] {
        for (method, path) in [
            ("GET", LIST),
            ("POST", LIST),
            ("DELETE", "/api/v1/admin/relay-allowlist/a.test"),
        ] {
            let reply = ask(&bridge, method, path, key, "{\"domain\":\"a.test\"}").await;
            assert_eq!(
                (reply.status, reply.detail().as_str()),
                (401, "Invalid admin API key"),
                "{key}"
            );
        }
    }
    assert_eq!(bridge.trust.standing("uam", "a.test"), Standing::Ordinary);
    for _ in 0..20 {
        ask(&bridge, "GET", LIST, "X-Admin-Key: guess\r\n", "").await;
    }
    let reply = ask(&bridge, "GET", LIST, "X-Admin-Key: correct horse\r\n", "").await;
    assert_eq!(reply.status, 429, "guessing is limited: {}", reply.body);
}

#[tokio::test]
async fn a_relay_is_blocked_from_the_moment_of_the_answer_until_it_is_removed() {
    let bridge = Bridge::with(KEY).await;
    let key = "X-Admin-Key: correct horse\r\n";
    let body = r#"{"domain":"Alpha.test","reason":"noise"}"#;
    let reply = ask(&bridge, "POST", LIST, key, body).await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (201, r#"{"domain":"alpha.test","status":"added"}"#)
    );
    let refused = bridge.deliver(&Request::new("m1").sign()).await;
    assert_eq!(
        (refused.status, refused.detail().as_str()),
        (403, "Source relay is blocked")
    );
    let list = ask(&bridge, "GET", LIST, key, "").await.json();
    assert_eq!(list["count"], 1);
    assert_eq!(list["entries"][0]["domain"], "alpha.test");
    assert_eq!(list["entries"][0]["reason"], "noise");
    assert_eq!(list["entries"][0]["created_at"], "2026-05-01T12:00:00.000Z");
    assert!(list["entries"][0]["id"].as_i64().is_some_and(|id| id > 0));
    let path = format!("{LIST}/alpha.test");
    let reply = ask(&bridge, "DELETE", &path, key, "").await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (200, r#"{"domain":"alpha.test","status":"removed"}"#)
    );
    let reply = ask(&bridge, "DELETE", &path, key, "").await;
    assert_eq!(
        (reply.status, reply.detail().as_str()),
        (404, "Domain not found in blocklist")
    );
    bridge.still_works().await;
}

#[tokio::test]
async fn an_allowed_relay_skips_reputation_and_rate() {
    let bridge = Bridge::with(&format!("{KEY}\nrelay_rate_limit = 2")).await;
    bridge.trust.set_score("uam", "alpha.test", 0);
    let key = "X-Admin-Key: correct horse\r\n";
    let body = r#"{"domain":"alpha.test"}"#;
    let reply = ask(&bridge, "POST", "/api/v1/admin/relay-allowlist", key, body).await;
    assert_eq!(reply.status, 201);
    for n in 0..5 {
        assert_eq!(
            bridge
                .deliver(&Request::new(&format!("m{n}")).sign())
                .await
                .status,
            200
        );
    }
    assert_eq!(bridge.trust.score("uam", "alpha.test"), 5);
}

#[tokio::test]
async fn entries_that_name_no_host_are_refused() {
    let bridge = Bridge::with(KEY).await;
    let key = "X-Admin-Key: correct horse\r\n";
    for (body, status) in [
        ("", 422),
        ("[]", 422),
        ("{\"domain\":1}", 422),
        ("{\"domain\":\"\"}", 400),
        ("{\"domain\":\"a b\"}", 400),
        ("{\"domain\":\"http://a.test\"}", 400),
    ] {
        assert_eq!(
            ask(&bridge, "POST", LIST, key, body).await.status,
            status,
            "{body}"
        );
    }
}

#[tokio::test]
async fn the_backends_agents_are_shown_to_whoever_asks() {
    let bridge = Bridge::start().await;
    let key = alice_key().public().to_base64();
    let call = |method: &'static str, body: String| {
        let uam = bridge.uam.clone();
        async move { uam.call(method, Bytes::from(body)).await }
    };
    let put = format!(r#"{{"address":"Bob::beta.test","public_key":"{key}="}}"#);
    let answer = call("agent.put", put).await.unwrap();
    assert_eq!(answer["address"], "bob::beta.test");
    assert_eq!(answer["public_key"], key);
    for path in ["bob::beta.test", "bob%3A%3Abeta.test"] {
        let path = format!("/api/v1/agents/{path}/public-key");
        let reply = ask(&bridge, "GET", &path, "", "").await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["public_key"], key.as_str());
        assert_eq!(reply.json()["tier"], 1);
    }
    let file = ask(&bridge, "GET", "/.well-known/uam.json", "", "")
        .await
        .json();
    assert_eq!(file["agents"]["bob"]["key"], format!("ed25519:{key}"));
    let relay = ask(&bridge, "GET", "/.well-known/uam-relay.json", "", "")
        .await
        .json();
    assert_eq!(relay["relay_domain"], "beta.test");
    assert_eq!(
        relay["federation_endpoint"],
        "https://beta.test/api/v1/federation/deliver"
    );
    assert_eq!(relay["public_key"], bridge.uam.public_key_text());
    assert_eq!(
        ask(&bridge, "GET", "/health", "", "").await.json()["agents_online"],
        1
    );
    let list = call("agent.list", String::new()).await.unwrap();
    assert_eq!(list["agents"].as_array().map(Vec::len), Some(1));
    let gone = call("agent.remove", r#"{"address":"bob::beta.test"}"#.into())
        .await
        .unwrap();
    assert_eq!(gone["removed"], true);
    for (body, code) in [
        (
            r#"{"address":"bob::gamma.test","public_key":"x"}"#.to_owned(),
            "foreign_address",
        ),
        (
            r#"{"address":"bob","public_key":"x"}"#.to_owned(),
            "bad_address",
        ),
        (
            r#"{"address":"bob::beta.test","public_key":"x"}"#.to_owned(),
            "bad_public_key",
        ),
        ("[]".to_owned(), "bad_request"),
    ] {
        assert_eq!(call("agent.put", body).await.unwrap_err().code, code);
    }
    assert_eq!(
        call("agent.eat", String::new()).await.unwrap_err().code,
        "unknown_method"
    );
}

#[tokio::test]
async fn with_federation_off_a_valid_request_is_a_501_and_an_invalid_one_still_a_422() {
    let bridge = Bridge::with("enabled = false").await;
    let reply = bridge.deliver(&Request::new("m1").sign()).await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (
            501,
            r#"{"detail":"Federation not enabled","error":"error"}"#
        )
    );
    assert_eq!(bridge.post(b"{}", &[]).await.status, 422);
    assert_eq!(bridge.published(), 0);
}
