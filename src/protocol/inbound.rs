//! What a protocol hands the core when a remote server's signature held.

use bytes::Bytes;

use super::{PeerName, ProtocolId, RoomEvent};
use crate::clock::UnixMs;
use crate::identity::Proof;

/// An event whose signature held. Only code that holds a [`Proof`] can make one.
#[derive(Debug)]
pub struct Verified {
    /// Protocol it came by.
    pub protocol: ProtocolId,
    /// The server that proved itself.
    pub peer: PeerName,
    /// Key of deduplication, unique within protocol (a protocol whose ids are per peer puts the
    /// peer in front).
    pub dedupe_key: String,
    /// The event's own id.
    pub event_id: String,
    /// Type, `.` between tokens.
    pub event_type: String,
    /// The event in the protocol's own JSON, as received.
    pub payload: Bytes,
    /// Who made it, for the `Fed-Origin` header.
    pub origin: String,
    /// Which key proved it (fingerprint or key id), for `Fed-Key-Id`.
    pub key_id: String,
    /// Hops so far.
    pub hops: u32,
    /// When it was received.
    pub received_at_ms: UnixMs,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// Replay ids written in the same commit; one already there refuses the whole.
    pub replay: Vec<ReplayId>,
    /// Kept for readers by the same commit.
    pub room_event: Option<RoomEvent>,
    _proof: Proof,
}

/// A replay id: unique within protocol and scope until it expires.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplayId {
    /// Whose id (usually the peer).
    pub scope: String,
    /// The id, by its decoded bytes.
    pub id: Vec<u8>,
    /// Kept until then.
    pub expires_ms: UnixMs,
}

/// The members of [`Verified`] that a protocol fills in.
#[derive(Debug)]
pub struct VerifiedParts {
    pub protocol: ProtocolId,
    pub peer: PeerName,
    pub dedupe_key: String,
    pub event_id: String,
    pub event_type: String,
    pub payload: Bytes,
    pub origin: String,
    pub key_id: String,
    pub hops: u32,
    pub received_at_ms: UnixMs,
    pub traceparent: Option<String>,
    pub replay: Vec<ReplayId>,
    pub room_event: Option<RoomEvent>,
}

impl Verified {
    /// An event with the proof that its signature held.
    pub fn new(proof: Proof, p: VerifiedParts) -> Self {
        Self {
            protocol: p.protocol,
            peer: p.peer,
            dedupe_key: p.dedupe_key,
            event_id: p.event_id,
            event_type: p.event_type,
            payload: p.payload,
            origin: p.origin,
            key_id: p.key_id,
            hops: p.hops,
            received_at_ms: p.received_at_ms,
            traceparent: p.traceparent,
            replay: p.replay,
            room_event: p.room_event,
            _proof: proof,
        }
    }
}
