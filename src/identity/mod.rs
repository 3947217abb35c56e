//! Keys and shared secrets, and the proof that a signature or a MAC held.
//!
//! Verification is strict: a scalar not below the group order, a small-order point and a key in
//! non-canonical form are refused, so that every verifier agrees on what a signature proves.
//! [`Proof`] can be made by [`PublicKey::verify`] and [`hmac::verify`] alone; what demands one
//! cannot be reached by an event that nobody checked.

pub mod b64;
pub mod hmac;
mod keyfile;
pub mod ring;
pub mod units;
pub mod vault;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ed25519_dalek::{Signature, Signer, VerifyingKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::protocol::Answer;

/// Evidence that an Ed25519 signature or an HMAC was verified, or that a server we asked by its name
/// answered. Only [`PublicKey::verify`], [`hmac::verify`] and [`Proof::of_server`] make
/// one.
#[derive(Debug)]
pub struct Proof(());

impl Proof {
    /// Of what stands in an answer: the outgoing client takes none from a server that did not show a
    /// certificate for the name it was asked by (but where the configuration does without TLS).
    pub(crate) fn of_server(_answer: &Answer) -> Self {
        Self(())
    }
}

/// A remote key, parsed once; small-order keys do not become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// Why a key or signature is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a valid Ed25519 public key")]
    BadKey,
    #[error("the key is of small order")]
    SmallOrder,
    #[error("the signature is not 64 bytes")]
    BadLength,
    #[error("the message authentication code is not 32 bytes")]
    BadMac,
    #[error("the signature does not match")]
    Mismatch,
}

impl PublicKey {
    /// Parses 32 bytes; refuses small-order points and non-canonical encodings.
    pub fn parse(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::BadKey)?;
        if key.is_weak() {
            return Err(KeyError::SmallOrder);
        }
        if key.to_edwards().compress().to_bytes() != *bytes {
            return Err(KeyError::BadKey);
        }
        Ok(Self(key))
    }

    /// Parses the wire form: base64 of the 32 bytes ([`b64::decode`]).
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Self::parse(&b64::decode_array(text).map_err(|_| KeyError::BadKey)?)
    }

    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The wire form: URL-safe base64 without padding, 43 characters.
    pub fn to_base64(&self) -> String {
        b64::encode(self.0.as_bytes())
    }

    /// `verify_strict`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<Proof, KeyError> {
        let signature: &[u8; 64] = signature.try_into().map_err(|_| KeyError::BadLength)?;
        self.0
            .verify_strict(message, &Signature::from_bytes(signature))
            .map(|()| Proof(()))
            .map_err(|_| KeyError::Mismatch)
    }

    /// Hex SHA-256 of the 32 key bytes.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(self.0.as_bytes()))
    }

    /// The X25519 key of the same point, for NaCl boxes.
    pub fn to_x25519(&self) -> [u8; 32] {
        self.0.to_montgomery().to_bytes()
    }
}

/// Our own signing key; zeroised when dropped, never printed. Cloning shares it.
#[derive(Clone)]
pub struct SigningKey(Arc<ed25519_dalek::SigningKey>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().fingerprint())
    }
}

/// What a file with a signing key is worth, for the sentences about it.
const IDENTITY: keyfile::Purpose = keyfile::Purpose {
    exposed: "the relay's identity",
    lost: "moving it away makes a new identity, which peers must learn first",
};

/// How a new key file is written; either form is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyText {
    /// URL-safe base64 without padding.
    Base64,
    /// 64 lower-case hex digits.
    Hex,
}

/// What [`SigningKey::load_or_create`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrigin {
    Loaded,
    Created,
}

/// Why a key file cannot be used: a sentence that names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeyFileError(pub String);

