//! Changing our key: the plan that says who notices and when, and doing it in a running bridge.
//!
//! Everything is signed with one key at a time, the first that our document lists. The next one can be
//! listed beforehand, so that other bridges, which fetch keys by themselves, know it before the switch;
//! after it the replaced one stays listed until the overlap ends, for what was signed with it and is
//! still on its way. Published servers fetch our keys once, when they are added, and never again: each
//! of those needs its operator at a switch, and the plan names it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::own_keys;
use super::record::Peer;
use super::{BASE, ID, Paracord, discover, peering};
use crate::clock::UnixMs;
use crate::identity::KeyFileError;
use crate::identity::ring::Keyring;
use crate::protocol::{Fault, Judgement, PeerName, Refusal, Rotation, Try, Verdict};

/// Servers told of one by one.
const MAX_PEERS: usize = 10_000;
/// How often old keys are looked at.
const RETIRE: Duration = Duration::from_secs(600);

/// For so long after a switch a refusal may come from not having noticed it, milliseconds.
const NOTICED_MS: i64 = 600_000;
/// After this a bridge that refused our new key has looked for it.
const LOOKS_AGAIN: Duration = Duration::from_secs(61);

/// What a plan is made from.
pub struct Facts<'a> {
    /// Our server name.
    pub name: &'a str,
    /// Our public base URL.
    pub url: &'a str,
    pub ring: &'a Keyring,
    /// `paracord.key_overlap`.
    pub overlap: Duration,
    /// When the key that is, or would become, the new one was made; `None`: it is not made yet.
    pub made_ms: Option<UnixMs>,
    /// Every trusted server.
    pub peers: &'a [Arc<Peer>],
    /// What our own document shows from here; `None`: not looked at.
    pub own_page: Option<&'a str>,
    pub now: UnixMs,
}

/// Who will notice a new key, how and when; `done` is what has just been done.
pub fn report(facts: &Facts<'_>, done: Rotation) -> Value {
    let overlap = i64::try_from(facts.overlap.as_millis()).unwrap_or(i64::MAX);
    let until = match (&facts.ring.old, done) {
        (_, Rotation::Replace) => None,
        (Some(old), Rotation::Switch) => Some(old.until_ms),
        _ => Some(facts.now.saturating_add(overlap)),
    };
    let peers = facts.peers.iter().take(MAX_PEERS);
    let peers: Vec<Value> = peers.map(|peer| noticing(facts, peer)).collect();
    json!({
        "protocol": ID,
        "name": facts.name,
        "done": match done {
            Rotation::Plan => "nothing",
            Rotation::Prepare => "prepared",
            Rotation::Switch => "switched",
            Rotation::Replace => "replaced",
        },
        "keys": own_keys::list(facts.ring, facts.name),
        "overlap_until_ms": until,
        "own_page": facts.own_page,
        "peers": peers,
    })
}

/// When the key that is, or would become, the new one was made, by the keys before and after a change;
/// `None`: it is not made yet.
pub fn made(before: &Keyring, after: &Keyring, now: UnixMs) -> Option<UnixMs> {
    let next = |ring: &Keyring| ring.next.as_ref().map(|next| next.since_ms);
    match before.active.public() == after.active.public() {
        true => next(after),
        // What is active now was the next one, or was made this moment.
        false => Some(next(before).unwrap_or(now)),
    }
}

/// How one server comes to know the new key.
fn noticing(facts: &Facts<'_>, peer: &Peer) -> Value {
    let url = format!("{}{BASE}/keys", facts.url);
    let (how, detail) = match (peer.fetched_ours_ms, facts.made_ms) {
        (Some(at), Some(made)) if at >= made => (
            "knows",
            "it has fetched our keys since the new one was made".to_owned(),
        ),
        (Some(_), _) => (
            "by_itself",
            format!(
                "it fetches {url} by itself, now and then and when a signature does not hold; it has \
                 not done so since the new key was made"
            ),
        ),
        (None, _) => (
            "operator",
            "it has never been seen to fetch our keys: published servers do so once, when we are added \
             there, and refuse everything that another key signed. After the switch its operator must \
             delete our row from federation_server_keys and add us again"
                .to_owned(),
        ),
    };
    json!({
        "peer": peer.name.as_str(),
        "how": how,
        "by_ms": Value::Null,
        "fetched_our_keys_ms": peer.fetched_ours_ms,
        "detail": detail,
    })
}

