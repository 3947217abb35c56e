//! The admin API held against its OpenAPI document, and its token against those without it.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use drawbridge::admin::routes::table;
use drawbridge::admin::{Access, AdminState, OPENAPI, router};
use drawbridge::clock::Clock;
use drawbridge::config::{PeerPin, Secret};
use drawbridge::ops::Ops;
use drawbridge::ops::health::Health;
use drawbridge::peers::Peers;
use drawbridge::store::{NewRow, RowState, Store};
use drawbridge::trust::{Rule, Standing, Trust};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

mod support {
    pub mod openapi;
    pub mod speaker;
}

use support::openapi::check;

const NOW: i64 = 1_800_000_000_000;
const TOKEN: &str = "a-token-of-these-tests-alone";

struct Bridge {
    state: AdminState,
    clock: Clock,
    _dir: tempfile::TempDir,
}

impl Bridge {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW);
        let store = Store::open(&dir.path().join("d.sqlite"), clock.clone())
            .await
            .unwrap();
        let pin = PeerPin {
            protocol: "uam".into(),
            name: "pinned.com".into(),
            endpoint: Some("https://relay.pinned.com".into()),
            public_key: None,
            accepted: true,
        };
        let peers = Peers::open(store.clone(), &[pin], clock.clone())
            .await
            .unwrap();
        let trust = Trust::open(store.clone(), clock.clone()).await.unwrap();
        let state = AdminState {
            store,
            peers,
            trust,
            door: None,
            lanes: None,
            health: Health::new(),
            ops: Ops::silent(),
            clock: clock.clone(),
            protocols: vec!["uam"],
            speakers: vec![Arc::new(support::speaker::Speaker::new())],
            token: Secret(TOKEN.to_owned().into()),
            metrics_open: true,
            loopback_only: true,
        };
        Self {
            state,
            clock,
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

// ------------------------------------------------------------------------------- who may ask

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

// ------------------------------------------------------------------------------- the document

/// A path with its places filled.
fn fill(path: &str, id: i64) -> String {
    path.replace("{id}", &id.to_string())
        .replace("{protocol}", "uam")
        .replace("{name}", "pinned.com")
}

#[test]
fn the_document_names_exactly_the_routes_there_are() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut told: Vec<(String, String)> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            told.push((path.clone(), method.to_uppercase()));
        }
    }
    let mut there: Vec<(String, String)> = table()
        .iter()
        .map(|route| (route.path.to_owned(), route.method.to_owned()))
        .collect();
    told.sort();
    there.sort();
    assert_eq!(told, there);
}

#[test]
fn operation_ids_are_unique_and_every_reference_leads_somewhere() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let mut ids = Vec::new();
    for methods in document["paths"].as_object().unwrap().values() {
        for operation in methods.as_object().unwrap().values() {
            ids.push(operation["operationId"].as_str().unwrap().to_owned());
            assert!(operation["summary"].is_string());
        }
    }
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all);
    let text = document.to_string();
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}

#[test]
fn the_check_of_answers_can_fail() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {
        "a": {"type": "integer"}, "b": {"type": ["string", "null"], "enum": ["x", null]}}});
    for (value, part) in [
        (json!({}), "\"a\" is missing"),
        (json!({"a": "x"}), "string instead of \"integer\""),
        (json!({"a": 1, "b": "y"}), "is none of"),
        (json!({"a": 1, "c": 1}), "\"c\" is not described"),
        (json!([]), "array instead of"),
    ] {
        let mut wrong = Vec::new();
        check(&Value::Null, &schema, &value, "body", &mut wrong);
        assert!(wrong.join(";").contains(part), "{value}: {wrong:?}");
    }
}

