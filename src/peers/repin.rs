//! New `[[peers]]` while the bridge runs.
//!
//! A pin that was added, changed or removed makes what is known of that peer doubtful: its record is
//! kept (facts learned stay true) but is stale at once, so the protocol confirms it before the next
//! delivery; an endpoint or key that only the old pin vouched for is not used again. Peers whose pin
//! did not change notice nothing.

use std::sync::Arc;

use super::pins::Pins;
use super::{Inner, Peers};
use crate::config::PeerPin;
use crate::protocol::{PeerName, PeerRecord};

/// What became different, as `protocol/name`, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repinned {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Repinned {
    /// Nothing is different.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl Peers {
    /// Puts these pins in place of those in force; deliveries from now on follow them.
    pub fn repin(&self, pins: &[Arc<PeerPin>]) -> Repinned {
        let fresh = Pins::new(pins);
        let old = self.0.pins.load_full();
        let mut news = Repinned::default();
        let mut doubtful: Vec<(String, PeerName)> = Vec::new();
        for (protocol, name, pin) in fresh.all() {
            let list = match old.get(protocol, name) {
                None => &mut news.added,
                Some(before) if before.config != pin.config => &mut news.changed,
                Some(_) => continue,
            };
            list.push(format!("{protocol}/{name}"));
            doubtful.push((protocol.to_owned(), name.clone()));
        }
        for (protocol, name, _) in old.all() {
            if fresh.get(protocol, name).is_none() {
                news.removed.push(format!("{protocol}/{name}"));
                doubtful.push((protocol.to_owned(), name.clone()));
            }
        }
        for list in [&mut news.added, &mut news.changed, &mut news.removed] {
            list.sort();
        }
        // First the pins, then the records: a discovery in between already follows the new ones.
        self.0.pins.store(std::sync::Arc::new(fresh));
        for (protocol, name) in &doubtful {
            self.0.doubt(protocol, name, &old);
        }
        news
    }
}

impl Inner {
    fn doubt(&self, protocol: &str, name: &PeerName, old: &Pins) {
        self.discoveries.forget(protocol, name);
        let pins = self.pins.load();
        let (before, now) = (old.get(protocol, name), pins.get(protocol, name));
        let Some(known) = self.registry.peek(protocol, name) else {
            return;
        };
        let endpoint = |pin: &super::pins::Pin| pin.base().map(ToOwned::to_owned);
        let moved = before.and_then(endpoint) != now.and_then(endpoint);
        let key_of_pin = before.is_some_and(|pin| pin.public_key.is_some());
        let record = PeerRecord {
            public_key: match now.and_then(|pin| pin.public_key) {
                Some(key) => Some(key),
                None if key_of_pin => None,
                None => known.public_key,
            },
            // Without a time of its last confirmation it is not used as "stale, but better than none".
            last_verified_ms: if moved { 0 } else { known.last_verified_ms },
            ttl_ms: Some(0),
            ..(*known).clone()
        };
        let id = record.protocol;
        self.registry
            .insert(record, now.is_some(), self.clock.now_ms());
        self.mark(id, name);
    }
}
