//! Secrets kept in the database, sealed under a key that is not in it.
//!
//! The key is a file of its own (0600, made once, shared by processes that start together), so a
//! copy of the database alone gives nobody a secret. A sealed text names the key it was sealed with:
//! the wrong key file is told apart from a damaged text. It is bound to what it belongs to, so a
//! text moved to another row does not open there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use zeroize::Zeroizing;

use super::keyfile::{self, Purpose};
use super::{KeyFileError, b64, hex};

/// Version of the sealed form.
const VERSION: &str = "v1";

const PURPOSE: Purpose = Purpose {
    exposed: "the secrets shared with peers",
    lost: "without it the secrets shared with peers cannot be read again",
};

/// Seals and opens. Cloning shares the key; it is never printed.
#[derive(Clone)]
pub struct Vault {
    key: Arc<LessSafeKey>,
    /// Tells keys apart, tells nothing about one.
    id: String,
    path: PathBuf,
}

/// Why something cannot be sealed or opened: a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Sealed with another key.
    #[error(
        "what the database holds was sealed with another key file than {}; put the file back that \
         belongs to this database, or remove the peers and ask them for peering anew",
        path.display()
    )]
    OtherKey { path: PathBuf },
    /// Not what was sealed, or not for this.
    #[error(
        "a sealed secret in the database is damaged or belongs to another peer; restore the \
         database from a backup, or remove the peer and ask it for peering anew"
    )]
    Damaged,
    /// The system gave no random bytes.
    #[error("nothing can be sealed: the system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl Vault {
    /// Reads the key file, or makes it.
    pub fn open_file(path: &Path) -> Result<Self, KeyFileError> {
        let (seed, _) = keyfile::load_or_create(path, &PURPOSE, super::KeyText::Base64)?;
        let key = UnboundKey::new(&AES_256_GCM, &seed[..])
            .map_err(|_| KeyFileError(format!("the key file {} holds no key", path.display())))?;
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, &seed[..]),
            b"drawbridge vault key id",
        );
        Ok(Self {
            key: Arc::new(LessSafeKey::new(key)),
            id: hex(tag.as_ref().get(..4).unwrap_or_default()),
            path: path.to_path_buf(),
        })
    }

    /// Seals `plain` for `bound_to` (a host, say): `v1.KEY.TEXT`, ASCII.
    pub fn seal(&self, plain: &[u8], bound_to: &str) -> Result<String, VaultError> {
        let mut nonce = [0u8; NONCE_LEN];
        getrandom::fill(&mut nonce)?;
        let mut sealed = Zeroizing::new(Vec::with_capacity(plain.len() + 16));
        sealed.extend_from_slice(plain);
        // It fails for more than 64 GiB only.
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound_to.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| VaultError::Damaged)?;
        let mut whole = nonce.to_vec();
        whole.extend_from_slice(&sealed);
        whole.extend_from_slice(tag.as_ref());
        Ok(format!("{VERSION}.{}.{}", self.id, b64::encode(whole)))
    }

    /// Opens what [`Vault::seal`] made for the same `bound_to`.
    pub fn open(&self, sealed: &str, bound_to: &str) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let mut parts = sealed.splitn(3, '.');
        let (Some(VERSION), Some(id), Some(text)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(VaultError::Damaged);
        };
        if id != self.id {
            return Err(VaultError::OtherKey {
                path: self.path.clone(),
            });
        }
        let whole = b64::decode(text).map_err(|_| VaultError::Damaged)?;
        let (nonce, rest) = whole
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(VaultError::Damaged)?;
        let mut plain = Zeroizing::new(rest.to_vec());
        let length = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(bound_to.as_bytes()),
                &mut plain,
            )
            .map_err(|_| VaultError::Damaged)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn vault(dir: &tempfile::TempDir, name: &str) -> Vault {
        Vault::open_file(&dir.path().join(name)).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_again_and_two_seals_differ() {
        let dir = tempfile::tempdir().unwrap();
        let one = vault(&dir, "key");
        let sealed = one.seal(b"hunter2", "b.example").unwrap();
        assert_eq!(**one.open(&sealed, "b.example").unwrap(), *b"hunter2");
        assert_ne!(sealed, one.seal(b"hunter2", "b.example").unwrap());
        assert!(!sealed.contains("hunter2"));
        // The same file opens it after a restart.
        let again = vault(&dir, "key");
        assert_eq!(**again.open(&sealed, "b.example").unwrap(), *b"hunter2");
        let mode = std::fs::metadata(dir.path().join("key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_text_that_was_moved_or_changed_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let vault = vault(&dir, "key");
        let sealed = vault.seal(b"hunter2", "b.example").unwrap();
        let damaged =
            |text: &str, to: &str| matches!(vault.open(text, to), Err(VaultError::Damaged));
        assert!(damaged(&sealed, "c.example"));
        assert!(damaged("", "b.example"));
        assert!(damaged(&sealed[..20], "b.example"));
        assert!(damaged(&sealed.replacen("v1", "v2", 1), "b.example"));
        for at in sealed.rfind('.').unwrap() + 1..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'Q' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The last character may hold bits that belong to no byte.
            assert!(damaged(&changed, "b.example") || at + 1 == sealed.len());
        }
    }

    #[test]
    fn another_key_file_is_named_and_told_apart_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        let sealed = vault(&dir, "key").seal(b"hunter2", "b.example").unwrap();
        let error = vault(&dir, "other").open(&sealed, "b.example").unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, VaultError::OtherKey { .. }));
        assert!(
            said.contains("other") && said.contains("put the file back"),
            "{said}"
        );
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        vault(&dir, "key");
        let path = dir.path().join("key");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let said = Vault::open_file(&path).unwrap_err().to_string();
        assert!(
            said.contains("chmod 600") && said.contains("shared with peers"),
            "{said}"
        );
    }
}
