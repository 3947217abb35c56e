//! One server we know: what is known of it, which of its keys count, how it is shown and kept.
//!
//! Only public keys are in here; nothing in a record is secret.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::UnixMs;
use crate::identity::{self, PublicKey};
use crate::protocol::PeerName;

/// Keys kept of one server.
pub const MAX_KEYS: usize = 8;
/// An expired key that the server's own document lists counts for this long after it was fetched:
/// published servers never renew the time they once wrote (sheet, 2).
const LISTED_MS: i64 = 24 * 3_600_000;
/// The form of a kept record.
const VERSION: u8 = 1;

/// Where a server stands with us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Looked up; an operator decides.
    Pending,
    /// Events are exchanged.
    Trusted,
    /// Refused by an operator, until an operator changes it.
    Rejected,
}

impl Status {
    /// As operators see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Trusted => "trusted",
            Self::Rejected => "rejected",
        }
    }
}

/// Whose word made a server trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustedBy {
    /// `[[peers]]`: ends when the block is gone.
    Config,
    /// An operator.
    Operator,
    /// `paracord.auto_trust`.
    AutoTrust,
}

/// A key of a server, as its own document shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerKey {
    /// Free text of the server; two keys may have the same.
    pub key_id: String,
    pub public: PublicKey,
    /// What the server says.
    pub valid_until_ms: UnixMs,
    /// When we first saw it.
    pub first_seen_ms: UnixMs,
    /// When a document that we fetched last listed it.
    pub listed_ms: UnixMs,
}

impl PeerKey {
    /// Whether what it signs counts at this time.
    pub fn is_usable(&self, now: UnixMs) -> bool {
        now <= self.valid_until_ms || now.saturating_sub(self.listed_ms) <= LISTED_MS
    }
}

/// The key that `[[peers]]` pins: the only one that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedKey {
    /// `None`: under any id.
    pub key_id: Option<String>,
    pub public: PublicKey,
}

/// A server.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: PeerName,
    /// What stands behind the colon in its users', rooms' and events' ids.
    pub domain: String,
    /// Whether the domain stays as it is, whatever the server says: from the moment it is trusted.
    pub domain_fixed: bool,
    /// Where its description is asked for: `https://NAME`, or what an operator or `[[peers]]` says.
    pub base: String,
    /// Where its routes are: an absolute URL up to and with `/_paracord/federation/v1`, without a
    /// slash at its end (where else the server says they are).
    pub endpoint: String,
    pub status: Status,
    /// Whose word made it trusted.
    pub trusted_by: Option<TrustedBy>,
    /// Those its document listed when it was last fetched.
    pub keys: Vec<PeerKey>,
    /// The only one that counts, if there is one.
    pub pinned_key: Option<PinnedKey>,
    /// When it last fetched our keys as a bridge does, with a signed request.
    pub fetched_ours_ms: Option<UnixMs>,
    pub added_ms: UnixMs,
    pub trusted_ms: Option<UnixMs>,
    /// When it last proved itself.
    pub last_seen_ms: Option<UnixMs>,
    /// When its keys were last fetched.
    pub keys_fetched_ms: Option<UnixMs>,
    /// Why it could not be looked up the last time, in a sentence of ours.
    pub last_error: Option<String>,
}

impl Peer {
    /// One of which nothing is known but its name and where to ask.
    pub fn new(name: PeerName, endpoint: String, now: UnixMs) -> Self {
        Self {
            domain: name.to_string(),
            base: format!("https://{name}"),
            name,
            domain_fixed: false,
            endpoint,
            status: Status::Pending,
            trusted_by: None,
            keys: Vec::new(),
            pinned_key: None,
            fetched_ours_ms: None,
            added_ms: now,
            trusted_ms: None,
            last_seen_ms: None,
            keys_fetched_ms: None,
            last_error: None,
        }
    }

    /// Whether events are exchanged with it, rules apart.
    pub fn is_trusted(&self) -> bool {
        self.status == Status::Trusted
    }

    /// The keys that a signature under this id may be of at this time.
    pub fn usable_keys(&self, key_id: &str, now: UnixMs) -> Vec<PublicKey> {
        if let Some(pinned) = &self.pinned_key {
            let named = pinned.key_id.as_deref().is_none_or(|id| id == key_id);
            return named.then(|| pinned.public.clone()).into_iter().collect();
        }
        let usable = self.keys.iter().filter(|key| key.key_id == key_id);
        let usable = usable.filter(|key| key.is_usable(now));
        usable.map(|key| key.public.clone()).collect()
    }

    /// Whether this is its name or domain; case is ignored.
    pub fn speaks_for(&self, server: &str) -> bool {
        server.eq_ignore_ascii_case(self.name.as_str()) || server.eq_ignore_ascii_case(&self.domain)
    }

