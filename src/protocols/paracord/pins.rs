//! `[[peers]]` of the configuration: servers that are trusted from the start, with what is pinned of each.
//!
//! A pinned key is the only one that counts. A block that is gone ends the trust that it gave; what an
//! operator decided stays.

use futures_util::StreamExt;

use super::book::Change;
use super::peering::trusted;
use super::record::{Peer, PinnedKey, Status, TrustedBy, public};
use super::{BASE, ID, Paracord};
use crate::config::PeerPin;
use crate::protocol::PeerName;

/// Records changed beside one another.
const AT_ONCE: usize = 64;

/// Makes the records what `[[peers]]` says. What cannot be done is logged: one block does not keep the
/// others from working.
pub async fn follow(p: &Paracord) {
    let pinned = p.peers.pinned();
    let pinned = pinned.into_iter().filter(|(protocol, _)| protocol == ID);
    let mut names: Vec<PeerName> = pinned.map(|(_, name)| name).collect();
    let once_pinned =
        |peer: &Peer| peer.trusted_by == Some(TrustedBy::Config) || peer.pinned_key.is_some();
    names.extend(p.book.chosen(once_pinned));
    names.sort();
    names.dedup();
    let each = futures_util::stream::iter(names);
    each.for_each_concurrent(AT_ONCE, |name| async move {
        let pin = p.peers.pin(ID, &name);
        let key = pin.as_ref().and_then(|pin| pin.public_key.as_deref());
        if key.is_some_and(|key| public(key).is_none()) {
            tracing::error!(peer = %name, "the public_key of a Paracord server in [[peers]] proves nothing (it is no point of the curve, or of small order): the block is not in force");
            return;
        }
        let now = p.clock.now_ms();
        let of = name.clone();
        let changed = p.book.change(&name, move |known| {
            let next = match &pin {
                Some(pin) => Some(pinned_as(known, of, pin, now)),
                None => known.map(unpinned),
            };
            let same = |next: &Peer| known.is_some_and(|known| known.to_kept() == next.to_kept());
            (Change::to(next.filter(|next| !same(next))), ())
        });
        if let Err(error) = changed.await {
            tracing::error!(peer = %name, %error, "what [[peers]] says of a Paracord server is not in force");
        }
    })
    .await;
}

/// The record of a pinned server.
fn pinned_as(known: Option<&Peer>, name: PeerName, pin: &PeerPin, now: i64) -> Peer {
    let base = pin.endpoint.as_deref();
    let base = base.map(|base| base.trim_end_matches('/').to_owned());
    let mut next = match known {
        Some(known) => known.clone(),
        None => {
            let base = base.clone().unwrap_or_else(|| format!("https://{name}"));
            Peer::new(name, format!("{base}{BASE}"), now)
        }
    };
    if let Some(base) = base
        && base != next.base
    {
        next.endpoint = format!("{base}{BASE}");
        next.base = base;
    }
    next.pinned_key = pin.public_key.as_deref().and_then(public).map(|public| {
        let key_id = pin.key_id.clone();
        PinnedKey { key_id, public }
    });
    let mut fixed = next.domain_fixed;
    if let Some(domain) = &pin.domain {
        next.domain.clone_from(domain);
        fixed = true;
    }
    if pin.accepted {
        next = trusted(next, TrustedBy::Config, now);
    } else if next.trusted_by == Some(TrustedBy::Config) {
        next = pending(next);
    }
    // What nobody has said yet the server says itself, once it is asked.
    next.domain_fixed = fixed;
    next
}

/// The record of a server whose block is gone.
fn unpinned(known: &Peer) -> Peer {
    let mut next = known.clone();
    next.pinned_key = None;
    match next.trusted_by {
        Some(TrustedBy::Config) => pending(next),
        _ => next,
    }
}

fn pending(peer: Peer) -> Peer {
    Peer {
        status: Status::Pending,
        trusted_by: None,
        trusted_ms: None,
        ..peer
    }
}
