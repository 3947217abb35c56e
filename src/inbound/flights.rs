//! Events on their way, so that a second copy joins the first one's outcome.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::protocol::ProtocolId;

use super::Entry;

/// Memory that events on their way may take, KiB.
const BUDGET_KIB: usize = 256 * 1024;
/// What an event costs besides its payload, KiB.
const OVERHEAD_KIB: usize = 4;

type Key = (ProtocolId, String);

/// Every event between its arrival and its outcome.
pub struct Flights {
    map: Mutex<HashMap<Key, Flight>>,
    budget: Arc<Semaphore>,
}

struct Flight {
    outcome: watch::Receiver<Option<Entry>>,
    payload: Bytes,
}

/// A place among the flights.
pub enum Boarding {
    /// The first copy: whoever holds the reply answers all.
    First(Reply, Outcome),
    /// A copy is on its way; `same`: with the same content.
    Joined { outcome: Outcome, same: bool },
    /// Too much is on its way already.
    Full,
}

/// Waits for the outcome of a flight.
pub struct Outcome(watch::Receiver<Option<Entry>>);

impl Outcome {
    /// The outcome; `None` if whoever held the reply went away without one.
    pub async fn wait(mut self) -> Option<Entry> {
        self.0
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|entry| *entry)
    }
}

/// The right to answer a flight; dropped without an answer, it ends the flight with none.
pub struct Reply {
    flights: Arc<Flights>,
    key: Key,
    outcome: watch::Sender<Option<Entry>>,
    _room: OwnedSemaphorePermit,
}

impl Reply {
    /// Ends the flight with this outcome.
    pub fn send(self, entry: Entry) {
        // Off the map first: who comes after this asks the ledger.
        self.flights.remove(&self.key);
        self.outcome.send_replace(Some(entry));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.outcome.borrow().is_none() {
            self.flights.remove(&self.key);
        }
    }
}

impl Flights {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            map: Mutex::new(HashMap::new()),
            budget: Arc::new(Semaphore::new(BUDGET_KIB)),
        })
    }

    /// Starts a flight or joins the one of this key.
    pub fn board(
        self: &Arc<Self>,
        protocol: ProtocolId,
        dedupe_key: &str,
        payload: &Bytes,
    ) -> Boarding {
        let key = (protocol, dedupe_key.to_owned());
        let mut map = self.lock();
        if let Some(flight) = map.get(&key) {
            return Boarding::Joined {
                outcome: Outcome(flight.outcome.clone()),
                same: flight.payload == *payload,
            };
        }
        let cost = OVERHEAD_KIB.saturating_add(payload.len() / 1024);
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.budget).try_acquire_many_owned(cost) else {
            return Boarding::Full;
        };
        let (sender, receiver) = watch::channel(None);
        map.insert(
            key.clone(),
            Flight {
                outcome: receiver.clone(),
                payload: payload.clone(),
            },
        );
        drop(map);
        let reply = Reply {
            flights: Arc::clone(self),
            key,
            outcome: sender,
            _room: room,
        };
        Boarding::First(reply, Outcome(receiver))
    }

    /// Whether a flight of this key is under way.
    pub fn has(&self, protocol: ProtocolId, dedupe_key: &str) -> bool {
        self.lock().contains_key(&(protocol, dedupe_key.to_owned()))
    }

    fn remove(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Flight>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_copy_joins_the_first_ones_outcome() {
        let flights = Flights::new();
        let body = Bytes::from_static(b"x");
        let Boarding::First(reply, mine) = flights.board("uam", "k", &body) else {
            panic!("the first copy starts a flight");
        };
        let Boarding::Joined { outcome, same } = flights.board("uam", "k", &body) else {
            panic!("the second copy joins");
        };
        assert!(same);
        let other = flights.board("uam", "k", &Bytes::from_static(b"y"));
        assert!(matches!(other, Boarding::Joined { same: false, .. }));
        reply.send(Entry::New);
        assert_eq!(mine.wait().await, Some(Entry::New));
        assert_eq!(outcome.wait().await, Some(Entry::New));
        assert!(matches!(
            flights.board("uam", "k", &body),
            Boarding::First(..)
        ));
    }

    #[tokio::test]
    async fn a_flight_whose_reply_is_dropped_ends_without_an_outcome() {
        let flights = Flights::new();
        let Boarding::First(reply, mine) = flights.board("uam", "k", &Bytes::new()) else {
            panic!("the first copy starts a flight");
        };
        drop(reply);
        assert_eq!(mine.wait().await, None);
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_bounded_in_bytes() {
        let flights = Flights::new();
        let body = Bytes::from(vec![0; 64 * 1024 * 1024]);
        let mut held = Vec::new();
        let mut full = false;
        for n in 0..5 {
            match flights.board("uam", &format!("k{n}"), &body) {
                Boarding::First(reply, _) => held.push(reply),
                Boarding::Full => full = true,
                Boarding::Joined { .. } => panic!("no two share a key"),
            }
        }
        assert!(full);
        assert_eq!(held.len(), 3);
        held.clear();
        assert!(matches!(
            flights.board("uam", "k9", &body),
            Boarding::First(..)
        ));
    }
}