#[tokio::test]
async fn every_documented_operation_answers_as_documented() {
    let b = Bridge::new().await;
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    b.row("pinned.com", "message", RowState::Pending, 60_000)
        .await;
    let rule = json!({"rule": "quarantine", "pattern": "*.com", "reason": "new", "for": "2h"});
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if path.starts_with("/api/v1/peers/{protocol}/{name}/") {
                // Needs lanes: tests/cli_lists.rs asks a running bridge.
                let (status, answer) = b.ask("POST", &fill(path, 1), None).await;
                assert_eq!(
                    (status.as_u16(), &answer["error"]),
                    (503, &json!("nothing_is_sent"))
                );
                continue;
            }
            // Each finds something to work on, whatever the one before did.
            let id = b
                .row("pinned.com", "message", RowState::Failed, 60_000)
                .await;
            b.post("/api/v1/trust", rule.clone()).await;
            let body = example(path, method);
            let query = if path.starts_with("/api/v1/dead/") || path.starts_with("/api/v1/queue/") {
                if method == "post" {
                    "?peer=pinned.com"
                } else {
                    "?body=true"
                }
            } else {
                ""
            };
            let url = format!("{}{query}", fill(path, id));
            let (status, answer) = b.ask(&method.to_uppercase(), &url, body.as_ref()).await;
            assert!(status.is_success(), "{method} {url}: {status} {answer}");
            let described = &operation["responses"][status.as_str()];
            assert!(
                described.is_object(),
                "{method} {url}: {status} is not described"
            );
            if let Some(kind) = described["content"].get("application/json") {
                let mut wrong = Vec::new();
                check(&document, &kind["schema"], &answer, "answer", &mut wrong);
                assert!(wrong.is_empty(), "{method} {url}: {wrong:#?}\n{answer:#}");
            }
        }
    }
}

/// A body for what needs one.
fn example(path: &str, method: &str) -> Option<Value> {
    match (path, method) {
        ("/api/v1/trust", "post") => {
            Some(json!({"rule": "block", "pattern": "spam.com", "reason": "spam"}))
        }
        ("/api/v1/trust/release", "post") => Some(json!({"pattern": "*.com"})),
        _ => None,
    }
}

#[tokio::test]
async fn a_refusal_is_a_code_and_a_sentence_as_documented() {
    let b = Bridge::new().await;
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let schema = json!({"$ref": "#/components/schemas/Error"});
    for (method, path, body, status, code) in [
        ("GET", "/api/v1/nothing", None, 404, "not_found"),
        ("PUT", "/api/v1/queue", None, 405, "method_not_allowed"),
        ("GET", "/api/v1/queue?stat=dead", None, 400, "bad_filter"),
        ("GET", "/api/v1/queue/999", None, 404, "no_such_row"),
        ("GET", "/api/v1/dead/abc", None, 404, "no_such_row"),
        ("POST", "/api/v1/dead/redrive", None, 400, "filter_needed"),
        (
            "POST",
            "/api/v1/queue/drop?limit=5",
            None,
            400,
            "filter_needed",
        ),
        (
            "GET",
            "/api/v1/peers/uam/never.com",
            None,
            404,
            "no_such_peer",
        ),
        (
            "GET",
            "/api/v1/peers/smtp/beta.com",
            None,
            422,
            "unknown_protocol",
        ),
        ("GET", "/api/v1/peers/uam/a%20b", None, 400, "bad_peer"),
        (
            "POST",
            "/api/v1/trust",
            Some(json!({"rule": "ban", "pattern": "a.com"})),
            400,
            "bad_rule",
        ),
        (
            "POST",
            "/api/v1/trust",
            Some(json!({"rule": "block", "pattern": "*"})),
            400,
            "bad_pattern",
        ),
        (
            "POST",
            "/api/v1/trust",
            Some(json!({"rule": "block", "pattern": "a.com", "for": "0s"})),
            400,
            "bad_end",
        ),
        (
            "POST",
            "/api/v1/trust",
            Some(json!({"rule": "block"})),
            400,
            "bad_body",
        ),
        (
            "POST",
            "/api/v1/trust",
            Some(json!({"rule": "block", "pattern": "a.com", "protocol": "smtp"})),
            422,
            "unknown_protocol",
        ),
        (
            "POST",
            "/api/v1/trust/release",
            Some(json!({"pattern": "a.com"})),
            404,
            "no_such_rule",
        ),
    ] {
        let (got, answer) = b.ask(method, path, body.as_ref()).await;
        assert_eq!(
            (got.as_u16(), &answer["error"]),
            (status, &json!(code)),
            "{method} {path}: {answer}"
        );
        let mut wrong = Vec::new();
        check(&document, &schema, &answer, "answer", &mut wrong);
        assert!(wrong.is_empty(), "{path}: {wrong:?}");
    }
}

