//! Servers are found, trusted and watched; keys are fetched, changed and never confused.

mod world;

use serde_json::{Value, json};

use super::record::{Status, TrustedBy};
use super::*;
use crate::config::PeerPin;
use crate::identity::{SigningKey, hex};
use crate::protocol::{TransportKind, Verdict};
use world::{NOW, Wires, bridge, bridge_with, entry, page};

const B: &str = "para-b.example";
const FAR: i64 = i64::MAX;
const MINUTE: i64 = 60_000;

fn name(text: &str) -> PeerName {
    PeerName::parse(text).unwrap()
}

fn wires() -> Arc<Wires> {
    Arc::default()
}

fn code(refused: Result<Value, Refusal>) -> &'static str {
    refused.unwrap_err().code
}

fn pin(name: &str, key: Option<u8>) -> Arc<PeerPin> {
    let public = |seed| SigningKey::from_seed([seed; 32]).public();
    Arc::new(PeerPin {
        protocol: ID.to_owned(),
        name: name.to_owned(),
        endpoint: None,
        public_key: key.map(|seed| hex(&public(seed).to_bytes())),
        key_id: None,
        domain: None,
        accepted: true,
    })
}

#[tokio::test]
async fn two_bridges_find_and_trust_each_other_by_name_alone() {
    let wires = wires();
    let (a, b) = (
        bridge(&wires, "para-a.example").await,
        bridge(&wires, B).await,
    );
    let body = json!({"name": "PARA-B.example "});
    let found = a.call("peer.request", body).await.unwrap();
    assert_eq!(found["status"], "pending");
    assert_eq!(found["domain"], B);
    assert_eq!(found["endpoint"], format!("https://{B}{BASE}"));
    let theirs = b.p.keys.active();
    assert_eq!(found["keys"][0]["key_id"], theirs.key_id);
    let print = theirs.key.public().fingerprint();
    assert_eq!(found["keys"][0]["fingerprint"], print);
    assert!(a.p.book.trusted().is_empty(), "nobody has decided yet");
    let other = json!({"peer": B, "fingerprint": "00"});
    assert_eq!(code(a.call("peer.accept", other).await), "other_key");
    let body = json!({"peer": B, "fingerprint": print});
    let trusted = a.call("peer.accept", body).await.unwrap();
    assert_eq!(trusted["status"], "trusted");
    assert_eq!(trusted["standing"], "ordinary");
    let peer = a.peer(B);
    let usable = peer.usable_keys(&theirs.key_id, NOW);
    assert_eq!(usable, [theirs.key.public()]);
    let record = discover::record(&a.p, &name(B)).await.unwrap();
    assert_eq!(record.endpoint, format!("https://{B}{BASE}"));
    assert_eq!(record.public_key, Some(theirs.key.public().to_bytes()));
    let again = a.call("peer.request", json!({"name": B})).await;
    assert_eq!(code(again), "peer_exists");
}

#[tokio::test]
async fn nothing_is_kept_of_a_server_that_is_not_what_was_asked_for() {
    let wires = wires();
    let a = bridge(&wires, "para-a.example").await;
    let good = json!([entry(1, "k", B, FAR)]);
    let asked = async |page: Value, keys: Value| {
        wires.server(B, page, keys);
        let asked = a.call("peer.request", json!({"name": B})).await;
        assert!(a.p.book.by_text(B).is_none());
        asked.unwrap_err()
    };
    let other = asked(page("para-c.example", B), good.clone()).await;
    assert_eq!(other.code, "discovery_failed");
    assert!(other.detail.contains("byte for byte"), "{other}");
    let mut off = page(B, B);
    off["enabled"] = false.into();
    assert!(asked(off, good.clone()).await.detail.contains("switched"));
    let ours = asked(page(B, "PARA-A.example"), good.clone()).await;
    assert_eq!(ours.code, "name_taken");
    let theirs = json!([entry(1, "k", "para-c.example", FAR)]);
    let none = asked(page(B, B), theirs).await;
    assert!(none.detail.contains("none counts"), "{none}");
    let own = hex(&a.p.keys.active().key.public().to_bytes());
    let mut stolen = entry(1, "k", B, FAR);
    stolen["public_key"] = own.into();
    assert!(
        asked(page(B, B), json!([stolen]))
            .await
            .detail
            .contains("none counts")
    );
    let mut long = page(B, B);
    long["extra"] = "x".repeat(70_000).into();
    assert_eq!(asked(long, good).await.code, "answer_too_large");
    wires.unplug(B);
    let nobody = a.call("peer.request", json!({"name": B})).await;
    assert_eq!(code(nobody), "connect");
    for (body, expected) in [
        (json!({"name": "para-a.example"}), "not_allowed"),
        (json!({"name": "no name"}), "bad_name"),
        (json!({"name": B, "url": "ftp://x"}), "bad_url"),
        (json!({"name": 7}), "bad_request"),
        (json!([]), "bad_request"),
    ] {
        assert_eq!(code(a.call("peer.request", body).await), expected);
    }
}

