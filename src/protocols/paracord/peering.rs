//! What an operator does with servers, by HTTP, NATS or command line alike: look one up, trust it, reject
//! it, remove it, look closely.
//!
//! Trusting fixes what the operator has seen: the domain stays, whatever the server says later.

use std::sync::Arc;

use serde_json::{Value, json};

use super::book::{BookError, Change};
use super::description::{self, base_url, with_keys};
use super::discover::{self, Found};
use super::record::{Peer, Status, TrustedBy};
use super::{ID, Paracord, pins};
use crate::protocol::{PeerName, PeerRecord, Refusal};
use crate::store::StoreErrorKind;
use crate::trust::Standing;

impl From<BookError> for Refusal {
    fn from(error: BookError) -> Self {
        let code = match &error {
            BookError::Taken { .. } => "name_taken",
            BookError::Stopping => "stopping",
            BookError::Store(error) if error.kind == StoreErrorKind::Unavailable => {
                "store_unavailable"
            }
            BookError::Store(_) => "not_kept",
        };
        Self::new(code, error.to_string())
    }
}

/// Looks a server up, at `url` or at `https://NAME`, and keeps it as pending; with `paracord.auto_trust` it
/// is trusted at once. One that is not trusted can be looked up again.
pub async fn request(
    p: &Paracord,
    name: &PeerName,
    url: Option<&str>,
) -> Result<Arc<Peer>, Refusal> {
    may_be_peer(p, name)?;
    let known = p.book.get(name);
    if known.is_some_and(|known| known.is_trusted()) {
        return Err(Refusal::new(
            "peer_exists",
            format!("{name} is trusted already; remove it first to look it up anew"),
        ));
    }
    let pin = p.peers.pin(ID, name);
    let pinned = pin.and_then(|pin| pin.endpoint.clone());
    let base = match (url, pinned) {
        (Some(url), _) => base_url(url).ok_or_else(|| {
            Refusal::new(
                "bad_url",
                "the url must be https://HOST, perhaps with a path, without a query (http:// only \
                 for hosts named in http.plain_hosts)",
            )
        })?,
        (None, Some(pinned)) => pinned.trim_end_matches('/').to_owned(),
        (None, None) => discover::usual_base(name),
    };
    let found = discover::look(p, name, &base)
        .await
        .map_err(|error| Refusal::new(error.kind.code(), error.detail))?;
    let domain = found.description.domain.clone();
    let (auto, now) = (p.config.auto_trust, p.clock.now_ms());
    let (asked, ours) = (name.clone(), p.own.is(&domain));
    if ours {
        return Err(Refusal::new(
            "name_taken",
            format!("{name} calls its domain {domain:?}, which is our own name or domain"),
        ));
    }
    let changed = p.book.change(name, move |known| {
        let next = looked_up(known, asked, base, found, now);
        let next = match auto {
            true => trusted(next, TrustedBy::AutoTrust, now),
            false => next,
        };
        (Change::put(next), ())
    });
    let peer = there(changed.await?.1)?;
    opened(p, &peer);
    Ok(peer)
}

/// The record of a server that was just looked up and that nobody has decided about.
fn looked_up(known: Option<&Peer>, name: PeerName, base: String, found: Found, now: i64) -> Peer {
    // Somebody was quicker.
    if let Some(known) = known.filter(|known| known.is_trusted()) {
        return known.clone();
    }
    let endpoint = found.description.endpoint;
    let known = known.cloned();
    let known = known.unwrap_or_else(|| Peer::new(name, endpoint.clone(), now));
    let fixed = known.domain_fixed;
    let next = Peer {
        status: Status::Pending,
        domain: match fixed {
            true => known.domain.clone(),
            false => found.description.domain,
        },
        base,
        endpoint,
        ..known
    };
    with_keys(&next, found.keys, now)
}

/// The record of a server that is trusted from now on: its domain is fixed.
pub(super) fn trusted(peer: Peer, by: TrustedBy, now: i64) -> Peer {
    if peer.is_trusted() {
        return peer;
    }
    Peer {
        status: Status::Trusted,
        trusted_by: Some(by),
        trusted_ms: Some(now),
        domain_fixed: true,
        ..peer
    }
}

