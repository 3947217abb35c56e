//! Agents' keys: our own, which the backend gives us, and strangers', which their home relays give.
//!
//! Our own are rows of the store, held in memory. A stranger's key is asked from the relay of its own
//! domain and kept for five minutes; a failure is not kept. One question per agent is under way at a
//! time, however many messages wait for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use crate::identity::PublicKey;
use crate::peers::Peers;
use crate::protocol::{PeerName, Protocol, Record, Refusal};
use crate::store::{Store, StoreError};
use crate::trust::lru::Lru;

use super::ID;
use super::address::Address;
use super::discover::{Net, origin_of};

/// Kind of the store's rows.
const KIND: &str = "agent";
/// How long a stranger's key is believed.
const TTL: Duration = Duration::from_secs(300);
/// A key younger than this is not asked for again because a signature failed.
const MIN_AGE: Duration = Duration::from_secs(30);
/// Strangers remembered at most.
const MAX_STRANGERS: usize = 65_536;
/// Questions under way at once at most.
const MAX_QUESTIONS: usize = 64;
/// Agents of our own at most.
const MAX_OWN: usize = 1_000_000;

type Asked = Shared<BoxFuture<'static, Option<PublicKey>>>;

/// Every agent's key we know; behind an `Arc`.
pub struct Agents {
    domain: String,
    store: Store,
    peers: Peers,
    net: Arc<dyn Net>,
    own: RwLock<BTreeMap<String, String>>,
    strangers: Mutex<Lru<String, (Instant, PublicKey)>>,
    questions: Mutex<HashMap<String, Asked>>,
    permits: Arc<Semaphore>,
}

impl Agents {
    /// Loads our own agents.
    pub async fn open(
        domain: &str,
        store: Store,
        peers: Peers,
        net: Arc<dyn Net>,
    ) -> Result<Self, StoreError> {
        let own = store.records(ID, KIND).await?.into_iter().collect();
        Ok(Self {
            domain: domain.to_owned(),
            store,
            peers,
            net,
            own: RwLock::new(own),
            strangers: Mutex::new(Lru::new(MAX_STRANGERS)),
            questions: Mutex::new(HashMap::new()),
            permits: Arc::new(Semaphore::new(MAX_QUESTIONS)),
        })
    }

    // ------------------------------------------------------------------------- our own

    /// Reads our own anew: another instance may have changed them.
    pub async fn reload(&self) -> Result<(), StoreError> {
        let own = self.store.records(ID, KIND).await?.into_iter().collect();
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = own;
        Ok(())
    }

    /// How many of our own there are.
    pub fn count(&self) -> usize {
        self.read().len()
    }

    /// Key text of one of our own.
    pub fn own(&self, address: &str) -> Option<String> {
        self.read().get(address).cloned()
    }

    /// All of our own, in order: address and key text.
    pub fn all(&self) -> Vec<(String, String)> {
        self.read()
            .iter()
            .map(|(address, key)| (address.clone(), key.clone()))
            .collect()
    }

    /// Adds or replaces one of our own; answers address and key as they are now known.
    pub async fn put(&self, address: &str, key: &str) -> Result<(String, String), Refusal> {
        let address = self.own_address(address)?;
        let key = PublicKey::from_base64(key)
            .map_err(|error| {
                Refusal::new(
                    "bad_public_key",
                    format!("public_key is no base64 of a usable 32-byte key: {error}"),
                )
            })?
            .to_base64();
        if self.count() >= MAX_OWN {
            return Err(Refusal::new(
                "too_many_agents",
                format!("there are {MAX_OWN} agents already"),
            ));
        }
        self.write(&address, Some(&key)).await?;
        self.own
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(address.clone(), key.clone());
        Ok((address, key))
    }

