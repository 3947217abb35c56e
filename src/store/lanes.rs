//! The handle's methods for an operator's hand on a lane.

use super::ops::{Single, Work};
use super::queue::number;
use super::types::StoreError;
use super::{Commit, Store};
use crate::clock::UnixMs;
use crate::protocol::{PeerName, ProtocolId};

impl Store {
    /// Makes pending rows of this peer that wait for a later time due at `now_ms`, at most `limit`
    /// of them; answers how many there were.
    pub async fn make_due(
        &self,
        protocol: ProtocolId,
        peer: &PeerName,
        now_ms: UnixMs,
        limit: usize,
    ) -> Result<Commit<u64>, StoreError> {
        let op = Single::MakeDue {
            protocol,
            peer: peer.to_string(),
            now_ms,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
        };
        self.write(Work::Single(op), number).await
    }
}
