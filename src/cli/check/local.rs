//! What is on this machine: files and their modes, keys, the store, the listeners.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use super::{Bridge, Report};
use crate::admin::token;
use crate::config::{Config, ListenConfig, StorePlace};
use crate::http::tls;
use crate::identity::SigningKey;
use crate::protocols::{Face, Shows};
use crate::store::Store;

/// Longest that opening the store may take.
const STORE_PATIENCE: Duration = Duration::from_secs(15);

/// The data directory, and files that hold secrets. Those that settings name were looked at when the
/// configuration was read.
pub(super) fn files(config: &Config, report: &mut Report) {
    let dir = &config.data_dir;
    match std::fs::metadata(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            report.skip(
                "files",
                "data_dir",
                format!("{} will be made at the first start", dir.display()),
            );
            return;
        }
        Err(e) => return report.fault("files", "data_dir", format!("{}: {e}", dir.display())),
        Ok(meta) if !meta.is_dir() => {
            let detail = format!("{} is not a directory", dir.display());
            return report.fault("files", "data_dir", detail);
        }
        Ok(meta) => match open_to_others(&meta) {
            Some(mode) => report.warn(
                "files",
                "data_dir",
                format!(
                    "{0} has mode {mode:04o}: others can look into it; run: chmod 700 {0}",
                    dir.display()
                ),
            ),
            None => report.ok("files", "data_dir", dir.display().to_string()),
        },
    }
    let path = token::path(config);
    if config.admin_access.token.is_none() && path.exists() {
        match token::find(config) {
            Ok(_) => report.ok("files", "admin token", path.display().to_string()),
            Err(sentence) => report.fault("files", "admin token", sentence),
        }
    }
    for (item, listen) in [("public TLS", &config.public), ("admin TLS", &config.admin)] {
        let (certificate, key) = (&listen.tls_certificate, &listen.tls_key);
        if let (Some(certificate), Some(key)) = (certificate, key) {
            match tls::Certificate::prepare(certificate, key) {
                Ok(_) => report.ok("files", item, certificate.display().to_string()),
                Err(e) => report.fault("files", item, e.to_string()),
            }
        }
    }
}

#[cfg(unix)]
fn open_to_others(meta: &std::fs::Metadata) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = meta.permissions().mode() & 0o7777;
    (mode & 0o077 != 0).then_some(mode)
}

#[cfg(not(unix))]
fn open_to_others(_meta: &std::fs::Metadata) -> Option<u32> {
    None
}

/// Each protocol's key file.
pub(super) fn keys(faces: &[Face], report: &mut Report) {
    for face in faces {
        let shown = face.key.display();
        match SigningKey::load(&face.key) {
            Ok(Some(_)) if matches!(face.shows, Shows::Text(_)) => {
                report.ok("keys", face.protocol, format!("seals secrets ({shown})"));
            }
            Ok(Some(key)) => {
                let print = key.public().fingerprint();
                report.ok("keys", face.protocol, format!("{print} ({shown})"));
            }
            Ok(None) => {
                let detail = format!("{shown} will be made at the first start");
                report.skip("keys", face.protocol, detail);
            }
            Err(e) => report.fault("keys", face.protocol, e.to_string()),
        }
    }
}

/// The ledger, opened for reading beside whoever writes it.
pub(super) async fn store(config: &Config, report: &mut Report) {
    let shown = config.store.place.shown();
    if let StorePlace::Sqlite(path) = &config.store.place
        && !path.exists()
    {
        match writable(path) {
            Ok(()) => report.skip(
                "store",
                "open",
                format!("{shown} will be made at the first start"),
            ),
            Err(e) => report.fault("store", "open", format!("{shown} cannot be made: {e}")),
        }
        return;
    }
    let opened = tokio::time::timeout(STORE_PATIENCE, Store::open_read_only(&config.store)).await;
    let store = match opened {
        Ok(Ok(store)) => store,
        Ok(Err(e)) => return report.fault("store", "open", format!("{shown}: {e}")),
        Err(_) => return report.fault("store", "open", format!("{shown}: no answer in time")),
    };
    report.ok("store", "open", shown);
    match store.queue_counts().await {
        Ok(counts) => {
            let waiting: u64 = counts.iter().map(|c| c.pending).sum();
            report.ok("store", "queue", format!("{waiting} messages wait"));
        }
        Err(e) => report.fault("store", "queue", e.to_string()),
    }
    store.close().await;
}

/// Whether a file could be made here, as far as can be told without making one.
fn writable(path: &Path) -> Result<(), String> {
    let mut place = path.parent();
    while let Some(dir) = place {
        match std::fs::metadata(dir) {
            Ok(meta) if meta.permissions().readonly() => {
                return Err(format!("{} is read-only", dir.display()));
            }
            Ok(_) => return Ok(()),
            Err(_) => place = dir.parent(),
        }
    }
    Ok(())
}

/// Both addresses: free, or taken by our own bridge.
pub(super) fn listeners(config: &Config, bridge: Bridge, report: &mut Report) {
    listener("public", &config.public, bridge, report);
    listener("admin", &config.admin, bridge, report);
}

fn listener(item: &str, listen: &ListenConfig, bridge: Bridge, report: &mut Report) {
    let at: SocketAddr = listen.address;
    match TcpListener::bind(at) {
        Ok(_) if bridge == Bridge::Running => {
            let detail = format!("{at} is free, although our bridge runs: it listens elsewhere");
            report.warn("listeners", item, detail);
        }
        Ok(_) => report.ok("listeners", item, format!("{at} is free")),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => match bridge {
            Bridge::Running => report.ok("listeners", item, format!("{at}, our running bridge")),
            _ => report.fault(
                "listeners",
                item,
                format!("another program listens on {at}"),
            ),
        },
        Err(e) => report.fault(
            "listeners",
            item,
            format!("{at} cannot be listened on: {e}"),
        ),
    }
}
