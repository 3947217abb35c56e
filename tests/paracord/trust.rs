//! Whom a bridge believes, and for how long: keys that change, servers that misbehave, an operator's
//! word.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::bridge::free_address;
use crate::support::para_world::{Message, Para, Setup};
use crate::support::paracord_client::{Identity, hex};
use crate::support::reference::{Options, Reference};

const SOON: Duration = Duration::from_secs(20);
const ROOM: &str = "!7010:alpha.test";

async fn rotate(para: &Para, mode: &str) -> Value {
    let body = json!({"protocol": "paracord", "mode": mode});
    let (status, answer) = para.admin_with("POST", "/api/v1/keys/rotate", &body).await;
    assert_eq!(status, 200, "{mode}: {answer}");
    answer
}

/// Prepare, both verify, switch; who fetches keys follows, who never does needs its operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_loses_nothing_and_names_the_servers_that_never_fetch_keys() {
    let mut options = Options::at(free_address(), Identity::new("node.test"));
    options.every = None;
    let (a, b) = (
        Setup::new("alpha.test").lifted(),
        Setup::new("beta.test").lifted(),
    );
    let (at_a, at_b) = (a.address, b.address);
    let a = a.peer("beta.test", at_b).peer("node.test", options.address);
    let b = b.peer("alpha.test", at_a);
    let (a, b, node) = tokio::join!(Para::here(a), Para::here(b), Reference::start(options));
    tokio::join!(a.until_known("beta.test"), b.until_known("alpha.test"));
    assert!(node.add("alpha.test", "alpha.test", &a.url()).await);
    a.host(ROOM, "Harbour").await;
    let say = async |body: &str| {
        let message = Message::text("_all", ROOM, "@carol:alpha.test", body);
        a.send(message).await;
    };
    let taken = async |count: usize| {
        b.until_events(count, SOON).await;
    };
    let at_node = async |count: usize| {
        node.until("it is there", SOON, |n| n.taken().len() == count)
            .await;
    };
    say("by the first key").await;
    tokio::join!(taken(1), at_node(1));
    let first = a.keys().await;
    assert_eq!(first.len(), 1, "{first:?}");

    rotate(&a, "prepare").await;
    let listed = a.keys().await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(
        listed[0]["public_key"], first[0]["public_key"],
        "old one first"
    );
    for key in &listed {
        assert_eq!(key["server_name"], "alpha.test");
        assert_eq!(key["algorithm"], "ed25519");
        let far = key["valid_until"].as_i64().unwrap_or(0);
        assert!(far > 365 * 86_400_000_i64 + crate::support::paracord_client::now_ms());
    }
    // Keys are fetched once in a minute at most; clocks within a minute of one another agree.
    b.clock.shift(61_000);
    a.clock.shift(20_000);
    b.until_listed("alpha.test", 2).await;
    say("while the next one is known").await;
    tokio::join!(taken(2), at_node(2));
    // Signed with the old key alone.
    let event = &b.events()[1];
    let signatures = &event.payload["signatures"]["alpha.test"];
    let ids: Vec<_> = signatures.as_object().into_iter().flatten().collect();
    assert_eq!(ids.len(), 1, "{signatures}");
    assert_eq!(ids[0].0, first[0]["key_id"].as_str().unwrap_or_default());

    let plan = rotate(&a, "switch").await;
    let how = |name: &str| -> Value {
        let peers = plan["peers"].as_array().into_iter().flatten();
        let mut found = peers.filter(|p| p["peer"] == name);
        found.next().cloned().unwrap_or_default()
    };
    assert_eq!(how("node.test")["how"], "operator", "{plan}");
    assert_ne!(how("beta.test")["how"], "operator", "{plan}");
    let listed = a.keys().await;
    assert_eq!(listed[1]["public_key"], first[0]["public_key"]);
    say("by the second key").await;
    taken(3).await;
    let event = &b.events()[2];
    let id = listed[0]["key_id"].as_str().unwrap_or_default();
    assert!(
        event.payload["signatures"]["alpha.test"][id].is_string(),
        "{}",
        event.text
    );
    // The reference asked for keys once and will not again: it refuses, and that is said.
    a.until_said("delivery.held", |said| said["peer"] == "node.test")
        .await;
    assert_eq!(node.taken().len(), 2);
    assert_eq!(a.dead().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_proven_bad_events_ends_in_a_quarantine_of_its_own() {
    let (bad, good) = (Identity::new("bad.test"), Identity::new("good.test"));
    let setup = Setup::new("alpha.test")
        .line("quarantine_after", "3")
        .line("quarantine_within", "\"10m\"")
        .line("quarantine_for", "\"1h\"")
        .pinned(&bad)
        .pinned(&good);
    let para = Para::here(setup).await;
    para.host(ROOM, "Harbour").await;
    // What anybody can send in anybody's name counts for nothing.
    for _ in 0..6 {
        let request = good.push(&good.event(ROOM, json!({})));
        let forged = request.header("signature", &hex(&[9; 64]));
        assert_eq!(para.ask(&forged).await.status, 403);
    }
    let event = good.event(ROOM, json!({"content": {"body": "good"}}));
    assert_eq!(para.ask(&good.push(&event)).await.status, 202);
    // Proven requests with events that are not.
    for n in 0..3 {
        let event = match n {
            0 => bad.event(ROOM, json!({"sender": "@alice:good.test"})),
            1 => {
                let mut event = bad.event(ROOM, json!({}));
                event["content"]["body"] = json!("changed after signing");
                event
            }
            _ => {
                let mut event = bad.draft(ROOM);
                event["origin_server"] = json!("good.test");
                event["sender"] = json!("@alice:good.test");
                bad.sign(&mut event);
                event
            }
        };
        let answer = para.ask(&bad.push(&event)).await;
        assert_eq!(answer.status, 403, "{n}: {}", answer.text);
    }
    let said = para
        .until_said("trust.quarantined", |said| said["peer"] == "bad.test")
        .await;
    assert!(!said.to_string().contains("signature\":\""), "{said}");
    let (_, list) = para.admin("GET", "/api/v1/trust").await;
    assert!(list.to_string().contains("bad.test"), "{list}");
    // Its events are kept apart, its calls are refused.
    let held = bad.event(ROOM, json!({"content": {"body": "held"}}));
    let answer = para.ask(&bad.push(&held)).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert_eq!(para.ask(&bad.events(ROOM, 0, 10)).await.status, 403);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(para.events().len(), 1);
    // It ends by itself.
    para.clock.shift(3_700_000);
    let later = bad.event(ROOM, json!({"content": {"body": "later"}}));
    let mut request = bad.push(&later);
    bad.dress(&mut request, para.clock.now_ms());
    let answer = para.ask(&request).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    // And what was kept apart meanwhile comes with it.
    let events = para.until_events(3, SOON).await;
    for body in ["held", "later"] {
        assert!(events.iter().any(|e| e.body() == body), "no {body}");
    }
}

/// A server added by its name: seen first, trusted by an operator, then heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_found_by_its_name_is_heard_after_an_operator_has_trusted_it() {
    let mut options = Options::at(
        free_address(),
        Identity::with_domain("node.test", "chat.test"),
    );
    options.every = None;
    let address = options.address;
    let node = Reference::start(options).await;
    let mut para = Para::here(Setup::new("alpha.test").lifted()).await;
    assert!(node.add("alpha.test", "alpha.test", &para.url()).await);
    para.host(ROOM, "Harbour").await;
    let hello = |body: &str| {
        let me = node.identity();
        me.event(ROOM, json!({"content": {"body": body}}))
    };
    let me = node.identity().clone();
    assert_eq!(para.ask(&me.push(&hello("too early"))).await.status, 403);
    let asked = json!({"name": "node.test", "url": format!("http://{address}")});
    let found = para.call("peer.request", asked).await;
    let shown = found.to_string();
    assert!(shown.contains("chat.test"), "its domain is shown: {shown}");
    assert_eq!(
        para.ask(&me.push(&hello("still too early"))).await.status,
        403
    );
    para.call("peer.accept", json!({"peer": "node.test"})).await;
    assert_eq!(para.ask(&me.push(&hello("now"))).await.status, 202);
    para.restart().await;
    assert_eq!(para.ask(&me.push(&hello("later"))).await.status, 202);
    para.until_events(2, SOON).await;
    para.call("peer.remove", json!({"peer": "node.test"})).await;
    assert_eq!(para.ask(&me.push(&hello("no more"))).await.status, 403);
    assert_eq!(para.events().len(), 2);
}
