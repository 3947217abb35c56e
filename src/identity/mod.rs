//! Ed25519 keys, and the proof that a signature held.

use std::path::Path;

/// Evidence that an Ed25519 signature was verified. Only [`PublicKey::verify`] makes one.
#[derive(Debug)]
pub struct Proof(());

/// A remote key, parsed once; small-order keys do not become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {}

/// Why a key or signature is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a valid Ed25519 public key")]
    BadKey,
    #[error("the key is of small order")]
    SmallOrder,
    #[error("the signature is not 64 bytes")]
    BadLength,
    #[error("the signature does not match")]
    Mismatch,
}

#[allow(unused_variables)]
impl PublicKey {
    /// Parses 32 bytes; refuses small-order points.
    pub fn parse(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        todo!()
    }
    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        todo!()
    }
    /// `verify_strict`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<Proof, KeyError> {
        todo!()
    }
    /// Hex SHA-256 of the 32 key bytes.
    pub fn fingerprint(&self) -> String {
        todo!()
    }
}

/// Our own signing key; zeroised when dropped, never printed.
#[derive(Clone)]
pub struct SigningKey {}

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

#[allow(unused_variables)]
impl SigningKey {
    /// From a 32-byte seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        todo!()
    }
    /// Reads the file (one line, base64 of the 32-byte seed, mode 0600), or makes it (0600, fsynced,
    /// by a temporary name and link, never overwriting).
    pub fn load_or_create(path: &Path) -> Result<(Self, KeyOrigin), KeyFileError> {
        todo!()
    }
    /// Signs.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        todo!()
    }
    /// Its public half.
    pub fn public(&self) -> PublicKey {
        todo!()
    }
}