impl SigningKey {
    /// From a 32-byte seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        Self(Arc::new(ed25519_dalek::SigningKey::from_bytes(&seed)))
    }

    /// A fresh key that is kept nowhere (demo, probes).
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut seed[..])?;
        Ok(Self(Arc::new(ed25519_dalek::SigningKey::from_bytes(&seed))))
    }

    /// Reads the file (one line, base64 or hex of the 32-byte seed, mode 0600), or makes it (base64,
    /// 0600, fsynced, by a temporary name and link, never overwriting).
    pub fn load_or_create(path: &Path) -> Result<(Self, KeyOrigin), KeyFileError> {
        Self::load_or_create_as(path, KeyText::Base64)
    }

    /// The same, with a new file in this form.
    pub fn load_or_create_as(
        path: &Path,
        text: KeyText,
    ) -> Result<(Self, KeyOrigin), KeyFileError> {
        let (seed, origin) = keyfile::load_or_create(path, &IDENTITY, text)?;
        Ok((
            Self(Arc::new(ed25519_dalek::SigningKey::from_bytes(&seed))),
            origin,
        ))
    }

    /// Reads the file; `None`: there is none. Makes nothing.
    pub fn load(path: &Path) -> Result<Option<Self>, KeyFileError> {
        let seed = keyfile::load(path, &IDENTITY)?;
        Ok(seed.map(|seed| Self(Arc::new(ed25519_dalek::SigningKey::from_bytes(&seed)))))
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The X25519 secret of the same key, for NaCl boxes.
    pub fn to_x25519(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_scalar_bytes())
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    let digit = |four: u8| {
        DIGITS
            .get(usize::from(four))
            .map_or('0', |d| char::from(*d))
    };
    for b in bytes {
        text.push(digit(b >> 4));
        text.push(digit(b & 15));
    }
    text
}

/// Bytes of hex in either case: exactly `2 * N` digits and nothing else.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N.checked_mul(2)? {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    };
    let mut bytes = [0u8; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks().0) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_proves_its_own_message_only() {
        let key = SigningKey::from_seed([3; 32]);
        let public = PublicKey::parse(&key.public().to_bytes()).unwrap();
        let signature = key.sign(b"hello");
        assert!(public.verify(b"hello", &signature).is_ok());
        assert_eq!(
            public.verify(b"hallo", &signature).unwrap_err(),
            KeyError::Mismatch
        );
        assert_eq!(
            public.verify(b"hello", &signature[..63]).unwrap_err(),
            KeyError::BadLength
        );
    }

    #[test]
    fn a_scalar_not_below_the_group_order_is_refused() {
        // L, little endian, added to S: the same signature to a lax verifier.
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let key = SigningKey::from_seed([4; 32]);
        let mut signature = key.sign(b"m");
        let mut carry = 0u16;
        for (s, l) in signature[32..].iter_mut().zip(L) {
            let sum = u16::from(*s) + u16::from(l) + carry;
            *s = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
        assert_eq!(
            key.public().verify(b"m", &signature).unwrap_err(),
            KeyError::Mismatch
        );
    }

    #[test]
    fn small_order_and_non_canonical_keys_do_not_become_a_key() {
        let mut neutral = [0u8; 32];
        neutral[0] = 1;
        assert_eq!(PublicKey::parse(&neutral), Err(KeyError::SmallOrder));
        assert_eq!(PublicKey::parse(&[0; 32]), Err(KeyError::SmallOrder));
        // y = p + 3 is y = 3 written differently.
        let mut high = [0xffu8; 32];
        high[0] = 0xf0;
        high[31] = 0x7f;
        assert!(PublicKey::parse(&high).is_err());
    }

    #[test]
    fn hex_is_read_in_either_case_at_its_exact_length_and_without_signs() {
        assert_eq!(unhex::<3>("00aBFf"), Some([0x00, 0xab, 0xff]));
        for wrong in [
            "00aBF", "00aBFf0", "+0aBFf", " 0aBFf", "00aBFg", "äaBFf", "",
        ] {
            assert_eq!(unhex::<3>(wrong), None, "{wrong:?}");
        }
        assert_eq!(unhex::<2>(&hex(&[0x12, 0xef])), Some([0x12, 0xef]));
    }

    #[test]
    fn debug_output_never_holds_the_seed() {
        let key = SigningKey::from_seed([9; 32]);
        let shown = format!("{key:?}");
        assert!(!shown.contains(&hex(&[9; 32])) && !shown.contains(&b64::encode([9; 32])));
    }
}