    /// For operators.
    pub fn shown(&self) -> Value {
        let keys: Vec<Value> = match &self.pinned_key {
            Some(pinned) => vec![json!({
                "key_id": pinned.key_id,
                "public_key": identity::hex(&pinned.public.to_bytes()),
                "fingerprint": pinned.public.fingerprint(),
                "pinned": true,
            })],
            None => self.keys.iter().map(shown_key).collect(),
        };
        json!({
            "name": self.name.as_str(),
            "host": self.name.as_str(),
            "domain": self.domain,
            "domain_fixed": self.domain_fixed,
            "url": self.base,
            "endpoint": self.endpoint,
            "status": self.status.name(),
            "trusted_by": self.trusted_by,
            "keys": keys,
            "fetched_our_keys_ms": self.fetched_ours_ms,
            "added_ms": self.added_ms,
            "trusted_ms": self.trusted_ms,
            "last_seen_ms": self.last_seen_ms,
            "keys_fetched_ms": self.keys_fetched_ms,
            "last_error": self.last_error,
        })
    }

    /// The record as it is kept.
    pub fn to_kept(&self) -> String {
        let kept = Kept {
            version: VERSION,
            domain: self.domain.clone(),
            domain_fixed: self.domain_fixed,
            base: self.base.clone(),
            endpoint: self.endpoint.clone(),
            status: self.status,
            trusted_by: self.trusted_by,
            keys: self.keys.iter().map(KeptKey::of).collect(),
            pinned_key: self.pinned_key.as_ref().map(|pinned| KeptPin {
                key_id: pinned.key_id.clone(),
                public_key: identity::hex(&pinned.public.to_bytes()),
            }),
            fetched_ours_ms: self.fetched_ours_ms,
            added_ms: self.added_ms,
            trusted_ms: self.trusted_ms,
            last_seen_ms: self.last_seen_ms,
            keys_fetched_ms: self.keys_fetched_ms,
            last_error: self.last_error.clone(),
        };
        // Plain members with text keys: this cannot fail.
        serde_json::to_string(&kept).unwrap_or_default()
    }

    /// The server of a kept record.
    pub fn from_kept(name: &str, kept: &str) -> Result<Self, BadRecord> {
        let bad = |why: String| BadRecord {
            name: name.to_owned(),
            why,
        };
        let peer = PeerName::parse(name).map_err(|error| bad(error.to_string()))?;
        let kept: Kept = serde_json::from_str(kept).map_err(|error| bad(error.to_string()))?;
        if kept.version != VERSION {
            return Err(bad("it was written by a newer version".to_owned()));
        }
        let keys = kept.keys.into_iter().map(KeptKey::into_key);
        let keys: Option<Vec<PeerKey>> = keys.collect();
        let pinned_key = match kept.pinned_key {
            Some(pin) => Some(PinnedKey {
                public: public(&pin.public_key).ok_or_else(|| bad("its key is none".to_owned()))?,
                key_id: pin.key_id,
            }),
            None => None,
        };
        Ok(Self {
            name: peer,
            domain: kept.domain,
            domain_fixed: kept.domain_fixed,
            base: kept.base,
            endpoint: kept.endpoint,
            status: kept.status,
            trusted_by: kept.trusted_by,
            keys: keys.ok_or_else(|| bad("one of its keys is none".to_owned()))?,
            pinned_key,
            fetched_ours_ms: kept.fetched_ours_ms,
            added_ms: kept.added_ms,
            trusted_ms: kept.trusted_ms,
            last_seen_ms: kept.last_seen_ms,
            keys_fetched_ms: kept.keys_fetched_ms,
            last_error: kept.last_error,
        })
    }
}

/// Why a kept record cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the stored Paracord server {name:?} cannot be read: {why}")]
pub struct BadRecord {
    name: String,
    why: String,
}

/// A key in 64 hex digits, if it is one that may prove something.
pub fn public(text: &str) -> Option<PublicKey> {
    PublicKey::parse(&identity::unhex(text)?).ok()
}

