//! The end-to-end payload, which relays never open: the bridge needs it only where it speaks as an
//! agent itself (`demo`, `send`, tests).
//!
//! A `handshake.request` is a NaCl SealedBox to the recipient, every other type a NaCl Box: 24 bytes
//! of nonce, then the ciphertext. The X25519 keys are the converted Ed25519 keys.

use crypto_box::aead::{Aead, OsRng};
use crypto_box::{PublicKey as BoxPublic, SalsaBox, SecretKey as BoxSecret};

use crate::identity::{PublicKey, SigningKey, b64};

const NONCE: usize = 24;

/// Why a payload cannot be made or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("the payload is not base64")]
    Encoding,
    #[error("the payload is too short to be a box")]
    Short,
    #[error("the payload does not open with these keys")]
    Closed,
    #[error("the payload could not be encrypted")]
    Seal,
}

/// How a payload is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// NaCl Box: both keys.
    Box,
    /// NaCl SealedBox: the recipient's key only.
    Sealed,
}

impl Scheme {
    /// The scheme for an envelope's `type`.
    pub fn of(kind: &str) -> Self {
        if kind == "handshake.request" {
            Self::Sealed
        } else {
            Self::Box
        }
    }
}

/// Encrypts for `recipient`; the same arguments give the same text. A nonce is used once.
pub fn seal_box(
    plaintext: &[u8],
    sender: &SigningKey,
    recipient: &PublicKey,
    nonce: &[u8; NONCE],
) -> Result<String, PayloadError> {
    let cipher = salsa(sender, recipient)
        .encrypt(&(*nonce).into(), plaintext)
        .map_err(|_| PayloadError::Seal)?;
    let mut whole = Vec::with_capacity(NONCE + cipher.len());
    whole.extend_from_slice(nonce);
    whole.extend_from_slice(&cipher);
    Ok(b64::encode(whole))
}

/// Opens what `sender` encrypted for us.
pub fn open_box(
    payload: &str,
    recipient: &SigningKey,
    sender: &PublicKey,
) -> Result<Vec<u8>, PayloadError> {
    let whole = b64::decode(payload).map_err(|_| PayloadError::Encoding)?;
    let (nonce, cipher) = whole
        .split_first_chunk::<NONCE>()
        .ok_or(PayloadError::Short)?;
    salsa(recipient, sender)
        .decrypt(&(*nonce).into(), cipher)
        .map_err(|_| PayloadError::Closed)
}

/// Encrypts for `recipient` under a fresh key that is thrown away: anybody could have written it.
pub fn seal_anonymous(plaintext: &[u8], recipient: &PublicKey) -> Result<String, PayloadError> {
    BoxPublic::from_bytes(recipient.to_x25519())
        .seal(&mut OsRng, plaintext)
        .map(b64::encode)
        .map_err(|_| PayloadError::Seal)
}

/// Opens what anybody encrypted for us.
pub fn open_anonymous(payload: &str, recipient: &SigningKey) -> Result<Vec<u8>, PayloadError> {
    let whole = b64::decode(payload).map_err(|_| PayloadError::Encoding)?;
    BoxSecret::from_bytes(*recipient.to_x25519())
        .unseal(&whole)
        .map_err(|_| PayloadError::Closed)
}

fn salsa(own: &SigningKey, other: &PublicKey) -> SalsaBox {
    SalsaBox::new(
        &BoxPublic::from_bytes(other.to_x25519()),
        &BoxSecret::from_bytes(*own.to_x25519()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_opens_for_the_recipient_and_nobody_else() {
        let [a, b, c] = [1, 2, 3].map(|n| SigningKey::from_seed([n; 32]));
        let sealed = seal_box(b"hello", &a, &b.public(), &[9; 24]).unwrap();
        assert_eq!(open_box(&sealed, &b, &a.public()).unwrap(), b"hello");
        assert_eq!(
            open_box(&sealed, &c, &a.public()),
            Err(PayloadError::Closed)
        );
        assert_eq!(
            open_box(&sealed, &b, &c.public()),
            Err(PayloadError::Closed)
        );
        assert_eq!(open_box("AAAA", &b, &a.public()), Err(PayloadError::Short));
        assert_eq!(open_box("?", &b, &a.public()), Err(PayloadError::Encoding));
    }

    #[test]
    fn a_sealed_box_opens_for_the_recipient() {
        let [a, b] = [1, 2].map(|n| SigningKey::from_seed([n; 32]));
        let sealed = seal_anonymous(b"card", &b.public()).unwrap();
        assert_eq!(open_anonymous(&sealed, &b).unwrap(), b"card");
        assert_eq!(open_anonymous(&sealed, &a), Err(PayloadError::Closed));
        assert_eq!(Scheme::of("handshake.request"), Scheme::Sealed);
        assert_eq!(Scheme::of("message"), Scheme::Box);
    }
}
