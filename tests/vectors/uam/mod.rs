//! UAM.

mod deliver;
mod pure;
mod world;

use drawbridge::protocols::uam::relay_request::Form;
use serde::Deserialize;
use serde_json::Value;

use crate::files::Document;
use crate::support::nats::NatsServer;
use crate::{all_right, each};

#[test]
fn what_is_read_signed_and_encoded_is_what_the_reference_reads_signs_and_encodes() {
    all_right(
        vectors()
            .into_iter()
            .filter(|vector| vector.kind != "deliver")
            .map(|vector| (pure::case(&vector), vector.name)),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_delivery_is_answered_charged_and_published_as_decided() {
    let cases = vectors();
    let cases = cases.into_iter().filter(|vector| vector.kind == "deliver");
    let nats = NatsServer::start().await;
    let nats = &nats;
    let done = each(cases, async |n, vector: Vector| {
        (deliver::case(nats, n, &vector).await, vector.name)
    });
    all_right(done.await);
}

/// One vector: where it stands, its kind, and its members without what says nothing.
struct Vector {
    name: String,
    kind: String,
    members: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "about")]
    _about: Option<Value>,
    count: Option<usize>,
    #[serde(rename = "keys")]
    _keys: Option<Value>,
    vectors: Vec<Value>,
}

fn vectors() -> Vec<Vector> {
    let documents = crate::files::of(crate::files::Protocol::Uam);
    documents.into_iter().flat_map(of_document).collect()
}

fn of_document(document: Document) -> Vec<Vector> {
    let name = document.name;
    let file: File =
        serde_json::from_value(document.json).unwrap_or_else(|e| panic!("{name}: {e}"));
    if let Some(count) = file.count {
        assert_eq!(file.vectors.len(), count, "{name}");
    }
    file.vectors
        .into_iter()
        .filter_map(|value| vector(&name, value))
        .collect()
}

/// `None`: the vector says itself that no bridge can be asked.
fn vector(file: &str, value: Value) -> Option<Vector> {
    let Value::Object(mut members) = value else {
        panic!("{file}: a vector is no object");
    };
    let mut text = |key: &str| match members.remove(key) {
        Some(Value::String(text)) => Some(text),
        None => None,
        Some(other) => panic!("{file}: {key} is {other}"),
    };
    let id = text("id").unwrap_or_default();
    let kind = text("kind").unwrap_or_default();
    text("note");
    let skip = text("skip").is_some();
    let name = format!("{file} {id}");
    assert!(
        kind == "deliver" || pure::KINDS.contains(&kind.as_str()),
        "{name}: unknown kind {kind:?}"
    );
    (!skip).then_some(Vector {
        name,
        kind,
        members: Value::Object(members),
    })
}
/// `both` means that the versions agree, so both forms must answer as said.
fn forms(dialect: &str) -> Result<&'static [Form], String> {
    match dialect {
        "legacy" => Ok(&[Form::Legacy]),
        "nonce" => Ok(&[Form::Nonce]),
        "both" => Ok(&[Form::Legacy, Form::Nonce]),
        other => Err(format!("unknown dialect {other:?}")),
    }
}