#[tokio::test]
async fn the_domain_of_a_trusted_server_stays_and_nobody_else_gets_it() {
    let wires = wires();
    let a = bridge(&wires, "para-a.example").await;
    let key = |server: &str| json!([entry(1, "k", server, FAR)]);
    wires.server(B, page(B, "b.example"), key(B));
    a.trust(B).await;
    wires.server(B, page(B, "c.example"), key(B));
    discover::record(&a.p, &name(B)).await.unwrap();
    let peer = a.peer(B);
    assert_eq!(peer.domain, "b.example");
    assert!(peer.last_error.as_ref().unwrap().contains("c.example"));
    assert!(a.p.book.of_server("c.example").is_none());
    let c = "para-c.example";
    wires.server(c, page(c, "B.Example"), key(c));
    a.call("peer.request", json!({"name": c})).await.unwrap();
    let inspected = a.call("peer.inspect", json!({"peer": c})).await.unwrap();
    let warnings = inspected["warnings"].to_string();
    assert!(warnings.contains("cannot be trusted too"), "{warnings}");
    let refused = a.call("peer.accept", json!({"peer": c})).await;
    assert_eq!(code(refused), "name_taken");
    assert_eq!(a.peer(c).status, Status::Pending);
    assert_eq!(a.p.book.of_server("b.example").unwrap().name, name(B));
}

#[tokio::test]
async fn with_auto_trust_a_server_is_trusted_when_it_is_looked_up() {
    let wires = wires();
    let a = bridge_with(&wires, "para-a.example", &[], |c| c.auto_trust = true).await;
    bridge(&wires, B).await;
    let found = a.call("peer.request", json!({"name": B})).await.unwrap();
    assert_eq!(found["status"], "trusted");
    assert_eq!(found["trusted_by"], "auto_trust");
    let c = "para-c.example";
    wires.server(c, page(c, c), json!([entry(1, "k", c, FAR)]));
    discover::record(&a.p, &name(c)).await.unwrap();
    assert!(a.peer(c).is_trusted());
}

#[tokio::test]
async fn lanes_get_no_endpoint_of_a_server_that_is_not_trusted_and_a_sentence_instead() {
    let wires = wires();
    let a = bridge(&wires, "para-a.example").await;
    bridge(&wires, B).await;
    let said = async || {
        let error = discover::record(&a.p, &name(B)).await.unwrap_err();
        assert_eq!(error.kind, TransportKind::Discovery);
        error.detail
    };
    assert!(said().await.contains("peers add"));
    a.call("peer.request", json!({"name": B})).await.unwrap();
    assert!(said().await.contains("not trusted yet"));
    a.call("peer.reject", json!({"peer": B})).await.unwrap();
    assert!(said().await.contains("was rejected"));
    a.call("peer.accept", json!({"peer": B})).await.unwrap();
    wires.unplug(B);
    let known = discover::record(&a.p, &name(B)).await.unwrap();
    assert_eq!(known.endpoint, format!("https://{B}{BASE}"), "still tried");
    let removed = a.call("peer.remove", json!({"peer": B})).await.unwrap();
    assert_eq!(removed["removed"], true);
    assert!(said().await.contains("peers add"));
    let stale = a.p.peers.known(ID, &name(B)).unwrap();
    assert_eq!((stale.ttl_ms, stale.last_verified_ms), (Some(0), 0));
}

