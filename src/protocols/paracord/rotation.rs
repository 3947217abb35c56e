//! Changing our key: who notices and when, and doing it in a running bridge.

use super::Paracord;
use crate::protocol::{Refusal, Rotation};

/// [`crate::protocol::Protocol::rotate`].
pub async fn rotate(_p: &Paracord, _wanted: Rotation) -> Result<serde_json::Value, Refusal> {
    Err(Refusal::new("no_keys", "not yet"))
}

/// Reads the key files anew.
pub fn reload(_p: &Paracord) -> Result<(), Refusal> {
    Ok(())
}
