//! Shared invites: ours, which peers read from us, and theirs, which we read from them.
//!
//! Nothing is pushed. We keep what we share, in the order of sharing, and answer whoever asks
//! `/invites/public`; what a peer shares is fetched from its own public list and remembered for when it
//! is away. An invite is for a server that is ours, and only a local backend knows which those are
//! (`server.put`, `server.remove`).
//!
//! Reads are from memory. A change is decided by [`rules`] on what is there, is durable before it is
//! seen or answered, and is an operator event (area `invite`) that carries the whole invite, so that a
//! backend can mirror them. Changes go one after another: two uses at once are never one. A caller
//! that goes away takes nothing with it.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`rules`] | what may be shared, seen, used, deleted: pure |
//! | [`refused`] | why not, in the protocol's words |
//! | [`listing`] | a peer's public list, read and remembered |
//! | [`browse`] | asking for it |
//! | [`calls`] | `fed.do.voltchat.invite.*` and `server.*` |

pub mod browse;
pub mod calls;
pub mod listing;
pub mod refused;
pub mod rules;

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::ops::Ops;
use crate::protocol::Record;
use crate::store::{Store, StoreError, StoreErrorKind};

use super::ID;
use super::ids;
use listing::{Listing, Seen};
use refused::Refused;
use rules::{Invite, Plan, Shelf};

/// The invites of one bridge; cloning shares them.
#[derive(Clone)]
pub struct Invites {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    ops: Ops,
    clock: Clock,
    /// Our own, as invites name their source.
    host: String,
    name: String,
    shelf: ArcSwap<Shelf>,
    /// One change at a time; readers never meet it. True: a change failed on its way, so that memory
    /// may lag behind the store.
    edits: tokio::sync::Mutex<bool>,
    seen: Seen,
}

impl Invites {
    /// Loads what the store has. `host` and `name` are our own.
    pub async fn open(
        store: Store,
        ops: Ops,
        clock: Clock,
        host: &str,
        name: &str,
    ) -> Result<Self, StoreError> {
        let shelf = load(&store).await?;
        let seen = Seen::open(&store).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                ops,
                clock,
                host: host.to_owned(),
                name: name.to_owned(),
                shelf: ArcSwap::from_pointee(shelf),
                edits: tokio::sync::Mutex::new(false),
                seen,
            }),
        })
    }

    /// Everything shared, as operators see it.
    pub fn list(&self) -> Value {
        let shelf = self.inner.shelf.load();
        let shown = shelf.invites().iter().map(|invite| self.shown(invite));
        Value::Array(shown.collect())
    }

    /// What somebody sees whose claimed host is that of the peer with this id.
    pub fn public(&self, claimed: Option<&str>) -> Value {
        let (inner, now) = (&self.inner, self.inner.clock.now_ms());
        let shelf = inner.shelf.load();
        let seen = shelf.public(claimed, now);
        Value::Array(
            seen.map(|invite| invite.shown_publicly(&inner.host, &inner.name))
                .collect(),
        )
    }

    /// Shares an invite; `peer` is the id of the peer so named.
    pub async fn share(
        &self,
        body: Value,
        peer: impl Fn(&str) -> Option<String> + Send + 'static,
    ) -> Result<Value, Refused> {
        let now = self.inner.clock.now_ms();
        let id = ids::fresh("sinv", now);
        let invite = self
            .change("shared", move |shelf| shelf.share(&body, peer, id, now))
            .await?;
        Ok(self.shown(&invite))
    }

    /// Counts one use, by id or code.
    pub async fn spend(&self, id_or_code: &str) -> Result<Value, Refused> {
        let (clock, wanted) = (self.inner.clock.clone(), id_or_code.to_owned());
        let invite = self
            .change("used", move |shelf| shelf.spend(&wanted, clock.now_ms()))
            .await?;
        Ok(self.shown(&invite))
    }

    /// Deletes one by its id.
    pub async fn remove(&self, id: &str) -> Result<Value, Refused> {
        let id = id.to_owned();
        self.change("removed", move |shelf| shelf.remove(&id))
            .await?;
        Ok(json!({"success": true}))
    }

    /// Makes a server one of ours.
    pub async fn put_server(&self, body: Value) -> Result<Value, Refused> {
        let (id, name) = self
            .change("server_put", move |shelf| shelf.put_server(&body))
            .await?;
        Ok(json!({"id": id, "name": name}))
    }

    /// A server is ours no more.
    pub async fn remove_server(&self, body: Value) -> Result<Value, Refused> {
        let (id, known) = self
            .change("server_removed", move |shelf| shelf.remove_server(&body))
            .await?;
        Ok(json!({"id": id, "removed": known}))
    }

    /// Our servers.
    pub fn servers(&self) -> Value {
        let shelf = self.inner.shelf.load();
        let servers = shelf.servers().iter();
        servers
            .map(|(id, name)| json!({"id": id, "name": name}))
            .collect()
    }

    /// The last list known of a peer.
    pub async fn last_seen(&self, host: &str) -> Option<Listing> {
        let last = self.inner.seen.last(&self.inner.store, host).await;
        last.unwrap_or_else(|error| {
            tracing::warn!(%error, host, "a remembered list of invites cannot be read");
            None
        })
    }

    /// Remembers a peer's list; a store that is away costs the memory of it only.
    pub async fn keep_seen(&self, host: &str, listing: &Listing) {
        if let Err(error) = self.inner.seen.keep(&self.inner.store, host, listing).await {
            tracing::warn!(%error, host, "a list of invites is not remembered");
        }
    }

    fn shown(&self, invite: &Invite) -> Value {
        invite.shown(&self.inner.host, &self.inner.name)
    }

    /// Runs to its end whatever becomes of the caller: store and memory change together.
    async fn change<T: Told>(
        &self,
        what: &'static str,
        decide: impl FnOnce(&Shelf) -> Result<Plan<T>, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let inner = Arc::clone(&self.inner);
        let change = tokio::spawn(async move { inner.change(what, decide).await });
        change
            .await
            .unwrap_or_else(|_| Err(Refused::Unavailable("the bridge is stopping".into())))
    }
}

