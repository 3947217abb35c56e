//! Peers as they are listed, and rules of trust.

use axum::http::StatusCode;
use drawbridge::store::RowState;
use drawbridge::trust::{Rule, Standing};
use serde_json::{Value, json};

use crate::{Bridge, NOW};

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
