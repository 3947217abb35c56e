//! When a server's keys are fetched again: now and then, and when a signature does not hold.
//!
//! A signature that does not hold can be the work of anybody who writes a server's name into a header.
//! So for each server there is one fetch at a time, for all who wait, and at most one in 60 s for that
//! reason; a fetch that was due anyway does not count there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::book::Change;
use super::record::{Peer, TrustedBy};
use super::{ID, Paracord, description, discover};
use crate::clock::UnixMs;
use crate::protocol::{PeerName, TransportError};

/// A server's keys are fetched no more often than this because of a signature, milliseconds.
const PAUSE_MS: i64 = 60_000;
/// Fetches at once.
const AT_ONCE: usize = 32;
/// Servers remembered with their last fetch.
const REMEMBERED: usize = 10_000;

/// Fetches under way, and the last ones.
pub struct Fetches {
    last: Mutex<HashMap<PeerName, Fetch>>,
    places: Semaphore,
}

struct Fetch {
    began_ms: UnixMs,
    /// When one was last made because a signature did not hold.
    demanded_ms: Option<UnixMs>,
    /// Whether it brought something new, once it is over.
    news: watch::Receiver<Option<bool>>,
}

/// What a fetch will have brought, and the end of it where it is the caller's to run.
type Ticket = (
    watch::Receiver<Option<bool>>,
    Option<watch::Sender<Option<bool>>>,
);

impl Fetches {
    pub fn new() -> Self {
        Self {
            last: Mutex::default(),
            places: Semaphore::new(AT_ONCE),
        }
    }

    /// The fetch to wait for, and how to end it if it is the caller's to run. `demanded`: a signature
    /// did not hold.
    fn ticket(&self, name: &PeerName, demanded: bool, now: UnixMs) -> Option<Ticket> {
        let in_pause = |at: UnixMs| is_within(at, PAUSE_MS, now);
        let mut last = self.last();
        let mut demanded_ms = demanded.then_some(now);
        if let Some(fetch) = last.get(name) {
            let lately = fetch.demanded_ms.is_some_and(in_pause);
            if is_running(fetch) || (demanded && lately) {
                return Some((fetch.news.clone(), None));
            }
            demanded_ms = demanded_ms.or(fetch.demanded_ms);
        }
        if last.len() >= REMEMBERED {
            last.retain(|_, fetch| in_pause(fetch.began_ms) || is_running(fetch));
        }
        if last.len() >= REMEMBERED {
            return None;
        }
        let (end, news) = watch::channel(None);
        let fetch = Fetch {
            began_ms: now,
            demanded_ms,
            news: news.clone(),
        };
        last.insert(name.clone(), fetch);
        Some((news, Some(end)))
    }

    /// Whether a fetch for this server began within this time.
    fn began_within(&self, name: &PeerName, span: i64, now: UnixMs) -> bool {
        let last = self.last();
        let fetch = last.get(name);
        fetch.is_some_and(|fetch| is_within(fetch.began_ms, span, now) || is_running(fetch))
    }

    /// What is remembered of a server counts no more.
    pub fn forget(&self, name: &PeerName) {
        self.last().remove(name);
    }

    fn last(&self) -> MutexGuard<'_, HashMap<PeerName, Fetch>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Fetches {
    fn default() -> Self {
        Self::new()
    }
}

/// Somebody runs it: who was given the end of it has neither used nor dropped it.
fn is_running(fetch: &Fetch) -> bool {
    fetch.news.borrow().is_none() && fetch.news.has_changed().is_ok()
}

/// Both ways, so that a clock set back does not keep a fetch from being made.
fn is_within(at: UnixMs, span: i64, now: UnixMs) -> bool {
    (0..span).contains(&now.saturating_sub(at))
}

/// Fetches a trusted server's keys anew: single flight, at most once per 60 s and server. True: that, or
/// the fetch within the last 60 s, brought something new, so that a check that failed is worth doing
/// again. A pinned key is never fetched.
pub async fn refetch_keys(p: &Paracord, name: &PeerName) -> bool {
    fetched(p, name, true).await
}

async fn fetched(p: &Paracord, name: &PeerName, demanded: bool) -> bool {
    let Some(peer) = fetchable(p, name) else {
        return false;
    };
    let ticket = p.fetches.ticket(name, demanded, p.clock.now_ms());
    let Some((mut news, end)) = ticket else {
        return false;
    };
    if let Some(end) = end {
        let Some(p) = p.me.upgrade() else {
            return false;
        };
        // It ends even when who asked for it has gone: others wait for it too.
        tokio::spawn(async move {
            let _place = p.fetches.places.acquire().await;
            let news = match fetch(&p, &peer).await {
                Ok(news) => news,
                Err(error) => {
                    tracing::info!(peer = %peer.name, %error, "the keys of a Paracord server could not be fetched");
                    noted(&p, &peer, error.detail).await;
                    false
                }
            };
            end.send_replace(Some(news));
        });
    }
    let landed = news.wait_for(Option::is_some).await;
    landed.is_ok_and(|news| news.unwrap_or(false))
}

