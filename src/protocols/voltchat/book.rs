//! Every peer, in memory and in the store.
//!
//! Questions are answered from memory. A change is decided on the record as it stands, one at a time
//! for each host, and is durable before it is seen; it runs to its end even when who asked for it has
//! gone, so that memory and store never part. Only when a peer was last seen is written behind: a
//! crash forgets at most half a minute of it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;

use crate::clock::{Clock, UnixMs};
use crate::identity::vault::{Vault, VaultError};
use crate::ops::Ops;
use crate::protocol::{PeerName, Record};
use crate::protocols::turns::{self, AT_ONCE, Turns};
use crate::store::{Store, StoreError};

use super::ID;
use super::record::{BadRecord, Peer, Status};
use super::shelf::Shelf;
use super::state::{self, Contact};

/// Kind of the store's rows.
pub const KIND: &str = "peer";
/// How often last contacts are written and strangers looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// All peers; cloning shares them.
#[derive(Clone)]
pub struct Book {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    vault: Vault,
    ops: Ops,
    clock: Clock,
    max_pending: usize,
    shelf: RwLock<Shelf>,
    turns: Turns,
    /// Hosts whose last contact is not written.
    unwritten: Mutex<HashSet<PeerName>>,
}

/// What a decision makes of a record.
pub type Change = turns::Change<Peer>;

/// Why a peer cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Record(#[from] BadRecord),
    #[error("the bridge is stopping")]
    Stopping,
}

