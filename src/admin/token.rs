//! The bearer token of the admin API: configured, or made once and kept in the data directory.
//!
//! Without a configured one the file `admin.token` is the key: readable by its owner only, so whoever
//! may read the bridge's database may use its admin API, and nobody else.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::{Config, Secret};
use crate::identity::hmac;

/// Random bytes of a token we make; it is written as hex.
const BYTES: usize = 32;
/// Longest token file, bytes.
const MAX_FILE: u64 = 4096;

/// Where a token that nobody configured is kept.
pub fn path(config: &Config) -> PathBuf {
    config.data_dir.join("admin.token")
}

/// The token in force: the configured one, else the file's, which is made if it is missing.
/// Errors are sentences that name the file.
pub fn load_or_create(config: &Config) -> Result<Secret, String> {
    if let Some(token) = &config.admin_access.token {
        return Ok(token.clone());
    }
    let path = path(config);
    if let Some(token) = read(&path)? {
        return Ok(token);
    }
    let mut bytes = Zeroizing::new([0u8; BYTES]);
    getrandom::fill(&mut *bytes).map_err(|e| format!("the system gives no random numbers: {e}"))?;
    let text = Zeroizing::new(crate::identity::hex(&*bytes));
    create(&path, &text).map_err(|e| {
        format!(
            "the admin API's token cannot be written to {}: {e}",
            path.display()
        )
    })?;
    // Another process may have been quicker; what is in the file counts.
    read(&path)?.ok_or_else(|| format!("{} vanished while it was being made", path.display()))
}

/// The token in force, for the command line: nothing is made.
pub fn find(config: &Config) -> Result<Secret, String> {
    if let Some(token) = &config.admin_access.token {
        return Ok(token.clone());
    }
    let path = path(config);
    read(&path)?.ok_or_else(|| {
        format!(
            "there is no {}: a bridge makes it when it starts, so none ever ran with this \
             configuration; if one runs elsewhere, set admin.token_file and admin.url",
            path.display()
        )
    })
}

/// `None`: there is no such file.
fn read(path: &Path) -> Result<Option<Secret>, String> {
    let cannot = |e: &dyn std::fmt::Display| {
        format!(
            "the admin API's token {} cannot be read: {e}",
            path.display()
        )
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(cannot(&e)),
    };
    let meta = file.metadata().map_err(|e| cannot(&e))?;
    if meta.mode() & 0o077 != 0 {
        return Err(format!(
            "the admin API's token {} can be read by other users; run: chmod 600 {}",
            path.display(),
            path.display()
        ));
    }
    let mut text = Zeroizing::new(String::with_capacity(256));
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(|e| cannot(&e))?;
    let token = text.trim();
    if token.len() < 16 || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "{} holds no token; remove it, and the next start makes a new one",
            path.display()
        ));
    }
    Ok(Some(Secret(token.to_owned().into())))
}

/// Written under another name and linked into place, so that a reader sees all of it or nothing and
/// a token that is there is never replaced.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension(format!("token.{}", std::process::id()));
    let _ = std::fs::remove_file(&draft);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        })
        .and_then(|()| match std::fs::hard_link(&draft, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    let _ = std::fs::remove_file(&draft);
    written
}

/// Whether `given` is the token, in a time that depends on neither.
pub fn matches(token: &Secret, given: &[u8]) -> bool {
    hmac::same(given, token.0.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_matches_only_byte_for_byte() {
        let token = Secret("0123456789abcdef".to_owned().into());
        assert!(matches(&token, b"0123456789abcdef"));
        for other in [
            &b"0123456789abcdeF"[..],
            b"0123456789abcde",
            b"0123456789abcdef ",
            b"",
        ] {
            assert!(!matches(&token, other));
        }
    }

    #[test]
    fn a_token_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        create(&path, "0123456789abcdef").unwrap();
        create(&path, "another-token-of-mine").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let token = read(&path).unwrap().unwrap();
        assert_eq!(token.0.as_str(), "0123456789abcdef");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_others_can_read_or_that_is_none_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        assert!(read(&path).unwrap().is_none());
        create(&path, "short").unwrap();
        assert!(read(&path).unwrap_err().contains("holds no token"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).unwrap_err().contains("chmod 600"));
    }
}
