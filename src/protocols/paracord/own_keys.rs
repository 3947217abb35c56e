//! Our signing keys: what is signed with, under which ids, and what our document lists.
//!
//! A key keeps its id for ever: the store remembers it. The first key has the configured id, or one made
//! from the key itself as every later one. So no id of ours ever means two keys, and whoever holds an
//! old key under its id learns the new one beside it instead of being confused.
//!
//! Published servers remember the first key that our document lists when they are added, and look
//! never again (sheet, 6). So the active key comes first, whatever else is listed, and everything is
//! signed with it alone.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Value, json};

use super::{ID, Own, ParacordError};
use crate::clock::UnixMs;
use crate::config::ParacordConfig;
use crate::identity::ring::Keyring;
use crate::identity::{KeyFileError, KeyOrigin, KeyText, PublicKey, SigningKey, hex};
use crate::protocol::{KeyState, OwnKey, Rotation};
use crate::store::{Store, StoreError};

/// How the files are written: as published servers do, so that a key can be moved either way.
const TEXT: KeyText = KeyText::Hex;
/// Our document says that a key is valid for this long: published servers fetch it once and refuse it
/// when that time is over (sheet, 6). 3650 days.
const VALID_MS: i64 = 3_650 * 24 * 3_600_000;
/// Hex digits of the fingerprint in an id.
const SHORT: usize = 8;

/// Our keys in force, and the files behind them.
pub struct OwnKeys {
    path: PathBuf,
    overlap: Duration,
    /// The configured id of the first key.
    first_id: Option<String>,
    /// Ids by public key, in hex; those of the store and those made since.
    ids: Mutex<HashMap<String, String>>,
    current: ArcSwap<InForce>,
}

/// The key that everything is signed with.
#[derive(Debug)]
pub struct ActiveKey {
    pub key: SigningKey,
    pub key_id: String,
}

/// One state of the keys.
pub(super) struct InForce {
    pub ring: Keyring,
    /// When this process began to use the active key; `None`: at its start.
    pub swapped_ms: Option<UnixMs>,
    active: Arc<ActiveKey>,
    next_id: Option<String>,
    old_id: Option<String>,
}

