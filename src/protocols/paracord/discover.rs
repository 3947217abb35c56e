//! Finding a server by its name, and its keys.

use super::Paracord;
use crate::protocol::{PeerName, PeerRecord, TransportError, TransportKind};

/// A server as the lanes send to it.
pub async fn record(_p: &Paracord, name: &PeerName) -> Result<PeerRecord, TransportError> {
    Err(TransportError {
        kind: TransportKind::Discovery,
        detail: format!("{name} is not known"),
    })
}