impl Inner {
    async fn change<T: Told>(
        &self,
        what: &'static str,
        decide: impl FnOnce(&Shelf) -> Result<Plan<T>, Refused>,
    ) -> Result<T, Refused> {
        let mut stale = self.edits.lock().await;
        if *stale {
            let shelf = load(&self.store).await.map_err(away)?;
            self.shelf.store(Arc::new(shelf));
            *stale = false;
        }
        let plan = decide(&self.shelf.load())?;
        if plan.rows.is_empty() {
            return Ok(plan.answer);
        }
        if let Err(error) = write(&self.store, plan.rows).await {
            // A commit whose answer was lost may have happened.
            *stale = true;
            return Err(away(error));
        }
        self.shelf.store(Arc::new(plan.shelf));
        for gone in &plan.dropped {
            let body = json!({"invite": gone.shown(&self.host, &self.name), "made_room": true});
            self.tell("removed", body);
        }
        if let Some(body) = plan.answer.event(&self.host, &self.name) {
            self.tell(what, body);
        }
        Ok(plan.answer)
    }

    fn tell(&self, what: &'static str, body: Value) {
        self.ops.event("invite", what, ID, &self.host, body);
    }
}

/// What a change says of itself to operators and backends.
trait Told: Send + 'static {
    /// The event's body; `None`: nothing changed.
    fn event(&self, host: &str, name: &str) -> Option<Value>;
}

impl Told for Arc<Invite> {
    fn event(&self, host: &str, name: &str) -> Option<Value> {
        Some(json!({"invite": self.shown(host, name)}))
    }
}

impl Told for Option<Arc<Invite>> {
    fn event(&self, host: &str, name: &str) -> Option<Value> {
        let invite = self.as_ref()?;
        Some(json!({"invite": invite.shown(host, name)}))
    }
}

impl Told for (String, Option<String>) {
    fn event(&self, _host: &str, _name: &str) -> Option<Value> {
        Some(json!({"server": {"id": self.0, "name": self.1}}))
    }
}

impl Told for (String, bool) {
    fn event(&self, _host: &str, _name: &str) -> Option<Value> {
        self.1.then(|| json!({"server": {"id": self.0}}))
    }
}

async fn load(store: &Store) -> Result<Shelf, StoreError> {
    let invites = store.records(ID, rules::INVITE).await?;
    let servers = store.records(ID, rules::SERVER).await?;
    let shared = store.record(ID, rules::COUNT, rules::SHARED).await?;
    Shelf::from_rows(invites, servers, shared.as_deref()).map_err(|detail| StoreError {
        kind: StoreErrorKind::Corrupt,
        detail,
    })
}

async fn write(store: &Store, rows: Vec<Record>) -> Result<(), StoreError> {
    store.put_records(ID, rows).await?.await
}

fn away(error: StoreError) -> Refused {
    tracing::warn!(%error, "invites cannot be changed");
    Refused::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store(dir: &tempfile::TempDir) -> Store {
        let path = dir.path().join("bridge.db");
        Store::open(&path, Clock::fixed(0)).await.unwrap()
    }

    async fn open(store: &Store) -> Invites {
        let clock = Clock::fixed(1_700_000_000_000);
        Invites::open(store.clone(), Ops::silent(), clock, "a.example", "A")
            .await
            .unwrap()
    }

    async fn share(invites: &Invites, extra: Value) -> Value {
        invites.put_server(json!({"id": "s1"})).await.unwrap();
        let mut body = json!({"code": "ABC", "serverId": "s1"});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        invites.share(body, |_| None).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn uses_at_the_same_time_never_exceed_what_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let invites = open(&store).await;
        share(&invites, json!({"maxUses": 7})).await;
        let tries = (0..50).map(|_| {
            let invites = invites.clone();
            tokio::spawn(async move { invites.spend("ABC").await })
        });
        let outcomes = futures_util::future::join_all(tries).await;
        let good: Vec<_> = outcomes
            .into_iter()
            .filter_map(|o| o.unwrap().ok())
            .collect();
        assert_eq!(good.len(), 7);
        let mut counts: Vec<_> = good.iter().map(|i| i["uses"].as_u64().unwrap()).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(open(&store).await.list()[0]["uses"], 7, "and that lasts");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_leaves_memory_and_store_alike() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let invites = open(&store).await;
        share(&invites, json!({})).await;
        {
            let mut use_it = std::pin::pin!(invites.spend("ABC"));
            // One poll starts it; then the caller is gone.
            let _ = futures_util::poll!(&mut use_it);
        }
        let next = invites.spend("ABC").await.unwrap();
        assert_eq!(next["uses"], 2, "the first one counted");
        assert_eq!(open(&store).await.list(), invites.list());
    }

    #[tokio::test]
    async fn a_store_that_takes_nothing_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let invites = open(&store).await;
        share(&invites, json!({"maxUses": 1})).await;
        store.close().await;
        let refused = invites.spend("ABC").await.unwrap_err();
        assert_eq!(refused.status(), http::StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(invites.list()[0]["uses"], 0);
    }
}
