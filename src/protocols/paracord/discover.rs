//! Finding a server by its name, and its keys.
//!
//! A server's description is asked for at `https://NAME`, or where an operator or `[[peers]]` says, and
//! its keys at the endpoint that the description names. Time and size of both are bounded; which
//! addresses may be asked is the client's to say. What a server says of itself is believed as far as
//! this: a description must be of the name asked for, a key too, and the domain of a trusted server
//! stays what it was when it was trusted.

use std::sync::Arc;
use std::time::Duration;

use ::http::Method;
use bytes::Bytes;
use serde_json::Map;

use super::book::Change;
use super::description::{self, Description};
use super::record::{Peer, PeerKey, Status};
use super::{ID, Paracord, WELL_KNOWN, peering};
use crate::identity::PublicKey;
use crate::protocol::{Answer, PeerName, PeerRecord, TransportError, TransportKind};

pub use super::refetch::{due_for_keys, refetch_keys, refresh_if_due};

/// One page of a server; within what the core allows a look-up.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longest page, bytes.
const MAX_PAGE: usize = 64 * 1024;
/// What was found holds this long for the lanes, milliseconds.
const TTL_MS: i64 = 3_600_000;

/// What a look at a server found.
#[derive(Clone, Debug)]
pub struct Found {
    pub description: Description,
    pub keys: Vec<PeerKey>,
}

impl Paracord {
    /// Our own keys, none of which can be another's.
    fn own_publics(&self) -> Vec<PublicKey> {
        let ring = &self.keys.current().ring;
        let next = ring.next.as_ref().map(|next| next.key.public());
        let old = ring.old.as_ref().map(|old| old.key.public());
        let all = [Some(ring.active.public()), next, old];
        all.into_iter().flatten().collect()
    }

    async fn page(&self, url: &str) -> Result<Answer, TransportError> {
        let request = self.signed(Method::GET, url, Bytes::new());
        let answer = self.net.send(request, PATIENCE, MAX_PAGE).await?;
        match answer.status {
            200 => Ok(answer),
            status => Err(failed(format!("{url} answers {status}"))),
        }
    }
}

/// Looks at a server: its description at `base`, then its keys.
pub async fn look(p: &Paracord, name: &PeerName, base: &str) -> Result<Found, TransportError> {
    let description = describe(p, name, base).await?;
    if !description.enabled {
        return Err(failed(format!("{name} has switched federation off")));
    }
    let keys = keys(p, name, &description.endpoint).await?;
    Ok(Found { description, keys })
}

/// A server's description at `base`.
pub async fn describe(
    p: &Paracord,
    name: &PeerName,
    base: &str,
) -> Result<Description, TransportError> {
    let page = p.page(&format!("{base}{WELL_KNOWN}")).await?;
    description::description(base, name, &page.body).map_err(failed)
}

/// A server's keys at its endpoint.
pub async fn keys(
    p: &Paracord,
    name: &PeerName,
    endpoint: &str,
) -> Result<Vec<PeerKey>, TransportError> {
    let page = p.page(&format!("{endpoint}/keys")).await?;
    let (ours, now) = (p.own_publics(), p.clock.now_ms());
    description::keys(name, &page.body, &ours, now).map_err(failed)
}

/// The key that a document lists first; published servers know no other. `Err`: a sentence.
pub(super) async fn first_key(p: &Paracord, url: &str) -> Result<PublicKey, String> {
    let page = p.page(url).await.map_err(|error| error.detail)?;
    description::first_key(&page.body).ok_or_else(|| format!("{url} lists no sound key"))
}

/// Where a server's description is, by its name alone.
pub fn usual_base(name: &PeerName) -> String {
    format!("https://{name}")
}

