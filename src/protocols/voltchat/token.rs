//! The token that proves a request: what it says, and an HMAC of it under the shared secret.
//!
//! What is verified are the bytes as they were sent, with the signature cut off the end, so every
//! token a mainline makes holds, whatever its name contains. Beyond what a mainline asks, the host in
//! the token must be the one claimed, its time must be near ours and it must carry a nonce, by which
//! the caller tells a token used twice. Who claims a host that we do not know costs as much work and
//! gets the same answer.

use std::fmt::Write as _;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::host;
use crate::clock::UnixMs;
use crate::identity::hmac::SharedSecret;
use crate::identity::{Proof, b64, hex};

/// A token older than this is refused, ms.
pub const MAX_AGE_MS: i64 = 300_000;
/// A token whose time is further ahead of ours than this is refused, ms.
pub const MAX_AHEAD_MS: i64 = 60_000;
/// Most characters of a token.
pub const MAX_TOKEN: usize = 8192;

/// What stands between the signed text and the 64 digits of the signature.
const SIGNATURE: &str = ",\"signature\":\"";

/// Who sends a request.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Our own id for the receiver.
    pub peer_id: &'a str,
    /// Our host.
    pub host: &'a str,
    /// Our display name.
    pub name: &'a str,
}

/// A token for one request. `nonce`: from [`fresh_nonce`], never used before.
pub fn make(secret: &SharedSecret, from: &Sender<'_>, now_ms: UnixMs, nonce: &str) -> String {
    let name: Vec<u16> = from.name.encode_utf16().collect();
    let name = Name::Units(&name);
    let text = signed_text(from.peer_id, from.host, name, now_ms, nonce);
    sealed(secret, &text)
}

/// 32 lower-case hex digits.
pub fn fresh_nonce() -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)?;
    Ok(hex(&bytes))
}

/// A sender's display name, as far as a mainline can have one.
#[derive(Clone, Copy, Debug)]
pub enum Name<'a> {
    /// In UTF-16, which may hold half a surrogate pair.
    Units(&'a [u16]),
    /// Configured as null.
    Null,
    /// Not configured: the member is missing.
    Absent,
}

/// What a token signs, as ECMAScript writes it.
pub fn signed_text(
    peer_id: &str,
    host: &str,
    name: Name<'_>,
    timestamp_ms: UnixMs,
    nonce: &str,
) -> String {
    let mut text = String::with_capacity(192);
    text.push_str("{\"peerId\":");
    quote(&mut text, peer_id.encode_utf16());
    text.push_str(",\"host\":");
    quote(&mut text, host.encode_utf16());
    match name {
        Name::Units(name) => {
            text.push_str(",\"name\":");
            quote(&mut text, name.iter().copied());
        }
        Name::Null => text.push_str(",\"name\":null"),
        Name::Absent => {}
    }
    text.push_str(",\"timestamp\":");
    text.push_str(&timestamp_ms.to_string());
    text.push_str(",\"nonce\":");
    quote(&mut text, nonce.encode_utf16());
    text.push('}');
    text
}

/// The token of a JSON object that holds something: its signature as last member, base64url.
pub fn sealed(secret: &SharedSecret, signed_text: &str) -> String {
    let signature = hex(&secret.mac(signed_text.as_bytes()));
    let open = signed_text.strip_suffix('}').unwrap_or(signed_text);
    b64::encode(format!("{open}{SIGNATURE}{signature}\"}}"))
}

/// Appends a JSON string as ECMAScript writes it: escapes for `"`, `\` and control characters only,
/// and for half a surrogate pair.
fn quote(out: &mut String, text: impl Iterator<Item = u16>) {
    out.push('"');
    for unit in char::decode_utf16(text) {
        match unit {
            Ok('"') => out.push_str("\\\""),
            Ok('\\') => out.push_str("\\\\"),
            Ok('\u{8}') => out.push_str("\\b"),
            Ok('\t') => out.push_str("\\t"),
            Ok('\n') => out.push_str("\\n"),
            Ok('\u{c}') => out.push_str("\\f"),
            Ok('\r') => out.push_str("\\r"),
            Ok(c) if c < ' ' => escape(out, c as u16),
            Ok(c) => out.push(c),
            Err(half) => escape(out, half.unpaired_surrogate()),
        }
    }
    out.push('"');
}

fn escape(out: &mut String, unit: u16) {
    // Writing to a String never fails.
    let _ = write!(out, "\\u{unit:04x}");
}

/// A token that held.
#[derive(Debug)]
pub struct Accepted {
    /// That it held.
    pub proof: Proof,
    /// The nonce in bytes, at most 64: a second token of this peer with the same one is a replay.
    pub nonce: Vec<u8>,
    /// When it was made, by the sender's clock.
    pub timestamp_ms: UnixMs,
    /// The sender's id for us.
    pub peer_id: Option<String>,
}

