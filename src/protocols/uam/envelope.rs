//! The envelope: what one agent sends another. Opaque to relays except for a few fields.
//!
//! An [`Envelope`] keeps its own text beside its tree. The text is what travels on, to NATS and to
//! peers, so its signature still verifies at the other end; the tree is what checks and canonical
//! bytes are made from.

use bytes::Bytes;

use super::address::{self, Address};
use super::canonical;
use super::json::{self, Json, JsonError, JsonErrorKind, Object};
use crate::identity::{SigningKey, b64};

/// Fields that must be there, sorted. `signature` is one of them and is the only one not signed.
pub const REQUIRED: [&str; 9] = [
    "from",
    "message_id",
    "nonce",
    "payload",
    "signature",
    "timestamp",
    "to",
    "type",
    "uam_version",
];

/// Every field that the agent's signature covers, sorted.
const SIGNED: [&str; 13] = [
    "expires",
    "from",
    "media_type",
    "message_id",
    "metadata",
    "nonce",
    "payload",
    "reply_to",
    "thread_id",
    "timestamp",
    "to",
    "type",
    "uam_version",
];

/// Largest envelope of the form with nonce, bytes of compact ASCII JSON.
pub const MAX_SIZE: usize = 65_536;
/// Bytes that one byte of text becomes at most as compact ASCII JSON: three for a character beyond
/// ASCII (two bytes become six, four twelve), under five for a number (`1e15`).
const GROWTH: usize = 6;

/// An envelope as received: an object with its own text. Which fields it has is checked by
/// [`super::verify`].
#[derive(Clone, Debug)]
pub struct Envelope {
    tree: Object,
    text: Bytes,
}

impl Envelope {
    /// Reads a text that is an envelope and nothing else.
    pub fn parse(text: Bytes) -> Result<Self, JsonError> {
        let start = text.len() - text.trim_ascii_start().len();
        let end = text.trim_ascii_end().len().max(start);
        match json::parse(&text)? {
            Json::Object(tree) => Ok(Self {
                tree,
                text: text.slice(start..end),
            }),
            _ => Err(JsonError {
                kind: JsonErrorKind::NotAnObject,
                at: start,
            }),
        }
    }

    /// From a tree and the text it was read from.
    pub(super) fn new(tree: Object, text: Bytes) -> Self {
        Self { tree, text }
    }

    /// The members.
    pub fn tree(&self) -> &Object {
        &self.tree
    }

    /// Its own text, as it stood in the request.
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// A member; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.tree.get(key).filter(|value| !value.is_null())
    }

    /// A member that is text.
    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Json::as_str)
    }

    /// `message_id`, the key of deduplication.
    pub fn message_id(&self) -> Option<&str> {
        self.text_of("message_id")
    }

    /// `from`, as written.
    pub fn from(&self) -> Option<&str> {
        self.text_of("from")
    }

    /// `to`, as written.
    pub fn to(&self) -> Option<&str> {
        self.text_of("to")
    }

    /// The two parts of `to`, if it is exactly `NAME::DOMAIN`.
    pub fn recipient(&self) -> Option<(&str, &str)> {
        self.to().and_then(address::split_recipient)
    }

    /// The two parts of `from`, if it is exactly `NAME::DOMAIN`.
    pub fn sender(&self) -> Option<(&str, &str)> {
        self.from().and_then(address::split_recipient)
    }

    /// `type`, one of the protocol's or anything else: relays do not check it.
    pub fn kind(&self) -> Option<&str> {
        self.text_of("type")
    }

    /// `timestamp`, as written.
    pub fn timestamp(&self) -> Option<&str> {
        self.text_of("timestamp")
    }

    /// `expires`, as written.
    pub fn expires(&self) -> Option<&str> {
        self.text_of("expires")
    }

    /// `signature`, as written.
    pub fn signature(&self) -> Option<&str> {
        self.text_of("signature")
    }

    /// `sender_key`, as written.
    pub fn sender_key(&self) -> Option<&str> {
        self.text_of("sender_key")
    }

    /// What the agent signs: the canonical bytes of the signed fields that are there and not null.
    pub fn signing_bytes(&self) -> String {
        canonical::canonical_members(
            SIGNED
                .iter()
                .filter_map(|key| self.get(key).map(|value| (*key, value))),
        )
    }

    /// Size by which relays limit it: compact ASCII JSON, everything included.
    pub fn size(&self) -> usize {
        canonical::compact_len(&self.tree)
    }

    /// Its size if that is more than [`MAX_SIZE`]. Only one that may be so large is written out to
    /// be measured: no byte of JSON becomes more than [`GROWTH`] in that form.
    pub fn excess(&self) -> Option<usize> {
        if self.text.len().saturating_mul(GROWTH) <= MAX_SIZE {
            return None;
        }
        Some(self.size()).filter(|size| *size > MAX_SIZE)
    }
}