fn shown_key(key: &PeerKey) -> Value {
    json!({
        "key_id": key.key_id,
        "public_key": identity::hex(&key.public.to_bytes()),
        "fingerprint": key.public.fingerprint(),
        "pinned": false,
        "valid_until_ms": key.valid_until_ms,
        "first_seen_ms": key.first_seen_ms,
        "listed_ms": key.listed_ms,
    })
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u8,
    domain: String,
    domain_fixed: bool,
    base: String,
    endpoint: String,
    status: Status,
    trusted_by: Option<TrustedBy>,
    keys: Vec<KeptKey>,
    pinned_key: Option<KeptPin>,
    fetched_ours_ms: Option<UnixMs>,
    added_ms: UnixMs,
    trusted_ms: Option<UnixMs>,
    last_seen_ms: Option<UnixMs>,
    keys_fetched_ms: Option<UnixMs>,
    last_error: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct KeptPin {
    key_id: Option<String>,
    public_key: String,
}

#[derive(Serialize, Deserialize)]
struct KeptKey {
    key_id: String,
    public_key: String,
    valid_until_ms: UnixMs,
    first_seen_ms: UnixMs,
    listed_ms: UnixMs,
}

impl KeptKey {
    fn of(key: &PeerKey) -> Self {
        Self {
            key_id: key.key_id.clone(),
            public_key: identity::hex(&key.public.to_bytes()),
            valid_until_ms: key.valid_until_ms,
            first_seen_ms: key.first_seen_ms,
            listed_ms: key.listed_ms,
        }
    }

    fn into_key(self) -> Option<PeerKey> {
        Some(PeerKey {
            public: public(&self.public_key)?,
            key_id: self.key_id,
            valid_until_ms: self.valid_until_ms,
            first_seen_ms: self.first_seen_ms,
            listed_ms: self.listed_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::identity::SigningKey;

    const NOW: UnixMs = 1_795_246_080_000;

    fn key(seed: u8, key_id: &str, valid_until_ms: UnixMs) -> PeerKey {
        PeerKey {
            key_id: key_id.to_owned(),
            public: SigningKey::from_seed([seed; 32]).public(),
            valid_until_ms,
            first_seen_ms: NOW,
            listed_ms: NOW,
        }
    }

    fn peer(keys: Vec<PeerKey>) -> Peer {
        let name = PeerName::parse("para-b.example").unwrap();
        let endpoint = "https://para-b.example/_paracord/federation/v1".to_owned();
        Peer {
            keys,
            domain: "B.example".to_owned(),
            ..Peer::new(name, endpoint, NOW)
        }
    }

    #[test]
    fn an_expired_key_counts_for_a_day_after_its_server_last_listed_it() {
        let peer = peer(vec![key(1, "ed25519:auto", NOW - 1)]);
        let usable = |now| peer.usable_keys("ed25519:auto", now).len();
        assert_eq!(usable(NOW + LISTED_MS), 1);
        assert_eq!(usable(NOW + LISTED_MS + 1), 0);
        assert_eq!(peer.usable_keys("ed25519:AUTO", NOW).len(), 0);
    }

    #[test]
    fn a_key_counts_until_the_very_millisecond_that_it_names() {
        let late = NOW + 3 * LISTED_MS;
        let peer = peer(vec![key(1, "a", late), key(2, "a", i64::MAX)]);
        assert_eq!(peer.usable_keys("a", late).len(), 2);
        assert_eq!(peer.usable_keys("a", late + 1).len(), 1);
        assert_eq!(peer.usable_keys("a", i64::MAX).len(), 1);
    }

    #[test]
    fn a_pinned_key_is_the_only_one_and_never_expires() {
        let mut peer = peer(vec![key(1, "a", i64::MAX)]);
        let pinned = SigningKey::from_seed([9; 32]).public();
        let pin = |key_id: Option<&str>| PinnedKey {
            key_id: key_id.map(str::to_owned),
            public: pinned.clone(),
        };
        peer.pinned_key = Some(pin(None));
        assert_eq!(peer.usable_keys("a", i64::MAX), from_ref(&pinned));
        assert_eq!(peer.usable_keys("other", NOW), from_ref(&pinned));
        peer.pinned_key = Some(pin(Some("b")));
        assert!(peer.usable_keys("a", NOW).is_empty());
        assert_eq!(peer.usable_keys("b", NOW), [pinned]);
    }

    #[test]
    fn a_server_speaks_for_its_name_and_its_domain_in_any_case() {
        let peer = peer(Vec::new());
        for server in ["para-b.example", "PARA-B.example", "b.EXAMPLE"] {
            assert!(peer.speaks_for(server), "{server}");
        }
        assert!(!peer.speaks_for("c.example") && !peer.speaks_for(""));
    }

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let mut peer = peer(vec![key(1, "a", i64::MAX), key(2, "a", i64::MIN)]);
        peer.status = Status::Trusted;
        peer.trusted_by = Some(TrustedBy::AutoTrust);
        peer.pinned_key = Some(PinnedKey {
            key_id: None,
            public: SigningKey::from_seed([9; 32]).public(),
        });
        peer.last_error = Some("no answer".to_owned());
        let back = Peer::from_kept("para-b.example", &peer.to_kept()).unwrap();
        assert_eq!(back.to_kept(), peer.to_kept());
        assert_eq!(back.keys, peer.keys);
        let newer = peer.to_kept().replace("\"version\":1", "\"version\":2");
        let error = Peer::from_kept("para-b.example", &newer).unwrap_err();
        assert!(error.to_string().contains("newer version"), "{error}");
    }

    #[test]
    fn a_small_order_key_in_a_record_is_no_key() {
        let weak = format!("01{}", "00".repeat(31));
        assert!(public(&weak).is_none());
        let kept = peer(vec![key(1, "a", NOW)]).to_kept();
        let good = identity::hex(&SigningKey::from_seed([1; 32]).public().to_bytes());
        let kept = kept.replace(&good, &weak);
        assert!(Peer::from_kept("para-b.example", &kept).is_err());
    }
}
