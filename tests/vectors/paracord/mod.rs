//! Paracord.

mod answer;
mod case;
mod making;
mod numbers;
mod own;
mod pure;
mod world;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::files::{Document, PARACORD_KINDS, Protocol};
use crate::support::nats::NatsServer;
use crate::{all_right, each};
use case::Case;
use world::World;

#[test]
fn what_is_read_signed_and_encoded_is_what_the_reference_reads_signs_and_encodes_or_as_decided() {
    let (vectors, _) = of_all_files();
    all_right(
        vectors
            .into_iter()
            .map(|vector| (pure::case(&vector), vector.name)),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_request_is_answered_as_the_reference_answers_it_or_as_decided() {
    let nats = NatsServer::start().await;
    let nats = &nats;
    let (_, mut cases) = of_all_files();
    assert!(!cases.is_empty(), "no cases found");
    cases.extend(own::cases());
    let done = each(cases, async |n, case: HttpCase| {
        (replayed(nats, n, &case.members).await, case.name)
    });
    all_right(done.await);
}

/// The requests of a case, sent to a bridge of its own.
async fn replayed(nats: &NatsServer, n: usize, members: &Value) -> Result<(), String> {
    let case = Case::of(members)?;
    let (asks, expected) = (making::requests(&case)?, case.expected()?);
    let world = World::build(nats, n, &case.given).await;
    let mut result = Ok(());
    for (time, (ask, expected)) in asks.iter().zip(&expected).enumerate() {
        let checked = match world.ask(ask).await {
            Ok(answer) => answer::check(ask, &answer, expected),
            Err(why) => Err(why),
        };
        if let Err(why) = checked {
            result = Err(format!("request {}: {why}", time + 1));
            break;
        }
    }
    world.end().await;
    result
}

/// One vector: where it stands, its kind, and its members, those of `bridge` in their place, without
/// what says nothing.
#[derive(Clone, Debug)]
struct Vector {
    name: String,
    kind: String,
    members: Value,
}

/// One case that is a request: where it stands, and its members, likewise.
#[derive(Clone, Debug)]
struct HttpCase {
    name: String,
    members: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "about")]
    _about: Option<Value>,
    #[serde(rename = "count")]
    _count: Option<Value>,
    #[serde(rename = "servers")]
    _servers: Option<Value>,
    #[serde(rename = "http_cases_about")]
    _http_cases_about: Option<Value>,
    #[serde(default)]
    vectors: Vec<Value>,
    #[serde(default)]
    http_cases: Vec<Value>,
}

fn of_all_files() -> (Vec<Vector>, Vec<HttpCase>) {
    let (mut vectors, mut cases) = (Vec::new(), Vec::new());
    for Document { name: file, json } in crate::files::of(Protocol::Paracord) {
        let read: File = File::deserialize(json).unwrap_or_else(|e| panic!("{file}: {e}"));
        let all = read.vectors.into_iter().enumerate();
        vectors.extend(all.filter_map(|(n, value)| vector(&file, n, value)));
        let all = read.http_cases.into_iter().enumerate();
        cases.extend(all.filter_map(|(n, value)| http_case(&file, n, value)));
    }
    (vectors, cases)
}

/// `None`: the vector says itself that no bridge can be asked.
fn vector(file: &str, n: usize, value: Value) -> Option<Vector> {
    let (name, mut members, bridge) = members(&format!("{file} vectors {n}"), value)?;
    let Some(Value::String(kind)) = members.remove("kind") else {
        panic!("{name}: no kind");
    };
    assert!(
        PARACORD_KINDS.contains(&kind.as_str()),
        "{name}: unknown kind {kind:?}"
    );
    members.extend(bridge);
    Some(Vector {
        name: format!("{name} ({kind})"),
        kind,
        members: members.into(),
    })
}

fn http_case(file: &str, n: usize, value: Value) -> Option<HttpCase> {
    let (name, mut members, bridge) = members(&format!("{file} http_cases {n}"), value)?;
    for (member, decided) in bridge {
        assert_eq!(member, "expect", "{name}: unknown member in bridge");
        members.insert(member, decided);
    }
    Some(HttpCase {
        name,
        members: members.into(),
    })
}

type Members = Map<String, Value>;

/// Name, members and what `bridge` decides; `None`: to be skipped.
fn members(place: &str, value: Value) -> Option<(String, Members, Members)> {
    let Value::Object(mut members) = value else {
        panic!("{place}: no object");
    };
    let name = match members.remove("id") {
        Some(Value::String(id)) => format!("{place} {id}"),
        None => place.to_owned(),
        Some(other) => panic!("{place}: id is {other}"),
    };
    members.remove("note");
    let skip = members.remove("skip").is_some();
    let bridge = match members.remove("bridge") {
        None => Members::new(),
        Some(Value::Object(mut bridge)) => {
            bridge.remove("why");
            bridge
        }
        Some(other) => panic!("{name}: bridge is {other}"),
    };
    (!skip).then_some((name, members, bridge))
}
