//! A signing key over its life: next, active, old; each a file beside the others.
//!
//! | file | key |
//! | --- | --- |
//! | `NAME` | active: published and signed with |
//! | `NAME.next` | next: made beforehand, so that it can be told to people |
//! | `NAME.old-20261121T074012Z` | old: replaced then, still of use until the overlap ends |
//! | `NAME.revoked-…` | replaced because it was no longer ours alone: never read again |
//!
//! A switch links the active file under its old name, writes the next key to a temporary file, fsyncs
//! it, renames it over `NAME` and fsyncs the folder. A crash leaves the one key or the other in force,
//! never none and never half of one; a link that stayed behind from a crash names the active key
//! itself and is passed over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{KeyFileError, KeyOrigin, KeyText, SigningKey, keyfile};
use crate::clock::UnixMs;

/// How the time of a switch is written in a file name.
const STAMP: &str = "%Y%m%dT%H%M%SZ";

/// The keys of one set of files.
#[derive(Clone, Debug)]
pub struct Keyring {
    /// What is published and signed with.
    pub active: SigningKey,
    /// When its file was written, ms since 1970.
    pub since_ms: UnixMs,
    /// Made beforehand.
    pub next: Option<NextKey>,
    /// The one before, while the overlap lasts.
    pub old: Option<OldKey>,
}

/// A key that waits for its turn.
#[derive(Clone, Debug)]
pub struct NextKey {
    pub key: SigningKey,
    /// When its file was written, ms since 1970.
    pub since_ms: UnixMs,
}

/// A key that was replaced.
#[derive(Clone, Debug)]
pub struct OldKey {
    pub key: SigningKey,
    /// When it was replaced, ms since 1970.
    pub retired_ms: UnixMs,
    /// When the overlap ends, ms since 1970.
    pub until_ms: UnixMs,
}

impl Keyring {
    /// Reads all files; the active one is made, in this form, if there is none.
    pub fn open(
        path: &Path,
        text: KeyText,
        overlap: Duration,
        now: UnixMs,
    ) -> Result<(Self, KeyOrigin), KeyFileError> {
        let (_, origin) = SigningKey::load_or_create_as(path, text)?;
        match Self::read(path, overlap, now)? {
            Some(ring) => Ok((ring, origin)),
            None => Err(KeyFileError(format!(
                "the key file {} disappeared while it was being read",
                path.display()
            ))),
        }
    }

    /// Reads all files; `None`: there is no active one.
    pub fn read(path: &Path, overlap: Duration, now: UnixMs) -> Result<Option<Self>, KeyFileError> {
        let Some(active) = SigningKey::load(path)? else {
            return Ok(None);
        };
        let next_path = sibling(path, ".next");
        let next = SigningKey::load(&next_path)?.map(|key| NextKey {
            key,
            since_ms: written(&next_path),
        });
        let mut old = None;
        for (retired_ms, file) in old_files(path)? {
            let until_ms = retired_ms.saturating_add(millis(overlap));
            if until_ms <= now {
                continue;
            }
            if let Some(key) = SigningKey::load(&file)?
                && key.public() != active.public()
            {
                old = Some(OldKey {
                    key,
                    retired_ms,
                    until_ms,
                });
                break;
            }
        }
        Ok(Some(Self {
            active,
            since_ms: written(path),
            next,
            old,
        }))
    }

    /// Makes the next key, if there is none yet.
    pub fn prepare(path: &Path, text: KeyText) -> Result<(), KeyFileError> {
        keyfile::create(&sibling(path, ".next"), text).map(|_| ())
    }

    /// Puts the next key (made now, if there is none) in place of the active one. `revoke`: the
    /// replaced one and those before it are kept under names that nothing reads.
    pub fn switch(
        path: &Path,
        text: KeyText,
        now: UnixMs,
        revoke: bool,
    ) -> Result<(), KeyFileError> {
        let next = sibling(path, ".next");
        Self::prepare(path, text)?;
        let failed = |what: &str, e: io::Error| {
            KeyFileError(format!(
                "the key {} was not switched as wanted: {what}: {e}",
                path.display()
            ))
        };
        let Some(seed) = keyfile::load(&next, &super::IDENTITY)? else {
            return Err(KeyFileError(format!(
                "the key file {} disappeared while the key was being switched",
                next.display()
            )));
        };
        let kind = if revoke { ".revoked-" } else { ".old-" };
        let kept = sibling(path, &format!("{kind}{}", stamp(now)));
        match fs::hard_link(path, &kept) {
            Ok(()) => {}
            // Of a switch that crashed this very second: the same key.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && same(path, &kept)? => {}
            Err(e) => return Err(failed(&format!("{} cannot be made", kept.display()), e)),
        }
        keyfile::replace(path, &seed, text)
            .map_err(|e| failed("the new file cannot be written", e))?;
        if revoke {
            for (retired_ms, file) in old_files(path)? {
                let kept = sibling(path, &format!(".revoked-{}", stamp(retired_ms)));
                fs::rename(&file, &kept)
                    .map_err(|e| failed(&format!("{} cannot be revoked", file.display()), e))?;
            }
        }
        fs::remove_file(&next)
            .and_then(|()| keyfile::sync_folder(path))
            .map_err(|e| {
                KeyFileError(format!(
                    "the key {} was switched, but {} could not be removed ({e}); remove it before the \
                     next switch",
                    path.display(),
                    next.display()
                ))
            })
    }

