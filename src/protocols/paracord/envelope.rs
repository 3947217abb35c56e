//! The event envelope: ten members in wire order, nine of them signed in sorted order (sheet, 4).
//!
//! Objects inside `content` and `signatures` are kept sorted by their keys' UTF-8 bytes, because
//! `serde_json` keeps them so when its feature `preserve_order` is off; tests hold that and how
//! numbers read. Where a member stands twice within them, the last one counts, as for the reference;
//! one of the ten standing twice is an error.

mod decode;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

pub use decode::{Undecoded, decode_body};

use crate::protocols::plain::any_json;

use super::hexes;
use crate::clock::UnixMs;
use crate::identity::{KeyError, Proof, PublicKey, SigningKey, hex};

/// The member of `content` that a home server adds after it has signed a message.
const ATTACHMENTS: &str = "attachments";

/// An event as it travels.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Envelope {
    pub event_id: String,
    pub room_id: String,
    pub event_type: String,
    pub sender: String,
    pub origin_server: String,
    /// Unix milliseconds.
    pub origin_ts: UnixMs,
    #[serde(deserialize_with = "any_json")]
    pub content: Value,
    pub depth: i64,
    pub state_key: Option<String>,
    #[serde(deserialize_with = "any_json")]
    pub signatures: Value,
}

/// The signature that counts: the first text in key order under the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    pub key_id: String,
    /// None: not 128 hex digits.
    pub bytes: Option<[u8; 64]>,
}

/// An envelope whose signature held.
#[derive(Debug)]
pub struct Proven {
    pub proof: Proof,
    /// False: it holds only without `content.attachments`, which anybody may have put there.
    pub attachments_covered: bool,
}

impl Envelope {
    /// Reads one: an object with its members in any order, or a list of the ten values in theirs.
    pub fn decode(body: &[u8]) -> Result<Self, Undecoded> {
        decode_body(body)
    }

    /// The bytes that travel: the normal form that a reference receiver hashes.
    pub fn wire(&self) -> Vec<u8> {
        bytes(self)
    }

    /// The bytes that are signed.
    pub fn canonical(&self) -> Vec<u8> {
        self.canonical_of(&self.content)
    }

    fn canonical_of<C: Serialize>(&self, content: C) -> Vec<u8> {
        bytes(&Canonical {
            content,
            depth: self.depth,
            event_id: &self.event_id,
            event_type: &self.event_type,
            origin_server: &self.origin_server,
            origin_ts: self.origin_ts,
            room_id: &self.room_id,
            sender: &self.sender,
            state_key: self.state_key.as_deref(),
        })
    }

    /// Puts our signature in the place of all others.
    pub fn sign(&mut self, key: &SigningKey, key_id: &str) {
        let signature = key.sign(&self.canonical());
        self.signatures = signatures(&self.origin_server, key_id, &signature);
    }

    /// The signature to be checked, by the origin or, when there is none under it, in the flat form.
    /// None: there is no usable entry.
    pub fn signature(&self) -> Option<Offered> {
        let first = |entries: &Map<String, Value>| {
            entries.iter().find_map(|(key_id, value)| {
                Some(Offered {
                    key_id: key_id.clone(),
                    bytes: hexes::decode(value.as_str()?),
                })
            })
        };
        let all = self.signatures.as_object()?;
        let own = all.get(&self.origin_server).and_then(Value::as_object);
        own.and_then(first).or_else(|| first(all))
    }

    /// Whether the key made the signature. A message that a reference server sends with attachments
    /// was signed before they were added (sheet, 4): it is tried without them too.
    pub fn check(&self, key: &PublicKey, signature: &[u8; 64]) -> Result<Proven, KeyError> {
        let whole = key.verify(&self.canonical(), signature);
        let refused = match whole {
            Ok(proof) => {
                return Ok(Proven {
                    proof,
                    attachments_covered: true,
                });
            }
            Err(refused) => refused,
        };
        let content = match &self.content {
            Value::Object(content) if self.event_type == "m.message" => content,
            _ => return Err(refused),
        };
        if !content.contains_key(ATTACHMENTS) {
            return Err(refused);
        }
        let bare = self.canonical_of(Bare(content));
        let proof = key.verify(&bare, signature).map_err(|_| refused)?;
        Ok(Proven {
            proof,
            attachments_covered: false,
        })
    }

    /// The envelope as backends get it: the same bytes however it came. Of the signatures only the
    /// one that was proven is left; what it does not cover is named in an eleventh member.
    pub fn normal(&self, key_id: &str, signature: &[u8; 64], attachments_covered: bool) -> Bytes {
        let kept = signatures(&self.origin_server, key_id, signature);
        let unauthenticated = (!attachments_covered).then_some(["content.attachments"]);
        bytes(&Normal {
            event_id: &self.event_id,
            room_id: &self.room_id,
            event_type: &self.event_type,
            sender: &self.sender,
            origin_server: &self.origin_server,
            origin_ts: self.origin_ts,
            content: &self.content,
            depth: self.depth,
            state_key: self.state_key.as_deref(),
            signatures: &kept,
            unauthenticated,
        })
        .into()
    }
}

/// Nine members, sorted.
#[derive(Serialize)]
struct Canonical<'a, C> {
    content: C,
    depth: i64,
    event_id: &'a str,
    event_type: &'a str,
    origin_server: &'a str,
    origin_ts: UnixMs,
    room_id: &'a str,
    sender: &'a str,
    state_key: Option<&'a str>,
}

#[derive(Serialize)]
struct Normal<'a> {
    event_id: &'a str,
    room_id: &'a str,
    event_type: &'a str,
    sender: &'a str,
    origin_server: &'a str,
    origin_ts: UnixMs,
    content: &'a Value,
    depth: i64,
    state_key: Option<&'a str>,
    signatures: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    unauthenticated: Option<[&'a str; 1]>,
}

/// A content without its attachments.
struct Bare<'a>(&'a Map<String, Value>);

impl Serialize for Bare<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(name, _)| *name != ATTACHMENTS))
    }
}

fn signatures(origin: &str, key_id: &str, signature: &[u8; 64]) -> Value {
    let entry =
        |name: &str, value: Value| Value::Object(Map::from_iter([(name.to_owned(), value)]));
    entry(origin, entry(key_id, hex(signature).into()))
}

/// Compact JSON. Texts, numbers and maps with text keys always have one; nothing at all would prove
/// nothing and be refused.
fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
