//! A protocol's own methods over HTTP.

use serde_json::json;

use crate::Bridge;

#[tokio::test]
async fn a_call_takes_any_json_and_answers_what_the_protocol_answers() {
    let b = Bridge::new().await;
    let path = "/api/v1/protocols/uam/call/echo";
    let body = json!({"peer": "beta.com", "deep": [1, null]});
    let (status, answer) = b.post(path, body.clone()).await;
    assert_eq!((status.as_u16(), &answer["result"]), (200, &body));
    let (status, answer) = b.ask("POST", path, None).await;
    assert_eq!((status.as_u16(), &answer["result"]), (200, &json!({})));
}

#[tokio::test]
async fn a_protocols_refusal_keeps_its_code_and_gets_the_status_that_fits() {
    let b = Bridge::new().await;
    for (method, status, code) in [
        ("bad", 400, "bad_request"),
        ("missing", 404, "no_such_peer"),
        ("nothing", 404, "unknown_method"),
        ("busy", 409, "peer_exists"),
        ("away", 503, "store_unavailable"),
    ] {
        let path = format!("/api/v1/protocols/uam/call/{method}");
        let (got, answer) = b.post(&path, json!({})).await;
        assert_eq!(
            (got.as_u16(), &answer["error"], &answer["detail"]),
            (status, &json!(code), &json!("as the test wants it"))
        );
    }
    let (status, answer) = b.post("/api/v1/protocols/smtp/call/echo", json!({})).await;
    assert_eq!(
        (status.as_u16(), &answer["error"]),
        (422, &json!("unknown_protocol"))
    );
}
