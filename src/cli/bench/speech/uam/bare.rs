//! UAM without the bridge's rules: one signature made, two checked.

use std::collections::HashMap;

use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::writer::agents;
use super::{RELAY, SIGNATURE};
use crate::cli::bench::speech::{Post, Taken};
use crate::cli::bench::world::{OWN, World};
use crate::clock::Clock;
use crate::identity::{SigningKey, b64};
use crate::protocols::uam::time;

/// Keys by relay and agent, parsed once.
pub type Keys = HashMap<String, VerifyingKey>;

/// Every relay's and every agent's key.
pub fn keys(world: &World) -> Result<Keys, String> {
    let mut keys = Keys::new();
    for n in 0..world.active {
        let peer = world.host(world.first + n);
        let agents = agents(&peer)?.into_iter().map(|a| a.as_str().to_owned());
        for name in agents.chain([peer]) {
            let bytes = world.key(&name).public().to_bytes();
            keys.insert(
                name,
                VerifyingKey::from_bytes(&bytes).map_err(|e| e.to_string())?,
            );
        }
    }
    Ok(keys)
}

/// What the relay signs, in the order of its canonical form. The bench's texts are ASCII without
/// numbers, so that serde_json's sorted compact text is that form.
#[derive(Serialize, Deserialize)]
struct Signed<'a, E> {
    envelope: E,
    #[serde(borrow)]
    from_relay: &'a str,
    hop_count: u32,
    #[serde(borrow)]
    nonce: &'a str,
    #[serde(borrow)]
    timestamp: &'a str,
    #[serde(borrow)]
    via: Vec<&'a str>,
}

/// A backend's envelope as our relay sends it.
pub fn post(envelope: &[u8], key: &SigningKey) -> Result<Post, String> {
    let (body, signature) = signed(envelope, key)?;
    let signature = HeaderValue::from_str(&signature).map_err(|e| e.to_string())?;
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(SIGNATURE, signature);
    headers.insert(RELAY, HeaderValue::from_static(OWN));
    Ok(Post { headers, body })
}

/// The body, which is the signed text itself, and its signature.
fn signed(envelope: &[u8], key: &SigningKey) -> Result<(Bytes, String), String> {
    let envelope: Value = serde_json::from_slice(envelope).map_err(|e| e.to_string())?;
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|e| e.to_string())?;
    let body = serde_json::to_vec(&Signed {
        envelope,
        from_relay: OWN,
        hop_count: 1,
        nonce: &b64::encode(nonce),
        timestamp: &time::format_ms(Clock::system().now_ms()),
        via: vec![OWN],
    })
    .map_err(|e| e.to_string())?;
    let signature = b64::encode(key.sign(&body));
    Ok((body.into(), signature))
}

/// The envelope's own text, once both signatures held.
pub fn taken(headers: &HeaderMap, body: &Bytes, keys: &Keys) -> Option<Taken> {
    let request: Signed<'_, &RawValue> = serde_json::from_slice(body).ok()?;
    let text = request.envelope.get();
    let mut envelope: Value = serde_json::from_str(text).ok()?;
    let signed = serde_json::to_vec(&Signed {
        envelope: &envelope,
        from_relay: request.from_relay,
        hop_count: request.hop_count,
        nonce: request.nonce,
        timestamp: request.timestamp,
        via: request.via,
    })
    .ok()?;
    let signature = headers.get(SIGNATURE)?.to_str().ok()?;
    holds(keys.get(request.from_relay)?, &signed, signature)?;
    let own = envelope.as_object_mut()?.remove("signature")?;
    let agent = keys.get(envelope["from"].as_str()?)?;
    holds(agent, &serde_json::to_vec(&envelope).ok()?, own.as_str()?)?;
    Some(Taken {
        peer: request.from_relay.to_owned(),
        kind: "message",
        id: envelope["message_id"].as_str()?.to_owned(),
        text: body.slice_ref(text.as_bytes()),
    })
}

fn holds(key: &VerifyingKey, message: &[u8], signature: &str) -> Option<()> {
    let bytes: [u8; 64] = b64::decode(signature).ok()?.try_into().ok()?;
    key.verify_strict(message, &Signature::from_bytes(&bytes))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::speech::Way;
    use crate::cli::bench::speech::uam::writer::Writer;
    use crate::config::WireForms;
    use crate::protocols::uam::relay_request::RelayRequest;
    use crate::protocols::uam::verify::check_relay_signature;

    #[test]
    fn what_bare_signs_is_a_relay_request_that_verifies() {
        let world = World::new(1, 2, 700, 0);
        let writer = Writer::new(&world, Way::Out).unwrap();
        let text = writer.envelope(3, 1_700_000_000_000).unwrap();
        let (body, signature) = signed(&text, &world.key(OWN)).unwrap();
        let request = RelayRequest::parse(&body, WireForms::Nonce).unwrap();
        let key = world.key(OWN).public();
        assert!(check_relay_signature(&request.signing_bytes(), &signature, &key).is_ok());
    }
}
