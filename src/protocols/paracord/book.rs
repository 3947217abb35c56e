//! The servers we know: in memory and in the store.
//!
//! Questions are answered from memory. A change is decided on the record as it stands, one at a time
//! for each server, and is durable before it is seen; it runs to its end even when who asked for it has
//! gone. Of the trusted servers no two have a name or domain in common: what would make it so is not
//! done. Only moments (last seen, when our keys were fetched) are written behind: a crash forgets at
//! most half a minute of them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;

use super::ID;
use super::Own;
use super::record::{Peer, Status};
use super::shelf::{Moment, Shelf, is_news};
use crate::clock::UnixMs;
use crate::identity::PublicKey;
use crate::ops::Ops;
use crate::protocol::{PeerName, Record};
use crate::protocols::turns::{self, AT_ONCE, Turns};
use crate::store::{Store, StoreError};

/// Kind of the store's rows.
pub const KIND: &str = "peer";
/// How often moments are written.
const WRITE: Duration = Duration::from_secs(30);

/// Every server we know; cloning shares them.
#[derive(Clone)]
pub struct Book {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    ops: Ops,
    own: Own,
    shelf: RwLock<Shelf>,
    turns: Turns,
    /// Servers with a moment that is not written.
    unwritten: Mutex<HashSet<PeerName>>,
}

/// What a decision makes of a record.
pub type Change = turns::Change<Peer>;

/// Why a server cannot be kept, or what is kept cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody could tell whose users they are.
    #[error(
        "{peer} cannot be trusted: {server} is the name or domain of {owner}, and one name cannot \
         mean two servers"
    )]
    Taken {
        peer: PeerName,
        /// The name or domain in question.
        server: String,
        /// Another trusted server, or ourselves.
        owner: PeerName,
    },
    #[error("the bridge is stopping")]
    Stopping,
}