#[tokio::test]
async fn keys_are_fetched_again_once_a_minute_by_one_request_for_all_who_wait() {
    let wires = wires();
    let a = bridge(&wires, "para-a.example").await;
    wires.server(B, page(B, B), json!([entry(1, "k", B, FAR)]));
    a.trust(B).await;
    let before = a.fetches(B);
    wires.server(
        B,
        page(B, B),
        json!([entry(1, "k", B, FAR), entry(2, "k", B, FAR)]),
    );
    wires.held.send_replace(true);
    let b = name(B);
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let (p, b) = (Arc::clone(&a.p), b.clone());
            tokio::spawn(async move { discover::refetch_keys(&p, &b).await })
        })
        .collect();
    while a.fetches(B) == before {
        tokio::task::yield_now().await;
    }
    wires.held.send_replace(false);
    for one in waiting {
        assert!(one.await.unwrap(), "there is a new key");
    }
    assert_eq!(a.fetches(B), before + 1);
    assert_eq!(a.peer(B).usable_keys("k", NOW).len(), 2);
    a.later(MINUTE - 1);
    assert!(
        discover::refetch_keys(&a.p, &b).await,
        "it was new just now"
    );
    assert_eq!(a.fetches(B), before + 1);
    a.later(1);
    assert!(!discover::refetch_keys(&a.p, &b).await);
    assert_eq!(a.fetches(B), before + 2);
    assert!(!discover::refetch_keys(&a.p, &name("stranger.example")).await);
}

#[tokio::test]
async fn a_fetch_that_was_due_does_not_keep_the_next_bad_signature_from_being_looked_into() {
    let wires = wires();
    let a = bridge(&wires, "para-a.example").await;
    wires.server(B, page(B, B), json!([entry(1, "k", B, FAR)]));
    a.trust(B).await;
    a.later(60 * MINUTE);
    let before = a.fetches(B);
    discover::refresh_if_due(&a.p, &name(B)).await;
    wires.server(B, page(B, B), json!([entry(2, "k", B, FAR)]));
    assert!(discover::refetch_keys(&a.p, &name(B)).await);
    assert_eq!(a.fetches(B), before + 2);
}

#[tokio::test]
async fn a_refusal_right_after_a_switch_waits_for_a_bridge_and_not_for_an_operator() {
    let wires = wires();
    let (a, b) = (
        bridge(&wires, "para-a.example").await,
        bridge(&wires, B).await,
    );
    b.trust("para-a.example").await;
    a.trust(B).await;
    let peer = discover::record(&a.p, &b.name).await.unwrap();
    let refused = |a: &world::Side| {
        let answer = Answer {
            status: 403,
            headers: ::http::HeaderMap::new(),
            body: Bytes::new(),
            elapsed: std::time::Duration::ZERO,
        };
        let attempt = Try {
            number: 1,
            now_ms: a.p.clock.now_ms(),
            again: 0,
            traceparent: None,
        };
        a.p.judge(Ok(&answer), &peer, &attempt).verdict
    };
    let waits = |verdict: Verdict| matches!(verdict, Verdict::Retry { .. });
    assert!(!waits(refused(&a)), "no key was switched");
    rotation::rotate(&a.p, Rotation::Switch).await.unwrap();
    assert!(!waits(refused(&a)), "it was never seen to fetch our keys");
    discover::refetch_keys(&b.p, &a.name).await;
    // Signed with the new key, which b does not know before this very fetch.
    b.later(MINUTE);
    a.later(MINUTE);
    discover::refetch_keys(&b.p, &a.name).await;
    assert!(waits(refused(&a)));
    a.later(9 * MINUTE);
    assert!(!waits(refused(&a)), "it had its time");
}

#[tokio::test]
async fn an_expired_key_that_is_still_listed_counts_and_one_that_is_gone_does_not() {
    let wires = wires();
    let a = bridge(&wires, "para-a.example").await;
    let day = 24 * 60 * MINUTE;
    wires.server(B, page(B, B), json!([entry(1, "k", B, NOW - 1)]));
    a.trust(B).await;
    assert_eq!(a.peer(B).usable_keys("k", NOW).len(), 1);
    a.later(day + 1);
    let now = a.p.clock.now_ms();
    assert!(a.peer(B).usable_keys("k", now).is_empty());
    assert!(
        discover::refetch_keys(&a.p, &name(B)).await,
        "it counts again"
    );
    assert_eq!(a.peer(B).usable_keys("k", now).len(), 1);
    wires.server(B, page(B, B), json!([entry(2, "k", B, FAR)]));
    a.later(MINUTE);
    assert!(discover::refetch_keys(&a.p, &name(B)).await);
    let second = SigningKey::from_seed([2; 32]).public();
    assert_eq!(a.peer(B).usable_keys("k", now), [second]);
}