/// Why a token is refused: for logs and operators; a peer always gets the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("the token is longer than {MAX_TOKEN} characters")]
    TooLong,
    #[error("the token is not base64url of UTF-8 text")]
    NotText,
    #[error("the token does not end with a signature of 64 hex digits")]
    NoSignature,
    #[error("no peer of that name shares a secret with us")]
    UnknownHost,
    #[error("the signature does not match: the peer signs with another secret")]
    Mismatch,
    #[error("the signed text is no JSON object")]
    NotJson,
    #[error("the token was made for another host than the one claimed")]
    OtherHost,
    #[error("the time in the token is missing or not a number")]
    NoTimestamp,
    #[error("the token is older than 5 minutes; compare the clocks of both servers")]
    Expired,
    #[error("the time in the token is over a minute ahead; compare the clocks of both servers")]
    Ahead,
    #[error("the token has no nonce")]
    NoNonce,
}

/// Members of a token; each as it stands, so that what we do not read need not be readable.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow, rename = "peerId")]
    peer_id: Option<&'a RawValue>,
    #[serde(borrow)]
    host: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    nonce: Option<&'a RawValue>,
}

/// Verifies a token. `secret`: what we share with the claimed host; None: nothing. `claimed_host`:
/// in its one form ([`host::normal`]).
pub fn verify(
    secret: Option<&SharedSecret>,
    claimed_host: &str,
    token: &str,
    now_ms: UnixMs,
) -> Result<Accepted, Why> {
    let text = decoded(token)?;
    let (signed, signature) = apart(&text)?;
    let proof = match secret {
        Some(secret) => secret
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| Why::Mismatch)?,
        None => {
            if let Some(nobodys) = &*NOBODYS {
                // The same work as for a known host, whatever comes of it.
                let _ = nobodys.verify(signed.as_bytes(), &signature);
            }
            return Err(Why::UnknownHost);
        }
    };
    let claims: Claims<'_> = serde_json::from_str(&signed).map_err(|_| Why::NotJson)?;
    if string(claims.host).is_none_or(|said| host::normal(&said) != claimed_host) {
        return Err(Why::OtherHost);
    }
    let stamp = claims
        .timestamp
        .and_then(|raw| serde_json::from_str::<f64>(raw.get()).ok())
        .ok_or(Why::NoTimestamp)?;
    let age = now_ms as f64 - stamp;
    if age > MAX_AGE_MS as f64 {
        return Err(Why::Expired);
    }
    if age < -(MAX_AHEAD_MS as f64) {
        return Err(Why::Ahead);
    }
    let nonce = string(claims.nonce)
        .filter(|nonce| !nonce.is_empty())
        .ok_or(Why::NoNonce)?;
    Ok(Accepted {
        proof,
        nonce: nonce_bytes(&nonce),
        // Near our own time, as was just seen.
        timestamp_ms: stamp.ceil() as UnixMs,
        peer_id: string(claims.peer_id),
    })
}

/// The host a token says it is from, in its one form. Nothing proves it.
pub fn claimed_host(token: &str) -> Option<String> {
    let text = decoded(token).ok()?;
    let claims: Claims<'_> = serde_json::from_str(&text).ok()?;
    Some(host::normal(&string(claims.host)?))
}

/// A secret that nobody shares with us.
static NOBODYS: LazyLock<Option<SharedSecret>> = LazyLock::new(|| SharedSecret::generate().ok());

/// The text of a token.
fn decoded(token: &str) -> Result<String, Why> {
    if token.len() > MAX_TOKEN {
        return Err(Why::TooLong);
    }
    let bytes = b64::decode(token).map_err(|_| Why::NotText)?;
    String::from_utf8(bytes).map_err(|_| Why::NotText)
}

/// The signed text and the signature at its end. A quote inside of a string is escaped, so the
/// signature found is a member and no part of another.
fn apart(text: &str) -> Result<(String, [u8; 32]), Why> {
    let rest = text.strip_suffix("\"}").ok_or(Why::NoSignature)?;
    let (rest, digits) = rest
        .split_at_checked(rest.len().wrapping_sub(64))
        .ok_or(Why::NoSignature)?;
    let open = rest.strip_suffix(SIGNATURE).ok_or(Why::NoSignature)?;
    let mut signature = [0u8; 32];
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    let pairs = digits.as_bytes().as_chunks().0;
    for (byte, [high, low]) in signature.iter_mut().zip(pairs) {
        let (high, low) = nibble(*high).zip(nibble(*low)).ok_or(Why::NoSignature)?;
        *byte = u8::try_from(high * 16 + low).map_err(|_| Why::NoSignature)?;
    }
    Ok((format!("{open}}}"), signature))
}

/// A member that is a text.
fn string(raw: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(raw?.get()).ok()
}

/// A nonce as it is remembered: its bytes, or their hash if there are many.
fn nonce_bytes(nonce: &str) -> Vec<u8> {
    if nonce.len() <= 64 {
        nonce.as_bytes().to_vec()
    } else {
        Sha256::digest(nonce.as_bytes()).to_vec()
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
