//! From a message of `FED_OUT` to its rows.

use std::sync::Arc;

use super::intake::Reader;
use super::lane::Item;
use super::scopes::Batch;
use super::shard::LaneKey;
use crate::bus::OutMessage;
use crate::faults;
use crate::ops::metrics;
use crate::protocol::{OutEvent, PeerName, Protocol, ProtocolId, Refusal, Sealed, Targets};
use crate::store::{Late, NewRow, RowState};

/// Bytes of an ordering key that are stored as they are.
const MAX_KEY: usize = 1_024;

/// Rows, and what the lanes are told of them.
#[derive(Default)]
pub(super) struct Made {
    pub rows: Vec<NewRow>,
    pub lanes: Vec<(LaneKey, Item)>,
    /// Those of the rows whose peers are away or behind.
    pub late: Late,
}

impl Reader {
    /// Rows and lane items of one message; a message that cannot be sent becomes a dead row.
    /// `id`: as the intake names the message.
    pub(super) fn make(
        &self,
        id: &str,
        message: &OutMessage,
        sealing: &mut Batch,
        made: &mut Made,
    ) {
        let protocol = self.protocols.get(message.protocol.as_str());
        let (Ok(event) | Err((_, event))) = &message.event;
        let sealed = match (&message.event, protocol) {
            (Err((refusal, _)), _) => Err(refusal.clone()),
            (Ok(_), None) => Err(Refusal::new(
                "unknown_protocol",
                format!("no protocol is called {:?}", message.protocol),
            )),
            (Ok(event), Some(protocol)) => self.seal(protocol, event, id, sealing),
        };
        let name = protocol.map_or("unknown", |p| p.id());
        match sealed {
            Ok((peers, sealed)) => {
                let ids = self.store.reserve_rows(peers.len());
                let mut sealed = sealed;
                for (id, peer) in ids.zip(peers) {
                    let mut row = self.row(id, name, peer.as_str(), event, &sealed);
                    // What belongs to the event as a whole goes with the first of its rows.
                    row.records = std::mem::take(&mut sealed.records);
                    row.room_event = sealed.room_event.take();
                    let key = (name, peer);
                    if self.late.has(&key) {
                        made.late.push(row.id);
                    }
                    made.lanes.push((key, item(&row)));
                    made.rows.push(row);
                }
            }
            Err(refusal) => {
                let id = self.store.reserve_rows(1).start;
                let sealed = Sealed {
                    event_id: event.msg_id.clone(),
                    body: event.payload.clone(),
                    order_key: String::new(),
                    expires_ms: None,
                    records: Vec::new(),
                    room_event: None,
                    state: None,
                };
                let mut row = self.row(id, name, &event.peer, event, &sealed);
                row.state = RowState::Failed;
                row.reason = Some((refusal.code.to_owned(), refusal.detail.clone()));
                metrics::dead(name, refusal.code);
                tracing::warn!(
                    protocol = name,
                    peer = event.peer,
                    msg_id = event.msg_id,
                    out_seq = event.out_seq,
                    code = refusal.code,
                    reason = refusal.detail,
                    "an outbound message cannot be sent"
                );
                self.ops.event(
                    "delivery",
                    "dead",
                    name,
                    &event.peer,
                    serde_json::json!({"msg_id": event.msg_id, "out_seq": event.out_seq, "event_id": event.msg_id,
                        "peer": event.peer, "attempts": 0, "code": refusal.code, "detail": refusal.detail,
                        "queue_id": id}),
                );
                made.rows.push(row);
            }
        }
    }

    fn seal(
        &self,
        protocol: &Arc<dyn Protocol>,
        event: &OutEvent,
        id: &str,
        sealing: &mut Batch,
    ) -> Result<(Vec<PeerName>, Sealed), Refusal> {
        let limit = protocol.max_body().min(self.max_body);
        if event.payload.len() > limit {
            let detail = format!(
                "{} bytes are more than the {limit} that may travel",
                event.payload.len()
            );
            return Err(Refusal::new("too_large", detail));
        }
        let scope = sealing.scopes.remove(id);
        let previous = scope
            .as_ref()
            .and_then(|scope| self.scopes.previous(protocol.id(), &scope.name));
        let (targets, mut sealed) = protocol.prepare(event, previous.as_deref())?;
        let peers = match targets {
            Targets::Peers(peers) => peers,
            Targets::AllAccepted => self.peers.accepted(protocol.id()),
        };
        if peers.is_empty() {
            return Err(Refusal::new("no_peers", "no accepted peer to send it to"));
        }
        if let Some(scope) = scope {
            if let Some(claimed) = scope.claims
                && !sealing.claim(protocol.id(), claimed)
            {
                let why = format!(
                    "an event {:?} was sent before; this message has the same one of its own",
                    sealed.event_id
                );
                return Err(Refusal::new("event_id_taken", why));
            }
            if let Some(state) = sealed.state.take() {
                let record = self.scopes.advance(protocol.id(), &scope.name, &state);
                sealed.records.push(record);
            }
        }
        if faults::on("shuffle_keys") {
            sealed.order_key.clone_from(&sealed.event_id);
        }
        Ok((peers, sealed))
    }

    fn row(
        &self,
        id: i64,
        protocol: ProtocolId,
        peer: &str,
        event: &OutEvent,
        sealed: &Sealed,
    ) -> NewRow {
        NewRow {
            id,
            protocol,
            peer: peer.to_owned(),
            msg_id: event.msg_id.clone(),
            out_seq: event.out_seq,
            event_id: sealed.event_id.clone(),
            event_type: event.event_type.clone(),
            order_key: bounded(&sealed.order_key),
            body: sealed.body.clone(),
            created_ms: self.clock.now_ms(),
            expires_ms: sealed.expires_ms,
            traceparent: event.traceparent.clone(),
            state: RowState::Pending,
            reason: None,
            records: Vec::new(),
            room_event: None,
        }
    }
}

fn item(row: &NewRow) -> Item {
    Item {
        id: row.id,
        key: row.order_key.as_str().into(),
        msg_id: row.msg_id.clone(),
        out_seq: row.out_seq,
        event_id: row.event_id.clone(),
        event_type: row.event_type.clone(),
        body: Some(row.body.clone()),
        attempts: 0,
        created_ms: row.created_ms,
        first_failed_ms: None,
        next_at_ms: 0,
        expires_ms: row.expires_ms,
        peer_fault: false,
        traceparent: row.traceparent.clone(),
    }
}

/// An ordering key as it is stored: a long one by its hash, for a database's index takes only so
/// much (PostgreSQL some 2,700 bytes a row).
fn bounded(key: &str) -> String {
    use sha2::{Digest, Sha256};
    if key.len() <= MAX_KEY {
        return key.to_owned();
    }
    let hash = Sha256::digest(key.as_bytes());
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{MAX_KEY, bounded};

    #[test]
    fn a_long_ordering_key_is_stored_by_its_hash_and_stays_distinct() {
        let long = "k".repeat(MAX_KEY);
        assert_eq!(bounded(&long), long);
        let (one, two) = (bounded(&format!("{long}1")), bounded(&format!("{long}2")));
        assert_eq!(one.len(), 7 + 64);
        assert_ne!(one, two);
    }
}
