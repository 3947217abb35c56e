//! One peer: what is known of it, how it is shown, how it is kept.
//!
//! The shared secret is in the record and in the store (sealed), nowhere else: not in what is shown,
//! not in `Debug`, not in an error.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::clock::UnixMs;
use crate::identity::hmac::SharedSecret;
use crate::identity::vault::{Vault, VaultError};
use crate::protocol::PeerName;

use super::text;

/// Longest features object kept, bytes of its JSON; a longer one counts as none.
pub const MAX_FEATURES: usize = 16 * 1024;
/// The form of a kept record.
const VERSION: u8 = 1;

/// Where a peering stands (sheet, section 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// We asked; its first authenticated ping says that it has accepted.
    Requested,
    /// It asked; an operator decides.
    Pending,
    /// Accepted on both sides.
    Connected,
    /// Accepted, and the last exchange failed.
    Error,
    /// Refused by an operator, until an operator changes it.
    Rejected,
}

impl Status {
    /// As the protocol writes it.
    pub fn wire(self) -> &'static str {
        match self {
            Self::Requested | Self::Pending => "pending",
            Self::Connected => "connected",
            Self::Error => "error",
            Self::Rejected => "rejected",
        }
    }

    /// As operators see it: like [`Status::wire`], with `requested` told apart.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            other => other.wire(),
        }
    }

    /// Whether messages are exchanged.
    pub fn is_accepted(self) -> bool {
        matches!(self, Self::Connected | Self::Error)
    }
}

/// Who asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Outgoing,
    Incoming,
}

impl Direction {
    /// As the protocol writes it.
    pub fn wire(self) -> &'static str {
        match self {
            Self::Outgoing => "outgoing",
            Self::Incoming => "incoming",
        }
    }
}

/// A secret that a handshake offered while our own request was under way.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub secret: SharedSecret,
    pub offered_ms: UnixMs,
}

/// A peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Our id for it: what a token of ours says as `peerId`.
    pub id: String,
    /// What it, or our operator, calls it.
    pub name: String,
    pub host: PeerName,
    /// Where it answers: scheme and host, no slash at the end.
    pub url: String,
    pub secret: SharedSecret,
    pub status: Status,
    pub direction: Direction,
    /// What it said of itself.
    pub features: Map<String, Value>,
    /// When it last proved itself, or took a ping of ours.
    pub last_seen_ms: Option<UnixMs>,
    /// When its messages were last fetched.
    pub last_synced_ms: Option<UnixMs>,
    /// Why the last exchange failed, in a sentence of ours.
    pub last_error: Option<String>,
    /// Its id for us, from the answer to our handshake.
    pub remote_peer_id: Option<String>,
    pub created_ms: UnixMs,
    /// When status, name, url, features or secret last changed.
    pub updated_ms: UnixMs,
    /// Secrets offered by handshakes that crossed ours; none counts before a ping to the stored
    /// url under it was taken.
    pub candidates: Vec<Candidate>,
    /// Another bridge's handshake crossed ours, and ours stands: it is sent until it is received.
    pub resend: bool,
    /// When a handshake under another secret was last refused.
    pub refused_secret_ms: Option<UnixMs>,
}

impl Peer {
    /// As `GET /peers/:id` shows it: no secret, `requested` as `pending`.
    pub fn shown(&self) -> Value {
        let time = |ms: Option<UnixMs>| ms.map(text::iso);
        json!({
            "id": self.id,
            "name": self.name,
            "host": self.host,
            "url": self.url,
            "status": self.status.wire(),
            "direction": self.direction.wire(),
            "features": self.features,
            "protocolVersion": 1,
            "lastSeen": time(self.last_seen_ms),
            "lastSyncedAt": time(self.last_synced_ms),
            "lastError": self.last_error,
            "remotePeerId": self.remote_peer_id,
            "createdAt": text::iso(self.created_ms),
            "updatedAt": text::iso(self.updated_ms),
        })
    }

    /// The same for our own operators: `state` tells `requested` from `pending`.
    pub fn shown_to_operator(&self) -> Value {
        let mut shown = self.shown();
        if let Some(members) = shown.as_object_mut() {
            members.insert("state".into(), self.status.name().into());
        }
        shown
    }

    /// Whether a heartbeat has something to do for it.
    pub fn beats(&self) -> bool {
        self.status.is_accepted() || self.resend || !self.candidates.is_empty()
    }

