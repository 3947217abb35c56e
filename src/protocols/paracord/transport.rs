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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = 1_700_000_000_000;
    const PATH: &str = "/_paracord/federation/v1/event";

    fn key() -> SigningKey {
        SigningKey::from_seed([1; 32])
    }

    fn signed(body: &[u8]) -> HeaderMap {
        headers("a.example", "ed25519:k", &key(), "POST", PATH, NOW, body)
    }

    #[test]
    fn a_request_of_ours_is_proven_over_its_bytes_or_their_normal_form() {
        let claim = Claim::read(&signed(b"{}")).expect("four headers");
        let proves = |method: &str, path: &str, received: &[u8], normal: Option<&[u8]>| {
            let proof = claim.proves(&key().public(), method, path, received, normal);
            proof.is_some()
        };
        assert!(proves("post", PATH, b"{}", None));
        assert!(proves("POST", PATH, b"{ }", Some(b"{}")));
        assert!(proves("POST", PATH, b"{}", Some(b"{ }")));
        assert!(!proves("POST", PATH, b"{ }", Some(b"{ }")));
        assert!(!proves("GET", PATH, b"{}", None));
        assert!(!proves(
            "POST",
            "/_paracord/federation/v1/event/",
            b"{}",
            None
        ));
        let other = SigningKey::from_seed([2; 32]).public();
        assert!(claim.proves(&other, "POST", PATH, b"{}", None).is_none());
    }

    #[test]
    fn the_first_header_that_cannot_be_used_is_named() {
        for name in [ORIGIN, KEY_ID, TIMESTAMP, SIGNATURE] {
            let mut absent = signed(b"");
            absent.remove(&name);
            let mut empty = signed(b"");
            empty.insert(&name, HeaderValue::from_static("  "));
            for headers in [absent, empty] {
                let named = Claim::read(&headers).expect_err("refused");
                assert!(named.eq_ignore_ascii_case(name.as_str()), "{named}");
            }
        }
        let mut headers = signed(b"");
        for text in ["soon", "1.0", "9223372036854775808"] {
            headers.insert(TIMESTAMP, HeaderValue::from_static(text));
            assert_eq!(Claim::read(&headers).unwrap_err(), "X-Paracord-Timestamp");
        }
        headers.insert(TIMESTAMP, HeaderValue::from_static(" +0017 "));
        assert_eq!(Claim::read(&headers).expect("read").timestamp_ms, 17);
    }

    #[test]
    fn sixty_seconds_either_way_pass_and_extremes_do_not_overflow() {
        let mut claim = Claim::read(&signed(b"")).expect("four headers");
        for (timestamp_ms, good) in [
            (NOW - 60_000, true),
            (NOW - 60_001, false),
            (NOW + 60_000, true),
            (NOW + 60_001, false),
            (i64::MIN, false),
            (i64::MAX, false),
        ] {
            claim.timestamp_ms = timestamp_ms;
            assert_eq!(claim.in_time(NOW), good, "{timestamp_ms}");
        }
    }

    #[test]
    fn a_signature_that_is_no_hex_proves_nothing_and_either_case_is_the_same() {
        let mut headers = signed(b"");
        let text = headers[SIGNATURE].to_str().expect("text").to_owned();
        let upper = text.to_ascii_uppercase();
        headers.insert(SIGNATURE, HeaderValue::from_str(&upper).expect("a value"));
        let of_upper = Claim::read(&headers).expect("read").signature;
        assert_eq!(of_upper, hexes::decode(&text));
        assert!(of_upper.is_some());
        headers.insert(SIGNATURE, HeaderValue::from_static("+0"));
        let claim = Claim::read(&headers).expect("there is one");
        let key = key().public();
        assert!(claim.signature.is_none() && claim.proves(&key, "POST", PATH, b"", None).is_none());
    }

    #[test]
    fn a_prefix_in_front_of_the_routes_is_not_signed_by_us() {
        let live = |url: &str| live_path(url).expect("a URL");
        let events = "/_paracord/federation/v1/events?room_id=!3:x&limit=1";
        assert_eq!(live(&format!("https://b.example{events}")), events);
        assert_eq!(live(&format!("https://b.example/pre/fix{events}")), events);
        assert_eq!(
            live("https://b.example/p/.well-known/paracord/server"),
            "/.well-known/paracord/server"
        );
        assert_eq!(live("https://b.example/other?x"), "/other?x");
        assert_eq!(live_path("no url"), None);
        assert_eq!(live_path("mailto:a@b.example"), None);
    }
}
