//! Allow and block rules, reputation, rates.

use crate::protocol::ProtocolId;

/// Trust state; cloning shares it.
#[derive(Clone)]
pub struct Trust {}

/// What the rules say of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Blocked,
    Allowed,
    Quarantined,
    Ordinary,
}

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Block,
    Allow,
    Quarantine,
}

#[allow(unused_variables)]
impl Trust {
    /// Loads rules and scores.
    pub async fn open(
        store: crate::store::Store,
        clock: crate::clock::Clock,
    ) -> Result<Self, crate::store::StoreError> {
        todo!()
    }
    /// Block wins over everything; `*.suffix` matches subdomains.
    pub fn standing(&self, protocol: ProtocolId, name: &str) -> Standing {
        todo!()
    }
    /// Adds or replaces, in force when this returns; false: it was there.
    pub async fn add(
        &self,
        protocol: ProtocolId,
        rule: Rule,
        pattern: &str,
        reason: Option<&str>,
    ) -> Result<bool, crate::store::StoreError> {
        todo!()
    }
    /// Removes; false: there was none.
    pub async fn remove(
        &self,
        protocol: ProtocolId,
        rule: Rule,
        pattern: &str,
    ) -> Result<bool, crate::store::StoreError> {
        todo!()
    }
    /// The rules of one list.
    pub fn list(&self, protocol: ProtocolId, rule: Rule) -> Vec<crate::store::TrustRow> {
        todo!()
    }
    /// Score, 50 for a stranger.
    pub fn score(&self, protocol: ProtocolId, peer: &str) -> i64 {
        todo!()
    }
    /// Adds to the score, kept within 0..=100; written behind.
    pub fn charge(&self, protocol: ProtocolId, peer: &str, delta: i64) {
        todo!()
    }
    /// Sets a score (tests, operators).
    pub fn set_score(&self, protocol: ProtocolId, peer: &str, score: i64) {
        todo!()
    }
    /// Counts one request in a sliding window of 60 s (monotonic) if fewer than `limit` are in it; false: over.
    /// The number of keys is bounded.
    pub fn admit(&self, key: &str, limit: u32) -> bool {
        todo!()
    }
}
