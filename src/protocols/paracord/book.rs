//! The servers we know: read at start, changed durably.

use crate::clock::Clock;
use crate::ops::Ops;
use crate::store::{Store, StoreError};

/// Every server we know.
pub struct Book {}

/// Why what is kept of the servers cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Book {
    pub async fn open(_store: Store, _ops: Ops, _clock: Clock) -> Result<Self, BookError> {
        Ok(Self {})
    }
}
