//! What is known of each peer, and from where.
//!
//! A peer is listed when the configuration pins it, when it was ever found, or when rows wait for
//! it: one that cannot be found is the one that an operator looks for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, RawQuery, State};
use serde_json::{Value, json};

use super::params::Params;
use super::routes::{Route, get};
use super::{Access, AdminState, Fail, Reply, Shared, explain, ok, peer_name};
use crate::config::PeerPin;
use crate::identity::{PublicKey, b64};
use crate::protocol::{PeerName, PeerRecord};
use crate::store::{PeerCounts, RowFilter};
use crate::trust::{START_SCORE, Standing};

/// Peers of one answer when `limit` is not given.
const DEFAULT_LIMIT: usize = 1000;
/// And at most.
const MAX_LIMIT: i64 = 10_000;
/// How long a list asks the lanes how they stand.
const LOOKS: Duration = Duration::from_secs(2);

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/api/v1/peers", Access::Token, list),
        get("/api/v1/peers/{protocol}/{name}", Access::Token, show),
    ]
}

/// All there is about one peer.
#[derive(Default)]
pub(super) struct Known {
    pub record: Option<Arc<PeerRecord>>,
    pub pin: Option<Arc<PeerPin>>,
    pub counts: Option<PeerCounts>,
    /// The stored health facts.
    pub health: Option<Value>,
}

type Key = (String, String);

/// `GET /api/v1/peers`: `peers` by protocol and name; parameters `protocol`, `standing`, `after`
/// (`protocol/name`) and `limit`.
async fn list(State(state): Shared, RawQuery(query): RawQuery) -> Reply {
    let mut params = Params::read(query.as_deref())?;
    let protocol = params.text("protocol");
    let standing = params.text("standing");
    let after = params.text("after");
    let limit = params.number("limit", 1, MAX_LIMIT)?;
    params.end()?;
    let limit = limit.map_or(DEFAULT_LIMIT, |n| usize::try_from(n).unwrap_or(1));
    let after: Option<Key> = after.map(|text| {
        let (protocol, name) = text.split_once('/').unwrap_or((&text, ""));
        (protocol.to_owned(), name.to_owned())
    });
    let mut peers = Vec::new();
    let mut next = None;
    for (key, known) in everyone(&state).await? {
        let past = after.as_ref().is_none_or(|after| key > *after);
        if !past || protocol.as_ref().is_some_and(|wanted| *wanted != key.0) {
            continue;
        }
        let shown = summary(&state, &key, &known);
        if standing.as_ref().is_some_and(|wanted| {
            shown.get("standing").and_then(Value::as_str) != Some(wanted.as_str())
        }) {
            continue;
        }
        if peers.len() == limit {
            next = peers.last().map(|last: &Value| {
                let part = |name: &str| last[name].as_str().unwrap_or_default().to_owned();
                format!("{}/{}", part("protocol"), part("name"))
            });
            break;
        }
        peers.push(shown);
    }
    add_states(&state, &mut peers).await;
    ok(&json!({"now_ms": state.clock.now_ms(), "peers": peers, "next": next}))
}

/// `GET /api/v1/peers/{protocol}/{name}`: the members of the list, and where each value came from.
async fn show(State(state): Shared, Path((protocol, name)): Path<(String, String)>) -> Reply {
    let protocol = state.protocol(Some(&protocol))?;
    let name = peer_name(&name)?;
    let key = (protocol.to_owned(), name.to_string());
    let ruling = state.trust.ruling(protocol, name.as_str());
    let known = match everyone(&state).await?.remove(&key) {
        Some(known) => known,
        // A peer that only a rule speaks of can be asked for, too.
        None if ruling.is_some() => Known::default(),
        None => {
            return Err(Fail::not_found(
                "no_such_peer",
                format!(
                    "{name} is not known over {protocol}: it is not under [[peers]], was never \
                     found, and nothing waits for it"
                ),
            ));
        }
    };
    let now = state.clock.now_ms();
    let oldest = match known.counts.as_ref().and_then(|c| c.first_pending) {
        Some(id) => {
            let filter = RowFilter {
                ids: vec![id],
                ..RowFilter::default()
            };
            let rows = state.store.list_rows(&filter).await?;
            rows.first().map(|row| row.created_ms)
        }
        None => None,
    };
    let mut shown = summary(&state, &key, &known);
    let outlook = match &state.lanes {
        Some(lanes) => Some(lanes.look(protocol, &name).await?),
        None => None,
    };
    let held = match &state.door {
        Some(door) => door.held().await?,
        None => Vec::new(),
    };
    let held = held
        .iter()
        .find(|h| h.protocol == protocol && h.peer == name.as_str());
    let told = explain::Told {
        known: &known,
        ruling: ruling.as_ref(),
        oldest_pending_ms: oldest,
        outlook: outlook.as_ref(),
        held: held.map_or(0, |h| h.events),
    };
    let explanation = explain::peer(&told, now);
    if let Value::Object(members) = &mut shown {
        members.insert("now_ms".into(), now.into());
        members.insert("oldest_pending_ms".into(), oldest.into());
        let rule = ruling.as_ref().map(|(_, row)| json!(row));
        members.insert("rule".into(), rule.unwrap_or(Value::Null));
        let state = outlook.as_ref().map(|o| json!(o.state));
        members.insert("state".into(), state.unwrap_or(Value::Null));
        members.insert("outlook".into(), json!(outlook));
        members.insert("held_inbound".into(), told.held.into());
        members.insert("explanation".into(), json!(explanation));
    }
    ok(&shown)
}

