//! Peer records in memory: read by every delivery, written now and then, bounded.
//!
//! Sharded by name so that readers on several threads seldom meet; a read takes a shared lock, clones
//! one `Arc` and lets go. Beyond the capacity the records longest unused go (not the pinned ones);
//! they are still in the store's table, and a peer we hear of again is discovered again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::clock::UnixMs;
use crate::protocol::{PeerName, PeerRecord, ProtocolId};

/// Records kept in memory that are not pinned.
pub(super) const CAPACITY: usize = 100_000;
const SHARDS: usize = 16;
/// A clock that went back by more than this makes a record doubtful.
const CLOCK_SLACK_MS: i64 = 60_000;
/// Uses closer together than this are not told apart.
const USE_GRAIN_MS: i64 = 1_000;

/// What a look-up gives.
pub(super) enum Found {
    Fresh(Arc<PeerRecord>),
    Stale(Arc<PeerRecord>),
    Unknown,
}

struct Entry {
    record: Arc<PeerRecord>,
    pinned: bool,
    used_ms: AtomicI64,
}

#[derive(Default)]
struct Shard {
    by_protocol: HashMap<ProtocolId, HashMap<PeerName, Entry>>,
    unpinned: usize,
}

impl Shard {
    fn get(&self, protocol: &str, name: &PeerName) -> Option<&Entry> {
        self.by_protocol.get(protocol)?.get(name)
    }
}

pub(super) struct Registry {
    shards: [RwLock<Shard>; SHARDS],
    hasher: RandomState,
    shard_capacity: usize,
}

impl Registry {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| RwLock::default()),
            hasher: RandomState::new(),
            shard_capacity: (capacity / SHARDS).max(1),
        }
    }

    /// What is known, and whether it may be used for sending without asking anew.
    pub(super) fn find(&self, protocol: ProtocolId, name: &PeerName, now: UnixMs) -> Found {
        let shard = self.read(name);
        let Some(entry) = shard.get(protocol, name) else {
            return Found::Unknown;
        };
        if (now - entry.used_ms.load(Ordering::Relaxed)).abs() >= USE_GRAIN_MS {
            entry.used_ms.store(now, Ordering::Relaxed);
        }
        let record = Arc::clone(&entry.record);
        if is_fresh(&record, now) {
            Found::Fresh(record)
        } else {
            Found::Stale(record)
        }
    }

    /// The record, without counting it as used.
    pub(super) fn peek(&self, protocol: &str, name: &PeerName) -> Option<Arc<PeerRecord>> {
        self.read(name)
            .get(protocol, name)
            .map(|entry| Arc::clone(&entry.record))
    }

    /// Inserts or replaces; facts of the record replaced stay unless the new one sets them.
    pub(super) fn insert(
        &self,
        mut record: PeerRecord,
        pinned: bool,
        now: UnixMs,
    ) -> Arc<PeerRecord> {
        let mut shard = self.write(&record.name);
        if let Some(old) = shard.get(record.protocol, &record.name) {
            for (key, value) in &old.record.facts {
                if !record.facts.contains_key(key) {
                    record.facts.insert(key.clone(), value.clone());
                }
            }
        }
        let record = Arc::new(record);
        let entry = Entry {
            record: Arc::clone(&record),
            pinned,
            used_ms: AtomicI64::new(now),
        };
        let replaced = shard
            .by_protocol
            .entry(record.protocol)
            .or_default()
            .insert(record.name.clone(), entry);
        let counted = replaced.is_some_and(|old| !old.pinned);
        match (counted, !pinned) {
            (false, true) => shard.unpinned += 1,
            (true, false) => shard.unpinned = shard.unpinned.saturating_sub(1),
            _ => {}
        }
        if shard.unpinned > self.shard_capacity {
            evict(&mut shard, self.shard_capacity);
        }
        record
    }

    /// Changes a record in place; false when there is none.
    pub(super) fn change(
        &self,
        protocol: ProtocolId,
        name: &PeerName,
        change: impl FnOnce(&mut PeerRecord),
    ) -> bool {
        let mut shard = self.write(name);
        let entry = shard
            .by_protocol
            .get_mut(protocol)
            .and_then(|names| names.get_mut(name));
        match entry {
            Some(entry) => {
                change(Arc::make_mut(&mut entry.record));
                true
            }
            None => false,
        }
    }

    /// Every record, in no order.
    pub(super) fn all(&self) -> Vec<Arc<PeerRecord>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let names = shard.by_protocol.values().flat_map(HashMap::values);
            all.extend(names.map(|entry| Arc::clone(&entry.record)));
        }
        all
    }

    fn shard(&self, name: &PeerName) -> &RwLock<Shard> {
        // The low bits; the maps inside use their own keys.
        let hash = self.hasher.hash_one(name.as_str());
        let [first, others @ ..] = &self.shards;
        let at = (hash % SHARDS as u64) as usize;
        at.checked_sub(1)
            .and_then(|at| others.get(at))
            .unwrap_or(first)
    }

    fn read(&self, name: &PeerName) -> RwLockReadGuard<'_, Shard> {
        self.shard(name)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, name: &PeerName) -> RwLockWriteGuard<'_, Shard> {
        self.shard(name)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_fresh(record: &PeerRecord, now: UnixMs) -> bool {
    let Some(ttl) = record.ttl_ms else {
        return true;
    };
    let age = now.saturating_sub(record.last_verified_ms);
    age >= -CLOCK_SLACK_MS && age < ttl
}

