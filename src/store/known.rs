//! Which message ids are surely new, told without a look at the database.
//!
//! Every message of the outbound stream is asked after by its id before a row is made for it, and
//! nearly every one is new. A filter (Bloom's, a block of one cache line an id) holds the ids of all
//! rows: what it does not know has no row, and only what it may know is looked up. One of a hundred
//! new ids is looked up in vain.
//!
//! At start the filter is empty and proves nothing; the ids of earlier rows are read into it in the
//! background, a page at a time, and until the last of them is there everything is looked up. Ids of
//! rows that were pruned since stay in it, so a filter that is full is made anew from the rows there
//! are. Where several instances share a database it proves nothing at all, for others make rows too.
//!
//! Memory follows the number of rows, ten bits each, up to [`MOST_WORDS`].

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Words of 64 bits in a block: a cache line.
const BLOCK: usize = 8;
/// Bits set for an id, all in one block.
const BITS: u32 = 6;
/// Ids a block takes, on average, before its layer counts as full.
const IDS_A_BLOCK: usize = 51;
/// Words of the first layer (64 KiB, 52,000 ids); each further one has twice as many …
const FIRST_WORDS: usize = 8 * 1024;
/// … up to this (8 MiB, 6.7 million ids) …
const LARGEST_WORDS: usize = 1024 * 1024;
/// … and all of them together at most so many (32 MiB, 26 million ids).
const MOST_WORDS: usize = 4 * LARGEST_WORDS;

/// The filter; one a store.
pub(super) struct Known {
    /// Of this process's own choosing, so that nobody outside can make ids that collide.
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    layers: Vec<Layer>,
    /// The ids of all rows are in it.
    complete: bool,
    /// No more fit in: it proves nothing until it is made anew.
    full: bool,
}

struct Layer {
    words: Vec<u64>,
    ids: usize,
}

impl Known {
    /// Knows nothing and proves nothing.
    pub fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            state: Mutex::default(),
        }
    }

    /// Takes ids in.
    pub fn add<'a>(&self, ids: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut state = self.lock();
        for id in ids {
            let hash = self.hasher.hash_one(id);
            state.add(hash);
        }
    }

    /// Whether this id is surely of no row.
    pub fn is_new(&self, protocol: &str, msg_id: &str) -> bool {
        let hash = self.hasher.hash_one((protocol, msg_id));
        let state = self.lock();
        state.complete && !state.full && !state.layers.iter().any(|layer| layer.has(hash))
    }

    /// The ids of all rows were taken in since the filter was last emptied.
    pub fn completed(&self) {
        self.lock().complete = true;
    }

    /// Whether it is full and proves nothing.
    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Empties it, to be made anew.
    pub fn restart(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, hash: u64) {
        if self.full || self.layers.iter().any(|layer| layer.has(hash)) {
            return;
        }
        if self.layers.last().is_none_or(Layer::is_full) {
            let used: usize = self.layers.iter().map(|layer| layer.words.len()).sum();
            let last = self.layers.last().map(|layer| layer.words.len());
            let words = last.map_or(FIRST_WORDS, |n| n.saturating_mul(2).min(LARGEST_WORDS));
            if used.saturating_add(words) > MOST_WORDS {
                *self = Self {
                    full: true,
                    ..Self::default()
                };
                return;
            }
            self.layers.push(Layer {
                words: vec![0; words],
                ids: 0,
            });
        }
        if let Some(layer) = self.layers.last_mut() {
            layer.add(hash);
        }
    }
}

impl Layer {
    fn is_full(&self) -> bool {
        self.ids >= self.words.len() / BLOCK * IDS_A_BLOCK
    }

    fn add(&mut self, hash: u64) {
        self.ids += 1;
        let start = self.block(hash);
        for (word, mask) in places(hash) {
            if let Some(bits) = self.words.get_mut(start + word) {
                *bits |= mask;
            }
        }
    }

    fn has(&self, hash: u64) -> bool {
        let start = self.block(hash);
        places(hash).all(|(word, mask)| self.words.get(start + word).is_some_and(|w| w & mask != 0))
    }

    /// Where the block of an id begins: by the upper half of its hash.
    fn block(&self, hash: u64) -> usize {
        let blocks = (self.words.len() / BLOCK).max(1);
        usize::try_from(hash >> 32).unwrap_or(0) % blocks * BLOCK
    }
}

/// The bits of an id in its block, by the lower half of its hash.
fn places(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    // Odd factors of the golden ratio's kind spread neighbouring halves over the block's 512 bits.
    let seed = (hash & u64::from(u32::MAX)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..BITS).map(move |n| {
        let bit = (seed >> (9 * n)) & 511;
        (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> String {
        format!("message-{n}")
    }

    #[test]
    fn nothing_is_proven_new_before_the_rows_of_earlier_runs_are_in() {
        let known = Known::new();
        known.add([("uam", "a")].into_iter());
        assert!(!known.is_new("uam", "b"));
        known.completed();
        assert!(known.is_new("uam", "b"));
        assert!(known.is_new("voltchat", "a"));
        assert!(!known.is_new("uam", "a"));
    }

    #[test]
    fn no_id_that_was_taken_in_is_ever_called_new_and_few_others_are_taken_for_known() {
        let known = Known::new();
        known.completed();
        let ids: Vec<_> = (0..200_000).map(id).collect();
        known.add(ids.iter().map(|id| ("uam", id.as_str())));
        assert!(ids.iter().all(|id| !known.is_new("uam", id)));
        let mistaken = (200_000..300_000).filter(|n| !known.is_new("uam", &id(*n)));
        let mistaken = mistaken.count();
        assert!(mistaken < 4_000, "{mistaken} of 100,000");
    }

    #[test]
    fn a_full_filter_proves_nothing_until_it_is_made_anew() {
        let known = Known::new();
        known.completed();
        known.lock().full = true;
        assert!(!known.is_new("uam", "a") && known.is_full());
        known.restart();
        assert!(!known.is_new("uam", "a") && !known.is_full());
        known.completed();
        assert!(known.is_new("uam", "a"));
    }

    #[test]
    fn memory_follows_the_ids_and_is_bounded() {
        let mut state = State::default();
        let used = |state: &State| state.layers.iter().map(|l| l.words.len()).sum::<usize>();
        assert_eq!(used(&state), 0);
        state.add(1);
        assert_eq!(used(&state), FIRST_WORDS);
        let hasher = RandomState::new();
        let mut n = 0u64;
        while !state.full {
            // As if each stood for many: what is counted is what fills a layer.
            if let Some(layer) = state.layers.last_mut() {
                layer.ids += 10_000;
            }
            state.add(hasher.hash_one(n));
            assert!(used(&state) <= MOST_WORDS);
            n += 1;
        }
        assert_eq!(used(&state), 0);
    }
}