impl Book {
    /// Reads every server. A record of another form is left where it is and said.
    pub async fn open(store: Store, ops: Ops, own: Own) -> Result<Self, BookError> {
        let mut shelf = Shelf::default();
        for (name, kept) in store.records(ID, KIND).await? {
            let mut peer = match Peer::from_kept(&name, &kept) {
                Ok(peer) => peer,
                Err(error) => {
                    tracing::error!(%error, "a server is left out");
                    continue;
                }
            };
            let taken = match ours(&own, &peer) {
                Some(server) => Err((server, own.name.clone())),
                None => shelf.claim(&peer),
            };
            if let Err((server, owner)) = taken {
                // Our own name changed since.
                tracing::error!(peer = %peer.name, %server, %owner, "a trusted server has another's name or domain; it is trusted no longer");
                peer.status = Status::Pending;
            }
            shelf.renew(peer);
        }
        let inner = Arc::new(Inner {
            store,
            ops,
            own,
            shelf: RwLock::new(shelf),
            turns: Turns::default(),
            unwritten: Mutex::default(),
        });
        tokio::spawn(write_behind(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// One by its name.
    pub fn get(&self, name: &PeerName) -> Option<Arc<Peer>> {
        self.inner.read(|shelf| shelf.get(name))
    }

    /// One by its name as a signature writes it: byte for byte.
    pub fn by_text(&self, name: &str) -> Option<Arc<Peer>> {
        self.get(&PeerName::parse(name).ok()?)
    }

    /// The trusted one that has this name or domain; case is ignored.
    pub fn of_server(&self, server: &str) -> Option<Arc<Peer>> {
        self.inner.read(|shelf| shelf.of_server(server))
    }

    /// Those events are exchanged with, by name.
    pub fn trusted(&self) -> Vec<PeerName> {
        self.chosen(Peer::is_trusted)
    }

    /// Those of which this holds, by name.
    pub fn chosen(&self, holds: impl Fn(&Peer) -> bool) -> Vec<PeerName> {
        let mut chosen: Vec<_> = self.inner.read(|shelf| {
            let all = shelf.all().filter(|peer| holds(peer));
            all.map(|peer| peer.name.clone()).collect()
        });
        chosen.sort();
        chosen
    }

    /// All, by name.
    pub fn all(&self) -> Vec<Arc<Peer>> {
        let all = self.inner.read(|shelf| shelf.all().cloned().collect());
        let mut all: Vec<Arc<Peer>> = all;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// A server proved itself. Cheap.
    pub fn seen(&self, name: &PeerName, now: UnixMs) {
        self.inner.touch(name, Moment::Seen, now);
    }

    /// A server fetched our keys with a request that proved it. Cheap.
    pub fn fetched_ours(&self, name: &PeerName, now: UnixMs) {
        self.inner.touch(name, Moment::FetchedOurs, now);
    }

    /// Decides on the record as it stands (`None`: there is none) and does it. Answers the decision's
    /// own value and the record afterwards. Nothing has changed when this fails.
    pub async fn change<T, F>(
        &self,
        name: &PeerName,
        decide: F,
    ) -> Result<(T, Option<Arc<Peer>>), BookError>
    where
        T: Send + 'static,
        F: FnOnce(Option<&Peer>) -> (Change, T) + Send + 'static,
    {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        tokio::spawn(async move { inner.change(&name, decide).await })
            .await
            .map_err(|_| BookError::Stopping)?
    }

    /// Writes what is only in memory; for an orderly stop.
    pub async fn flush(&self) {
        self.inner.write_moments().await;
    }
}

impl Inner {
    fn read<T>(&self, look: impl FnOnce(&Shelf) -> T) -> T {
        look(&self.shelf.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Shelf) -> T) -> T {
        change(&mut self.shelf.write().unwrap_or_else(PoisonError::into_inner))
    }

    async fn change<T>(
        &self,
        name: &PeerName,
        decide: impl FnOnce(Option<&Peer>) -> (Change, T),
    ) -> Result<(T, Option<Arc<Peer>>), BookError> {
        let _one_at_a_time = self.turns.take(name).await;
        let known = self.read(|shelf| shelf.get(name));
        let (change, value) = decide(known.as_deref());
        let next = match change {
            Change::Keep => return Ok((value, known)),
            Change::Remove if known.is_none() => return Ok((value, None)),
            Change::Remove => None,
            Change::Put(next) => {
                self.claim(&next)?;
                Some(*next)
            }
        };
        let attempted = next.clone();
        let record = Record {
            kind: KIND,
            key: name.as_str().to_owned(),
            value: next.as_ref().map(Peer::to_kept),
        };
        let stored = match self.store.put_records(ID, vec![record]).await {
            Ok(commit) => commit.await,
            Err(error) => Err(error),
        };
        let next = self.write(|shelf| {
            let next = match (&stored, next) {
                (Ok(()), Some(next)) => Some(shelf.renew(next)),
                (Ok(()), None) => {
                    shelf.remove(name);
                    None
                }
                (Err(_), _) => None,
            };
            shelf.settle(name, [known.as_deref(), attempted.as_ref()]);
            next
        });
        stored?;
        self.tell(name, known.as_deref(), next.as_deref());
        Ok((value, next))
    }

    /// Gives a trusted server its name and domain, if nobody else has them.
    fn claim(&self, peer: &Peer) -> Result<(), BookError> {
        let taken = |server, owner| BookError::Taken {
            peer: peer.name.clone(),
            server,
            owner,
        };
        if let Some(server) = ours(&self.own, peer) {
            return Err(taken(server, self.own.name.clone()));
        }
        self.write(|shelf| shelf.claim(peer))
            .map_err(|(server, owner)| taken(server, owner))
    }

    /// Moves a moment in memory on; written behind.
    fn touch(&self, name: &PeerName, moment: Moment, now: UnixMs) {
        let news = self.read(|shelf| {
            let peer = shelf.get(name);
            peer.is_some_and(|peer| is_news(&peer, moment, now))
        });
        if news && self.write(|shelf| shelf.touch(name, moment, now)) {
            lock(&self.unwritten).insert(name.clone());
        }
    }

    async fn write_moments(&self) {
        let names = std::mem::take(&mut *lock(&self.unwritten));
        let each = futures_util::stream::iter(names);
        each.for_each_concurrent(AT_ONCE, |name| async move {
            let written = self.change(&name, |known| (Change::to(known.cloned()), ()));
            if let Err(error) = written.await {
                tracing::debug!(peer = %name, %error, "when it was last seen is not written yet");
                lock(&self.unwritten).insert(name);
            }
        })
        .await;
    }

    /// Says what became of a server: its standing, and always its keys.
    fn tell(&self, name: &PeerName, before: Option<&Peer>, after: Option<&Peer>) {
        let was = before.map(|peer| peer.status);
        let Some(peer) = after else {
            if let Some(was) = was {
                tracing::info!(peer = %name, was = was.name(), "Paracord server removed");
                let body = json!({"was": was.name()});
                self.ops.event("peer", "removed", ID, name.as_str(), body);
            }
            return;
        };
        if was != Some(peer.status) {
            let what = match peer.status {
                Status::Pending => "pending",
                Status::Trusted => "trusted",
                Status::Rejected => "rejected",
            };
            tracing::info!(peer = %name, what, domain = peer.domain, "Paracord server");
            let body = json!({
                "was": was.map(Status::name),
                "by": peer.trusted_by,
                "domain": peer.domain,
                "endpoint": peer.endpoint,
                "keys": counting(peer).iter().map(|(id, key)| named(id, key)).collect::<Vec<_>>(),
            });
            self.ops.event("peer", what, ID, name.as_str(), body);
        }
        let (old, new) = (before.map(counting).unwrap_or_default(), counting(peer));
        let only = |these: &[(String, PublicKey)], those: &[(String, PublicKey)]| {
            let only = these.iter().filter(|key| !those.contains(key));
            only.map(|(id, key)| named(id, key)).collect::<Vec<_>>()
        };
        let (added, gone) = (only(&new, &old), only(&old, &new));
        if before.is_some() && (!added.is_empty() || !gone.is_empty()) {
            tracing::warn!(peer = %name, ?added, ?gone, "the keys of a Paracord server changed");
            let body = json!({"status": peer.status.name(), "added": added, "gone": gone});
            self.ops
                .event("peer", "keys_changed", ID, name.as_str(), body);
        }
    }
}

/// The name or domain of a trusted server that is ours.
fn ours(own: &Own, peer: &Peer) -> Option<String> {
    let both = [peer.name.as_str(), &peer.domain];
    let ours = both.into_iter().find(|server| own.is(server));
    ours.filter(|_| peer.is_trusted()).map(str::to_owned)
}

/// The keys of a server with their ids.
fn counting(peer: &Peer) -> Vec<(String, PublicKey)> {
    match &peer.pinned_key {
        Some(pin) => vec![(pin.key_id.clone().unwrap_or_default(), pin.public.clone())],
        None => peer
            .keys
            .iter()
            .map(|key| (key.key_id.clone(), key.public.clone()))
            .collect(),
    }
}

fn named(id: &str, key: &PublicKey) -> serde_json::Value {
    json!({"key_id": id, "fingerprint": key.fingerprint()})
}

/// Runs until the last handle is gone.
async fn write_behind(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(WRITE).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.write_moments().await;
    }
}

/// Nothing in these sections can panic half-way through a change, so a poisoned lock is as good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
