//! Remote servers: their names, and what is known of them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ProtocolId;
use crate::clock::UnixMs;

/// A remote server's name: a lower-case host name or IP literal, optionally with `:port`.
/// At most 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(Arc<str>);

/// Why a text is no peer name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a server name: expected a lower-case host name, optionally with :port")]
pub struct BadPeerName(pub String);

impl PeerName {
    /// Reads a name as it stands; upper case is refused, not converted.
    pub fn parse(text: &str) -> Result<Self, BadPeerName> {
        let bad = || BadPeerName(text.chars().take(300).collect());
        if text.is_empty() || text.len() > 255 {
            return Err(bad());
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((h, p)) if !h.contains(':') || h.ends_with(']') => (h, Some(p)),
            _ => (text, None),
        };
        if let Some(p) = port
            && (p.parse::<u16>().is_err() || !p.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(bad());
        }
        let literal6 = host.starts_with('[')
            && host.ends_with(']')
            && host
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || matches!(b, b'[' | b']' | b':' | b'.'));
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let name = host
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
            && edge(host.bytes().next())
            && edge(host.bytes().last());
        if literal6 || name {
            Ok(Self(text.into()))
        } else {
            Err(bad())
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl TryFrom<String> for PeerName {
    type Error = BadPeerName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> Self {
        name.0.to_string()
    }
}

/// What is known of a remote server, in the store's `known_relays`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Which protocol knows it by this name.
    pub protocol: ProtocolId,
    /// Its name.
    pub name: PeerName,
    /// Where deliveries go, an absolute URL.
    pub endpoint: String,
    /// Endpoints to try when the first does not answer, best first (further SRV targets).
    pub alternatives: Vec<String>,
    /// Its Ed25519 key.
    pub public_key: Option<[u8; 32]>,
    /// `config`, `dns-srv`, `well-known`, …
    pub discovered_via: String,
    /// When the endpoint and key were last confirmed.
    pub last_verified_ms: UnixMs,
    /// Fresh for sending until `last_verified_ms + ttl_ms`; `None`: never stale (pinned).
    pub ttl_ms: Option<i64>,
    /// Facts a protocol learned about it, as JSON (`{"dialect":"nonce"}`).
    pub facts: serde_json::Map<String, serde_json::Value>,
}
