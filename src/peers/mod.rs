//! Who we know: registry, discovery (cached, single flight, limited), health.
pub mod health;

use std::sync::Arc;

use crate::protocol::{Learned, PeerName, PeerRecord, Protocol, ProtocolId, TransportError};

/// The registry; cloning shares it.
#[derive(Clone)]
pub struct Peers {}

#[allow(unused_variables)]
impl Peers {
    /// Loads `known_relays` and the configuration's pinned `[[peers]]` (which win).
    pub async fn open(
        store: crate::store::Store,
        pins: &[crate::config::PeerPin],
        clock: crate::clock::Clock,
    ) -> Result<Self, crate::store::StoreError> {
        todo!()
    }
    /// A record fresh enough to send to: pinned, cached, else discovered (5 s in all, single flight,
    /// failures cached for 30 s, at most 64 discoveries at once).
    pub async fn resolve(
        &self,
        protocol: &Arc<dyn Protocol>,
        name: &PeerName,
    ) -> Result<Arc<PeerRecord>, TransportError> {
        todo!()
    }
    /// What is known, however old; no I/O.
    pub fn known(&self, protocol: ProtocolId, name: &PeerName) -> Option<Arc<PeerRecord>> {
        todo!()
    }
    /// Looks the peer up anew: single flight, at most once per 60 s and peer. `Ok(None)`: rate-limited.
    /// A pinned endpoint or key is never overwritten.
    pub async fn refresh(
        &self,
        protocol: &Arc<dyn Protocol>,
        name: &PeerName,
    ) -> Result<Option<Arc<PeerRecord>>, TransportError> {
        todo!()
    }
    /// Stores a record that a protocol obtained itself.
    pub fn put(&self, record: PeerRecord) {
        todo!()
    }
    /// Remembers facts.
    pub fn learn(&self, protocol: ProtocolId, name: &PeerName, facts: &[Learned]) {
        todo!()
    }
    /// Every peer of a protocol that `_all` reaches.
    pub fn accepted(&self, protocol: ProtocolId) -> Vec<PeerName> {
        todo!()
    }
    /// All records, for lists.
    pub fn all(&self) -> Vec<Arc<PeerRecord>> {
        todo!()
    }
}
