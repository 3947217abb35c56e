//! Every route and every answer is as the OpenAPI document says.

use drawbridge::admin::OPENAPI;
use drawbridge::admin::routes::table;
use drawbridge::store::RowState;
use serde_json::{Value, json};

use crate::support::openapi::check;
use crate::{Bridge, fill};

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
