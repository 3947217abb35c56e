//! The peering state machine (sheet, sections 3.3 to 3.5) as functions from a record and an event to
//! the next record. No clock, no dice, no I/O: time, ids and secrets are passed in.
//!
//! | event | function | from → to |
//! | --- | --- | --- |
//! | our operator asks | [`request`] | none → `requested` |
//! | our handshake is answered, or not | [`answered`] | `requested` stays |
//! | a handshake arrives | [`offered`] | none → `pending`; all others stay |
//! | our operator accepts | [`accept`] | any → `connected` |
//! | our operator rejects | [`reject`] | any → `rejected` |
//! | the peer proves itself | [`heard`] | `requested` (by a ping), `error` → `connected` |
//! | an exchange fails | [`failed`] | `connected` → `error` |
//! | a crossing secret is proven | [`adopted`] | its secret, `connected` |
//!
//! Nothing a stranger does takes an accepted peer back, or a rejected one out of it.

use serde_json::{Map, Value};

use crate::clock::UnixMs;
use crate::identity::hmac::SharedSecret;
use crate::protocol::PeerName;

use super::record::{Candidate, Direction, Peer, Status};

/// Secrets of crossing handshakes remembered for one peer.
pub const MAX_CANDIDATES: usize = 4;
/// A stranger nobody decides about, or a crossing secret nobody proves, goes after this long.
pub const STRANGER_AGE_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// What our operator asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// A fresh id.
    pub id: String,
    pub name: String,
    pub host: PeerName,
    pub url: String,
    /// A fresh secret.
    pub secret: SharedSecret,
    pub now_ms: UnixMs,
}

/// The record of a request; `None`: there is a record already.
pub fn request(known: Option<&Peer>, ask: Ask) -> Option<Peer> {
    if known.is_some() {
        return None;
    }
    Some(Peer {
        id: ask.id,
        name: ask.name,
        host: ask.host,
        url: ask.url,
        secret: ask.secret,
        status: Status::Requested,
        direction: Direction::Outgoing,
        features: Map::new(),
        last_seen_ms: None,
        last_synced_ms: None,
        last_error: None,
        remote_peer_id: None,
        created_ms: ask.now_ms,
        updated_ms: ask.now_ms,
        candidates: Vec::new(),
        resend: false,
        refused_secret_ms: None,
    })
}

/// What the other side made of our handshake.
#[derive(Clone, Debug)]
pub enum Answered {
    /// It was received. That is not acceptance.
    Received {
        remote_peer_id: Option<String>,
        features: Map<String, Value>,
    },
    /// It was not: a sentence of ours says why.
    Failed(String),
}

/// The record after our handshake; `None`: nothing changes, for the request is no longer open.
pub fn answered(peer: &Peer, answer: Answered, now_ms: UnixMs) -> Option<Peer> {
    if !matches!(peer.status, Status::Requested | Status::Error) {
        return None;
    }
    let mut next = peer.clone();
    next.updated_ms = now_ms;
    match answer {
        Answered::Received {
            remote_peer_id,
            features,
        } => {
            next.remote_peer_id = remote_peer_id.or(next.remote_peer_id);
            next.features = features;
            next.last_error = None;
            next.resend = false;
        }
        Answered::Failed(why) => next.last_error = Some(why),
    }
    Some(next)
}

/// What a handshake offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// A fresh id, for a host not known yet.
    pub id: String,
    pub name: String,
    pub host: PeerName,
    pub url: String,
    pub secret: SharedSecret,
    pub features: Map<String, Value>,
    /// It says it is a bridge like us.
    pub bridge: bool,
    pub now_ms: UnixMs,
}

/// What becomes of a handshake.
#[derive(Clone, Debug)]
pub enum Offered {
    /// A stranger: waits for the operator.
    Asked(Peer),
    /// A known one under the same secret: brought up to date.
    Repeated(Peer),
    /// It crossed our own request, and its secret may become the shared one: answered as usual, then
    /// proven by a ping.
    Crossing(Peer),
    /// It crossed our own request, and ours stands between two bridges: refused, and ours is sent
    /// again.
    OursStands(Peer),
    /// Another secret than the one we know.
    OtherSecret(Peer),
    /// Too many strangers wait.
    Full,
}

/// What becomes of a handshake. `room`: one more stranger may wait. Of two bridges that asked each
/// other the secret of the one whose host sorts first stands, so both decide alike.
pub fn offered(known: Option<&Peer>, offer: Offer, own: &PeerName, room: bool) -> Offered {
    let Some(peer) = known else {
        return if room {
            Offered::Asked(stranger(offer))
        } else {
            Offered::Full
        };
    };
    let mut next = peer.clone();
    if peer.secret.same(offer.secret.as_text()) {
        if peer.direction == Direction::Incoming {
            next.url = offer.url;
        }
        next.name = offer.name;
        next.features = offer.features;
        next.updated_ms = offer.now_ms;
        return Offered::Repeated(next);
    }
    if peer.status != Status::Requested {
        next.refused_secret_ms = Some(offer.now_ms);
        return Offered::OtherSecret(next);
    }
    if offer.bridge && offer.host > *own {
        next.resend = true;
        return Offered::OursStands(next);
    }
    next.candidates.retain(|c| {
        !c.secret.same(offer.secret.as_text()) && !outlived(c.offered_ms, offer.now_ms)
    });
    // The newest are kept: a stranger's, offered earlier in its name, must not shut the peer's out.
    let surplus = (next.candidates.len() + 1).saturating_sub(MAX_CANDIDATES);
    next.candidates.drain(..surplus);
    next.candidates.push(Candidate {
        secret: offer.secret,
        offered_ms: offer.now_ms,
    });
    Offered::Crossing(next)
}