impl Book {
    /// Reads every peer. A record of another form is left where it is and said; a secret that does not
    /// open means the wrong key file, and nothing starts with that.
    pub async fn open(
        store: Store,
        vault: Vault,
        ops: Ops,
        clock: Clock,
        max_pending: usize,
    ) -> Result<Self, BookError> {
        let mut shelf = Shelf::default();
        for (host, kept) in store.records(ID, KIND).await? {
            match Peer::from_kept(&host, &kept, &vault) {
                Ok(peer) => shelf.put(Arc::new(peer)),
                Err(error @ BadRecord::Sealed { .. }) => return Err(error.into()),
                Err(error) => tracing::error!(%error, "a peer is left out"),
            }
        }
        let inner = Arc::new(Inner {
            store,
            vault,
            ops,
            clock,
            max_pending,
            shelf: RwLock::new(shelf),
            turns: Turns::default(),
            unwritten: Mutex::default(),
        });
        tokio::spawn(housekeeping(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// One by its host.
    pub fn get(&self, host: &PeerName) -> Option<Arc<Peer>> {
        self.inner.read(|shelf| shelf.get(host))
    }

    /// One by our id for it.
    pub fn by_id(&self, id: &str) -> Option<Arc<Peer>> {
        self.inner.read(|shelf| shelf.by_id(id))
    }

    /// All, oldest first.
    pub fn all(&self) -> Vec<Arc<Peer>> {
        let mut all: Vec<_> = self.inner.read(|shelf| shelf.all().cloned().collect());
        all.sort_by(|a: &Arc<Peer>, b| (a.created_ms, &a.host).cmp(&(b.created_ms, &b.host)));
        all
    }

    /// Hosts that messages are exchanged with.
    pub fn accepted(&self) -> Vec<PeerName> {
        self.chosen(|peer| peer.status.is_accepted())
    }

    /// Hosts a heartbeat has something to do for.
    pub fn beating(&self) -> Vec<PeerName> {
        self.chosen(Peer::beats)
    }

    fn chosen(&self, wanted: impl Fn(&Peer) -> bool) -> Vec<PeerName> {
        let mut hosts: Vec<_> = self.inner.read(|shelf| {
            let peers = shelf.all().filter(|peer| wanted(peer));
            peers.map(|peer| peer.host.clone()).collect()
        });
        hosts.sort();
        hosts
    }

    /// Decides on the record as it stands (`None`: there is none; `room`: one more stranger may wait)
    /// and does it. Answers the decision's own value and the record afterwards. Nothing has changed
    /// when this fails.
    pub async fn change<T, F>(
        &self,
        host: &PeerName,
        decide: F,
    ) -> Result<(T, Option<Arc<Peer>>), BookError>
    where
        T: Send + 'static,
        F: FnOnce(Option<&Peer>, bool) -> (Change, T) + Send + 'static,
    {
        let (inner, host) = (Arc::clone(&self.inner), host.clone());
        tokio::spawn(async move { inner.change(&host, decide).await })
            .await
            .map_err(|_| BookError::Stopping)?
    }

    /// A peer proved itself, or took a request of ours: it is connected again if it was in error.
    pub async fn seen(&self, host: &PeerName, now_ms: UnixMs) {
        if let Some(peer) = self.get(host) {
            self.contact(&peer, Contact::Other, now_ms).await;
        }
    }

    /// Its messages were fetched.
    pub async fn synced(&self, host: &PeerName, now_ms: UnixMs) {
        self.seen(host, now_ms).await;
        if let Some(peer) = self.get(host).filter(|peer| peer.status.is_accepted()) {
            self.inner.touch(&peer, now_ms, Some(now_ms));
        }
    }

    /// A contact under the secret of just this record: of another that has come in its place it says
    /// nothing. False: the record is gone, or stands where a contact moves nothing. Cheap while the
    /// peer is connected.
    pub async fn contact(&self, peer: &Peer, by: Contact, now_ms: UnixMs) -> bool {
        match self.try_contact(peer, by, now_ms).await {
            Ok(moved) => moved,
            Err(error) => {
                tracing::warn!(host = %peer.host, %error, "a contact is not kept");
                // It was one all the same: only what is remembered of it is missing.
                peer.status.is_accepted()
            }
        }
    }

    /// The same for who must know that it is kept.
    pub async fn try_contact(
        &self,
        peer: &Peer,
        by: Contact,
        now_ms: UnixMs,
    ) -> Result<bool, BookError> {
        let now = self.get(&peer.host).filter(|now| now.id == peer.id);
        let Some(now) = now else { return Ok(false) };
        if now.status == Status::Connected && now.last_error.is_none() {
            self.inner.touch(&now, now_ms, None);
            return Ok(true);
        }
        let (id, secret) = (peer.id.clone(), peer.secret.clone());
        let moved = self.change(&peer.host, move |known, _| {
            let known = known.filter(|k| k.id == id && k.secret.same(secret.as_text()));
            let next = known.and_then(|known| state::heard(known, by, now_ms));
            let moved = next.is_some();
            (Change::to(next), moved)
        });
        moved.await.map(|(moved, _)| moved)
    }

    /// An exchange failed: an accepted peer is in error, with this sentence.
    pub async fn failed(&self, host: &PeerName, why: &str) {
        let Some(peer) = self.get(host) else { return };
        self.failed_as(&peer, why).await;
    }

    /// The same for just this record.
    pub async fn failed_as(&self, peer: &Peer, why: &str) {
        let now_ms = self.inner.clock.now_ms();
        if state::failed(peer, why, now_ms).is_none() {
            return;
        }
        let (id, why) = (peer.id.clone(), why.to_owned());
        let changed = self.change(&peer.host, move |known, _| {
            let next = known
                .filter(|known| known.id == id)
                .and_then(|known| state::failed(known, &why, now_ms));
            (Change::to(next), ())
        });
        if let Err(error) = changed.await {
            tracing::warn!(host = %peer.host, %error, "a failure is not kept");
        }
    }

    /// Writes what is only in memory; for an orderly stop.
    pub async fn flush(&self) {
        self.inner.write_contacts().await;
    }

    /// Lets strangers go that nobody decided about in time; answers how many.
    pub async fn sweep(&self, now_ms: UnixMs) -> usize {
        self.inner.sweep(now_ms).await
    }
}

/// A place among the strangers, until it is taken or given up.
struct Entering<'a>(&'a Inner);

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.0.write(Shelf::leave);
    }
}

