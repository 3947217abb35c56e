//! The admin listener's routes over a real database.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use drawbridge::admin::{AdminState, router};
use drawbridge::protocol::{PeerName, PeerRecord};
use drawbridge::store::{NewRow, RowState};
use drawbridge::trust::Rule;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

mod support {
    pub mod admin_state;
}

use support::admin_state::{NOW, TOKEN, state};

struct Bridge {
    state: AdminState,
    _dir: tempfile::TempDir,
}

impl Bridge {
    async fn new() -> Self {
        let (state, dir) = state("beta.com").await;
        Self { state, _dir: dir }
    }

    async fn raw(&self, path: &str, host: &str) -> Response {
        let request = Request::get(path)
            .header("host", host)
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(Body::empty())
            .unwrap();
        router(self.state.clone()).oneshot(request).await.unwrap()
    }

    async fn text(&self, path: &str) -> (StatusCode, String) {
        let answer = self.raw(path, "127.0.0.1:8001").await;
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn json(&self, path: &str) -> (StatusCode, Value) {
        let (status, text) = self.text(path).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn enqueue(&self, msg_id: &str, peer: &str, state: RowState) {
        let id = self.state.store.reserve_rows(1).start;
        let row = NewRow {
            id,
            protocol: "uam",
            peer: peer.into(),
            msg_id: msg_id.into(),
            out_seq: 1,
            event_id: format!("event-{msg_id}"),
            event_type: "message".into(),
            order_key: "k".into(),
            body: Bytes::from_static(b"{\"secret\":1}"),
            created_ms: NOW - 90_000,
            expires_ms: None,
            traceparent: None,
            state,
            reason: (state == RowState::Failed).then(|| ("expired".into(), "too late".into())),
            records: Vec::new(),
            room_event: None,
        };
        let commit = self.state.store.enqueue(vec![row]).await.unwrap();
        commit.await.unwrap();
    }
}

#[tokio::test]
async fn ready_means_no_part_gives_a_reason() {
    let b = Bridge::new().await;
    let (status, body) = b.json("/readyz").await;
    assert_eq!((status, &body["ready"]), (StatusCode::OK, &true.into()));
    b.state.health.set("bus", "NATS is not connected");
    let (status, body) = b.json("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["reasons"]["bus"], "NATS is not connected");
    let (status, _) = b.json("/healthz").await;
    assert_eq!(status, StatusCode::OK, "a restart mends no broker");
    b.state.health.clear("bus");
    assert_eq!(b.json("/readyz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_queue_is_listed_by_filter_without_its_bodies() {
    let b = Bridge::new().await;
    b.enqueue("m1", "beta.com", RowState::Pending).await;
    b.enqueue("m2", "gamma.com", RowState::Pending).await;
    b.enqueue("m3", "beta.com", RowState::Failed).await;
    let (status, all) = b.json("/api/v1/queue").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(all["rows"].as_array().unwrap().len(), 3);
    assert_eq!(all["counts"][0]["pending"], 2);
    assert!(!all.to_string().contains("secret"));
    assert!(all["next"].is_null());
    let (_, beta) = b.json("/api/v1/queue?peer=beta.com&state=pending").await;
    assert_eq!(beta["rows"].as_array().unwrap().len(), 1);
    assert_eq!(beta["rows"][0]["msg_id"], "m1");
    let (_, dead) = b.json("/api/v1/queue?state=dead").await;
    assert_eq!(dead["rows"][0]["reason_code"], "expired");
    let (_, page) = b.json("/api/v1/queue?limit=2").await;
    let next = page["next"].as_i64().unwrap();
    let (_, rest) = b.json(&format!("/api/v1/queue?limit=2&after={next}")).await;
    assert_eq!(rest["rows"].as_array().unwrap().len(), 1);
    let (status, wrong) = b.json("/api/v1/queue?stat=dead").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(wrong["error"], "bad_filter");
}

#[tokio::test]
async fn peers_are_listed_with_their_standing_and_score() {
    let b = Bridge::new().await;
    let name = PeerName::parse("beta.com").unwrap();
    b.state.peers.put(PeerRecord {
        protocol: "uam",
        name,
        endpoint: "https://relay.beta.com".into(),
        alternatives: Vec::new(),
        public_key: None,
        discovered_via: "config".into(),
        last_verified_ms: NOW,
        ttl_ms: None,
        facts: serde_json::Map::new(),
    });
    b.state
        .trust
        .add("uam", Rule::Block, "beta.com", None)
        .await
        .unwrap();
    let (status, body) = b.json("/api/v1/peers").await;
    assert_eq!(status, StatusCode::OK);
    let peer = &body["peers"][0];
    assert_eq!(peer["name"], "beta.com");
    assert_eq!(peer["standing"], "blocked");
    assert_eq!(peer["score"], 50);
}

#[tokio::test]
async fn a_scrape_shows_the_queue_of_this_moment() {
    let b = Bridge::new().await;
    b.enqueue("m1", "beta.com", RowState::Pending).await;
    let (status, text) = b.text("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("drawbridge_queue_pending{protocol=\"uam\"} 1"));
    assert!(text.contains("drawbridge_queue_oldest_age_seconds{protocol=\"uam\"} 90"));
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_request_under_another_host_name_is_refused() {
    let b = Bridge::new().await;
    let answer = b.raw("/api/v1/peers", "rebound.example:8001").await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let (status, body) = b.json("/api/v1/nothing").await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::NOT_FOUND, &"not_found".into())
    );
}
