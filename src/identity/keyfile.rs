//! The key file: one line, a 32-byte seed in base64 or in 64 hex digits, mode 0600. Either is read; what
//! is written is the caller's to say ([`KeyText`]).
//!
//! It is made once and overwritten by a rotation only ([`super::ring`]): the seed goes to a temporary name in the same directory,
//! is fsynced, and gets its real name by a hard link, which fails if the name exists. So a crash
//! leaves either no key or a whole one, and of two processes that start together one key wins.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::{Zeroize, Zeroizing};

use super::{KeyFileError, KeyOrigin, KeyText, b64, hex, unhex};

/// A key file is 64 characters and a line end at most; anything much larger is something else.
const MAX_FILE: u64 = 1024;

/// What a key file is for, as the sentences about it say.
pub(super) struct Purpose {
    /// What somebody who reads the file gets at.
    pub exposed: &'static str,
    /// What it means when the key is gone.
    pub lost: &'static str,
}

/// Reads the seed, or makes the file with a fresh one.
pub(super) fn load_or_create(
    path: &Path,
    purpose: &Purpose,
    text: KeyText,
) -> Result<(Zeroizing<[u8; 32]>, KeyOrigin), KeyFileError> {
    if let Some(seed) = load(path, purpose)? {
        return Ok((seed, KeyOrigin::Loaded));
    }
    if create(path, text)? {
        match load(path, purpose)? {
            Some(seed) => return Ok((seed, KeyOrigin::Created)),
            None => return Err(vanished(path)),
        }
    }
    match load(path, purpose)? {
        Some(seed) => Ok((seed, KeyOrigin::Loaded)),
        None => Err(vanished(path)),
    }
}

fn vanished(path: &Path) -> KeyFileError {
    KeyFileError(format!(
        "the key file {} disappeared while it was being read; does another program remove it?",
        path.display()
    ))
}

/// `None`: there is no such file.
pub(super) fn load(
    path: &Path,
    purpose: &Purpose,
) -> Result<Option<Zeroizing<[u8; 32]>>, KeyFileError> {
    let shown = path.display();
    let cannot = |e: io::Error| match e.kind() {
        ErrorKind::PermissionDenied => KeyFileError(format!(
            "the key file {shown} cannot be read ({e}); it must belong to the user that runs \
             drawbridge: chown that user {shown} && chmod 600 {shown}"
        )),
        _ => KeyFileError(format!("the key file {shown} cannot be read: {e}")),
    };
    // A FIFO or device would block an open; look before.
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            return Err(KeyFileError(format!(
                "the key file {shown} is not a regular file; name another path"
            )));
        }
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(name) if name.is_symlink() => {
                return Err(KeyFileError(format!(
                    "the key file {shown} is a symbolic link to a file that does not exist"
                )));
            }
            // Another process made it between the two looks.
            Ok(_) => {}
            Err(_) => return Ok(None),
        },
        Err(e) => return Err(cannot(e)),
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(cannot(e)),
    };
    let meta = file.metadata().map_err(cannot)?;
    let mode = meta.mode() & 0o7777;
    // A container engine's own mount is for this container alone, whatever its mode for reading.
    let others = if crate::config::mounted(path) {
        0o022
    } else {
        0o077
    };
    if mode & others != 0 {
        return Err(KeyFileError(format!(
            "the key file {shown} has mode {mode:04o}, so other users can read {}; run: \
             chmod 600 {shown}",
            purpose.exposed
        )));
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|e| match e.kind() {
            ErrorKind::InvalidData => bad_content(path, purpose, "it is not text"),
            _ => cannot(e),
        })?;
    if text.len() as u64 > MAX_FILE {
        return Err(bad_content(path, purpose, "it is far too long"));
    }
    let line = text.trim_ascii();
    if line.is_empty() {
        return Err(bad_content(path, purpose, "it is empty"));
    }
    if line.starts_with("-----BEGIN") {
        return Err(bad_content(path, purpose, "it is PEM"));
    }
    // Read as base64, 64 hex digits would be 48 bytes: the two cannot be mistaken for each other.
    if let Some(seed) = unhex(line) {
        return Ok(Some(Zeroizing::new(seed)));
    }
    let mut bytes = b64::decode(line)
        .map_err(|_| bad_content(path, purpose, "it is neither base64 nor hex"))?;
    let seed = <[u8; 32]>::try_from(bytes.as_slice());
    let found = bytes.len();
    bytes.zeroize();
    match seed {
        Ok(seed) => Ok(Some(Zeroizing::new(seed))),
        Err(_) => Err(bad_content(
            path,
            purpose,
            &format!("it decodes to {found} bytes"),
        )),
    }
}

fn bad_content(path: &Path, purpose: &Purpose, what: &str) -> KeyFileError {
    KeyFileError(format!(
        "the key file {} does not hold a key: {what}; expected one line, base64 or 64 hex digits of a 32-byte seed. \
         Restore it from a backup; {}",
        path.display(),
        purpose.lost
    ))
}

