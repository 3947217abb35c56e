//! `drawbridge verify paracord`, by the binary, with a ledger beside it as a bridge leaves it.

use std::path::{Path, PathBuf};
use std::process::Command;

use axum::http::{Method, Uri};
use drawbridge::clock::Clock;
use drawbridge::identity::{SigningKey, hex};
use drawbridge::protocol::{PeerName, Record};
use drawbridge::protocols::paracord::envelope::Envelope;
use drawbridge::protocols::paracord::record::{Peer, PeerKey, Status};
use drawbridge::protocols::paracord::{BASE, ID, book, transport};
use drawbridge::store::Store;
use serde_json::{Value, json};

const NOW: i64 = 1_795_246_080_000;
const KEY_ID: &str = "ed25519:auto";
const THEM: &str = "them.test";

fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

fn configuration(dir: &Path) -> PathBuf {
    let path = dir.join("d.toml");
    let text = format!("data_dir = {dir:?}\n[paracord]\nserver_name = \"us.test\"\n");
    std::fs::write(&path, text).expect("a configuration");
    path
}

/// Keeps [`THEM`] as the bridge does.
async fn keep(dir: &Path) {
    let name = PeerName::parse(THEM).expect("a name");
    let mut peer = Peer::new(name, format!("https://{THEM}{BASE}"), NOW);
    peer.status = Status::Trusted;
    peer.keys.push(PeerKey {
        key_id: KEY_ID.to_owned(),
        public: key().public(),
        valid_until_ms: i64::MAX,
        first_seen_ms: NOW,
        listed_ms: NOW,
    });
    let store = Store::open(&dir.join("drawbridge.db"), Clock::system()).await;
    let store = store.expect("a ledger");
    let row = Record {
        kind: book::KIND,
        key: THEM.to_owned(),
        value: Some(peer.to_kept()),
    };
    let commit = store.put_records(ID, vec![row]).await.expect("handed in");
    commit.await.expect("kept");
    store.close().await;
}

/// A saved push of an event.
fn saved(sender: &str) -> Vec<u8> {
    let mut envelope = Envelope {
        event_id: format!("$1:{THEM}"),
        room_id: format!("!5:{THEM}"),
        event_type: "m.message".to_owned(),
        sender: sender.to_owned(),
        origin_server: THEM.to_owned(),
        origin_ts: NOW,
        content: json!({"body": "hi"}),
        depth: NOW,
        state_key: None,
        signatures: json!({}),
    };
    envelope.sign(&key(), KEY_ID);
    let body = envelope.wire();
    let path: Uri = format!("{BASE}/event").parse().expect("a path");
    let signed = transport::headers(
        THEM,
        KEY_ID,
        &key(),
        Method::POST.as_str(),
        path.path(),
        NOW,
        &body,
    );
    let mut text = format!("POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n");
    for (name, value) in &signed {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().expect("text")));
    }
    text.push_str("\r\n");
    [text.into_bytes(), body].concat()
}

/// The steps, and whether all held.
fn verify(dir: &Path, request: &[u8], more: &[&str]) -> (Vec<Value>, bool) {
    let file = dir.join("request.http");
    std::fs::write(&file, request).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .args(["verify", "paracord", "--json", "--config"])
        .arg(configuration(dir))
        .arg("--request")
        .arg(&file)
        .args(more)
        .output()
        .expect("the command runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let steps = text.lines().map(serde_json::from_str);
    let steps: Result<Vec<Value>, _> = steps.collect();
    (
        steps.expect("a JSON object a line"),
        output.status.success(),
    )
}

fn verdict(steps: &[Value]) -> &str {
    let last = steps.last().expect("a verdict");
    assert_eq!(last["name"], "verdict");
    last["detail"].as_str().expect("a sentence")
}

#[tokio::test]
async fn a_saved_event_is_checked_with_what_the_ledger_knows() {
    let dir = tempfile::tempdir().expect("a folder");
    keep(dir.path()).await;
    let (steps, held) = verify(dir.path(), &saved("@ann:them.test"), &[]);
    assert!(held, "{steps:#?}");
    assert!(verdict(&steps).starts_with("everything"), "{steps:#?}");
    let (steps, held) = verify(dir.path(), &saved("@ann:other.test"), &["--at", "now"]);
    assert!(!held);
    let failed: Vec<&Value> = steps.iter().filter(|step| step["ok"] == false).collect();
    let names: Vec<&str> = failed
        .iter()
        .filter_map(|step| step["name"].as_str())
        .collect();
    assert_eq!(names, ["time", "sender", "verdict"], "{steps:#?}");
    assert!(verdict(&steps).contains("401 UNAUTHORIZED"), "{steps:#?}");
}

#[test]
fn without_a_ledger_the_key_is_given_by_hand() {
    let dir = tempfile::tempdir().expect("a folder");
    let request = saved("@ann:them.test");
    let (steps, held) = verify(dir.path(), &request, &[]);
    assert!(held, "nothing is wrong so far");
    assert!(verdict(&steps).contains("not checked"), "{steps:#?}");
    let public = hex(&key().public().to_bytes());
    let (steps, _) = verify(dir.path(), &request, &["--key", &public]);
    let signature = steps.iter().find(|step| step["name"] == "signature");
    assert_eq!(signature.expect("a step")["ok"], true, "{steps:#?}");
    let other = hex(&SigningKey::from_seed([8; 32]).public().to_bytes());
    let (_, held) = verify(dir.path(), &request, &["--key", &other]);
    assert!(!held);
}
