//! Examining a server from outside.

use super::Paracord;
use crate::protocol::{PeerName, Refusal, Tell};

/// [`crate::protocol::Protocol::probe`].
pub async fn of(_p: &Paracord, _name: &PeerName, _tell: Tell<'_>) -> Result<(), Refusal> {
    Err(Refusal::new("no_probe", "not yet"))
}
