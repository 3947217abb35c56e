//! Who signed something: the server, its key, and what is done when none of its keys fits.
//!
//! A key that is unknown, expired or does not fit may have been changed: the keys are fetched again, by
//! [`discover`] once for all who ask at that time, and the check is done once more.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

use super::record::Peer;
use super::refused::Refused;
use super::transport::Claim;
use super::{ID, Paracord, discover};
use crate::clock::UnixMs;
use crate::identity::PublicKey;
use crate::trust::Standing;

/// What is signed.
#[derive(Clone, Copy)]
pub(super) struct Signed<'a> {
    pub claim: &'a Claim,
    pub method: &'a str,
    pub path: &'a str,
    pub received: &'a [u8],
}

impl Signed<'_> {
    /// Whether a key of this server signed it: over the bytes received, else over the body's normal
    /// form, which is made only then.
    pub fn by<'n>(
        &self,
        peer: &Peer,
        now: UnixMs,
        normal: impl Fn() -> Cow<'n, [u8]>,
    ) -> Result<(), Refused> {
        let claim = self.claim;
        let made = OnceCell::new();
        let over = |key: &PublicKey, body| claim.proves(key, self.method, self.path, body, None);
        let check = |key: &PublicKey| {
            over(key, self.received).or_else(|| {
                let normal: &[u8] = made.get_or_init(&normal);
                (normal != self.received).then(|| over(key, normal))?
            })
        };
        tried(peer, &claim.key_id, now, Of::Request, &check).map(drop)
    }
}

/// The trusted server that a request says it is from, when its clock and ours agree.
pub(super) fn claimant(p: &Paracord, claim: &Claim) -> Result<Arc<Peer>, Refused> {
    let now = p.clock.now_ms();
    if !claim.in_time(now) {
        let apart = now.abs_diff(claim.timestamp_ms) / 1000;
        let why = format!("its time is {apart} s from ours; 60 s are allowed");
        return Err(Refused::unauthorized("clock", why));
    }
    let peer = trusted(p, &claim.origin)?;
    if claim.signature.is_none() {
        let why = "X-Paracord-Signature is not 128 hex digits";
        return Err(Refused::forbidden("bad_signature", why));
    }
    Ok(peer)
}

/// The server with its keys fetched again; `why`: what is refused when they are no others.
pub(super) async fn asked_again(
    p: &Paracord,
    peer: &Peer,
    why: Refused,
) -> Result<Arc<Peer>, Refused> {
    if !discover::refetch_keys(p, &peer.name).await {
        return Err(why);
    }
    // An operator may have decided otherwise meanwhile.
    trusted(p, peer.name.as_str())
}

/// What a key is to have signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Request,
    Event,
}

impl Of {
    fn no_key(self, peer: &Peer, key_id: &str) -> Refused {
        let code = match self {
            Self::Request => "unknown_key",
            Self::Event => "unknown_event_key",
        };
        let why = format!("{} has no usable key {key_id:?}", peer.name);
        Refused::forbidden(code, why)
    }

    fn mismatch(self, peer: &Peer, key_id: &str) -> Refused {
        let name = &peer.name;
        let (code, what) = match self {
            Self::Request => ("bad_signature", "the request"),
            Self::Event => ("bad_event_signature", "the event"),
        };
        let why = format!("the key {key_id:?} of {name} did not sign {what} as it came");
        Refused::forbidden(code, why)
    }
}

/// The first key of a server under this id that `check` holds for; if there is none, the keys are
/// fetched again and it is done once more.
pub(super) async fn with_keys<T>(
    p: &Paracord,
    peer: Arc<Peer>,
    key_id: &str,
    of: Of,
    check: impl Fn(&PublicKey) -> Option<T>,
) -> Result<(Arc<Peer>, T), Refused> {
    let why = match tried(&peer, key_id, p.clock.now_ms(), of, &check) {
        Ok(found) => return Ok((peer, found)),
        Err(why) => why,
    };
    let peer = asked_again(p, &peer, why).await?;
    let found = tried(&peer, key_id, p.clock.now_ms(), of, &check)?;
    Ok((peer, found))
}

fn tried<T>(
    peer: &Peer,
    key_id: &str,
    now: UnixMs,
    of: Of,
    check: &impl Fn(&PublicKey) -> Option<T>,
) -> Result<T, Refused> {
    let keys = peer.usable_keys(key_id, now);
    if keys.is_empty() {
        return Err(of.no_key(peer, key_id));
    }
    let found = keys.iter().find_map(check);
    found.ok_or_else(|| of.mismatch(peer, key_id))
}

/// The trusted server of this very name that no rule blocks.
pub(super) fn trusted(p: &Paracord, origin: &str) -> Result<Arc<Peer>, Refused> {
    let Some(peer) = p.book.by_text(origin) else {
        return Err(Refused::forbidden(
            "unknown_server",
            format!("{origin:?} is no server we know (names are compared byte for byte)"),
        ));
    };
    if !peer.is_trusted() {
        let why = format!("{} is not trusted: it is {}", peer.name, peer.status.name());
        return Err(Refused::forbidden("not_trusted", why));
    }
    if p.trust.standing(ID, peer.name.as_str()) == Standing::Blocked {
        let why = format!("{} is blocked by a rule", peer.name);
        return Err(Refused::forbidden("blocked", why));
    }
    Ok(peer)
}