impl OwnKeys {
    /// Reads the files, makes the key if there is none, and remembers ids that are new before anything
    /// is signed under them.
    pub async fn open(
        config: &ParacordConfig,
        store: &Store,
        now: UnixMs,
    ) -> Result<Self, ParacordError> {
        let (path, overlap) = (config.key_path.clone(), config.key_overlap);
        let read = move || Keyring::open(&path, TEXT, overlap, now);
        // Files are fsynced: not on a thread that answers requests.
        let (ring, origin) = tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| KeyFileError(format!("reading the key file was interrupted: {e}")))??;
        let remembered = store.server_keys(ID).await?;
        if origin == KeyOrigin::Created && !remembered.is_empty() {
            tracing::warn!(
                path = %config.key_path.display(),
                "the Paracord key file was missing and a new key was made; servers that know the \
                 old key refuse us until their operators add us again"
            );
        }
        let ids = remembered.into_iter().map(|(id, public, _)| (public, id));
        let mut ids: HashMap<String, String> = ids.collect();
        let known: Vec<String> = ids.keys().cloned().collect();
        let current = in_force(ring, &mut ids, config.key_id.as_deref());
        let keys = Self {
            path: config.key_path.clone(),
            overlap,
            first_id: config.key_id.clone(),
            ids: Mutex::new(ids),
            current: ArcSwap::from_pointee(current),
        };
        keys.remember(store, &known).await?;
        Ok(keys)
    }

    /// What everything is signed with now.
    pub fn active(&self) -> Arc<ActiveKey> {
        Arc::clone(&self.current.load().active)
    }

    /// One state of the keys, whole.
    pub(super) fn current(&self) -> Arc<InForce> {
        self.current.load_full()
    }

    /// For lists: active, next, old.
    pub fn list(&self, own: &Own) -> Vec<OwnKey> {
        list(&self.current().ring, own.name.as_str())
    }

    /// The keys of our document: active, next, old.
    pub fn published(&self, own: &Own, now: UnixMs) -> Value {
        let current = self.current();
        let far = now.saturating_add(VALID_MS);
        let entry = |key_id: &str, public: PublicKey, valid_until: UnixMs| {
            json!({
                "algorithm": "ed25519",
                "key_id": key_id,
                "public_key": hex(&public.to_bytes()),
                "server_name": own.name.as_str(),
                "valid_until": valid_until,
            })
        };
        let active = &current.active;
        let mut keys = vec![entry(&active.key_id, active.key.public(), far)];
        if let (Some(next), Some(id)) = (&current.ring.next, &current.next_id) {
            keys.push(entry(id, next.key.public(), far));
        }
        let old = current.ring.old.as_ref();
        if let (Some(old), Some(id)) = (old.filter(|old| now < old.until_ms), &current.old_id) {
            keys.push(entry(id, old.key.public(), old.until_ms));
        }
        Value::Array(keys)
    }

    /// Reads the files anew; true when the active key is another one now. Blocks for the disk.
    pub(super) fn reread(&self, now: UnixMs) -> Result<bool, KeyFileError> {
        let (ring, _) = Keyring::open(&self.path, TEXT, self.overlap, now)?;
        let changed = ring.active.public() != self.active().key.public();
        let mut fresh = in_force(ring, &mut self.ids(), self.first_id.as_deref());
        fresh.swapped_ms = match changed {
            true => Some(now),
            false => self.current().swapped_ms,
        };
        self.current.store(Arc::new(fresh));
        Ok(changed)
    }

    /// Changes the files as wanted, then [`OwnKeys::reread`]. Blocks for the disk.
    pub(super) fn turn(&self, wanted: Rotation, now: UnixMs) -> Result<bool, KeyFileError> {
        turn(&self.path, wanted, now)?;
        self.reread(now)
    }

    /// Removes old keys whose overlap has ended; how many. Blocks for the disk.
    pub(super) fn retire(&self, now: UnixMs) -> Result<usize, KeyFileError> {
        let removed = Keyring::prune(&self.path, self.overlap, now)?;
        if removed > 0 {
            self.reread(now)?;
        }
        Ok(removed)
    }

    /// Public keys, in hex, whose ids are known.
    pub(super) fn known(&self) -> Vec<String> {
        self.ids().keys().cloned().collect()
    }

    /// Writes the ids of the keys besides those `known` to the store.
    pub(super) async fn remember(&self, store: &Store, known: &[String]) -> Result<(), StoreError> {
        let new: Vec<(String, String)> = {
            let ids = self.ids();
            let new = ids.iter().filter(|(public, _)| !known.contains(public));
            new.map(|(public, id)| (id.clone(), public.clone()))
                .collect()
        };
        for (id, public) in new {
            store.put_server_key(ID, &id, &public).await?.await?;
        }
        Ok(())
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key that a bridge with this configuration signs with, read beside it; nothing is made or written.
/// `remembered`: the store's rows. `None`: there is no key file yet.
pub fn active_of(
    config: &ParacordConfig,
    remembered: Vec<(String, String, i64)>,
) -> Result<Option<ActiveKey>, KeyFileError> {
    let Some(key) = SigningKey::load(&config.key_path)? else {
        return Ok(None);
    };
    let ids = remembered.into_iter().map(|(id, public, _)| (public, id));
    let mut ids: HashMap<String, String> = ids.collect();
    let first_id = config.key_id.as_deref().filter(|_| ids.is_empty());
    let key_id = id_of(&key.public(), &mut ids, first_id);
    Ok(Some(ActiveKey { key, key_id }))
}

/// Changes the files of a key: for a bridge that runs and for one that does not.
pub fn turn(path: &std::path::Path, wanted: Rotation, now: UnixMs) -> Result<(), KeyFileError> {
    match wanted {
        Rotation::Plan => Ok(()),
        Rotation::Prepare => Keyring::prepare(path, TEXT),
        Rotation::Switch => Keyring::switch(path, TEXT, now, false),
        Rotation::Replace => Keyring::switch(path, TEXT, now, true),
    }
}

/// The keys of a ring for lists: active, next, old.
pub fn list(ring: &Keyring, name: &str) -> Vec<OwnKey> {
    let own = |key: &SigningKey, state, since_ms, until_ms| OwnKey {
        protocol: ID.to_owned(),
        name: name.to_owned(),
        state,
        fingerprint: key.public().fingerprint(),
        public_key: hex(&key.public().to_bytes()),
        since_ms,
        until_ms,
    };
    let mut keys = vec![own(&ring.active, KeyState::Active, ring.since_ms, None)];
    if let Some(next) = &ring.next {
        keys.push(own(&next.key, KeyState::Next, next.since_ms, None));
    }
    if let Some(old) = &ring.old {
        let until = Some(old.until_ms);
        keys.push(own(&old.key, KeyState::Old, old.retired_ms, until));
    }
    keys
}

/// A ring with the ids of its keys; ids made for it are put to those known.
fn in_force(ring: Keyring, ids: &mut HashMap<String, String>, first_id: Option<&str>) -> InForce {
    // No key was ever used: this one is the first.
    let first_id = first_id.filter(|_| ids.is_empty());
    let key_id = id_of(&ring.active.public(), ids, first_id);
    let next = ring.next.as_ref().map(|next| next.key.public());
    let old = ring.old.as_ref().map(|old| old.key.public());
    InForce {
        active: Arc::new(ActiveKey {
            key: ring.active.clone(),
            key_id,
        }),
        next_id: next.map(|next| id_of(&next, ids, None)),
        old_id: old.map(|old| id_of(&old, ids, None)),
        swapped_ms: None,
        ring,
    }
}

/// The id of a key: the one it has, else the wanted one, else one made from it that no other has.
fn id_of(key: &PublicKey, ids: &mut HashMap<String, String>, wanted: Option<&str>) -> String {
    let public = hex(&key.to_bytes());
    if let Some(id) = ids.get(&public) {
        return id.clone();
    }
    let print = key.fingerprint();
    let made = |length: usize| format!("ed25519:{}", print.get(..length).unwrap_or(&print));
    let lengths = (SHORT..=print.len()).step_by(SHORT).map(made);
    let mut free = wanted.map(str::to_owned).into_iter().chain(lengths);
    let id = free.find(|id| !ids.values().any(|taken| taken == id));
    // A whole fingerprint is nobody else's.
    let id = id.unwrap_or_else(|| made(print.len()));
    ids.insert(public, id.clone());
    id
}

#[cfg(test)]
#[path = "own_keys_tests.rs"]
mod tests;
