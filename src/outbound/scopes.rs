//! The state of scopes in which events are sealed one after another.
//!
//! The intake seals alone and hands rows to the writer in order, so a scope's state here is always that
//! of its newest seal; the store has it by the same commit as the event. What was not used for long is
//! forgotten, and read back from the store behind everything handed to it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::{Claimed, ProtocolId, Record, Scope};
use crate::store::{Store, StoreError};
use crate::trust::lru::Lru;

/// Scopes remembered; each is a name and a short text.
const CAPACITY: usize = 65_536;
/// What a state is kept as among a protocol's records.
const KIND: &str = "scope";

/// The newest state of every scope lately used.
pub(super) struct Scopes(Mutex<Lru<(ProtocolId, String), Option<String>>>);

/// What a batch of messages needs to be sealed.
#[derive(Default)]
pub(super) struct Batch {
    /// By message, as the intake names it.
    pub scopes: HashMap<String, Scope>,
    /// Events claimed by messages that are kept already, or by earlier ones of this batch.
    taken: HashSet<(ProtocolId, Claimed)>,
}

impl Batch {
    /// Takes an event for a message; false: another message has it.
    pub fn claim(&mut self, protocol: ProtocolId, claimed: Claimed) -> bool {
        self.taken.insert((protocol, claimed))
    }
}

impl Default for Scopes {
    fn default() -> Self {
        Self(Mutex::new(Lru::new(CAPACITY)))
    }
}

impl Scopes {
    /// Reads what these messages need and is not in memory. `wanted`: each message's name, protocol
    /// and scope.
    pub async fn load(
        &self,
        store: &Store,
        wanted: Vec<(String, ProtocolId, Scope)>,
    ) -> Result<Batch, StoreError> {
        let mut batch = Batch::default();
        let mut unknown: HashMap<ProtocolId, HashSet<String>> = HashMap::new();
        let mut claims: HashMap<(ProtocolId, String), Vec<String>> = HashMap::new();
        for (message, protocol, scope) in wanted {
            let key = (protocol, scope.name.clone());
            if self.lock().get_mut(&key).is_none() {
                unknown.entry(protocol).or_default().insert(key.1);
            }
            if let Some(claimed) = scope.claims.clone() {
                let ids = claims.entry((protocol, claimed.origin)).or_default();
                ids.push(claimed.event_id);
            }
            batch.scopes.insert(message, scope);
        }
        for (protocol, names) in unknown {
            let names: Vec<String> = names.into_iter().collect();
            let mut found = store.records_of(protocol, KIND, names.clone()).await?;
            let mut states = self.lock();
            for name in names {
                let state = found.remove(&name);
                states.insert((protocol, name), state);
            }
        }
        for ((protocol, origin), event_ids) in claims {
            let known = store
                .known_room_events(protocol, &origin, event_ids)
                .await?;
            batch.taken.extend(known.into_iter().map(|event_id| {
                let origin = origin.clone();
                (protocol, Claimed { event_id, origin })
            }));
        }
        Ok(batch)
    }

    /// The newest state.
    pub fn previous(&self, protocol: ProtocolId, name: &str) -> Option<String> {
        let states = self.lock();
        states.peek(&(protocol, name.to_owned())).cloned().flatten()
    }

    /// A seal made this the newest state; answers the row for the same commit.
    pub fn advance(&self, protocol: ProtocolId, name: &str, state: &str) -> Record {
        let key = (protocol, name.to_owned());
        self.lock().insert(key, Some(state.to_owned()));
        Record {
            kind: KIND,
            key: name.to_owned(),
            value: Some(state.to_owned()),
        }
    }

    /// Nothing in these sections can panic half-way through a change.
    fn lock(&self) -> MutexGuard<'_, Lru<(ProtocolId, String), Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