fn stranger(offer: Offer) -> Peer {
    Peer {
        id: offer.id,
        name: offer.name,
        host: offer.host,
        url: offer.url,
        secret: offer.secret,
        status: Status::Pending,
        direction: Direction::Incoming,
        features: offer.features,
        last_seen_ms: None,
        last_synced_ms: None,
        last_error: None,
        remote_peer_id: None,
        created_ms: offer.now_ms,
        updated_ms: offer.now_ms,
        candidates: Vec::new(),
        resend: false,
        refused_secret_ms: None,
    }
}

/// The operator accepts: any state becomes `connected`.
pub fn accept(peer: &Peer, now_ms: UnixMs) -> Peer {
    Peer {
        status: Status::Connected,
        last_error: None,
        updated_ms: now_ms,
        ..peer.clone()
    }
}

/// The operator rejects. Crossing secrets are forgotten.
pub fn reject(peer: &Peer, now_ms: UnixMs) -> Peer {
    Peer {
        status: Status::Rejected,
        candidates: Vec::new(),
        resend: false,
        updated_ms: now_ms,
        ..peer.clone()
    }
}

/// By what a peer proved itself, or an exchange with it went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// Its ping: it has accepted us.
    Ping,
    /// Any other request of it, or a request of ours that it took.
    Other,
}

/// The record after a contact under the shared secret; `None`: this says nothing here. A peer that
/// waits for our operator, or was rejected, is not moved by proving itself.
pub fn heard(peer: &Peer, by: Contact, now_ms: UnixMs) -> Option<Peer> {
    let moves = match peer.status {
        Status::Connected | Status::Error => true,
        Status::Requested => by == Contact::Ping,
        Status::Pending | Status::Rejected => false,
    };
    if !moves {
        return None;
    }
    let mut next = peer.clone();
    next.last_seen_ms = Some(now_ms.max(peer.last_seen_ms.unwrap_or(now_ms)));
    next.last_error = None;
    if next.status != Status::Connected {
        next.status = Status::Connected;
        next.updated_ms = now_ms;
    }
    // The secret that others might have replaced is proven.
    next.candidates.clear();
    next.resend = false;
    Some(next)
}

/// The record after an exchange failed; `None`: that changes nothing. An accepted peer is `error` and
/// still authenticated.
pub fn failed(peer: &Peer, why: &str, now_ms: UnixMs) -> Option<Peer> {
    let same = peer.last_error.as_deref() == Some(why);
    match peer.status {
        Status::Connected => Some(Peer {
            status: Status::Error,
            last_error: Some(why.to_owned()),
            updated_ms: now_ms,
            ..peer.clone()
        }),
        Status::Error | Status::Requested if !same => Some(Peer {
            last_error: Some(why.to_owned()),
            ..peer.clone()
        }),
        _ => None,
    }
}

/// The record once a ping under a crossing secret was taken at the stored url; `None`: the secret is
/// no candidate (any more).
pub fn adopted(peer: &Peer, secret: &SharedSecret, now_ms: UnixMs) -> Option<Peer> {
    if !peer
        .candidates
        .iter()
        .any(|c| c.secret.same(secret.as_text()))
    {
        return None;
    }
    Some(Peer {
        secret: secret.clone(),
        status: Status::Connected,
        last_seen_ms: Some(now_ms),
        last_error: None,
        updated_ms: now_ms,
        candidates: Vec::new(),
        resend: false,
        ..peer.clone()
    })
}

/// Whether a record is a stranger's that nobody decided about in time.
pub fn is_stale(peer: &Peer, now_ms: UnixMs) -> bool {
    peer.status == Status::Pending && outlived(peer.created_ms, now_ms)
}

/// The record without crossing secrets that nobody proved in time; `None`: it has none of those.
pub fn without_old(peer: &Peer, now_ms: UnixMs) -> Option<Peer> {
    let old = |c: &Candidate| outlived(c.offered_ms, now_ms);
    if !peer.candidates.iter().any(old) {
        return None;
    }
    let mut next = peer.clone();
    next.candidates.retain(|candidate| !old(candidate));
    Some(next)
}

fn outlived(since_ms: UnixMs, now_ms: UnixMs) -> bool {
    now_ms.saturating_sub(since_ms) >= STRANGER_AGE_MS
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