impl Inner {
    fn read<T>(&self, look: impl FnOnce(&Shelf) -> T) -> T {
        look(&self.shelf.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Shelf) -> T) -> T {
        change(&mut self.shelf.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for one more stranger; `None`: too many wait.
    fn enter(&self) -> Option<Entering<'_>> {
        let room = self.write(|shelf| shelf.enter(self.max_pending));
        room.then(|| Entering(self))
    }

    async fn change<T>(
        &self,
        host: &PeerName,
        decide: impl FnOnce(Option<&Peer>, bool) -> (Change, T),
    ) -> Result<(T, Option<Arc<Peer>>), BookError> {
        let _one_at_a_time = self.turns.take(host).await;
        let known = self.read(|shelf| shelf.get(host));
        let place = if known.is_none() { self.enter() } else { None };
        let (change, value) = decide(known.as_deref(), place.is_some());
        let record = |value: Option<String>| {
            vec![Record {
                kind: KIND,
                key: host.as_str().to_owned(),
                value,
            }]
        };
        let next = match change {
            Change::Keep => return Ok((value, known)),
            Change::Remove if known.is_none() => return Ok((value, None)),
            Change::Remove => {
                self.store.put_records(ID, record(None)).await?.await?;
                self.write(|shelf| shelf.remove(host));
                None
            }
            Change::Put(next) => {
                let kept = next.to_kept(&self.vault)?;
                self.store
                    .put_records(ID, record(Some(kept)))
                    .await?
                    .await?;
                Some(self.write(|shelf| shelf.renew(*next)))
            }
        };
        drop(place);
        self.tell(host, known.as_deref(), next.as_deref());
        Ok((value, next))
    }

    /// Moves times in memory on; written behind.
    fn touch(&self, peer: &Peer, seen_ms: UnixMs, synced_ms: Option<UnixMs>) {
        if self.write(|shelf| shelf.touch(peer, seen_ms, synced_ms)) {
            lock(&self.unwritten).insert(peer.host.clone());
        }
    }

    /// Says what became of a peer.
    fn tell(&self, host: &PeerName, before: Option<&Peer>, after: Option<&Peer>) {
        let was = before.map(|peer| peer.status);
        let Some(peer) = after else {
            if let Some(peer) = before {
                tracing::info!(%host, was = peer.status.name(), "VoltChat peer removed");
                let body = json!({"id": peer.id, "name": peer.name, "was": peer.status.name()});
                self.ops.event("peer", "removed", ID, host.as_str(), body);
            }
            return;
        };
        if was == Some(peer.status) {
            return;
        }
        let what = match peer.status {
            Status::Requested => "requested",
            Status::Pending => "asked",
            Status::Connected => "connected",
            Status::Error => "error",
            Status::Rejected => "rejected",
        };
        tracing::info!(%host, what, was = was.map(Status::name), error = peer.last_error, "VoltChat peer");
        let body = json!({
            "id": peer.id,
            "name": peer.name,
            "url": peer.url,
            "was": was.map(Status::name),
            "detail": peer.last_error,
        });
        self.ops.event("peer", what, ID, host.as_str(), body);
    }

    async fn write_contacts(self: &Arc<Self>) {
        let hosts = std::mem::take(&mut *lock(&self.unwritten));
        let each = futures_util::stream::iter(hosts);
        each.for_each_concurrent(AT_ONCE, |host| async move {
            let written = self.change(&host, |known, _| (Change::to(known.cloned()), ()));
            if let Err(error) = written.await {
                tracing::debug!(%host, %error, "the last contact is not written yet");
                lock(&self.unwritten).insert(host);
            }
        })
        .await;
    }

    async fn sweep(&self, now_ms: UnixMs) -> usize {
        let old = |peer: &Peer| {
            state::is_stale(peer, now_ms) || state::without_old(peer, now_ms).is_some()
        };
        let hosts: Vec<_> = self.read(|shelf| {
            let old = shelf.all().filter(|peer| old(peer));
            old.map(|peer| peer.host.clone()).collect()
        });
        let mut gone = 0;
        for host in hosts {
            let swept = self.change(&host, |known, _| match known {
                Some(peer) if state::is_stale(peer, now_ms) => (Change::Remove, 1),
                Some(peer) => (Change::to(state::without_old(peer, now_ms)), 0),
                None => (Change::Keep, 0),
            });
            match swept.await {
                Ok((one, _)) => gone += one,
                Err(error) => tracing::debug!(%host, %error, "an old request stays for now"),
            }
        }
        gone
    }
}

/// Runs until the last handle is gone.
async fn housekeeping(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.write_contacts().await;
        if inner.clock.steady() {
            inner.sweep(inner.clock.now_ms()).await;
        }
    }
}

/// Nothing in these sections can panic half-way through a change, so a poisoned lock is as good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
