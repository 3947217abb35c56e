//! A copy of the store while the bridge runs.

use std::fs::{File, OpenOptions};
use std::path::Path;

use super::errors::{corrupt, meaning, unavailable};
use super::info::reader;
use super::postgres;
use super::types::StoreError;
use crate::config::{StoreConfig, StorePlace};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backup {
    /// The file is written, flushed and checked; its size in bytes.
    Written(u64),
    /// PostgreSQL's own tool does it; this is how it is called.
    Command(String),
}

/// Copies an SQLite store into `file`, which must not exist: one moment of it, whole, readable by
/// its owner only. For PostgreSQL it says which command does.
pub async fn backup(config: &StoreConfig, file: &Path) -> Result<Backup, StoreError> {
    let mut conn = reader(config).await?;
    if let StorePlace::Postgres(url) = &config.place {
        let schema: String = conn
            .query("SELECT current_schema()::text")
            .scalar()
            .await
            .map_err(meaning)?;
        conn.close_hard().await;
        let place = postgres::Place::new(url, config.timeout)?;
        return Ok(Backup::Command(place.dump_command(&schema, file)));
    }
    let about = |e: std::io::Error| unavailable(format!("{}: {e}", file.display()));
    let path = file
        .to_str()
        .ok_or_else(|| corrupt(format!("{}: the name is no UTF-8", file.display())))?;
    private(file).map_err(about)?;
    let copied = async {
        // Into the empty file just made, so that nobody else can read it at any moment.
        conn.query("VACUUM INTO $1").bind(path).execute().await?;
        Ok(())
    }
    .await
    .map_err(meaning);
    conn.close_hard().await;
    let checked = match copied {
        Ok(()) => check(file).await,
        Err(e) => Err(e),
    };
    if let Err(e) = checked {
        // Half a copy must not pass for one.
        let _ = std::fs::remove_file(file);
        return Err(e);
    }
    let written = File::open(file).and_then(|copy| {
        copy.sync_all()?;
        copy.metadata()
    });
    Ok(Backup::Written(written.map_err(about)?.len()))
}

/// The copy is a store of ours, and whole.
async fn check(file: &Path) -> Result<(), StoreError> {
    let mut copy = reader(&StoreConfig::from(file)).await?;
    let verdict: String = copy
        .query("PRAGMA quick_check(1)")
        .scalar()
        .await
        .map_err(meaning)?;
    copy.close_hard().await;
    if verdict == "ok" {
        return Ok(());
    }
    Err(corrupt(format!(
        "{}: the copy is damaged: {verdict}",
        file.display()
    )))
}

fn private(file: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(file).map(drop)
}
