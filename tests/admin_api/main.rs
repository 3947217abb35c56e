//! The admin API: its token against those without it, its routes and answers against its OpenAPI
//! document ([`document`]), what it does to rows ([`queue`]), peers and rules ([`peers`]), and a protocol's own
//! methods ([`calls`]).

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use drawbridge::admin::routes::table;
use drawbridge::admin::{Access, AdminState, router};
use drawbridge::clock::Clock;
use drawbridge::store::{NewRow, RowState};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

mod calls;
mod document;
mod peers;
mod queue;

#[path = "../support"]
mod support {
    pub mod admin_state;
    pub mod openapi;
    pub mod speaker;
}

use support::admin_state::{NOW, TOKEN, state};

struct Bridge {
    state: AdminState,
    clock: Clock,
    _dir: tempfile::TempDir,
}

impl Bridge {
    async fn new() -> Self {
        let (mut state, dir) = state("pinned.com").await;
        state.speakers = vec![Arc::new(support::speaker::Speaker::new())];
        Self {
            clock: state.clock.clone(),
            state,
            _dir: dir,
        }
    }

    async fn send(&self, request: Request<Body>) -> Response {
        router(self.state.clone()).oneshot(request).await.unwrap()
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {TOKEN}"));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        read(self.send(request.body(body).unwrap()).await).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.ask("GET", path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask("POST", path, Some(&body)).await
    }

    async fn row(&self, peer: &str, kind: &str, state: RowState, age_ms: i64) -> i64 {
        let id = self.state.store.reserve_rows(1).start;
        let row = NewRow {
            id,
            protocol: "uam",
            peer: peer.into(),
            msg_id: format!("m{id}"),
            out_seq: 1,
            event_id: format!("event-{id}"),
            event_type: kind.into(),
            order_key: "k".into(),
            body: Bytes::from_static(b"{\"text\":1}"),
            created_ms: NOW - age_ms,
            expires_ms: None,
            traceparent: None,
            state,
            reason: (state == RowState::Failed).then(|| ("refused".into(), "not wanted".into())),
            records: Vec::new(),
            room_event: None,
        };
        let commit = self.state.store.enqueue(vec![row]).await.unwrap();
        commit.await.unwrap();
        id
    }

    async fn state_of(&self, id: i64) -> Option<RowState> {
        let row = self.state.store.row(id).await.unwrap();
        row.map(|row| row.state)
    }
}

async fn read(answer: Response) -> (StatusCode, Value) {
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

/// A path with its places filled.
fn fill(path: &str, id: i64) -> String {
    path.replace("{id}", &id.to_string())
        .replace("{protocol}", "uam")
        .replace("{name}", "pinned.com")
        .replace("{method}", "echo")
}

#[tokio::test]
async fn every_route_of_the_api_is_closed_without_its_token() {
    let b = Bridge::new().await;
    let id = b.row("beta.com", "message", RowState::Failed, 0).await;
    for route in table().iter().filter(|r| r.path.starts_with("/api/")) {
        assert_eq!(route.access, Access::Token, "{}", route.path);
        let path = fill(route.path, id);
        for headers in [
            vec![],
            vec![("authorization", "Bearer wrong-token-of-somebody")],
            vec![("authorization", "Basic YTpi")],
            vec![
                ("authorization", "Bearer a-token-of-these-tests-alone"),
                ("authorization", "Bearer a-token-of-these-tests-alone"),
            ],
        ] {
            let mut all = vec![("host", "localhost")];
            all.extend(headers);
            let answer = b.send(request(route.method, &path, &all)).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
            assert!(challenge.starts_with("Bearer realm="), "{challenge}");
            let (_, body) = read(answer).await;
            assert_eq!(body["error"], "unauthorized");
            assert!(body["detail"].as_str().unwrap().contains("admin.token"));
        }
    }
    assert_eq!(b.state_of(id).await, Some(RowState::Failed));
}

#[tokio::test]
async fn probes_need_no_token_and_metrics_as_the_setting_says() {
    let mut b = Bridge::new().await;
    let plain = [("host", "localhost")];
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = b.send(request("GET", path, &plain)).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    b.state.metrics_open = false;
    let answer = b.send(request("GET", "/metrics", &plain)).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let bearer = format!("bearer {TOKEN}");
    let with = [("host", "localhost"), ("authorization", bearer.as_str())];
    let answer = b.send(request("GET", "/metrics", &with)).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_foreign_host_name_is_refused_on_loopback_and_taken_where_the_token_guards() {
    let mut b = Bridge::new().await;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [
        ("host", "bridge.example:8001"),
        ("authorization", bearer.as_str()),
    ];
    let answer = b.send(request("GET", "/api/v1/keys", &headers)).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    b.state.loopback_only = false;
    let answer = b.send(request("GET", "/api/v1/keys", &headers)).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_does_not_call_itself_json_is_refused() {
    let b = Bridge::new().await;
    let request = Request::post("/api/v1/trust")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "text/plain")
        .header("content-length", "2")
        .body(Body::from("{}"))
        .unwrap();
    let (status, body) = read(b.send(request).await).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(body["error"], "not_json");
}