    /// Removes one of our own; false: there was none.
    pub async fn remove(&self, address: &str) -> Result<bool, Refusal> {
        let address = self.own_address(address)?;
        self.write(&address, None).await?;
        let mut own = self.own.write().unwrap_or_else(PoisonError::into_inner);
        Ok(own.remove(&address).is_some())
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, String>> {
        self.own.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_address(&self, text: &str) -> Result<String, Refusal> {
        let address = Address::parse(text).map_err(|_| {
            Refusal::new(
                "bad_address",
                "address is no NAME::DOMAIN (a-z, 0-9, _ and -)",
            )
        })?;
        if address.domain() != self.domain {
            return Err(Refusal::new(
                "foreign_address",
                format!("{address} is not of this relay's domain {}", self.domain),
            ));
        }
        Ok(address.to_string())
    }

    async fn write(&self, address: &str, value: Option<&str>) -> Result<(), Refusal> {
        let record = Record {
            kind: KIND,
            key: address.to_owned(),
            value: value.map(str::to_owned),
        };
        let done = match self.store.put_known(ID, record).await {
            Ok(commit) => commit.await,
            Err(error) => Err(error),
        };
        done.map_err(|error| Refusal::new("store_unavailable", error.to_string()))
    }

    // ----------------------------------------------------------------------- strangers

    /// The key of any agent: our own from the store, a stranger's from its home relay. `None`: the
    /// agent is unknown, or its relay cannot be asked.
    pub async fn key(self: &Arc<Self>, uam: &Arc<dyn Protocol>, address: &str) -> Option<Known> {
        let (name, domain) = address.split_once("::")?;
        if domain == self.domain {
            let key = PublicKey::from_base64(&self.own(address)?).ok()?;
            return Some(Known::new(key, false));
        }
        if name.is_empty() {
            return None;
        }
        if let Some((at, key)) = self.remembered(address) {
            return Some(Known::new(key, at.elapsed() >= MIN_AGE));
        }
        let key = self.ask(uam, address).await?;
        Some(Known::new(key, false))
    }

    /// The key asked anew, past the cache.
    pub async fn key_anew(
        self: &Arc<Self>,
        uam: &Arc<dyn Protocol>,
        address: &str,
    ) -> Option<Known> {
        let key = self.ask(uam, address).await?;
        Some(Known::new(key, false))
    }

    fn remembered(&self, address: &str) -> Option<(Instant, PublicKey)> {
        let mut strangers = lock(&self.strangers);
        let known = strangers.get_mut(address)?.clone();
        if known.0.elapsed() < TTL {
            return Some(known);
        }
        strangers.remove(address);
        None
    }

    /// One question per agent under way, shared by all who wait for it.
    async fn ask(self: &Arc<Self>, uam: &Arc<dyn Protocol>, address: &str) -> Option<PublicKey> {
        let asked = {
            let mut questions = lock(&self.questions);
            if let Some(asked) = questions.get(address) {
                asked.clone()
            } else {
                let asked = question(Arc::downgrade(self), Arc::clone(uam), address.to_owned())
                    .boxed()
                    .shared();
                questions.insert(address.to_owned(), asked.clone());
                // Runs to its end even if every asker goes away: an entry never stays behind.
                tokio::spawn(asked.clone());
                asked
            }
        };
        asked.await
    }

    async fn fetch(&self, uam: &Arc<dyn Protocol>, address: &str) -> Option<PublicKey> {
        let parsed = Address::parse(address).ok()?;
        // The wire's text is what is asked for, so it must be the normal form already.
        if parsed.to_string() != address {
            return None;
        }
        let domain = PeerName::parse(parsed.domain()).ok()?;
        let _permit = self.permits.acquire().await.ok()?;
        let relay = match self.peers.resolve(uam, &domain).await {
            Ok(relay) => relay,
            Err(error) => {
                tracing::info!(agent = address, %error, "home relay of a sender not found");
                return None;
            }
        };
        let url = format!(
            "{}/api/v1/agents/{address}/public-key",
            origin_of(&relay.endpoint)?
        );
        let answer = match self.net.get(&url).await {
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) => {
                tracing::info!(
                    agent = address,
                    status = answer.status,
                    "no key at the home relay"
                );
                return None;
            }
            Err(error) => {
                tracing::info!(agent = address, %error, "home relay gives no answer");
                return None;
            }
        };
        #[derive(serde::Deserialize)]
        struct File {
            public_key: String,
        }
        let file: File = serde_json::from_slice(&answer.body).ok()?;
        PublicKey::from_base64(&file.public_key).ok()
    }
}

async fn question(
    agents: Weak<Agents>,
    uam: Arc<dyn Protocol>,
    address: String,
) -> Option<PublicKey> {
    let agents = agents.upgrade()?;
    let key = agents.fetch(&uam, &address).await;
    if let Some(key) = &key {
        lock(&agents.strangers).insert(address.clone(), (Instant::now(), key.clone()));
    }
    lock(&agents.questions).remove(&address);
    key
}

/// An agent's key and whether it is worth asking again.
pub struct Known {
    /// The key.
    pub key: PublicKey,
    /// It came from the cache and is old enough that the agent may have another one by now.
    pub may_be_old: bool,
}

impl Known {
    fn new(key: PublicKey, may_be_old: bool) -> Self {
        Self { key, may_be_old }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