/// How each lane stands; a shard that is busy for long leaves the rest unsaid.
async fn add_states(state: &AdminState, peers: &mut [Value]) {
    let Some(lanes) = &state.lanes else { return };
    let until = Instant::now() + LOOKS;
    for peer in peers {
        let (protocol, name) = (peer["protocol"].as_str(), peer["name"].as_str());
        let (Some(protocol), Some(Ok(name))) = (protocol, name.map(PeerName::parse)) else {
            continue;
        };
        let look = lanes.look(protocol, &name);
        match tokio::time::timeout_at(until.into(), look).await {
            Ok(Ok(outlook)) => peer["state"] = json!(outlook.state),
            Ok(Err(_)) => {}
            Err(_) => return,
        }
    }
}

/// Pinned, found, or waited for.
async fn everyone(state: &AdminState) -> Result<BTreeMap<Key, Known>, Fail> {
    let mut all: BTreeMap<Key, Known> = BTreeMap::new();
    for (protocol, name) in state.peers.pinned() {
        let pin = state.peers.pin(&protocol, &name);
        all.entry((protocol, name.to_string())).or_default().pin = pin;
    }
    for record in state.peers.all() {
        let key = (record.protocol.to_owned(), record.name.to_string());
        all.entry(key).or_default().record = Some(record);
    }
    for counts in state.store.peer_counts().await? {
        // A message that never got a peer has the subject's token there.
        if PeerName::parse(&counts.peer).is_ok() {
            let key = (counts.protocol.clone(), counts.peer.clone());
            all.entry(key).or_default().counts = Some(counts);
        }
    }
    let mut health: HashMap<Key, String> = HashMap::new();
    for row in state.store.health().await? {
        health.insert((row.protocol, row.peer), row.facts);
    }
    for (key, known) in &mut all {
        let facts = health.get(key);
        known.health = facts.and_then(|facts| serde_json::from_str(facts).ok());
    }
    Ok(all)
}

fn summary(state: &AdminState, (protocol, name): &Key, known: &Known) -> Value {
    let record = known.record.as_deref();
    let key = record.and_then(|r| r.public_key.as_ref());
    // A protocol that is no longer configured has no rules in force.
    let id = state
        .protocols
        .iter()
        .copied()
        .find(|p| *p == protocol.as_str());
    let standing = id.map_or(Standing::Ordinary, |id| state.trust.standing(id, name));
    let pinned = |value: Option<&String>| value.cloned();
    let pin = known.pin.as_ref();
    let counts = known.counts.as_ref();
    json!({
        "protocol": protocol,
        "name": name,
        "endpoint": record.map(|r| r.endpoint.clone()).filter(|e| !e.is_empty()),
        "alternatives": record.map(|r| r.alternatives.clone()).unwrap_or_default(),
        "public_key": key.map(b64::encode),
        "fingerprint": key.and_then(|k| PublicKey::parse(k).ok()).map(|k| k.fingerprint()),
        "discovered_via": record.map(|r| r.discovered_via.clone()),
        "last_verified_ms": record.map(|r| r.last_verified_ms),
        "ttl_ms": record.and_then(|r| r.ttl_ms),
        "facts": record.map(|r| r.facts.clone()).unwrap_or_default(),
        "pin": pin.map(|pin| json!({
            "endpoint": pinned(pin.endpoint.as_ref()),
            "public_key": pinned(pin.public_key.as_ref()),
            "accepted": pin.accepted,
        })),
        "standing": standing,
        "score": id.map_or(START_SCORE, |id| state.trust.score(id, name)),
        "state": Value::Null,
        "health": known.health,
        "pending": counts.map_or(0, |c| c.pending),
        "dead": counts.map_or(0, |c| c.failed),
        "held": counts.map_or(0, |c| c.held),
    })
}
