//! Secrets: never shown, and read only from files that other users of the machine cannot read.
//!
//! The rule for a file, in one function: nobody but its owner and group may write it, ever; and
//! nobody else may read it, except below `/run/secrets` and `/var/run/secrets`. There a container
//! engine puts what it was told to give to this container alone, and its defaults (0644 in
//! Kubernetes, 0444 in Docker) are not the operator's doing. A Kubernetes secret mounted anywhere
//! else needs `defaultMode: 0440` with an `fsGroup`.

use std::fs::Metadata;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Where container engines mount secrets for one container.
const MOUNTS: [&str; 2] = ["/run/secrets", "/var/run/secrets"];

/// A secret that never shows in a log.
#[derive(Clone)]
pub struct Secret(pub Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// A secret, or the file that holds it: one that is renewed while the bridge runs is read again
/// whenever it is needed.
#[derive(Clone, Debug)]
pub enum SecretFrom {
    Text(Secret),
    File(PathBuf),
}

impl SecretFrom {
    /// The secret as it is now. The error is a sentence that names the file.
    pub fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Text(secret) => Ok(secret.clone()),
            Self::File(path) => read_secret(path),
        }
    }
}

/// A secret file's text without the white space around it. The error is a sentence that names the
/// file and what to do.
pub fn read_secret(path: &Path) -> Result<Secret, String> {
    let about = |what: String| format!("{}, {what}", path.display());
    let meta = std::fs::metadata(path).map_err(|e| about(format!("which cannot be read: {e}")))?;
    private(path, &meta).map_err(about)?;
    let text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|e| about(format!("which cannot be read: {e}")))?;
    match text.trim() {
        "" => Err(about("which is empty".to_owned())),
        trimmed => Ok(Secret(trimmed.to_owned().into())),
    }
}

/// Whether a file stands where container engines put secrets.
pub fn mounted(path: &Path) -> bool {
    // Without its links: what stands below the mount, not what a path merely passes through.
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    MOUNTS.iter().any(|mount| real.starts_with(mount))
}

/// Whether a file keeps a secret; the error says who else gets at it and what to do.
#[cfg(unix)]
pub fn private(path: &Path, meta: &Metadata) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    judge(meta.permissions().mode(), mounted(path))
        .map_err(|what| format!("{what}; run: chmod o-rwx {}", path.display()))
}

/// Whether a file keeps a secret; the error says who else gets at it and what to do.
#[cfg(not(unix))]
pub fn private(_path: &Path, _meta: &Metadata) -> Result<(), String> {
    Ok(())
}

/// The rule itself. `mounted`: below a container engine's place for secrets.
fn judge(mode: u32, mounted: bool) -> Result<(), &'static str> {
    if mode & 0o002 != 0 {
        Err("which every user can write")
    } else if mode & 0o007 != 0 && !mounted {
        Err("which every user can read")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_can_read_is_refused_unless_a_container_engine_put_it_there() {
        for mode in [0o600, 0o400, 0o640, 0o440] {
            assert!(judge(mode, false).is_ok(), "{mode:o}");
        }
        for mode in [0o644, 0o444, 0o604] {
            assert!(judge(mode, false).is_err(), "{mode:o}");
            assert!(judge(mode, true).is_ok(), "{mode:o}");
        }
        for mode in [0o666, 0o602, 0o777] {
            assert!(judge(mode, true).is_err(), "{mode:o}");
        }
    }

    #[test]
    fn a_secret_never_shows() {
        let secret = SecretFrom::Text(Secret("hunter2".to_owned().into()));
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