#[tokio::test]
async fn a_failed_fetch_changes_no_key_and_is_said() {
    let wires = wires();
    let a = bridge(&wires, "para-a.example").await;
    wires.server(B, page(B, B), json!([entry(1, "k", B, FAR)]));
    a.trust(B).await;
    wires.server(B, page(B, B), json!([]));
    assert!(!discover::refetch_keys(&a.p, &name(B)).await);
    let peer = a.peer(B);
    assert_eq!(peer.usable_keys("k", NOW).len(), 1);
    assert!(peer.last_error.as_ref().unwrap().contains("lists no key"));
}

#[tokio::test]
async fn keys_are_looked_at_every_keys_refresh_and_no_more_often() {
    let wires = wires();
    let a = bridge(&wires, "para-a.example").await;
    wires.server(B, page(B, B), json!([entry(1, "k", B, FAR)]));
    a.trust(B).await;
    let (b, hour) = (name(B), 60 * MINUTE);
    assert!(discover::due_for_keys(&a.p).is_empty(), "it was just asked");
    a.later(hour);
    assert_eq!(discover::due_for_keys(&a.p), std::slice::from_ref(&b));
    let before = a.fetches(B);
    discover::refresh_if_due(&a.p, &b).await;
    discover::refresh_if_due(&a.p, &b).await;
    assert_eq!(a.fetches(B), before + 1);
    wires.unplug(B);
    a.later(hour);
    discover::refresh_if_due(&a.p, &b).await;
    assert!(
        discover::due_for_keys(&a.p).is_empty(),
        "it failed just now"
    );
    a.later(hour);
    assert_eq!(discover::due_for_keys(&a.p), std::slice::from_ref(&b));
    a.call("peer.reject", json!({"peer": B})).await.unwrap();
    assert!(discover::due_for_keys(&a.p).is_empty());
}

#[tokio::test]
async fn who_fetches_our_keys_with_a_signature_is_remembered_and_a_wrong_one_is_no_refusal() {
    let wires = wires();
    let (a, b) = (
        bridge(&wires, "para-a.example").await,
        bridge(&wires, B).await,
    );
    a.trust(B).await;
    b.trust("para-a.example").await;
    assert!(a.peer(B).fetched_ours_ms.is_some(), "a trusted it before");
    let now = b.peer("para-a.example").fetched_ours_ms;
    assert_eq!(now, None, "a fetched before b trusted it");
    a.later(MINUTE);
    b.later(MINUTE);
    discover::refetch_keys(&a.p, &b.name).await;
    let fetched = b.peer("para-a.example").fetched_ours_ms;
    assert_eq!(fetched, Some(NOW + MINUTE));
    // Another's signature under that name, and none at all.
    let forged = SigningKey::from_seed([9; 32]);
    let path = format!("{BASE}/keys");
    let id = &a.p.keys.active().key_id;
    let later = NOW + 2 * MINUTE;
    b.p.clock.set(later);
    for headers in [
        transport::headers("para-a.example", id, &forged, "GET", &path, later, b""),
        ::http::HeaderMap::new(),
    ] {
        let request = Request {
            method: ::http::Method::GET,
            url: format!("https://{B}{path}"),
            headers,
            body: Bytes::new(),
        };
        let patience = std::time::Duration::from_secs(1);
        let answer = a.p.net.send(request, patience, 65_536).await.unwrap();
        assert_eq!(answer.status, 200);
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(document["keys"][0]["server_name"], B);
    }
    let fetched = b.peer("para-a.example").fetched_ours_ms;
    assert_eq!(fetched, Some(NOW + MINUTE));
}