/// The servers whose keys are to be fetched again by now, or whose domain is not known yet. Cheap.
pub fn due_for_keys(p: &Paracord) -> Vec<PeerName> {
    if !p.config.enabled {
        return Vec::new();
    }
    let now = p.clock.now_ms();
    p.book.chosen(|peer| is_due(p, peer, now))
}

/// Fetches a server's keys if that is due.
pub async fn refresh_if_due(p: &Paracord, name: &PeerName) {
    let peer = p.book.get(name);
    let Some(peer) = peer.filter(|peer| is_due(p, peer, p.clock.now_ms())) else {
        return;
    };
    if is_unsettled(&peer) {
        match discover::describe(p, name, &peer.base).await {
            Ok(found) => {
                discover::settled(p, &peer, found).await;
            }
            Err(error) => noted(p, &peer, error.detail).await,
        }
    }
    if peer.pinned_key.is_none() {
        fetched(p, name, false).await;
    } else if let Some((_, Some(end))) = p.fetches.ticket(name, false, p.clock.now_ms()) {
        // Nothing was fetched, and not before the usual time is it looked at again.
        end.send_replace(Some(false));
    }
}

/// At most once per `keys_refresh`; sooner where nothing is known yet.
fn is_due(p: &Paracord, peer: &Peer, now: UnixMs) -> bool {
    let refresh = i64::try_from(p.config.keys_refresh.as_millis()).unwrap_or(i64::MAX);
    let nothing_yet = is_unsettled(peer) || (peer.pinned_key.is_none() && peer.keys.is_empty());
    let pause = match nothing_yet {
        true => PAUSE_MS.min(refresh),
        false => refresh,
    };
    let wanted = match peer.keys_fetched_ms {
        _ if nothing_yet => true,
        _ if peer.pinned_key.is_some() => false,
        Some(at) => !is_within(at, refresh, now),
        None => true,
    };
    peer.is_trusted() && wanted && !p.fetches.began_within(&peer.name, pause, now)
}

/// Trusted by the configuration, which does not say its domain: nor has the server yet.
fn is_unsettled(peer: &Peer) -> bool {
    peer.trusted_by == Some(TrustedBy::Config) && !peer.domain_fixed
}

/// A trusted server whose keys are its own to say.
fn fetchable(p: &Paracord, name: &PeerName) -> Option<Arc<Peer>> {
    let peer = p.book.get(name)?;
    (peer.is_trusted() && peer.pinned_key.is_none()).then_some(peer)
}

/// One fetch; true: a key is new or gone.
async fn fetch(p: &Paracord, peer: &Peer) -> Result<bool, TransportError> {
    let listed = discover::keys(p, &peer.name, &peer.endpoint).await?;
    let (now, endpoint) = (p.clock.now_ms(), peer.endpoint.clone());
    let changed = p.book.change(&peer.name, move |known| {
        // What a server listed that is no longer asked there says nothing.
        let known = known.filter(|known| known.is_trusted() && known.endpoint == endpoint);
        let next = known.map(|known| description::with_keys(known, listed, now));
        let print = |peer: &Peer| {
            let keys = peer.keys.iter();
            keys.map(|key| (key.key_id.clone(), key.public.to_bytes()))
                .collect::<Vec<_>>()
        };
        // One that had expired counts again once it is listed.
        let news = match (known, &next) {
            (Some(known), Some(next)) => {
                print(known) != print(next) || known.keys.iter().any(|key| !key.is_usable(now))
            }
            _ => false,
        };
        (Change::to(next), news)
    });
    match changed.await {
        Ok((news, _)) => Ok(news),
        Err(error) => Err(discover::failed(error.to_string())),
    }
}

/// Keeps why a server could not be asked.
async fn noted(p: &Paracord, peer: &Peer, why: String) {
    if peer.last_error.as_ref() == Some(&why) {
        return;
    }
    let changed = p.book.change(&peer.name, move |known| {
        let next = known.cloned().map(|known| Peer {
            last_error: Some(why),
            ..known
        });
        (Change::to(next), ())
    });
    if let Err(error) = changed.await {
        tracing::warn!(protocol = ID, peer = %peer.name, %error, "why its keys could not be fetched is not kept");
    }
}