    /// Removes the files of old keys whose overlap has ended; how many there were.
    pub fn prune(path: &Path, overlap: Duration, now: UnixMs) -> Result<usize, KeyFileError> {
        let mut removed = 0;
        for (retired_ms, file) in old_files(path)? {
            if retired_ms.saturating_add(millis(overlap)) <= now {
                fs::remove_file(&file).map_err(|e| {
                    KeyFileError(format!(
                        "the old key file {} cannot be removed: {e}",
                        file.display()
                    ))
                })?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Files of old keys with the time of their switch, newest first.
fn old_files(path: &Path) -> Result<Vec<(UnixMs, PathBuf)>, KeyFileError> {
    let folder = keyfile::folder(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}.old-");
    let unreadable = |e: io::Error| {
        KeyFileError(format!(
            "the folder {} of the key file cannot be read: {e}",
            folder.display()
        ))
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let at = name
            .to_str()
            .and_then(|name| name.strip_prefix(&prefix))
            .and_then(unstamp);
        found.extend(at.map(|at| (at, entry.path())));
    }
    found.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    Ok(found)
}

fn same(one: &Path, other: &Path) -> Result<bool, KeyFileError> {
    let key = |path| Ok::<_, KeyFileError>(SigningKey::load(path)?.map(|key| key.public()));
    Ok(key(one)? == key(other)?)
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn stamp(now: UnixMs) -> String {
    Timestamp::from_millisecond(now)
        .map(|at| at.strftime(STAMP).to_string())
        .unwrap_or_default()
}

fn unstamp(text: &str) -> Option<UnixMs> {
    let at = DateTime::strptime(STAMP, text).ok()?;
    Some(
        at.to_zoned(TimeZone::UTC)
            .ok()?
            .timestamp()
            .as_millisecond(),
    )
}

fn written(path: &Path) -> UnixMs {
    fs::metadata(path)
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map_or(0, millis)
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const TEXT: KeyText = KeyText::Base64;
    const HOUR: Duration = Duration::from_secs(3600);
    const NOW: UnixMs = 1_795_246_080_000;

    fn ring(path: &Path, now: UnixMs) -> Keyring {
        Keyring::read(path, HOUR, now).unwrap().unwrap()
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_switch_takes_the_prepared_key_and_keeps_the_old_one_for_the_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let (first, origin) = Keyring::open(&path, TEXT, HOUR, NOW).unwrap();
        assert_eq!(origin, KeyOrigin::Created);
        Keyring::prepare(&path, TEXT).unwrap();
        let next = ring(&path, NOW).next.unwrap().key.public();
        Keyring::prepare(&path, TEXT).unwrap();
        assert_eq!(
            ring(&path, NOW).next.unwrap().key.public(),
            next,
            "made once"
        );
        assert_eq!(ring(&path, NOW).active.public(), first.active.public());

        Keyring::switch(&path, TEXT, NOW, false).unwrap();
        let now = ring(&path, NOW + 3_599_999);
        assert_eq!(now.active.public(), next);
        assert!(now.next.is_none());
        let old = now.old.unwrap();
        assert_eq!(old.key.public(), first.active.public());
        assert_eq!((old.retired_ms, old.until_ms), (NOW, NOW + 3_600_000));
        assert_eq!(names(&path), ["key", "key.old-20261121T072800Z"]);
        for name in names(&path) {
            let mode = fs::metadata(dir.path().join(&name)).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name}");
        }

        assert!(
            ring(&path, NOW + 3_600_000).old.is_none(),
            "the overlap is over"
        );
        assert_eq!(Keyring::prune(&path, HOUR, NOW + 1).unwrap(), 0);
        assert_eq!(Keyring::prune(&path, HOUR, NOW + 3_600_000).unwrap(), 1);
        assert_eq!(names(&path), ["key"]);
    }

    #[test]
    fn a_revoked_key_is_never_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Keyring::open(&path, TEXT, HOUR, NOW).unwrap();
        Keyring::switch(&path, TEXT, NOW - 1_000, false).unwrap();
        Keyring::switch(&path, TEXT, NOW, true).unwrap();
        assert!(ring(&path, NOW).old.is_none());
        let kept = [
            "key",
            "key.revoked-20261121T072759Z",
            "key.revoked-20261121T072800Z",
        ];
        assert_eq!(names(&path), kept);
    }

    #[test]
    fn a_crash_between_the_link_and_the_rename_leaves_the_active_key_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let (first, _) = Keyring::open(&path, TEXT, HOUR, NOW).unwrap();
        fs::hard_link(&path, dir.path().join("key.old-20261121T072800Z")).unwrap();
        assert!(ring(&path, NOW).old.is_none());
        assert_eq!(ring(&path, NOW).active.public(), first.active.public());
        Keyring::switch(&path, TEXT, NOW, false).unwrap();
        assert_eq!(
            ring(&path, NOW).old.unwrap().key.public(),
            first.active.public()
        );
    }
}