#[tokio::test]
async fn a_pinned_server_is_trusted_from_the_start_and_its_key_is_the_only_one() {
    let wires = wires();
    wires.server(B, page(B, "b.example"), json!([entry(1, "k", B, FAR)]));
    let a = bridge_with(&wires, "para-a.example", &[pin(B, Some(7))], |_| {}).await;
    let peer = a.peer(B);
    assert_eq!(peer.trusted_by, Some(TrustedBy::Config));
    let seven = SigningKey::from_seed([7; 32]).public();
    assert_eq!(peer.usable_keys("k", NOW), [seven]);
    assert!(!peer.domain_fixed);
    assert_eq!(discover::due_for_keys(&a.p), [name(B)]);
    discover::refresh_if_due(&a.p, &name(B)).await;
    assert_eq!(a.peer(B).domain, "b.example", "nobody had said it before");
    assert_eq!(a.fetches(B), 0, "its key is pinned");
    assert!(discover::due_for_keys(&a.p).is_empty());
    for method in ["peer.reject", "peer.remove"] {
        assert_eq!(code(a.call(method, json!({"peer": B})).await), "pinned");
    }
    a.p.peers.repin(&[]);
    pins::follow(&a.p).await;
    assert_eq!(a.peer(B).status, Status::Pending);
    assert!(a.peer(B).pinned_key.is_none());
}

#[tokio::test]
async fn a_pin_whose_key_proves_nothing_is_not_in_force() {
    let wires = wires();
    let mut pins = [pin(B, None), pin("para-c.example", Some(3))];
    let [weak, own] = pins.each_mut().map(Arc::make_mut);
    weak.public_key = Some(format!("01{}", "00".repeat(31)));
    own.domain = Some("para-a.example".to_owned());
    let a = bridge_with(&wires, "para-a.example", &pins, |_| {}).await;
    assert!(a.p.book.all().is_empty());
}

#[tokio::test]
async fn a_pinned_server_without_a_key_shows_its_own() {
    let wires = wires();
    let b = bridge(&wires, B).await;
    let a = bridge_with(&wires, "para-a.example", &[pin(B, None)], |_| {}).await;
    discover::refresh_if_due(&a.p, &b.name).await;
    let active = b.p.keys.active();
    let usable = a.peer(B).usable_keys(&active.key_id, NOW);
    assert_eq!(usable, [active.key.public()]);
}

#[tokio::test]
async fn a_key_prepared_and_switched_is_known_in_time_and_the_plan_names_who_needs_help() {
    let wires = wires();
    let (a, b) = (
        bridge(&wires, "para-a.example").await,
        bridge(&wires, B).await,
    );
    let c = "para-c.example";
    wires.server(c, page(c, c), json!([entry(1, "k", c, FAR)]));
    a.trust(B).await;
    b.trust("para-a.example").await;
    a.trust(c).await;
    let how = |plan: &Value, of: &str| {
        let peers = plan["peers"].as_array().unwrap();
        let one = peers.iter().find(|peer| peer["peer"] == of).unwrap();
        one["how"].as_str().unwrap().to_owned()
    };
    let prepared = rotation::rotate(&a.p, Rotation::Prepare).await.unwrap();
    assert_eq!(prepared["done"], "prepared");
    assert_eq!(how(&prepared, c), "operator");
    assert_eq!(how(&prepared, B), "by_itself");
    // The next key's file has the machine's time, which the bridges here are told.
    let made = a.p.keys.current().ring.next.as_ref().unwrap().since_ms;
    a.p.clock.set(made + MINUTE);
    b.p.clock.set(made + MINUTE);
    discover::refetch_keys(&b.p, &a.name).await;
    let plan = rotation::rotate(&a.p, Rotation::Plan).await.unwrap();
    assert_eq!(how(&plan, B), "knows");
    let switched = rotation::rotate(&a.p, Rotation::Switch).await.unwrap();
    assert_eq!(how(&switched, B), "knows");
    assert_eq!(how(&switched, c), "operator");
    let page = switched["own_page"].as_str().unwrap();
    assert!(page.contains("shows the active key first"), "{page}");
    let active = a.p.keys.active();
    let now = b.p.clock.now_ms();
    let usable = b.peer("para-a.example").usable_keys(&active.key_id, now);
    assert_eq!(usable, [active.key.public()], "known before the switch");
    rotation::rotate(&a.p, Rotation::Replace).await.unwrap();
    a.later(MINUTE);
    b.later(MINUTE);
    assert!(discover::refetch_keys(&b.p, &a.name).await);
    let keys = &b.peer("para-a.example").keys;
    assert_eq!(
        keys.len(),
        1,
        "what is no longer ours alone is listed no more"
    );
    assert_eq!(keys[0].public, a.p.keys.active().key.public());
}