/// Makes the file with a fresh seed. `false`: there was one already, or somebody else made it meanwhile.
pub(super) fn create(path: &Path, text: KeyText) -> Result<bool, KeyFileError> {
    let shown = path.display();
    let failed =
        |e: io::Error| KeyFileError(format!("the key file {shown} cannot be created: {e}"));
    if fs::symlink_metadata(path).is_ok() {
        return Ok(false);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder(path))
        .map_err(failed)?;
    let mut seed = Zeroizing::new([0u8; 32]);
    getrandom::fill(&mut seed[..])
        .map_err(|e| KeyFileError(format!("the system gives no random bytes for a key: {e}")))?;
    write_beside(path, &seed, text, |temporary| {
        match fs::hard_link(temporary, path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    })
    .map_err(failed)
}

/// Puts a file with this seed in place of the one there is, at one instant.
pub(super) fn replace(path: &Path, seed: &[u8; 32], text: KeyText) -> io::Result<()> {
    write_beside(path, seed, text, |temporary| fs::rename(temporary, path))
}

/// Writes a seed to a temporary file in the same folder (0600, fsynced), lets `place` give it its
/// name, and fsyncs the folder. The temporary name is gone afterwards, whatever happened.
fn write_beside<T>(
    path: &Path,
    seed: &[u8; 32],
    text: KeyText,
    place: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let mut tag = [0u8; 8];
    getrandom::fill(&mut tag).map_err(io::Error::other)?;
    let temporary = folder(path).join(format!(".drawbridge-key-{}.tmp", b64::encode(tag)));
    // Grown before the secret is in it, so that no copy stays behind.
    let mut line = Zeroizing::new(String::with_capacity(80));
    let encoded = Zeroizing::new(match text {
        KeyText::Base64 => b64::encode(&seed[..]),
        KeyText::Hex => hex(&seed[..]),
    });
    line.push_str(&encoded);
    line.push('\n');
    let placed = write(&temporary, line.as_bytes()).and_then(|()| place(&temporary));
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let placed = placed?;
    sync_folder(path)?;
    Ok(placed)
}

fn write(temporary: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    file.write_all(line)?;
    file.sync_all()
}

/// The folder of a key file.
pub(super) fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes names in the folder of a key file durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::identity::SigningKey;

    fn write(path: &Path, text: &[u8], mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_once_with_mode_0600_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/relay_key.pem");
        let (first, origin) = SigningKey::load_or_create(&path).unwrap();
        assert_eq!(origin, KeyOrigin::Created);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let (second, origin) = SigningKey::load_or_create(&path).unwrap();
        assert_eq!(origin, KeyOrigin::Loaded);
        assert_eq!(first.public(), second.public());
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays behind");
    }

    #[test]
    fn processes_that_start_together_end_with_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let keys: Vec<_> = std::thread::scope(|s| {
            let all: Vec<_> = (0..8)
                .map(|_| s.spawn(|| SigningKey::load_or_create(&path).unwrap()))
                .collect();
            all.into_iter().map(|h| h.join().unwrap()).collect()
        });
        let made = keys.iter().filter(|k| k.1 == KeyOrigin::Created).count();
        assert_eq!(made, 1);
        assert!(keys.iter().all(|k| k.0.public() == keys[0].0.public()));
    }

    #[test]
    fn a_look_while_the_file_is_made_finds_nothing_or_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for _ in 0..100 {
            let over = AtomicBool::new(false);
            let made = std::thread::scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            load(&path, &crate::identity::IDENTITY).unwrap();
                        }
                    });
                }
                let made = create(&path, KeyText::Base64);
                over.store(true, Ordering::Relaxed);
                made
            });
            assert!(made.unwrap());
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_file_others_may_read_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, b64::encode([7u8; 32]).as_bytes(), 0o640);
        let error = SigningKey::load_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0640"), "{error}");
        assert!(
            error.contains(&format!("chmod 600 {}", path.display())),
            "{error}"
        );
    }

    #[test]
    fn wrong_content_is_named_and_never_overwritten_or_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let cases: [(&[u8], &str); 6] = [
            (b"", "empty"),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA\n", "PEM"),
            (b"secret words here!", "neither base64 nor hex"),
            (b"AAAA", "3 bytes"),
            (b"\xff\xfe\x00", "not text"),
            (&[b'A'; 5000], "too long"),
        ];
        for (content, said) in cases {
            write(&path, content, 0o600);
            let error = SigningKey::load_or_create(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{said}: {error}");
            assert!(!error.contains("secret"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn the_relays_own_form_of_the_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        // Padded, standard alphabet, line end: what the published relay writes and what editors add.
        write(
            &path,
            b"+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=\r\n",
            0o400,
        );
        assert!(SigningKey::load_or_create(&path).is_ok());
    }

    #[test]
    fn a_seed_in_hex_is_the_same_key_as_in_base64_and_each_is_written_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("hex"), dir.path().join("base64"));
        let (made, _) = SigningKey::load_or_create_as(&one, KeyText::Hex).unwrap();
        let text = fs::read_to_string(&one).unwrap();
        let seed = unhex::<32>(text.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!(text, format!("{}\n", hex(&seed)), "lower case, one line");
        write(&other, b64::encode(seed).as_bytes(), 0o600);
        let read = SigningKey::load(&other).unwrap().unwrap();
        assert_eq!(read.public(), made.public());
        write(&other, text.to_uppercase().as_bytes(), 0o600);
        let read = SigningKey::load(&other).unwrap().unwrap();
        assert_eq!(read.public(), made.public());
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SigningKey::load_or_create(dir.path()).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(SigningKey::load_or_create(&link).is_err());
    }
}
