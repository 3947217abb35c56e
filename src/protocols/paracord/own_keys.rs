//! Our signing keys as the protocol publishes them.

use super::{Own, ParacordError};
use crate::clock::UnixMs;
use crate::config::ParacordConfig;
use crate::protocol::OwnKey;
use crate::store::Store;

/// Our keys.
pub struct OwnKeys {}

impl OwnKeys {
    pub async fn open(
        _config: &ParacordConfig,
        _store: &Store,
        _now: UnixMs,
    ) -> Result<Self, ParacordError> {
        Ok(Self {})
    }

    pub fn list(&self, _own: &Own) -> Vec<OwnKey> {
        Vec::new()
    }
}