/// A server as the lanes send to it: its endpoint is looked up anew, and that known stays where there is
/// no answer. Who is not trusted is sent nothing.
pub async fn record(p: &Paracord, name: &PeerName) -> Result<PeerRecord, TransportError> {
    let peer = match p.book.get(name) {
        Some(peer) => peer,
        None if p.config.auto_trust => peering::request(p, name, None)
            .await
            .map_err(|refusal| failed(refusal.detail))?,
        None => {
            return Err(failed(format!(
                "{name} is no Paracord server we know; `drawbridge peers add paracord {name}` \
                 looks it up"
            )));
        }
    };
    match peer.status {
        Status::Trusted => {}
        Status::Pending => {
            return Err(failed(format!(
                "{name} is not trusted yet; `drawbridge peers accept paracord {name}` trusts it"
            )));
        }
        Status::Rejected => {
            return Err(failed(format!(
                "{name} was rejected; `drawbridge peers accept paracord {name}` trusts it after all"
            )));
        }
    }
    let pinned = p.peers.pin(ID, name);
    if pinned.is_some_and(|pin| pin.endpoint.is_some()) {
        return Ok(as_record(p, &peer, "config"));
    }
    match describe(p, name, &peer.base).await {
        Ok(found) => {
            let peer = settled(p, &peer, found).await;
            Ok(as_record(p, &peer, "well-known"))
        }
        Err(error) if peer.keys.is_empty() && peer.pinned_key.is_none() => Err(error),
        Err(error) => {
            tracing::info!(peer = %name, %error, "a Paracord server does not describe itself; its known endpoint is used");
            Ok(as_record(p, &peer, "well-known"))
        }
    }
}

/// Takes up what a trusted server says of itself now: where its routes are, unless that is pinned, and
/// its domain, if that was not fixed yet.
pub(super) async fn settled(p: &Paracord, peer: &Arc<Peer>, found: Description) -> Arc<Peer> {
    let pinned = p.peers.pin(ID, &peer.name);
    let pinned = pinned.is_some_and(|pin| pin.endpoint.is_some());
    let next = move |known: &Peer| taken_up(known, &found, pinned);
    let after = next(peer);
    let same = after.endpoint == peer.endpoint
        && after.domain_fixed == peer.domain_fixed
        && after.last_error == peer.last_error;
    if same {
        return Arc::clone(peer);
    }
    if let Some(why) = &after.last_error {
        tracing::warn!(peer = %peer.name, %why, "a Paracord server describes itself otherwise");
    }
    let changed = p
        .book
        .change(&peer.name, move |known| (Change::to(known.map(next)), ()));
    match changed.await {
        Ok((_, now)) => now.unwrap_or_else(|| Arc::clone(peer)),
        Err(error) => {
            tracing::warn!(peer = %peer.name, %error, "what a Paracord server says of itself is not taken up");
            Arc::clone(peer)
        }
    }
}

/// The record with what its server says of itself.
fn taken_up(known: &Peer, found: &Description, endpoint_pinned: bool) -> Peer {
    let mut next = known.clone();
    if !endpoint_pinned {
        next.endpoint.clone_from(&found.endpoint);
    }
    if !known.domain_fixed {
        next.domain.clone_from(&found.domain);
        next.domain_fixed = true;
    }
    let other = !next.domain.eq_ignore_ascii_case(&found.domain);
    next.last_error = other.then(|| {
        format!(
            "it calls its domain {:?} now; it was trusted as {:?}, and that stays until it is removed \
             and added again",
            description::shown(&found.domain),
            next.domain
        )
    });
    next
}

/// What the lanes know of a server.
pub(super) fn as_record(p: &Paracord, peer: &Peer, via: &str) -> PeerRecord {
    let now = p.clock.now_ms();
    let pinned = peer.pinned_key.as_ref().map(|pinned| &pinned.public);
    let usable = peer.keys.iter().find(|key| key.is_usable(now));
    let key = pinned.or(usable.map(|key| &key.public));
    PeerRecord {
        protocol: ID,
        name: peer.name.clone(),
        endpoint: peer.endpoint.clone(),
        alternatives: Vec::new(),
        public_key: key.map(PublicKey::to_bytes),
        discovered_via: via.to_owned(),
        last_verified_ms: now,
        ttl_ms: Some(TTL_MS),
        facts: Map::new(),
    }
}

/// Nothing of a server could be found out, for this reason.
pub(super) fn failed(detail: String) -> TransportError {
    TransportError {
        kind: TransportKind::Discovery,
        detail,
    }
}
