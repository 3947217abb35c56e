//! Changes of what is kept of servers and rooms: each decided on the record as it stands, one at a time
//! for each name.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::{Mutex, MutexGuard};

/// Changes of different names that run beside one another at most.
pub(super) const AT_ONCE: usize = 64;

/// Whose turn it is: names that share a place wait for one another too.
pub(super) struct Turns {
    first: Mutex<()>,
    others: Vec<Mutex<()>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            first: Mutex::default(),
            others: (1..AT_ONCE).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Turns {
    /// Waits until nobody else changes what has this name.
    pub async fn take(&self, name: &(impl Hash + ?Sized)) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % AT_ONCE as u64).unwrap_or(0);
        let place = at.checked_sub(1).and_then(|at| self.others.get(at));
        place.unwrap_or(&self.first).lock().await
    }
}

/// What a decision makes of a record.
#[derive(Debug)]
pub enum Change<P> {
    Keep,
    Put(Box<P>),
    Remove,
}

impl<P> Change<P> {
    /// The record, if there is a next one.
    pub fn to(next: Option<P>) -> Self {
        next.map_or(Self::Keep, Self::put)
    }

    /// This record.
    pub fn put(next: P) -> Self {
        Self::Put(Box::new(next))
    }
}
