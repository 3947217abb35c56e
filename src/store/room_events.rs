//! Events of rooms, as other servers read them: ours, and what came into rooms we host.

use super::Store;
use super::types::StoreError;
use crate::protocol::{ProtocolId, RoomEvent};

impl Store {
    /// Events of a room behind a position, in order (position, then id), at most `limit`; those whose
    /// envelope was pruned are passed over. Sees every event whose commit was answered.
    pub async fn room_page(
        &self,
        _protocol: ProtocolId,
        _room: &str,
        _after: i64,
        _limit: usize,
    ) -> Result<Vec<RoomEvent>, StoreError> {
        Ok(Vec::new())
    }

    /// Events of that id, one of each origin, at most 16; an empty envelope was pruned.
    pub async fn room_event(
        &self,
        _protocol: ProtocolId,
        _event_id: &str,
    ) -> Result<Vec<RoomEvent>, StoreError> {
        Ok(Vec::new())
    }
}
