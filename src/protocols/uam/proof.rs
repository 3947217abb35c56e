//! Who signed: the relay that sends (checks 12 and 13) and the agent that wrote (check 17).
//!
//! Both are tried with the key we know, and once more with the key that is shown now when it does not
//! hold: that is how a rotation elsewhere is noticed, at the first message signed with the new key.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use ::http::HeaderMap;
use serde_json::json;

use crate::identity::{Proof, PublicKey};
use crate::protocol::PeerName;

use super::deliver::Refused;
use super::envelope::Envelope;
use super::relay_request::RelayRequest;
use super::verify::{self, Rejection};
use super::{ID, Uam};

/// Keys of relays, parsed once: parsing is a good part of what a signature check costs.
#[derive(Default)]
pub(super) struct RelayKeys(RwLock<HashMap<[u8; 32], RelayKey>>);

/// A usable key and its fingerprint.
#[derive(Clone)]
struct RelayKey {
    key: PublicKey,
    id: Arc<str>,
}

/// Keys kept parsed at most; with more, all are parsed anew.
const MAX_PARSED: usize = 10_000;

impl RelayKeys {
    fn parsed(&self, bytes: &[u8; 32]) -> Option<RelayKey> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = keys.get(bytes) {
            return Some(known.clone());
        }
        drop(keys);
        let key = PublicKey::parse(bytes).ok()?;
        let id = key.fingerprint().into();
        let parsed = RelayKey { key, id };
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= MAX_PARSED {
            keys.clear();
        }
        keys.insert(*bytes, parsed.clone());
        Some(parsed)
    }
}

/// A relay that proved itself by one request.
pub(super) struct Proven {
    pub peer: PeerName,
    pub key_id: String,
    pub proof: Proof,
}

/// Checks 12 and 13: the relay's own signature, with the key we know or, once, the key it shows now.
pub(super) async fn relay_proof(
    uam: &Arc<Uam>,
    headers: &HeaderMap,
    request: &RelayRequest,
) -> Result<Proven, Refused> {
    let bad = || Refused::by("relay_signature")(Rejection::relay_signature());
    let values = headers.get_all("x-uam-relay-signature");
    let signature = verify::check_signature_header(values.iter().map(|value| value.as_bytes()))
        .map_err(Refused::by("relay_signature"))?;
    let peer = PeerName::parse(&request.from_relay).map_err(|_| bad())?;
    let signed = request.signing_bytes();
    let prove = |bytes: &[u8; 32]| {
        let RelayKey { key, id } = uam.relay_keys.parsed(bytes)?;
        let proof = verify::check_relay_signature(&signed, signature, &key).ok()?;
        Some((id.to_string(), proof))
    };
    let known = uam
        .peers
        .known(ID, &peer)
        .and_then(|record| record.public_key);
    if let Some((key_id, proof)) = known.as_ref().and_then(prove) {
        return Ok(Proven {
            peer,
            key_id,
            proof,
        });
    }
    let protocol = uam.shared().ok_or_else(bad)?;
    let looked_up = if known.is_some() {
        uam.peers.refresh(&protocol, &peer).await
    } else {
        uam.peers.resolve(&protocol, &peer).await.map(Some)
    };
    let shown = looked_up
        .unwrap_or_else(|error| {
            tracing::debug!(relay = %peer, %error, "the relay's key cannot be had");
            None
        })
        // Not asked again so soon: but another request's question may just have been answered.
        .or_else(|| uam.peers.known(ID, &peer))
        .and_then(|record| record.public_key)
        .filter(|shown| known.as_ref() != Some(shown));
    let (key_id, proof) = shown.as_ref().and_then(prove).ok_or_else(bad)?;
    if known.is_some() {
        tracing::info!(relay = %peer, key = %key_id, "the relay has a new key");
        let body = json!({"peer": peer.as_str(), "key_id": key_id});
        uam.ops.event("key", "changed", ID, peer.as_str(), body);
    }
    Ok(Proven {
        peer,
        key_id,
        proof,
    })
}

/// Check 17: the agent's signature, with the key of its home relay.
pub(super) async fn agent_proof(uam: &Arc<Uam>, envelope: &Envelope) -> Result<(), Refused> {
    let from = envelope.from().unwrap_or_default();
    let unknown = || Refused::by("unknown_sender")(Rejection::sender_unknown(from));
    let protocol = uam.shared().ok_or_else(unknown)?;
    let known = uam.agents.key(&protocol, from).await.ok_or_else(unknown)?;
    let first = agent_signature(envelope, &known.key);
    if first.is_ok() || !known.may_be_old {
        return first;
    }
    // The agent may have another key by now: its relay is asked once more.
    match uam.agents.key_anew(&protocol, from).await {
        Some(anew) if anew.key != known.key => agent_signature(envelope, &anew.key),
        _ => first,
    }
}

fn agent_signature(envelope: &Envelope, key: &PublicKey) -> Result<(), Refused> {
    verify::check_sender_key(envelope, key).map_err(Refused::by("sender_key"))?;
    verify::check_agent_signature(envelope, key)
        .map(|_| ())
        .map_err(Refused::by("agent_signature"))
}