/// An envelope to be made.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    pub from: &'a Address,
    pub to: &'a Address,
    /// `message`, `handshake.request`, …
    pub kind: &'a str,
    /// Base64 of the ciphertext, see [`super::payload`].
    pub payload: &'a str,
    /// By convention a UUIDv7, see [`message_id`].
    pub message_id: &'a str,
    /// [`super::time::format_ms`].
    pub timestamp: &'a str,
    /// Fresh random bytes; not the nonce of the cipher.
    pub nonce: &'a [u8; 24],
    pub thread_id: Option<&'a str>,
    pub reply_to: Option<&'a str>,
    pub expires: Option<&'a str>,
    pub media_type: Option<&'a str>,
}

/// The signed text of an envelope: the same draft and key give the same text.
pub fn build(draft: &Draft<'_>, key: &SigningKey) -> String {
    let mut tree = Object::new();
    let nonce = b64::encode(draft.nonce);
    for (name, value) in [
        ("uam_version", Some("0.1")),
        ("message_id", Some(draft.message_id)),
        ("from", Some(draft.from.as_str())),
        ("to", Some(draft.to.as_str())),
        ("timestamp", Some(draft.timestamp)),
        ("type", Some(draft.kind)),
        ("nonce", Some(nonce.as_str())),
        ("payload", Some(draft.payload)),
        ("thread_id", draft.thread_id),
        ("reply_to", draft.reply_to),
        ("expires", draft.expires),
        ("media_type", draft.media_type),
    ] {
        if let Some(value) = value {
            tree.insert(name.to_owned(), Json::String(value.to_owned()));
        }
    }
    let signature = key.sign(canonical::canonical(&tree).as_bytes());
    tree.insert("signature".to_owned(), Json::String(b64::encode(signature)));
    let mut text = String::with_capacity(1024);
    canonical::write_object(&tree, &mut text);
    text
}

/// A UUIDv7: 48 bits of time, then random bits.
pub fn message_id(now_ms: crate::clock::UnixMs, random: &[u8; 10]) -> String {
    let [_, _, t0, t1, t2, t3, t4, t5] = now_ms.max(0).to_be_bytes();
    let [r0, r1, r2, node @ ..] = *random;
    let hex = |bytes: &[u8]| crate::identity::hex(bytes);
    format!(
        "{}-{}-{}-{}{}-{}",
        hex(&[t0, t1, t2, t3]),
        hex(&[t4, t5]),
        hex(&[(r0 & 0x0f) | 0x70, r1]),
        hex(&[(r2 & 0x3f) | 0x80]),
        hex(node.get(..1).unwrap_or_default()),
        hex(node.get(1..).unwrap_or_default()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft<'a>(from: &'a Address, to: &'a Address) -> Draft<'a> {
        Draft {
            from,
            to,
            kind: "message",
            payload: "AAAA",
            message_id: "01968b2e-0000-7000-8000-000000000001",
            timestamp: "2026-05-01T11:59:58.250Z",
            nonce: &[0; 24],
            thread_id: Some("thr-1"),
            reply_to: None,
            expires: None,
            media_type: None,
        }
    }

    #[test]
    fn a_built_envelope_verifies_and_is_the_same_each_time() {
        let key = SigningKey::from_seed([1; 32]);
        let (from, to) = (
            Address::parse("a::x.test").unwrap(),
            Address::parse("b::y.test").unwrap(),
        );
        let text = build(&draft(&from, &to), &key);
        assert_eq!(text, build(&draft(&from, &to), &key));
        let envelope = Envelope::parse(Bytes::from(text)).unwrap();
        let signature = b64::decode(envelope.signature().unwrap()).unwrap();
        assert!(
            key.public()
                .verify(envelope.signing_bytes().as_bytes(), &signature)
                .is_ok()
        );
        assert_eq!(envelope.recipient(), Some(("b", "y.test")));
    }

    #[test]
    fn the_text_is_kept_as_it_stood() {
        let envelope = Envelope::parse(Bytes::from_static(b" {\"a\" : 1.0 }\n")).unwrap();
        assert_eq!(&envelope.text()[..], b"{\"a\" : 1.0 }");
    }

    #[test]
    fn a_message_id_is_a_version_7_uuid_that_begins_with_the_time() {
        let id = message_id(0x0196_8b2e_0000, &[0xff; 10]);
        assert_eq!(id, "01968b2e-0000-7fff-bfff-ffffffffffff");
    }
}
