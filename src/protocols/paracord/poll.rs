//! Polling other servers for events of the rooms we follow or they mirror (sheet, 7).

use super::Paracord;
use crate::protocol::PeerName;

/// Whom to poll now.
pub fn beating(_p: &Paracord) -> Vec<PeerName> {
    Vec::new()
}

/// One poll of one server.
pub async fn beat(_p: &Paracord, _peer: &PeerName) {}
