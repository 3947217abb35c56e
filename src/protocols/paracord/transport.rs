//! The signature of a request: what is signed, and what proves it (sheet, 3).
//!
//! A reference receiver hashes the body as it would write it itself. Ours tries the bytes it received
//! first and that normal form next, so that whoever signs what it sends is understood too.

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use url::Url;

use super::{BASE, hexes};
use crate::clock::UnixMs;
use crate::identity::{Proof, PublicKey, SigningKey, hex};

/// The sender's server name.
pub const ORIGIN: HeaderName = HeaderName::from_static("x-paracord-origin");
/// Which of its keys signed.
pub const KEY_ID: HeaderName = HeaderName::from_static("x-paracord-key-id");
/// When, Unix milliseconds.
pub const TIMESTAMP: HeaderName = HeaderName::from_static("x-paracord-timestamp");
/// 128 hex digits.
pub const SIGNATURE: HeaderName = HeaderName::from_static("x-paracord-signature");

/// How far a request's time may be from ours, either way, milliseconds; exactly this still passes.
pub const MAX_SKEW_MS: u64 = 60_000;

/// The text that a request's signature covers.
pub fn string_to_sign(method: &str, path: &str, timestamp_ms: UnixMs, body: &[u8]) -> String {
    let method = method.to_ascii_uppercase();
    let body = hex(&Sha256::digest(body));
    format!("{method}\n{path}\n{timestamp_ms}\n{body}")
}

/// The four headers of a request of ours. A name or key id that cannot stand in a header is left out
/// (settings are checked for that), and the request is refused for its absence.
pub fn headers(
    own: &str,
    key_id: &str,
    key: &SigningKey,
    method: &str,
    path: &str,
    timestamp_ms: UnixMs,
    body: &[u8],
) -> HeaderMap {
    let text = string_to_sign(method, path, timestamp_ms, body);
    let signature = hex(&key.sign(text.as_bytes()));
    let mut headers = HeaderMap::with_capacity(4);
    for (name, value) in [
        (ORIGIN, own),
        (KEY_ID, key_id),
        (TIMESTAMP, &timestamp_ms.to_string()),
        (SIGNATURE, &signature),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    headers
}

/// The path a reference server signs for a URL: its path and query, normalised. None: no absolute
/// URL.
pub fn signed_path(url: &str) -> Option<String> {
    let url = Url::parse(url).ok().filter(Url::has_host)?;
    Some(with_query(url.path(), &url))
}

/// The path we sign: as a server behind a reverse proxy sees it, so without a prefix in front of the
/// protocol's own part of it. None: no absolute URL.
pub fn live_path(url: &str) -> Option<String> {
    let url = Url::parse(url).ok().filter(Url::has_host)?;
    let path = url.path();
    let start = [BASE, "/.well-known/"]
        .iter()
        .filter_map(|own| path.find(own))
        .min()
        .unwrap_or(0);
    Some(with_query(path.get(start..)?, &url))
}

fn with_query(path: &str, url: &Url) -> String {
    match url.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// What a request says of who signed it. Nothing of it is proven yet.
#[derive(Clone, Debug)]
pub struct Claim {
    /// As it is written; compared byte for byte.
    pub origin: String,
    pub key_id: String,
    pub timestamp_ms: UnixMs,
    /// None: no 128 hex digits, so nothing that can prove anything.
    pub signature: Option<[u8; 64]>,
}

impl Claim {
    /// Reads the four headers. The error is the name of the one that is missing, empty or no number.
    pub fn read(headers: &HeaderMap) -> Result<Self, &'static str> {
        let timestamp = value(headers, &TIMESTAMP);
        let origin = value(headers, &ORIGIN).ok_or("X-Paracord-Origin")?;
        let key_id = value(headers, &KEY_ID).ok_or("X-Paracord-Key-Id")?;
        let timestamp_ms = timestamp
            .and_then(|text| text.parse().ok())
            .ok_or("X-Paracord-Timestamp")?;
        let signature = value(headers, &SIGNATURE).ok_or("X-Paracord-Signature")?;
        Ok(Self {
            origin: origin.to_owned(),
            key_id: key_id.to_owned(),
            timestamp_ms,
            signature: hexes::decode(signature),
        })
    }

    /// Whether its time is near enough to ours.
    pub fn in_time(&self, now: UnixMs) -> bool {
        now.abs_diff(self.timestamp_ms) <= MAX_SKEW_MS
    }

    /// Whether the key signed this request: over the body received, else over its normal form.
    pub fn proves(
        &self,
        key: &PublicKey,
        method: &str,
        path: &str,
        received: &[u8],
        normal: Option<&[u8]>,
    ) -> Option<Proof> {
        let signature = self.signature?;
        let over = |body: &[u8]| {
            let text = string_to_sign(method, path, self.timestamp_ms, body);
            key.verify(text.as_bytes(), &signature).ok()
        };
        over(received).or_else(|| over(normal.filter(|normal| *normal != received)?))
    }
}

/// The first value under the name, trimmed; an empty one counts as missing.
fn value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then_some(value)
}
