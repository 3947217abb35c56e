//! The `[[peers]]` of the configuration, as read last.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::config::PeerPin;
use crate::protocol::{PeerName, ProtocolId};

/// Either padding; peers write keys both ways.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// One pinned peer.
pub(super) struct Pin {
    pub config: Arc<PeerPin>,
    pub public_key: Option<[u8; 32]>,
}

impl Pin {
    /// Endpoint and key are given: nothing is left to discover.
    pub(super) fn is_whole(&self) -> bool {
        self.config.endpoint.is_some() && self.public_key.is_some()
    }

    /// The pinned base URL without a slash at its end.
    pub(super) fn base(&self) -> Option<&str> {
        let base = self.config.endpoint.as_deref()?;
        Some(base.trim_end_matches('/'))
    }
}

/// All of them, by protocol and name.
pub(super) struct Pins {
    by_protocol: HashMap<String, HashMap<PeerName, Pin>>,
    accepted: HashMap<String, Vec<PeerName>>,
}

impl Pins {
    /// The configuration has validated names and keys; what is wrong all the same is left out with
    /// a warning rather than believed by half.
    pub(super) fn new(pins: &[Arc<PeerPin>]) -> Self {
        let mut by_protocol: HashMap<String, HashMap<PeerName, Pin>> = HashMap::new();
        let mut accepted: HashMap<String, Vec<PeerName>> = HashMap::new();
        for config in pins {
            let (Ok(name), Ok(public_key)) = (
                PeerName::parse(&config.name),
                config.public_key.as_deref().map(decode_key).transpose(),
            ) else {
                tracing::warn!(peer = %config.name, "pinned peer ignored: its name or public_key is not valid");
                continue;
            };
            if config.accepted {
                let names = accepted.entry(config.protocol.clone()).or_default();
                names.push(name.clone());
            }
            by_protocol
                .entry(config.protocol.clone())
                .or_default()
                .insert(
                    name,
                    Pin {
                        config: Arc::clone(config),
                        public_key,
                    },
                );
        }
        for names in accepted.values_mut() {
            names.sort();
            names.dedup();
        }
        Self {
            by_protocol,
            accepted,
        }
    }

    /// Every pin, with its protocol and name.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &PeerName, &Pin)> {
        self.by_protocol.iter().flat_map(|(protocol, names)| {
            let protocol = protocol.as_str();
            names.iter().map(move |(name, pin)| (protocol, name, pin))
        })
    }

    pub(super) fn get(&self, protocol: &str, name: &PeerName) -> Option<&Pin> {
        self.by_protocol.get(protocol)?.get(name)
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> Vec<(String, PeerName)> {
        let of = |(protocol, pins): (&String, &HashMap<PeerName, Pin>)| {
            let names = pins.keys().map(|name| (protocol.clone(), name.clone()));
            names.collect::<Vec<_>>()
        };
        let mut names: Vec<_> = self.by_protocol.iter().flat_map(of).collect();
        names.sort();
        names
    }

    pub(super) fn is_whole(&self, protocol: ProtocolId, name: &PeerName) -> bool {
        self.get(protocol, name).is_some_and(Pin::is_whole)
    }

    pub(super) fn accepted(&self, protocol: ProtocolId) -> &[PeerName] {
        self.accepted.get(protocol).map_or(&[], Vec::as_slice)
    }
}

/// Whether `endpoint` lies under the base URL.
pub(super) fn is_below(base: &str, endpoint: &str) -> bool {
    endpoint
        .strip_prefix(base)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
}

fn decode_key(text: &str) -> Result<[u8; 32], ()> {
    // Read as base64, 64 hex digits would be 48 bytes.
    if let Some(key) = crate::identity::unhex(text.trim()) {
        return Ok(key);
    }
    let text = text.trim().replace('+', "-").replace('/', "_");
    let bytes = BASE64.decode(text).map_err(drop)?;
    bytes.try_into().map_err(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_hex_and_in_either_alphabet_with_or_without_padding() {
        let key = [0xfbu8; 32];
        for text in [
            base64::engine::general_purpose::STANDARD.encode(key),
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(key),
        ] {
            assert_eq!(decode_key(&text), Ok(key), "{text}");
        }
        assert_eq!(decode_key(&crate::identity::hex(&key)), Ok(key));
        assert_eq!(decode_key("c2hvcnQ="), Err(()));
    }

    #[test]
    fn an_endpoint_is_below_its_base_only_at_a_path_boundary() {
        assert!(is_below("https://a.test", "https://a.test/x"));
        assert!(!is_below("https://a.test", "https://a.test.evil.test/x"));
        assert!(!is_below("https://a.test", "https://a.test:8443/x"));
    }
}
