//! A map of bounded size that forgets what was touched longest ago.
//!
//! Names in it come from strangers, so its size is a promise and not a hope.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A map with at most `capacity` entries; each touch makes an entry the newest.
#[derive(Debug)]
pub struct Lru<K, V> {
    capacity: usize,
    turn: u64,
    entries: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
}

impl<K: Hash + Eq + Clone, V> Lru<K, V> {
    /// An empty map for `capacity` entries (at least one).
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            turn: 0,
            entries: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reads without touching.
    pub fn peek<Q>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// The entry, touched.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (at, value) = self.entries.get_mut(key)?;
        if let Some(key) = self.order.remove(at) {
            self.turn += 1;
            *at = self.turn;
            self.order.insert(self.turn, key);
        }
        Some(value)
    }

    /// Puts an entry, as the newest; the oldest goes when there is no room.
    pub fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        if self.entries.len() >= self.capacity {
            self.pop_oldest();
        }
        self.turn += 1;
        self.order.insert(self.turn, key.clone());
        self.entries.insert(key, (self.turn, value));
    }

    /// The entry, touched; made by `make` where there is none.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> Option<&mut V> {
        if !self.entries.contains_key(&key) {
            self.insert(key.clone(), make());
        }
        self.get_mut(&key)
    }

    /// Takes an entry out.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (at, value) = self.entries.remove(key)?;
        self.order.remove(&at);
        Some(value)
    }

    /// The entry touched longest ago.
    pub fn oldest(&self) -> Option<(&K, &V)> {
        let (_, key) = self.order.first_key_value()?;
        self.entries.get(key).map(|(_, value)| (key, value))
    }

    /// Takes out the entry touched longest ago.
    pub fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.order.pop_first()?;
        let (_, value) = self.entries.remove(&key)?;
        Some((key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::Lru;

    #[test]
    fn the_entry_touched_longest_ago_goes_first() {
        let mut map = Lru::new(2);
        map.insert("a", 1);
        map.insert("b", 2);
        assert_eq!(map.get_mut("a"), Some(&mut 1));
        map.insert("c", 3);
        assert_eq!(map.peek("b"), None);
        assert_eq!(map.peek("a"), Some(&1));
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn removing_and_putting_again_keeps_the_count() {
        let mut map = Lru::new(3);
        for turn in 0..100 {
            map.insert(turn % 5, turn);
            if turn % 3 == 0 {
                map.remove(&(turn % 5));
            }
            assert!(map.len() <= 3);
            assert_eq!(map.len(), map.order.len());
        }
    }
}
