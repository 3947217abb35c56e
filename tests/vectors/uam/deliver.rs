//! Deliveries: one request against a bridge of its own, and everything it led to.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::world::{self, Outcome, State};
use super::{Vector, forms};
use crate::check::{read, same, status_fits};
use crate::support::nats::NatsServer;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeliverCase {
    dialect: String,
    method: String,
    path: String,
    headers: std::collections::BTreeMap<String, String>,
    body: String,
    state: Map<String, Value>,
    #[serde(default)]
    given: Map<String, Value>,
    #[serde(default)]
    may_reject: bool,
    expect: Map<String, Value>,
    #[serde(default)]
    bridge: Map<String, Value>,
}

/// What counts of an answer, once `bridge` has replaced what it names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeliverExpect {
    status: Value,
    json: Option<Value>,
    score_after: Option<i64>,
    inbox_message_ids: Option<Value>,
    messages_stored: Option<usize>,
    #[serde(default)]
    detail_text_not_fixed: bool,
    #[serde(default)]
    has_request_id: bool,
    #[serde(rename = "text")]
    _text: Option<Value>,
    #[serde(rename = "fetched")]
    _fetched: Option<Value>,
    #[serde(rename = "reference_crash")]
    _reference_crash: Option<Value>,
}

/// How much of the answer's body counts.
enum Body {
    Whole(Value),
    /// Its `error` only.
    Error(Value),
    Free,
}

const BRIDGE_MEMBERS: [&str; 7] = [
    "status",
    "json",
    "score_after",
    "inbox_message_ids",
    "messages_stored",
    "detail_text_not_fixed",
    "why",
];

pub async fn case(nats: &NatsServer, n: usize, vector: &Vector) -> Result<(), String> {
    let case: DeliverCase = read(&vector.members)?;
    if let Some(unknown) = case
        .bridge
        .keys()
        .find(|k| !BRIDGE_MEMBERS.contains(&k.as_str()))
    {
        return Err(format!("not understood: bridge.{unknown}"));
    }
    let mut expect = case.expect.clone();
    expect.extend(case.bridge.clone());
    expect.remove("why");
    let expect: DeliverExpect = read(&Value::Object(expect))?;
    let body = expected_body(&case.bridge, &expect);

    let mut state = case.state;
    state.extend(case.given);
    let state: State = read(&Value::Object(state))?;
    let agents: Vec<String> = state.agents.keys().cloned().collect();
    let [form] = forms(&case.dialect)? else {
        return Err("a delivery has one dialect".into());
    };
    let request = world::Request {
        method: case.method,
        path: case.path,
        headers: case.headers.into_iter().collect(),
        body: case.body,
    };
    let outcome = world::deliver_case(nats, n, *form, state, request).await;
    if case.may_reject && case.bridge.is_empty() && (400..500).contains(&outcome.status) {
        return Ok(());
    }
    judge(&expect, body, &agents, outcome)
}

fn expected_body(bridge: &Map<String, Value>, expect: &DeliverExpect) -> Body {
    let Some(json) = &expect.json else {
        return Body::Free;
    };
    if bridge.contains_key("status") && !bridge.contains_key("json") {
        return Body::Free;
    }
    if expect.detail_text_not_fixed {
        return match json.get("error") {
            Some(error) => Body::Error(error.clone()),
            None => Body::Free,
        };
    }
    Body::Whole(json.clone())
}

fn judge(
    expect: &DeliverExpect,
    body: Body,
    agents: &[String],
    outcome: Outcome,
) -> Result<(), String> {
    if !status_fits(outcome.status, &expect.status)? {
        return Err(format!(
            "status {} ({:?}), expected {}",
            outcome.status, outcome.json, expect.status
        ));
    }
    match body {
        Body::Free => {}
        Body::Error(error) => {
            let ours = outcome.json.as_ref().and_then(|json| json.get("error"));
            same("error", ours, Some(&error))?;
        }
        Body::Whole(expected) => {
            let mut ours = outcome.json.ok_or("the answer is no JSON")?;
            if expect.has_request_id {
                let id = ours.as_object_mut().and_then(|o| o.remove("request_id"));
                if !matches!(id, Some(Value::String(_))) {
                    return Err("the answer has no request_id".into());
                }
            }
            same("json", ours, expected)?;
        }
    }
    if let Some(score) = expect.score_after {
        same("score_after", outcome.score_after, Some(score))?;
    }
    if let Some(stored) = expect.messages_stored {
        same("messages_stored", outcome.published.len(), stored)?;
    }
    if let Some(inbox) = &expect.inbox_message_ids {
        let ours: Map<String, Value> = agents
            .iter()
            .map(|agent| {
                let ids = outcome.published.iter().filter(|(to, _)| to == agent);
                (agent.clone(), ids.map(|(_, id)| id.as_str()).collect())
            })
            .collect();
        same("inbox_message_ids", &Value::Object(ours), inbox)?;
    }
    Ok(())
}
