//! VoltChat.

mod answer;
mod asked;
mod given;
mod pure;
mod words;
mod world;

use serde_json::{Map, Value};

use crate::files::{Document, Protocol, VOLTCHAT_GROUPS};
use crate::support::nats::NatsServer;
use crate::{all_right, each};

#[test]
fn tokens_hosts_and_lists_are_read_as_the_reference_reads_them_or_as_decided() {
    all_right(
        cases(|group| pure::GROUPS.contains(&group))
            .into_iter()
            .map(|case| (pure::case(&case), case.name)),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_request_is_answered_as_the_reference_answers_it_or_as_decided() {
    let nats = NatsServer::start().await;
    let nats = &nats;
    let cases = cases(|group| asked::GROUPS.contains(&group));
    let done = each(cases, async |n, case: Case| {
        (asked::case(nats, n, &case).await, case.name)
    });
    all_right(done.await);
}

/// One case: where it stands, its group, and its members, those of `bridge` in their place, without
/// what says nothing.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    group: String,
    members: Map<String, Value>,
}

/// Members of a file that are no groups.
const ABOUT: [&str; 4] = ["about", "source", "conventions", "count"];

/// What the groups' cases may have replaced by `bridge`.
const DECIDED: [&str; 6] = [
    "expected", "strict", "lenient", "private", "response", "after",
];

/// The cases of the groups wanted, of every file.
fn cases(wanted: impl Fn(&str) -> bool) -> Vec<Case> {
    let documents = crate::files::of(Protocol::Voltchat);
    let all = documents.into_iter().flat_map(of_document);
    all.filter(|case| wanted(&case.group)).collect()
}

fn of_document(document: Document) -> Vec<Case> {
    let file = document.name;
    let Value::Object(members) = document.json else {
        panic!("{file}: no object");
    };
    let mut cases = Vec::new();
    for (group, list) in members {
        if ABOUT.contains(&group.as_str()) {
            continue;
        }
        assert!(
            VOLTCHAT_GROUPS.contains(&group.as_str()),
            "{file}: unknown group {group:?}"
        );
        let Value::Array(list) = list else {
            panic!("{file}: {group} is no list");
        };
        let read = list.into_iter().enumerate();
        cases.extend(read.filter_map(|(n, value)| case(&file, &group, n, value)));
    }
    cases
}

/// `None`: the case says itself that no bridge can be asked.
fn case(file: &str, group: &str, n: usize, value: Value) -> Option<Case> {
    let Value::Object(mut members) = value else {
        panic!("{file} {group} {n}: a case is no object");
    };
    let id = match members.remove("id") {
        Some(Value::String(id)) => id,
        None => n.to_string(),
        Some(other) => panic!("{file} {group} {n}: id is {other}"),
    };
    let name = format!("{file} {group} {id}");
    members.remove("note");
    let skip = members.remove("skip").is_some();
    match members.remove("bridge") {
        None => {}
        Some(Value::Object(bridge)) => {
            for (member, decided) in bridge {
                if member == "why" {
                    continue;
                }
                assert!(
                    DECIDED.contains(&member.as_str()),
                    "{name}: unknown member bridge.{member}"
                );
                members.insert(member, decided);
            }
        }
        Some(other) => panic!("{name}: bridge is {other}"),
    }
    (!skip).then(|| Case {
        name,
        group: group.to_owned(),
        members,
    })
}