    /// The record as it is kept: its secrets sealed, bound to the host.
    pub fn to_kept(&self, vault: &Vault) -> Result<String, VaultError> {
        let seal =
            |secret: &SharedSecret| vault.seal(secret.as_text().as_bytes(), &bound_to(&self.host));
        let mut candidates = Vec::with_capacity(self.candidates.len());
        for candidate in &self.candidates {
            candidates.push((seal(&candidate.secret)?, candidate.offered_ms));
        }
        let kept = Kept {
            version: VERSION,
            id: self.id.clone(),
            name: self.name.clone(),
            url: self.url.clone(),
            secret: seal(&self.secret)?,
            status: self.status,
            direction: self.direction,
            features: self.features.clone(),
            last_seen_ms: self.last_seen_ms,
            last_synced_ms: self.last_synced_ms,
            last_error: self.last_error.clone(),
            remote_peer_id: self.remote_peer_id.clone(),
            created_ms: self.created_ms,
            updated_ms: self.updated_ms,
            candidates,
            resend: self.resend,
            refused_secret_ms: self.refused_secret_ms,
        };
        // Plain members with text keys: this cannot fail.
        Ok(serde_json::to_string(&kept).unwrap_or_default())
    }

    /// The peer of a kept record.
    pub fn from_kept(host: &str, kept: &str, vault: &Vault) -> Result<Self, BadRecord> {
        let bad = |why: &str| BadRecord::Form {
            host: host.to_owned(),
            why: why.to_owned(),
        };
        let host = PeerName::parse(host).map_err(|error| bad(&error.to_string()))?;
        let kept: Kept = serde_json::from_str(kept).map_err(|error| bad(&error.to_string()))?;
        if kept.version != VERSION {
            return Err(bad("it was written by a newer version"));
        }
        let open = |sealed: &str| -> Result<SharedSecret, BadRecord> {
            let plain =
                vault
                    .open(sealed, &bound_to(&host))
                    .map_err(|cause| BadRecord::Sealed {
                        host: host.clone(),
                        cause,
                    })?;
            std::str::from_utf8(&plain)
                .ok()
                .and_then(SharedSecret::new)
                .ok_or_else(|| bad("what was sealed is no secret"))
        };
        let mut candidates = Vec::with_capacity(kept.candidates.len());
        for (sealed, offered_ms) in &kept.candidates {
            candidates.push(Candidate {
                secret: open(sealed)?,
                offered_ms: *offered_ms,
            });
        }
        Ok(Self {
            secret: open(&kept.secret)?,
            host,
            id: kept.id,
            name: kept.name,
            url: kept.url,
            status: kept.status,
            direction: kept.direction,
            features: kept.features,
            last_seen_ms: kept.last_seen_ms,
            last_synced_ms: kept.last_synced_ms,
            last_error: kept.last_error,
            remote_peer_id: kept.remote_peer_id,
            created_ms: kept.created_ms,
            updated_ms: kept.updated_ms,
            candidates,
            resend: kept.resend,
            refused_secret_ms: kept.refused_secret_ms,
        })
    }
}

/// What a handshake or its answer says as `features`: an object of bearable size, else none.
pub fn features(said: Option<&Value>) -> Map<String, Value> {
    match said {
        Some(Value::Object(members))
            if said.is_some_and(|v| v.to_string().len() <= MAX_FEATURES) =>
        {
            members.clone()
        }
        _ => Map::new(),
    }
}

/// Why a kept record cannot be used. No secret in it.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// Not a record of ours.
    #[error("the stored VoltChat peer {host:?} cannot be read: {why}")]
    Form { host: String, why: String },
    /// The key file is not the one it was sealed with.
    #[error("the secret shared with VoltChat peer {host} cannot be unsealed: {cause}")]
    Sealed { host: PeerName, cause: VaultError },
}

/// What a sealed secret is bound to: it opens in no other place.
fn bound_to(host: &PeerName) -> String {
    format!("voltchat/peer/{host}")
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u8,
    id: String,
    name: String,
    url: String,
    secret: String,
    status: Status,
    direction: Direction,
    features: Map<String, Value>,
    last_seen_ms: Option<UnixMs>,
    last_synced_ms: Option<UnixMs>,
    last_error: Option<String>,
    remote_peer_id: Option<String>,
    created_ms: UnixMs,
    updated_ms: UnixMs,
    #[serde(default)]
    candidates: Vec<(String, UnixMs)>,
    #[serde(default)]
    resend: bool,
    #[serde(default)]
    refused_secret_ms: Option<UnixMs>,
}
