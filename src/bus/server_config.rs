//! The files of a local nats-server: its configuration, written anew at each start, and where its
//! log and process id are.

use std::path::{Path, PathBuf};

use super::launch::{Settings, USER};
use super::{BusError, BusErrorKind};

pub(super) fn config_file(dir: &Path) -> PathBuf {
    dir.join("nats-server.conf")
}

pub(super) fn log_file(dir: &Path) -> PathBuf {
    dir.join("nats-server.log")
}

pub(super) fn pid_file(dir: &Path) -> PathBuf {
    dir.join("nats-server.pid")
}

pub(super) async fn write_config(
    settings: &Settings,
    port: Option<u16>,
) -> Result<PathBuf, BusError> {
    let file = config_file(&settings.dir);
    let text = config_text(settings, port)?;
    let write = async {
        tokio::fs::create_dir_all(&settings.dir).await?;
        // Left by a server that was killed; a process id may come again.
        let mut entries = tokio::fs::read_dir(&settings.dir).await?;
        while let Some(entry) = entries.next_entry().await? {
            if entry.path().extension().is_some_and(|e| e == "ports") {
                let _ = tokio::fs::remove_file(entry.path()).await;
            }
        }
        write_private(&file, &text).await
    };
    write
        .await
        .map_err(|e| BusError::new(BusErrorKind::NoServer, format!("{}: {e}", file.display())))?;
    Ok(file)
}

/// Writes a file that only its owner can read, in place of an earlier one whatever its mode was.
pub(super) async fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let temporary = path.with_extension("new");
    let _ = tokio::fs::remove_file(&temporary).await;
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    options.mode(0o600);
    let mut file = options.open(&temporary).await?;
    file.write_all(text.as_bytes()).await?;
    file.flush().await?;
    drop(file);
    tokio::fs::rename(&temporary, path).await
}

/// The server's configuration: loopback only, JetStream on files, one user.
fn config_text(settings: &Settings, port: Option<u16>) -> Result<String, BusError> {
    let sync = &settings.sync_interval;
    if sync.is_empty() || !sync.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.') {
        return Err(BusError::new(
            BusErrorKind::Config,
            format!(
                "nats.managed.sync_interval {sync:?} is neither \"always\" nor a duration such as \"10s\""
            ),
        ));
    }
    let quoted = |path: PathBuf| -> Result<String, BusError> {
        match path.to_str() {
            Some(text) if !text.contains(['"', '\n', '\\']) => Ok(format!("\"{text}\"")),
            _ => Err(BusError::new(
                BusErrorKind::Config,
                format!(
                    "nats-server cannot work in {}: its name holds a quote, a backslash or bytes that are not UTF-8",
                    path.display()
                ),
            )),
        }
    };
    let dir = &settings.dir;
    let login = match &settings.password {
        // A token of our own making, letters and digits; anything else would be somebody's.
        Some(password) if password.0.bytes().all(|b| b.is_ascii_alphanumeric()) => format!(
            "authorization {{\n  user: {USER}\n  password: \"{}\"\n}}\n",
            *password.0
        ),
        Some(_) => {
            return Err(BusError::new(
                BusErrorKind::Config,
                "the password of the managed nats-server must be letters and digits",
            ));
        }
        None => String::new(),
    };
    Ok(format!(
        "# Written by Drawbridge at each start; changes are lost.\n\
         server_name: drawbridge_local\n\
         host: \"127.0.0.1\"\n\
         port: {}\n\
         max_payload: {}\n\
         pid_file: {}\n\
         ports_file_dir: {}\n\
         log_file: {}\n\
         logfile_size_limit: 16MB\n\
         logfile_max_num: 2\n\
         jetstream {{\n  store_dir: {}\n  sync_interval: {sync}\n}}\n{login}",
        port.map_or_else(|| "-1".to_owned(), |p| p.to_string()),
        settings.max_payload,
        quoted(pid_file(dir))?,
        quoted(dir.clone())?,
        quoted(log_file(dir))?,
        quoted(dir.join("data"))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn settings(dir: &str, sync: &str) -> Settings {
        Settings {
            guard: PathBuf::new(),
            binary: PathBuf::new(),
            dir: PathBuf::from(dir),
            sync_interval: sync.to_owned(),
            max_payload: 1,
            password: None,
        }
    }

    #[test]
    fn nothing_can_be_smuggled_into_the_configuration() {
        assert!(config_text(&settings("/a b", "always"), None).is_ok());
        assert!(config_text(&settings("/a\"b", "always"), None).is_err());
        assert!(config_text(&settings("/a", "1s }"), None).is_err());
        let mut odd = settings("/a", "always");
        odd.password = Some(Secret("a\" }".to_owned().into()));
        assert!(config_text(&odd, None).is_err());
    }
}
