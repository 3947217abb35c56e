//! Allow, block and quarantine rules.

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::params::Params;
use super::routes::{Route, get, post};
use super::{Access, AdminState, Fail, Reply, Shared, answer, body, end, ok};
use crate::clock::UnixMs;
use crate::protocol::ProtocolId;
use crate::store::TrustRow;
use crate::trust::{self, Rule};

/// Longest reason, characters.
const MAX_REASON: usize = 500;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/api/v1/trust", Access::Token, list),
        post("/api/v1/trust", add),
        post("/api/v1/trust/release", release),
        get("/api/v1/held", Access::Token, held),
    ]
}

/// `GET /api/v1/trust`: `rules`, oldest first; parameters `protocol`, `rule`, `pattern`, and
/// `ended=true` for those that have come to their end, too.
async fn list(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    let mut params = Params::read(query.as_deref())?;
    let (protocol, pattern) = (params.text("protocol"), params.text("pattern"));
    let rule = params
        .text("rule")
        .map(|text| rule_named(&text))
        .transpose()?;
    let ended = params.flag("ended")?;
    params.end()?;
    let now = state.clock.now_ms();
    let pattern = pattern.map(|text| text.to_ascii_lowercase());
    let wanted = |row: &TrustRow| {
        protocol.as_ref().is_none_or(|p| *p == row.protocol)
            && pattern.as_ref().is_none_or(|p| *p == row.pattern)
            && rule.is_none_or(|r| r.as_str() == row.rule)
            && (ended || row.in_force(now))
    };
    let rules = state.trust.rules();
    let rules: Vec<Value> = rules
        .iter()
        .filter(|row| wanted(row))
        .map(|row| shown(row, now))
        .collect();
    ok(&json!({"now_ms": now, "rules": rules}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRule {
    protocol: Option<String>,
    rule: String,
    pattern: String,
    reason: Option<String>,
    /// RFC 3339.
    until: Option<String>,
    /// A duration such as `2h`.
    #[serde(rename = "for")]
    lasting: Option<String>,
}

/// `POST /api/v1/trust`: adds or replaces a rule, in force with the answer; 201 when it is new.
async fn add(State(state): Shared, bytes: Bytes) -> Reply {
    let wanted: NewRule = body(&bytes)?;
    let protocol = state.protocol(wanted.protocol.as_deref())?;
    let rule = rule_named(&wanted.rule)?;
    let pattern = pattern(&wanted.pattern)?;
    let now = state.clock.now_ms();
    let ends_ms = end::at(wanted.until.as_deref(), wanted.lasting.as_deref(), now)?;
    let reason: Option<String> = wanted.reason.map(|text| {
        text.chars()
            .filter(|c| !c.is_control())
            .take(MAX_REASON)
            .collect()
    });
    let (row, new) = state
        .trust
        .add_until(protocol, rule, &pattern, reason.as_deref(), ends_ms)
        .await?;
    tell(&state, protocol, "added", &row);
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let body = json!({"rule": shown(&row, now), "new": new});
    Ok(answer(status, &body))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Release {
    protocol: Option<String>,
    pattern: String,
    /// Which list; left out: quarantine and block.
    rule: Option<String>,
    /// Forget what is held instead of letting it in.
    #[serde(default)]
    drop: bool,
}

/// `POST /api/v1/trust/release`: takes a pattern off its lists and lets in (or drops) what is held of
/// the peers it matches; 404 when there is neither a rule nor anything held.
async fn release(State(state): Shared, bytes: Bytes) -> Reply {
    let wanted: Release = body(&bytes)?;
    let protocol = state.protocol(wanted.protocol.as_deref())?;
    let pattern = pattern(&wanted.pattern)?;
    let lists = match wanted.rule.as_deref() {
        Some(name) => vec![rule_named(name)?],
        None => vec![Rule::Block, Rule::Quarantine],
    };
    // What is dropped goes before the rule does: the door lets in what is no longer quarantined.
    let door = state
        .door
        .as_ref()
        .filter(|_| lists.contains(&Rule::Quarantine));
    let mut dropped = match door {
        Some(door) if wanted.drop => door.drop_held(protocol, &pattern).await?,
        _ => 0,
    };
    let removed = remove(&state, protocol, &lists, &pattern).await?;
    let mut released = 0;
    match door {
        Some(door) if wanted.drop => dropped += door.drop_held(protocol, &pattern).await?,
        Some(door) => released = door.release(protocol, &pattern).await?,
        None => {}
    }
    if removed.is_empty() && released + dropped == 0 {
        return Err(Fail::not_found(
            "no_such_rule",
            format!(
                "there is no such rule for {pattern:?} over {protocol}, and nothing is held of it; \
                 `trust list --ended` shows the rules, `trust held` what is held"
            ),
        ));
    }
    let now = state.clock.now_ms();
    let still = state.trust.ruling(protocol, &pattern);
    ok(&json!({
        "removed": removed,
        "released": released,
        "dropped": dropped,
        "still": still.map(|(_, row)| shown(&row, now)),
    }))
}

/// Takes a pattern off these lists; answers the rules that there were.
async fn remove(
    state: &AdminState,
    protocol: ProtocolId,
    lists: &[Rule],
    pattern: &str,
) -> Result<Vec<Value>, Fail> {
    let now = state.clock.now_ms();
    let mut removed = Vec::new();
    for &rule in lists {
        let mut there = state.trust.list(protocol, rule).into_iter();
        let row = there.find(|row| row.pattern == pattern);
        if state.trust.remove(protocol, rule, pattern).await?
            && let Some(row) = row
        {
            tell(state, protocol, "removed", &row);
            removed.push(shown(&row, now));
        }
    }
    Ok(removed)
}

/// `GET /api/v1/held`: `held`, what waits of each quarantined peer.
async fn held(State(state): Shared) -> Reply {
    let held = match &state.door {
        Some(door) => door.held().await?,
        None => Vec::new(),
    };
    ok(&json!({"now_ms": state.clock.now_ms(), "held": held}))
}

fn shown(row: &TrustRow, now: UnixMs) -> Value {
    let mut shown = json!(row);
    if let Value::Object(members) = &mut shown {
        members.insert("in_force".into(), row.in_force(now).into());
    }
    shown
}

fn rule_named(text: &str) -> Result<Rule, Fail> {
    Rule::parse(text).ok_or_else(|| {
        Fail::bad_request(
            "bad_rule",
            format!("rule must be block, allow or quarantine, not {text:?}"),
        )
    })
}

fn pattern(text: &str) -> Result<String, Fail> {
    trust::pattern(text).map_err(|detail| Fail::bad_request("bad_pattern", detail))
}

fn tell(state: &AdminState, protocol: ProtocolId, what: &'static str, row: &TrustRow) {
    tracing::info!(
        protocol,
        rule = row.rule,
        pattern = row.pattern,
        "trust rule {what}"
    );
    state.ops.event(
        "trust",
        what,
        protocol,
        &row.pattern,
        json!({"list": row.rule, "domain": row.pattern, "reason": row.reason, "ends_ms": row.ends_ms}),
    );
}
