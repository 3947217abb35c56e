//! Ids stay with their keys, the active key is listed first, and a key file of a published server is ours.

use std::path::Path;

use super::*;
use crate::clock::Clock;
use crate::config::Config;
use crate::protocol::PeerName;

const NOW: UnixMs = 1_795_246_080_000;

fn own() -> Own {
    Own {
        name: PeerName::parse("para-a.example").unwrap(),
        domain: "para-a.example".to_owned(),
        url: "https://para-a.example".to_owned(),
    }
}

async fn store(dir: &Path) -> Store {
    let clock = Clock::fixed(NOW);
    Store::open(&dir.join("d.db"), clock).await.unwrap()
}

async fn open(dir: &Path, store: &Store, key_id: Option<&str>) -> OwnKeys {
    let config = ParacordConfig {
        key_path: dir.join("paracord.key"),
        key_id: key_id.map(str::to_owned),
        key_overlap: Duration::from_secs(3600),
        ..Config::from_text("").unwrap().paracord
    };
    OwnKeys::open(&config, store, NOW).await.unwrap()
}

fn listed(keys: &OwnKeys, now: UnixMs) -> Vec<String> {
    let document = keys.published(&own(), now);
    let entries = document.as_array().unwrap().iter();
    entries
        .map(|entry| entry["key_id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_first_key_has_the_configured_id_and_every_later_one_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let keys = open(dir.path(), &store, Some("ed25519:auto")).await;
    let first = keys.active();
    assert_eq!(first.key_id, "ed25519:auto");
    keys.turn(Rotation::Prepare, NOW).unwrap();
    assert_eq!(keys.active().key_id, "ed25519:auto", "it still signs");
    let next = keys.current().ring.next.clone().unwrap().key.public();
    let next_id = format!("ed25519:{}", &next.fingerprint()[..8]);
    assert_eq!(listed(&keys, NOW), ["ed25519:auto", &next_id]);
    assert!(keys.turn(Rotation::Switch, NOW).unwrap());
    assert_eq!(keys.active().key_id, next_id);
    assert_eq!(keys.active().key.public(), next);
    assert_eq!(listed(&keys, NOW), [&next_id, "ed25519:auto"]);
    assert_eq!(listed(&keys, NOW + 3_600_000), [next_id]);
    store.close().await;
}

#[tokio::test]
async fn a_key_keeps_its_id_over_a_restart_with_another_setting() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let first = open(dir.path(), &store, None).await.active();
    let print = first.key.public().fingerprint();
    assert_eq!(first.key_id, format!("ed25519:{}", &print[..8]));
    let again = open(dir.path(), &store, Some("ed25519:auto"))
        .await
        .active();
    assert_eq!(again.key_id, first.key_id);
    assert_eq!(again.key.public(), first.key.public());
    store.close().await;
}

#[tokio::test]
async fn a_new_key_after_the_file_was_lost_does_not_take_the_old_ones_id() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    open(dir.path(), &store, Some("ed25519:auto")).await;
    std::fs::remove_file(dir.path().join("paracord.key")).unwrap();
    let second = open(dir.path(), &store, Some("ed25519:auto")).await;
    assert_ne!(second.active().key_id, "ed25519:auto");
    store.close().await;
}

#[tokio::test]
async fn the_file_of_a_published_server_is_read_and_ours_is_like_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let path = dir.path().join("paracord.key");
    let seed = [7u8; 32];
    std::fs::write(&path, hex(&seed)).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, private).unwrap();
    let keys = open(dir.path(), &store, None).await;
    let expected = SigningKey::from_seed(seed).public();
    assert_eq!(keys.active().key.public(), expected);
    keys.turn(Rotation::Switch, NOW).unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(crate::identity::unhex::<32>(written.trim_end()).is_some());
    let shown = keys.list(&own());
    assert_eq!(shown[0].public_key.len(), 64);
    store.close().await;
}

#[tokio::test]
async fn the_document_says_what_published_servers_read_and_a_far_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let keys = open(dir.path(), &store, None).await;
    let entry = keys.published(&own(), NOW)[0].clone();
    assert_eq!(entry["server_name"], "para-a.example");
    assert_eq!(entry["algorithm"], "ed25519");
    assert_eq!(entry["valid_until"], NOW + VALID_MS);
    let public = hex(&keys.active().key.public().to_bytes());
    assert_eq!(entry["public_key"], public);
    let far = keys.published(&own(), i64::MAX)[0]["valid_until"].clone();
    assert_eq!(far, i64::MAX, "no overflow");
    store.close().await;
}