/// Drops the longest unused eighth, so that a full shard is not searched at every insertion.
fn evict(shard: &mut Shard, capacity: usize) {
    let mut used: Vec<i64> = shard
        .by_protocol
        .values()
        .flat_map(HashMap::values)
        .filter(|entry| !entry.pinned)
        .map(|entry| entry.used_ms.load(Ordering::Relaxed))
        .collect();
    let mut surplus = (capacity / 8).max(1).min(used.len());
    let (_, cut, _) = used.select_nth_unstable(surplus - 1);
    let cut = *cut;
    for names in shard.by_protocol.values_mut() {
        names.retain(|_, entry| {
            let goes = surplus > 0 && !entry.pinned && entry.used_ms.load(Ordering::Relaxed) <= cut;
            surplus -= usize::from(goes);
            !goes
        });
    }
    shard.unpinned = shard
        .by_protocol
        .values()
        .flat_map(HashMap::values)
        .filter(|entry| !entry.pinned)
        .count();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> PeerName {
        PeerName::parse(text).unwrap()
    }

    fn record(peer: &str, verified: UnixMs, ttl: Option<i64>) -> PeerRecord {
        PeerRecord {
            protocol: "uam",
            name: name(peer),
            endpoint: format!("https://{peer}/x"),
            alternatives: Vec::new(),
            public_key: None,
            discovered_via: "well-known".into(),
            last_verified_ms: verified,
            ttl_ms: ttl,
            facts: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_record_is_fresh_until_its_time_to_live_and_a_pinned_one_for_ever() {
        let timed = record("a.test", 1_000, Some(500));
        assert!(is_fresh(&timed, 1_499) && !is_fresh(&timed, 1_500));
        assert!(is_fresh(&record("a.test", 0, None), i64::MAX));
    }

    #[test]
    fn a_clock_gone_back_far_makes_a_record_stale() {
        assert!(!is_fresh(&record("a.test", 1_000_000, Some(500)), 1_000));
    }

    #[test]
    fn the_number_of_unpinned_records_is_bounded_and_the_recently_used_stay() {
        let registry = Registry::new(16 * 64);
        registry.insert(record("pinned.test", 0, None), true, 0);
        for i in 0..5_000i64 {
            registry.insert(record(&format!("n{i}.test"), 0, None), false, i * 2_000);
        }
        assert!(registry.all().len() <= 16 * 64 + 1);
        assert!(registry.peek("uam", &name("pinned.test")).is_some());
        assert!(registry.peek("uam", &name("n4999.test")).is_some());
        assert!(registry.peek("uam", &name("n0.test")).is_none());
    }

    #[test]
    fn facts_survive_a_new_record_that_does_not_set_them() {
        let registry = Registry::new(100);
        let mut first = record("a.test", 0, None);
        first.facts.insert("dialect".into(), "nonce".into());
        registry.insert(first, false, 0);
        let kept = registry.insert(record("a.test", 5, None), false, 5);
        assert_eq!(kept.facts["dialect"], "nonce");
    }
}