/// Trusts a server in whatever state. `fingerprint`: only if one of its keys has it.
pub async fn accept(
    p: &Paracord,
    peer: &Peer,
    fingerprint: Option<&str>,
) -> Result<Arc<Peer>, Refusal> {
    may_be_peer(p, &peer.name)?;
    if peer.is_trusted() {
        return there(p.book.get(&peer.name));
    }
    if peer.keys.is_empty() && peer.pinned_key.is_none() {
        return Err(Refusal::new(
            "no_keys",
            format!(
                "no key of {0} is known; `drawbridge peers add paracord {0}` looks it up",
                peer.name
            ),
        ));
    }
    let wanted = fingerprint.map(str::to_owned);
    let now = p.clock.now_ms();
    let changed = p.book.change(&peer.name, move |known| {
        let has = |known: &Peer| match &wanted {
            Some(wanted) => prints(known).iter().any(|print| print == wanted),
            None => true,
        };
        match known {
            None => (Change::Keep, Ok(())),
            Some(known) if !has(known) => (Change::Keep, Err(())),
            Some(known) => {
                let next = trusted(known.clone(), TrustedBy::Operator, now);
                (Change::put(next), Ok(()))
            }
        }
    });
    let (decided, now) = changed.await?;
    if decided.is_err() {
        return Err(Refusal::new(
            "other_key",
            format!("{} has no key with that fingerprint", peer.name),
        ));
    }
    let peer = there(now)?;
    opened(p, &peer);
    Ok(peer)
}

/// Rejects a server; nobody is told.
pub async fn reject(p: &Paracord, peer: &Peer) -> Result<Arc<Peer>, Refusal> {
    not_pinned(p, &peer.name)?;
    let changed = p.book.change(&peer.name, |known| {
        let next = known.cloned().map(|known| Peer {
            status: Status::Rejected,
            trusted_by: None,
            trusted_ms: None,
            ..known
        });
        (Change::to(next), ())
    });
    let peer = there(changed.await?.1)?;
    closed(p, &peer);
    Ok(peer)
}

/// Removes a server; nobody is told. False: there was none (any more).
pub async fn remove(p: &Paracord, peer: &Peer) -> Result<bool, Refusal> {
    not_pinned(p, &peer.name)?;
    let added_ms = peer.added_ms;
    let changed = p.book.change(&peer.name, move |known| match known {
        Some(known) if known.added_ms == added_ms => (Change::Remove, true),
        _ => (Change::Keep, false),
    });
    let removed = changed.await?.0;
    if removed {
        p.fetches.forget(&peer.name);
        closed(p, peer);
    }
    Ok(removed)
}

/// Whether this name may be a server we exchange events with.
fn may_be_peer(p: &Paracord, name: &PeerName) -> Result<(), Refusal> {
    if !p.config.enabled {
        return Err(Refusal::new(
            "disabled",
            "federation is switched off: set paracord.enabled = true",
        ));
    }
    if p.own.is(name.as_str()) {
        let why = format!("{name} is our own name or domain");
        return Err(Refusal::new("not_allowed", why));
    }
    if p.trust.standing(ID, name.as_str()) == Standing::Blocked {
        let why = format!("a trust rule blocks {name}; `drawbridge trust list` shows it");
        return Err(Refusal::new("not_allowed", why));
    }
    Ok(())
}

/// What the configuration trusts is ended there.
fn not_pinned(p: &Paracord, name: &PeerName) -> Result<(), Refusal> {
    if p.peers.pin(ID, name).is_some_and(|pin| pin.accepted) {
        return Err(Refusal::new(
            "pinned",
            format!(
                "{name} is trusted by [[peers]] of the configuration: take it out there and reload, or \
                 block it with `drawbridge trust block`"
            ),
        ));
    }
    Ok(())
}

/// The record, if nobody removed it meanwhile.
fn there(peer: Option<Arc<Peer>>) -> Result<Arc<Peer>, Refusal> {
    peer.ok_or_else(|| Refusal::new("unknown_peer", "the server was removed meanwhile"))
}

/// The lanes may send to a trusted server, and what waits for it goes.
fn opened(p: &Paracord, peer: &Peer) {
    if peer.is_trusted() {
        p.peers.put(discover::as_record(p, peer, "well-known"));
        p.peers.heard_from(ID, &peer.name);
    }
}

/// What the lanes know of a server that is no longer trusted holds no longer.
fn closed(p: &Paracord, peer: &Peer) {
    if p.peers.known(ID, &peer.name).is_some() {
        p.peers.put(PeerRecord {
            last_verified_ms: 0,
            ttl_ms: Some(0),
            ..discover::as_record(p, peer, "well-known")
        });
    }
}

