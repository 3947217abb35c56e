//! Rows of the queue and dead letters: chosen, shown, changed one by one and many at a time.

use axum::http::StatusCode;
use bytes::Bytes;
use drawbridge::store::{NewRow, RowState};
use serde_json::{Value, json};

use crate::{Bridge, NOW};

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
        room_event: None,
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
        .unnoticed_dead(0, 10)
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
