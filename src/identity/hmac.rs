//! Secrets that two servers share, and what HMAC-SHA256 under one of them proves.
//!
//! The key is the secret's text as UTF-8, never decoded. A comparison takes as long for a wrong
//! value as for a right one, and a secret shows in no log and no error.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{KeyError, Proof, hex, units};

/// A secret shared with one other server; zeroised when the last copy is dropped, never printed.
/// Cloning shares it.
#[derive(Clone)]
pub struct SharedSecret(Arc<Zeroizing<String>>);

impl SharedSecret {
    /// Fewest UTF-16 units of a secret.
    pub const MIN_UNITS: usize = 16;
    /// Most UTF-16 units; what is longer is cut to it.
    pub const MAX_UNITS: usize = 512;

    /// A secret as another server or a person wrote it: trimmed and cut to 512 UTF-16 units. None:
    /// it has fewer than 16.
    pub fn new(text: &str) -> Option<Self> {
        let text = Zeroizing::new(units::cut(text, Self::MAX_UNITS));
        (units::units(&text) >= Self::MIN_UNITS).then(|| Self(Arc::new(text)))
    }

    /// A secret as it was kept, taken as it stands.
    pub fn stored(text: &str) -> Self {
        Self(Arc::new(Zeroizing::new(text.to_owned())))
    }

    /// A fresh one: 64 lower-case hex digits.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut bytes[..])?;
        Ok(Self(Arc::new(Zeroizing::new(hex(&bytes[..])))))
    }

    /// The text, to be sent to the other server or sealed.
    pub fn as_text(&self) -> &str {
        &self.0
    }

    /// HMAC-SHA256 of these bytes.
    pub fn mac(&self, bytes: &[u8]) -> [u8; 32] {
        keyed(self.0.as_bytes(), bytes).map_or([0; 32], |mac| {
            let mut out = [0; 32];
            out.copy_from_slice(&mac.finalize().into_bytes());
            out
        })
    }

    /// Whether `mac` is the HMAC-SHA256 of these bytes, in constant time.
    pub fn verify(&self, bytes: &[u8], mac: &[u8]) -> Result<Proof, KeyError> {
        verify(self.0.as_bytes(), bytes, mac)
    }

    /// Whether the other text is this secret, in constant time: their MACs under this one are
    /// compared. The other text is taken as it stands.
    pub fn same(&self, other: &str) -> bool {
        self.verify(self.as_text().as_bytes(), &self.mac(other.as_bytes()))
            .is_ok()
    }
}

/// HMAC takes a key of any length, so there is always one.
fn keyed(key: &[u8], bytes: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(bytes);
    Some(mac)
}

/// Whether `mac` is the whole HMAC-SHA256 of these bytes under this key, in constant time.
pub fn verify(key: &[u8], bytes: &[u8], mac: &[u8]) -> Result<Proof, KeyError> {
    if mac.len() != 32 {
        return Err(KeyError::BadMac);
    }
    let keyed = keyed(key, bytes).ok_or(KeyError::BadMac)?;
    keyed
        .verify_slice(mac)
        .map(|()| Proof(()))
        .map_err(|_| KeyError::Mismatch)
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret([secret])")
    }
}

/// Whether two secrets are the same, in a time that depends on neither: both pass an HMAC under a key
/// of the moment.
pub fn same(given: &[u8], wanted: &[u8]) -> bool {
    let mut key = [0u8; 32];
    if getrandom::fill(&mut key).is_err() {
        return false;
    }
    match (keyed(&key, given), keyed(&key, wanted)) {
        (Some(given), Some(wanted)) => given.verify(&wanted.finalize().into_bytes()).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SharedSecret {
        SharedSecret::new(text).unwrap()
    }

    #[test]
    fn a_mac_proves_its_own_bytes_under_its_own_secret_only() {
        let ours = secret("Jefe Jefe Jefe Jefe");
        let mac = ours.mac(b"what do ya want for nothing?");
        assert!(ours.verify(b"what do ya want for nothing?", &mac).is_ok());
        let refused = |secret: &SharedSecret, bytes: &[u8], mac: &[u8]| {
            secret.verify(bytes, mac).unwrap_err()
        };
        assert_eq!(refused(&ours, b"nothing", &mac), KeyError::Mismatch);
        let other = secret("another secret of ours");
        let text = b"what do ya want for nothing?";
        assert_eq!(refused(&other, text, &mac), KeyError::Mismatch);
        assert_eq!(refused(&ours, text, &mac[..31]), KeyError::BadMac);
        assert_eq!(refused(&ours, text, b""), KeyError::BadMac);
    }

    #[test]
    fn a_secret_has_16_to_512_units_after_trimming() {
        assert!(SharedSecret::new("   0123456789abcde   ").is_none());
        assert_eq!(secret(" 0123456789abcdef\u{feff}").as_text().len(), 16);
        assert_eq!(secret(&"k".repeat(600)).as_text(), "k".repeat(512));
        // A rocket is two units.
        assert!(SharedSecret::new(&"\u{1f680}".repeat(7)).is_none());
        assert!(SharedSecret::new(&"\u{1f680}".repeat(8)).is_some());
    }

    #[test]
    fn a_fresh_secret_is_64_lower_case_hex_digits_and_its_own() {
        let (one, two) = (
            SharedSecret::generate().unwrap(),
            SharedSecret::generate().unwrap(),
        );
        assert_eq!(one.as_text().len(), 64);
        assert!(one.as_text().bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!(one.as_text(), one.as_text().to_lowercase());
        assert!(one.same(one.as_text()) && !one.same(two.as_text()));
    }

    #[test]
    fn a_secret_never_shows() {
        assert!(!format!("{:?}", secret("hunter2hunter2hunter2")).contains("hunter2"));
    }
}