/// The fingerprints of a server's keys.
fn prints(peer: &Peer) -> Vec<String> {
    match &peer.pinned_key {
        Some(pin) => vec![pin.public.fingerprint()],
        None => {
            let keys = peer.keys.iter();
            keys.map(|key| key.public.fingerprint()).collect()
        }
    }
}

/// A server with what the rules say of it, for operators.
pub fn shown(p: &Paracord, peer: &Peer) -> Value {
    let mut shown = peer.shown();
    let ruling = p.trust.ruling(ID, peer.name.as_str());
    if let Some(members) = shown.as_object_mut() {
        let standing = ruling
            .as_ref()
            .map_or(Standing::Ordinary, |(standing, _)| *standing);
        members.insert("standing".into(), json!(standing));
        members.insert("rule".into(), json!(ruling.map(|(_, row)| row)));
    }
    shown
}

/// What an operator should see before trusting a server: the record, what the server says of itself now,
/// and what is odd about it.
pub async fn inspect(p: &Paracord, peer: &Peer) -> Value {
    let (live, error) = match discover::look(p, &peer.name, &peer.base).await {
        Ok(found) => (Some(found), None),
        Err(error) => (None, Some(error.detail)),
    };
    let warnings = warnings(p, peer, live.as_ref());
    let live = live.map(|found| {
        let keys = found.keys.iter().map(|key| {
            json!({
                "key_id": key.key_id,
                "fingerprint": key.public.fingerprint(),
                "valid_until_ms": key.valid_until_ms,
            })
        });
        json!({
            "domain": found.description.domain,
            "endpoint": found.description.endpoint,
            "keys": keys.collect::<Vec<_>>(),
        })
    });
    json!({"peer": shown(p, peer), "live": live, "live_error": error, "warnings": warnings})
}

fn warnings(p: &Paracord, peer: &Peer, live: Option<&Found>) -> Vec<String> {
    let mut found = Vec::new();
    if peer.endpoint.starts_with("http://") {
        found.push(
            "the endpoint is not https: anybody on the way reads along, and can show other keys"
                .to_owned(),
        );
    }
    match p.trust.standing(ID, peer.name.as_str()) {
        Standing::Blocked => found.push("a trust rule blocks it: nothing of it is taken".into()),
        Standing::Quarantined => {
            found.push("it is under quarantine: its events are held back".into());
        }
        _ => {}
    }
    let now = p.clock.now_ms();
    if peer.pinned_key.is_none() && !peer.keys.iter().any(|key| key.is_usable(now)) {
        found.push("none of its known keys counts any more".into());
    }
    let Some(live) = live else {
        found.push("it does not describe itself as a Paracord server now".into());
        return found;
    };
    if !live.description.domain.eq_ignore_ascii_case(&peer.domain) {
        found.push(format!(
            "it calls its domain {:?} now; here it is known as {:?}",
            description::shown(&live.description.domain),
            peer.domain
        ));
    }
    let known = prints(peer);
    for key in &live.keys {
        let print = key.public.fingerprint();
        if !known.contains(&print) {
            found.push(format!("it shows a key that is not known here: {print}"));
        }
    }
    if let Some(owner) = p.book.of_server(&peer.domain)
        && owner.name != peer.name
    {
        found.push(format!(
            "its domain {:?} is the name or domain of {}, which is trusted: it cannot be trusted too",
            peer.domain, owner.name
        ));
    }
    found
}

/// A server by its name, as an operator writes it.
pub fn find(p: &Paracord, said: &str) -> Result<Arc<Peer>, Refusal> {
    let name = name(said)?;
    p.book.get(&name).ok_or_else(|| {
        Refusal::new(
            "unknown_peer",
            format!("no Paracord server is known by the name {name}"),
        )
    })
}

/// A name as an operator writes it.
pub fn name(said: &str) -> Result<PeerName, Refusal> {
    PeerName::parse(&said.trim().to_ascii_lowercase())
        .map_err(|error| Refusal::new("bad_name", error.to_string()))
}

/// What `[[peers]]` says is taken up again in the background.
pub fn follow_pins_soon(p: &Paracord) {
    if let Some(p) = p.me.upgrade() {
        tokio::spawn(async move { pins::follow(&p).await });
    }
}