/// [`crate::protocol::Protocol::rotate`].
pub async fn rotate(p: &Paracord, wanted: Rotation) -> Result<Value, Refusal> {
    let now = p.clock.now_ms();
    let stopping = || Refusal::new("stopping", "the bridge is stopping");
    let me = p.me.upgrade().ok_or_else(stopping)?;
    let known = p.keys.known();
    let before = p.keys.current();
    // Files are fsynced: not on a thread that answers requests.
    let changed = tokio::task::spawn_blocking(move || me.keys.turn(wanted, now))
        .await
        .map_err(|e| Refusal::new("key_file", format!("the switch was interrupted: {e}")))?
        .map_err(|e: KeyFileError| Refusal::new("key_file", e.to_string()))?;
    remember(p, &known).await;
    if changed {
        key_changed(p, wanted == Rotation::Replace);
    }
    let page = own_page(p).await;
    let peers: Vec<_> = p.book.all();
    let peers: Vec<_> = peers.into_iter().filter(|peer| peer.is_trusted()).collect();
    let current = p.keys.current();
    Ok(report(
        &Facts {
            name: p.own.name.as_str(),
            url: &p.own.url,
            ring: &current.ring,
            overlap: p.config.key_overlap,
            made_ms: made(&before.ring, &current.ring, now),
            peers: &peers,
            own_page: Some(&page),
            now,
        },
        wanted,
    ))
}

/// Reads the key files and `[[peers]]` anew.
pub fn reload(p: &Paracord) -> Result<(), Refusal> {
    peering::follow_pins_soon(p);
    let known = p.keys.known();
    let changed = p
        .keys
        .reread(p.clock.now_ms())
        .map_err(|e| Refusal::new("key_file", e.to_string()))?;
    if changed {
        key_changed(p, false);
    }
    if let Some(p) = p.me.upgrade() {
        tokio::spawn(async move { remember(&p, &known).await });
    }
    Ok(())
}

/// What a refusal means shortly after a switch: a server that fetches our keys by itself may have looked
/// just before it, and looks again no sooner than a minute later. Its refusal waits for that and not
/// for an operator.
pub fn after_switch(p: &Paracord, judged: Judgement, peer: &PeerName, attempt: &Try) -> Judgement {
    let swapped_ms = p.keys.current().swapped_ms;
    let fresh = |at: UnixMs| (0..NOTICED_MS).contains(&attempt.now_ms.saturating_sub(at));
    let notices = || {
        let peer = p.book.get(peer);
        peer.is_some_and(|peer| peer.fetched_ours_ms.is_some())
    };
    match judged.verdict {
        Verdict::Hold(why) if swapped_ms.is_some_and(fresh) && notices() => Judgement {
            verdict: Verdict::Retry {
                fault: Fault::Message,
                reason: Refusal::new(
                    "key_unnoticed",
                    format!(
                        "our key was switched a moment ago, and {peer} looks for it at most once a \
                         minute: {}",
                        why.detail
                    ),
                ),
                after: Some(LOOKS_AGAIN),
            },
            ..judged
        },
        verdict => Judgement { verdict, ..judged },
    }
}

fn key_changed(p: &Paracord, revoked: bool) {
    let current = p.keys.current();
    let active = p.keys.active();
    let old = current.ring.old.as_ref();
    tracing::info!(key = %active.key.public().fingerprint(), id = active.key_id, revoked, "Paracord requests and events are signed with a new key");
    let body = json!({
        "key_id": active.key.public().fingerprint(),
        "wire_key_id": active.key_id,
        "old_key_id": old.map(|old| old.key.public().fingerprint()),
        "overlap_until_ms": old.map(|old| old.until_ms),
    });
    p.ops.event("key", "rotated", ID, p.own.name.as_str(), body);
}

/// So that the next start knows the keys and their ids for our own.
async fn remember(p: &Paracord, known: &[String]) {
    if let Err(error) = p.keys.remember(&p.store, known).await {
        tracing::warn!(%error, "the new key was not noted in the store");
    }
}

/// What others find that look for our keys, in a few words.
async fn own_page(p: &Paracord) -> String {
    let url = format!("{}{BASE}/keys", p.own.url);
    let ours = p.keys.active().key.public();
    match discover::first_key(p, &url).await {
        Ok(key) if key == ours => format!("{url} shows the active key first"),
        Ok(key) => format!(
            "{url} shows another key first ({}): a cache, or another server; others will not notice a \
             switch before it shows the active one",
            key.fingerprint()
        ),
        Err(why) => format!("others look for our keys where we do not find them from here: {why}"),
    }
}

/// Removes old keys when their time is over, for as long as the bridge lives.
pub fn spawn_retirement(p: &Arc<Paracord>) {
    let weak = Arc::downgrade(p);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(RETIRE).await;
            let Some(p) = weak.upgrade() else { return };
            if !p.clock.steady() {
                continue;
            }
            let me = Arc::clone(&p);
            let now = p.clock.now_ms();
            match tokio::task::spawn_blocking(move || me.keys.retire(now)).await {
                Ok(Ok(0)) => {}
                Ok(Ok(count)) => {
                    tracing::info!(
                        count,
                        "the overlap is over: the old Paracord key is removed"
                    );
                    let body = json!({"count": count});
                    p.ops.event("key", "retired", ID, p.own.name.as_str(), body);
                }
                Ok(Err(error)) => tracing::warn!(%error, "an old Paracord key stays behind"),
                Err(error) => tracing::warn!(%error, "old Paracord keys were not looked at"),
            }
        }
    });
}
