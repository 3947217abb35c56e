//! The bridge beside a relay that others wrote: `youam` 0.2.5 from the package index, unmodified.
//!
//! The bridge's own binary takes the place of `gamma.test` on 127.0.0.13:443, the relay that of
//! `alpha.test` on 127.0.0.11; nothing outside of loopback is contacted and `/etc/hosts` stays as it
//! is. What our agents send is verified and decrypted by the relay's own library, and the other way
//! round. Needs root (port 443) and Python with `venv`; `tests/interop/` has the Python side.

#[path = "interop/relay.rs"]
mod relay;
#[path = "interop/world.rs"]
mod world;
mod support {
    pub mod bridge;
    pub mod dns;
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub mod nats;
    pub mod uam_client;
}

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::json;
use support::dns::{DnsStub, Zone};
use world::{Got, SOON, Setting, World};

/// The addresses and ports are fixed: one test at a time.
static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn words(what: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{what} {i}")).collect()
}

/// Each message once, and each sender's in the order sent.
fn all_once_and_in_order(sent: &[Got], got: &[Got]) {
    let ids: HashSet<_> = got.iter().map(|g| &g.id).collect();
    assert_eq!(ids.len(), got.len(), "something arrived twice");
    let by_sender = |all: &[Got]| {
        let mut senders: HashMap<String, Vec<Got>> = HashMap::new();
        for one in all {
            senders
                .entry(one.from.clone())
                .or_default()
                .push(one.clone());
        }
        senders
    };
    assert_eq!(by_sender(sent), by_sender(got));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for port 443; .ci/run runs it"]
async fn what_one_side_signs_and_encrypts_the_other_verifies_and_reads() {
    let _one = ONE.lock().await;
    let mut w = World::start(Setting::default()).await;
    let (gert, alice) = (w.our_agent("gert").await, w.their_agent("alice").await);

    let sent = w
        .they_send(&alice, &gert, &["Grüße, 你好".to_owned()])
        .await;
    assert!(
        sent[0].1,
        "the bridge did not take it at once\n{}",
        w.logs()
    );
    let got = w.we_get(1, SOON).await;
    assert_eq!(
        (&got[0].id, got[0].text.as_str()),
        (&sent[0].0, "Grüße, 你好")
    );

    let id = w.we_send(&gert, &alice, "hello back, 🙂").await;
    let got = w.they_get(&[alice], 1).await;
    assert_eq!(
        got,
        [Got {
            from: gert,
            id,
            text: "hello back, 🙂".to_owned()
        }]
    );
    w.queue("nothing waits any more", <[_]>::is_empty).await;
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for port 443; .ci/run runs it"]
async fn a_side_that_was_down_gets_what_it_missed_once() {
    let _one = ONE.lock().await;
    let mut w = World::start(Setting::default()).await;
    let (gert, alice) = (w.our_agent("gert").await, w.their_agent("alice").await);
    w.we_send(&gert, &alice, "before").await;
    w.they_get(std::slice::from_ref(&alice), 1).await;

    // The relay is down: our queue tries again.
    w.relay.stop();
    let mut sent = Vec::new();
    for text in words("while you were away", 3) {
        let id = w.we_send(&gert, &alice, &text).await;
        sent.push(Got {
            from: gert.clone(),
            id,
            text,
        });
    }
    w.queue("an attempt failed", |rows| {
        rows.len() == 3 && rows.iter().any(|r| r["attempts"].as_u64() >= Some(2))
    })
    .await;
    w.relay.up().await;
    let got = w.they_get(std::slice::from_ref(&alice), 3).await;
    all_once_and_in_order(&sent, &got);
    w.queue("the queue is empty", <[_]>::is_empty).await;
    let again = w.relay.ask(json!({"do": "inbox", "address": alice})).await;
    assert_eq!(again["messages"], json!([]), "something came twice");

    // The bridge is down: the relay's own loop tries again, every 30 s.
    w.bridge.stop().await;
    // The agent's client needs our agent's key, which it has cached by the message before.
    let missed = w
        .they_send(&alice, &gert, &["are you there?".to_owned()])
        .await;
    assert!(!missed[0].1, "nobody was there to take it");
    w.bridge.start().await;
    let got = w.we_get(1, Duration::from_secs(70)).await;
    assert_eq!(got[0].id, missed[0].0);
    assert_eq!(w.held("FED_IN").await, 1);
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for port 443; .ci/run runs it"]
async fn a_new_key_on_either_side_is_learnt_by_the_other() {
    let _one = ONE.lock().await;
    let mut w = World::start(Setting::default()).await;
    let (gert, alice) = (w.our_agent("gert").await, w.their_agent("alice").await);
    let hello = ["hello".to_owned()];
    assert!(w.they_send(&alice, &gert, &hello).await[0].1);
    w.we_get(1, SOON).await;
    w.we_send(&gert, &alice, "hello").await;
    w.they_get(std::slice::from_ref(&alice), 1).await;

    // The relay's key.
    let key_file = w.relay.key_file();
    let old = std::fs::read(&key_file).expect("the relay's key");
    w.relay.stop();
    std::fs::remove_file(&key_file).expect("removed");
    w.relay.up().await;
    assert_ne!(old, std::fs::read(&key_file).expect("a new key"));
    let sent = w.they_send(&alice, &gert, &hello).await;
    assert!(sent[0].1, "signed with the relay's new key\n{}", w.logs());
    assert_eq!(w.we_get(1, SOON).await[0].id, sent[0].0);

    // Ours. The relay knows the old one from the request above.
    let before = w.relay.ask(json!({"do": "relays"})).await;
    let key_file = w.bridge.dir.join("relay_key.pem");
    w.bridge.stop().await;
    std::fs::remove_file(&key_file).expect("removed");
    w.bridge.start().await;
    let id = w.we_send(&gert, &alice, "with a new key").await;
    assert_eq!(w.they_get(std::slice::from_ref(&alice), 1).await[0].id, id);
    let after = w.relay.ask(json!({"do": "relays"})).await;
    let key = |known: &serde_json::Value| known["relays"]["gamma.test"][1].clone();
    assert!(key(&before).is_string() && key(&after).is_string());
    assert_ne!(key(&before), key(&after), "the relay fetched the new key");
    assert_eq!(w.held("FED_DEAD").await, 0);
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for port 443; .ci/run runs it"]
async fn a_relay_on_another_host_and_port_is_found_by_its_srv_record() {
    let _one = ONE.lock().await;
    // The second target would refuse the connection: the lowest priority must win.
    let records = vec![
        (20, 100, 9, "relay.alpha.test"),
        (10, 1, 8443, "relay.alpha.test"),
    ];
    let dns = DnsStub::start(&[("_uam._tcp.alpha.test", Zone::Srv(records))]);
    let mut w = World::start(Setting {
        relay_port: 8443,
        relay_host: "relay.alpha.test",
        dns: Some(dns.address()),
    })
    .await;
    let (gert, alice) = (w.our_agent("gert").await, w.their_agent("alice").await);
    let id = w.we_send(&gert, &alice, "found you").await;
    assert_eq!(w.they_get(std::slice::from_ref(&alice), 1).await[0].id, id);
    assert!(dns.queries() > 0);
    let peers = w.admin("peers").await;
    let alpha = peers["peers"].as_array().and_then(|p| p.first().cloned());
    let alpha = alpha.unwrap_or_default();
    assert_eq!(alpha["discovered_via"], "dns-srv", "{peers}");
    assert!(
        alpha["endpoint"]
            .as_str()
            .is_some_and(|e| e.starts_with("https://relay.alpha.test:8443/")),
        "{peers}"
    );
    // Nobody listens at https://alpha.test: its agent's key, too, comes from where the record leads.
    let sent = w.they_send(&alice, &gert, &["so you did".to_owned()]).await;
    assert!(sent[0].1, "{}", w.logs());
    assert_eq!(w.we_get(1, SOON).await[0].id, sent[0].0);
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for port 443; .ci/run runs it"]
async fn sixty_messages_each_way_arrive_once_and_in_each_senders_order() {
    const EACH: usize = 10;
    let _one = ONE.lock().await;
    let mut w = World::start(Setting::default()).await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..6 {
        ours.push(w.our_agent(&format!("gert-{n}")).await);
        theirs.push(w.their_agent(&format!("alice-{n}")).await);
    }
    // Ours go to the broker at once and travel while the relay's agents send.
    let mut we_sent = Vec::new();
    for i in 0..EACH {
        for (from, to) in ours.iter().zip(&theirs) {
            let text = format!("{from} {i}");
            let id = w.we_send(from, to, &text).await;
            we_sent.push(Got {
                from: from.clone(),
                id,
                text,
            });
        }
    }
    let mut they_sent = Vec::new();
    for (from, to) in theirs.iter().zip(&ours) {
        let texts = words(from, EACH);
        for ((id, delivered), text) in w.they_send(from, to, &texts).await.into_iter().zip(texts) {
            assert!(delivered, "{text}\n{}", w.logs());
            they_sent.push(Got {
                from: from.clone(),
                id,
                text,
            });
        }
    }
    let got = w.we_get(they_sent.len(), SOON).await;
    all_once_and_in_order(&they_sent, &got);
    let got = w.they_get(&theirs, we_sent.len()).await;
    all_once_and_in_order(&we_sent, &got);
    w.queue("the queue is empty", <[_]>::is_empty).await;
    assert_eq!(w.held("FED_IN").await, 60);
    assert_eq!(w.held("FED_DEAD").await, 0);
    w.end().await;
}

/// Runs a command of the bridge's binary by its configuration; whether it succeeded, and its JSON lines.
fn command(w: &World, arguments: &[&str]) -> (bool, Vec<serde_json::Value>) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .args(arguments)
        .args(["--json", "--config"])
        .arg(w.bridge.config())
        .output()
        .expect("the command runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    (output.status.success(), lines)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for port 443; .ci/run runs it"]
async fn our_key_is_rotated_while_messages_pass_and_the_relay_needs_nobody() {
    let _one = ONE.lock().await;
    let mut w = World::start(Setting::default()).await;
    let (gert, alice) = (w.our_agent("gert").await, w.their_agent("alice").await);
    w.we_send(&gert, &alice, "hello").await;
    w.they_get(std::slice::from_ref(&alice), 1).await;
    let before = w.relay.ask(json!({"do": "relays"})).await;

    let mut sent = Vec::new();
    for (n, text) in words("before or after", 40).into_iter().enumerate() {
        if n == 20 {
            let (done, report) = command(&w, &["keys", "rotate", "--yes"]);
            assert!(done && report[0]["done"] == "switched", "{report:?}");
            assert!(
                report[0]["own_page"].is_string(),
                "it says what relays find: {report:?}"
            );
        }
        let id = w.we_send(&gert, &alice, &text).await;
        let from = gert.clone();
        sent.push(Got { from, id, text });
    }
    let got = w.they_get(std::slice::from_ref(&alice), sent.len()).await;
    all_once_and_in_order(&sent, &got);
    let after = w.relay.ask(json!({"do": "relays"})).await;
    let key = |known: &serde_json::Value| known["relays"]["gamma.test"][1].clone();
    let (_, keys) = command(&w, &["keys", "list"]);
    assert_ne!(key(&before), key(&after), "the relay fetched the new key");
    assert_eq!(key(&after), keys[0]["public_key"]);
    let back = w.they_send(&alice, &gert, &["and back".to_owned()]).await;
    assert!(back[0].1, "{}", w.logs());
    assert_eq!(w.we_get(1, SOON).await[0].id, back[0].0);
    assert_eq!(w.held("FED_DEAD").await, 0);
    w.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for port 443; .ci/run runs it"]
async fn a_real_relay_is_probed_without_a_fault_and_believes_our_signature() {
    let _one = ONE.lock().await;
    let w = World::start(Setting::default()).await;
    let (well, steps) = command(&w, &["probe", "uam", "alpha.test"]);
    assert!(well, "{steps:#?}\n{}", w.logs());
    let find = |steps: &[serde_json::Value], name: &str| {
        let step = steps.iter().find(|s| s["name"] == name).cloned();
        step.unwrap_or_else(|| panic!("no step {name}: {steps:#?}"))
    };
    for name in ["address", "tls", "well-known", "key", "clock", "wire form"] {
        assert_eq!(find(&steps, name)["ok"], true, "{steps:#?}");
    }
    // An older relay proves it only by a refusal that it charges.
    assert!(find(&steps, "signed request")["ok"].is_null(), "{steps:#?}");
    let (well, steps) = command(&w, &["probe", "uam", "alpha.test", "--spend"]);
    assert!(well, "{steps:#?}\n{}", w.logs());
    assert_eq!(find(&steps, "signed request")["ok"], true, "{steps:#?}");
    w.end().await;
}
