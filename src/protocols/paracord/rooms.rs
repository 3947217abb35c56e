//! Rooms: those we host, those we follow, who is in them and who may read them.

use super::Own;
use crate::clock::Clock;
use crate::config::ParacordConfig;
use crate::store::{Store, StoreError};

/// Every room we know.
pub struct Rooms {}

impl Rooms {
    pub async fn open(
        _store: Store,
        _clock: Clock,
        _own: Own,
        _config: &ParacordConfig,
    ) -> Result<Self, StoreError> {
        Ok(Self {})
    }
}