// ------------------------------------------------------------------------------- queue and dead

#[tokio::test]
async fn rows_are_chosen_by_age_type_reason_and_number() {
    let b = Bridge::new().await;
    let old = b
        .row("beta.com", "message", RowState::Failed, 7_200_000)
        .await;
    let young = b
        .row("beta.com", "presence", RowState::Failed, 60_000)
        .await;
    let other = b
        .row("gamma.com", "message", RowState::Failed, 60_000)
        .await;
    let pending = b
        .row("beta.com", "message", RowState::Pending, 60_000)
        .await;
    let found = async |query: &str| -> Vec<i64> {
        let (status, body) = b.get(&format!("/api/v1/dead?{query}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let rows = body["rows"].as_array().unwrap();
        rows.iter().map(|row| row["id"].as_i64().unwrap()).collect()
    };
    assert_eq!(found("").await, [old, young, other]);
    assert_eq!(found("older_than=1h").await, [old]);
    assert_eq!(found("newer_than=1h").await, [young, other]);
    assert_eq!(found("newer_than=1h&peer=BETA.com").await, [young]);
    assert_eq!(found("type=message").await, [old, other]);
    assert_eq!(found("reason=refused&limit=1").await, [old]);
    assert_eq!(found("reason=expired").await, [0i64; 0]);
    assert_eq!(found(&format!("id={young},{pending}")).await, [young]);
    let (_, page) = b.get("/api/v1/dead?limit=2").await;
    assert_eq!(page["next"], young);
    assert_eq!(found(&format!("after={young}")).await, [other]);
    let (_, all) = b.get("/api/v1/queue?state=pending,held").await;
    assert_eq!(all["rows"][0]["id"], pending);
}

#[tokio::test]
async fn a_change_of_everything_must_be_meant_and_can_be_tried_first() {
    let b = Bridge::new().await;
    let one = b.row("beta.com", "message", RowState::Failed, 60_000).await;
    let two = b
        .row("gamma.com", "message", RowState::Failed, 60_000)
        .await;
    let (status, _) = b.ask("POST", "/api/v1/dead/redrive", None).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (_, tried) = b
        .ask("POST", "/api/v1/dead/redrive?dry_run=true", None)
        .await;
    assert_eq!(
        (&tried["matched"], &tried["changed"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(b.state_of(one).await, Some(RowState::Failed));
    let (_, done) = b
        .ask("POST", "/api/v1/dead/redrive?peer=beta.com", None)
        .await;
    assert_eq!((&done["matched"], &done["changed"]), (&json!(1), &json!(1)));
    assert_eq!(b.state_of(one).await, Some(RowState::Pending));
    assert_eq!(b.state_of(two).await, Some(RowState::Failed));
    let (_, done) = b.ask("POST", "/api/v1/dead/drop?all=true", None).await;
    assert_eq!(done["changed"], 1);
    assert_eq!(b.state_of(two).await, None);
    assert_eq!(
        b.state_of(one).await,
        Some(RowState::Pending),
        "only dead ones"
    );
}

#[tokio::test]
async fn a_redriven_row_keeps_its_event_id_and_begins_anew() {
    let b = Bridge::new().await;
    let id = b.row("beta.com", "message", RowState::Failed, 60_000).await;
    let before = b.state.store.row(id).await.unwrap().unwrap();
    b.ask("POST", &format!("/api/v1/dead/redrive?id={id}"), None)
        .await;
    let after = b.state.store.row(id).await.unwrap().unwrap();
    assert_eq!(after.event_id, before.event_id);
    assert_eq!((after.state, after.attempts), (RowState::Pending, 0));
    assert_eq!(
        (after.first_failed_ms, after.next_at_ms, after.reason_code),
        (None, None, None)
    );
}

#[tokio::test]
async fn what_is_past_its_time_is_not_redriven_to_die_again() {
    let b = Bridge::new().await;
    let id = b.state.store.reserve_rows(1).start;
    let row = NewRow {
        id,
        protocol: "uam",
        peer: "beta.com".into(),
        msg_id: "m".into(),
        out_seq: 1,
        event_id: "e".into(),
        event_type: "message".into(),
        order_key: "k".into(),
        body: Bytes::new(),
        created_ms: NOW - 1000,
        expires_ms: Some(NOW - 1),
        traceparent: None,
        state: RowState::Failed,
        reason: Some(("expired".into(), "too late".into())),
        records: Vec::new(),
    };
    b.state
        .store
        .enqueue(vec![row])
        .await
        .unwrap()
        .await
        .unwrap();
    let (_, done) = b.ask("POST", "/api/v1/dead/redrive?all=true", None).await;
    assert_eq!((&done["changed"], &done["expired"]), (&json!(0), &json!(1)));
    assert_eq!(b.state_of(id).await, Some(RowState::Failed));
}

#[tokio::test]
async fn a_dropped_row_is_dead_with_a_reason_and_a_notice_to_come() {
    let b = Bridge::new().await;
    let pending = b
        .row("beta.com", "message", RowState::Pending, 60_000)
        .await;
    let held = b.row("beta.com", "message", RowState::Held, 60_000).await;
    let dead = b.row("beta.com", "message", RowState::Failed, 60_000).await;
    b.state
        .store
        .noticed(vec![dead])
        .await
        .unwrap()
        .await
        .unwrap();
    let (_, done) = b
        .ask("POST", "/api/v1/queue/drop?peer=beta.com", None)
        .await;
    assert_eq!(done["changed"], 2);
    let row = b.state.store.row(pending).await.unwrap().unwrap();
    assert_eq!(row.state, RowState::Failed);
    assert_eq!(row.reason_code.as_deref(), Some("dropped"));
    assert_eq!(row.settled_ms, Some(NOW));
    let mut notices: Vec<i64> = b
        .state
        .store
        .unnoticed_dead(10)
        .await
        .unwrap()
        .iter()
        .map(|r| r.id)
        .collect();
    notices.sort_unstable();
    assert_eq!(notices, [pending, held]);
}

#[tokio::test]
async fn a_change_of_many_rows_goes_in_steps_and_says_where_to_go_on() {
    let b = Bridge::new().await;
    for _ in 0..7 {
        b.row("beta.com", "message", RowState::Failed, 60_000).await;
    }
    let (_, first) = b
        .ask("POST", "/api/v1/dead/redrive?all=true&limit=5", None)
        .await;
    assert_eq!(first["changed"], 5);
    let next = first["next"].as_i64().unwrap();
    let (_, rest) = b
        .ask(
            "POST",
            &format!("/api/v1/dead/redrive?all=true&after={next}"),
            None,
        )
        .await;
    assert_eq!((&rest["changed"], &rest["next"]), (&json!(2), &Value::Null));
}

// ------------------------------------------------------------------------------- peers and trust

#[tokio::test]
async fn a_pinned_peer_and_one_that_is_only_waited_for_are_listed() {
    let b = Bridge::new().await;
    b.row("lost.com", "message", RowState::Pending, 90_000)
        .await;
    b.row("lost.com", "message", RowState::Failed, 90_000).await;
    let (_, body) = b.get("/api/v1/peers").await;
    let names: Vec<_> = body["peers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].clone())
        .collect();
    assert_eq!(names, ["lost.com", "pinned.com"]);
    assert_eq!(body["peers"][0]["pending"], 1);
    assert_eq!(body["peers"][0]["dead"], 1);
    assert_eq!(
        body["peers"][1]["pin"]["endpoint"],
        "https://relay.pinned.com"
    );
    let (_, page) = b.get("/api/v1/peers?limit=1").await;
    assert_eq!(page["next"], "uam/lost.com");
    let (_, page) = b.get("/api/v1/peers?limit=1&after=uam/lost.com").await;
    assert_eq!(
        (&page["peers"][0]["name"], &page["next"]),
        (&json!("pinned.com"), &Value::Null)
    );
    let (_, shown) = b.get("/api/v1/peers/uam/lost.com").await;
    assert_eq!(shown["oldest_pending_ms"], NOW - 90_000);
    let said = shown["explanation"].to_string();
    assert!(
        said.contains("1 pending, the oldest made 1 min 30 s ago, 1 dead"),
        "{said}"
    );
    let (_, shown) = b.get("/api/v1/peers/uam/pinned.com").await;
    let said = shown["explanation"].to_string();
    assert!(
        said.contains("https://relay.pinned.com is pinned"),
        "{said}"
    );
}

#[tokio::test]
async fn a_rule_is_in_force_with_the_answer_and_ends_by_itself() {
    let b = Bridge::new().await;
    let standing = |name: &str| b.state.trust.standing("uam", name);
    let rule = json!({"rule": "quarantine", "pattern": "*.Spam.com", "reason": "new", "for": "1h"});
    let (status, added) = b.post("/api/v1/trust", rule.clone()).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(added["rule"]["pattern"], "*.spam.com");
    assert_eq!(standing("a.spam.com"), Standing::Quarantined);
    let (status, again) = b.post("/api/v1/trust", rule).await;
    assert_eq!((status, &again["new"]), (StatusCode::OK, &json!(false)));
    let (_, shown) = b.get("/api/v1/trust?rule=quarantine").await;
    assert_eq!(shown["rules"].as_array().unwrap().len(), 1);
    b.post(
        "/api/v1/trust",
        json!({"rule": "block", "pattern": "a.spam.com"}),
    )
    .await;
    assert_eq!(standing("a.spam.com"), Standing::Blocked, "block wins");
    let release = json!({"pattern": "a.spam.com"});
    let (_, released) = b.post("/api/v1/trust/release", release).await;
    assert_eq!(released["removed"][0]["rule"], "block");
    assert_eq!(released["still"]["pattern"], "*.spam.com");
    assert_eq!(standing("a.spam.com"), Standing::Quarantined);
    b.clock.set(NOW + 3_600_000);
    assert_eq!(standing("a.spam.com"), Standing::Ordinary);
    let (_, shown) = b.get("/api/v1/trust").await;
    assert_eq!(shown["rules"], json!([]));
    let (_, shown) = b.get("/api/v1/trust?ended=true").await;
    assert_eq!(shown["rules"][0]["in_force"], false);
}

#[tokio::test]
async fn rules_written_by_another_hand_come_into_force_with_a_reload() {
    let b = Bridge::new().await;
    b.state
        .trust
        .add("uam", Rule::Block, "old.com", None)
        .await
        .unwrap();
    let row = drawbridge::store::TrustRow {
        id: 0,
        protocol: "uam".into(),
        pattern: "new.com".into(),
        rule: "block".into(),
        reason: None,
        created_ms: NOW,
        ends_ms: None,
    };
    b.state.store.put_trust(row).await.unwrap().await.unwrap();
    let gone = b
        .state
        .store
        .remove_trust("uam", "old.com", "block")
        .await
        .unwrap();
    assert!(gone.await.unwrap());
    assert_eq!(b.state.trust.standing("uam", "new.com"), Standing::Ordinary);
    assert_eq!(b.state.trust.reload().await.unwrap(), 1);
    assert_eq!(b.state.trust.standing("uam", "new.com"), Standing::Blocked);
    assert_eq!(b.state.trust.standing("uam", "old.com"), Standing::Ordinary);
}
