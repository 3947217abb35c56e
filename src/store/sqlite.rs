//! What is SQLite's own: opening, pragmas, and the lock against a second process.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};

use super::db::{Conn, Db};
use super::errors::unavailable;
use super::schema::{self, opening};
use super::types::{StoreError, StoreErrorKind};

/// Page cache of the writer and of each reader, KiB. What is hot beyond it is in the machine's own
/// page cache.
const WRITER_CACHE_KIB: i64 = 8 * 1024;
const READER_CACHE_KIB: i64 = 4 * 1024;
/// Readers at most.
const READERS: u32 = 4;
/// Pages (4 KiB) in the write-ahead log before a commit moves them to the file.
const CHECKPOINT_PAGES: i64 = 12_000;
/// The log's file is cut back to this after a burst.
const LOG_LIMIT_BYTES: i64 = 64 << 20;
/// How long to wait for another process (a backup tool, a shell) that holds the file.
const BUSY: Duration = Duration::from_secs(5);

/// Held as long as this process may write the file. Dropping it releases the lock.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock beside `path`.
pub(super) fn lock(path: &Path) -> Result<Lock, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = private_file(&name)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(StoreError {
            kind: StoreErrorKind::InUse,
            detail: format!(
                "{} is in use by another drawbridge process; stop that one, or give this one a store of its own",
                path.display()
            ),
        }),
        Err(TryLockError::Error(e)) => {
            Err(unavailable(format!("cannot lock {}: {e}", name.display())))
        }
    }
}

/// Opens or creates a file only its owner may read: bodies are private.
fn private_file(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
        .open(path)
        .map_err(|e| unavailable(format!("cannot open {}: {e}", path.display())))
}

/// Options of the writing connection.
fn writer_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        // The file is made by `open`, once. One that vanished later must not come back empty.
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY)
        .statement_cache_capacity(256)
        .pragma("cache_size", (-WRITER_CACHE_KIB).to_string())
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
        .pragma("journal_size_limit", LOG_LIMIT_BYTES.to_string())
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging()
}

/// Opens (creates, migrates) the file for writing.
pub(super) async fn open(path: &Path) -> Result<Conn, StoreError> {
    private_file(path)?;
    let mut conn = connect(path).await?;
    schema::migrate(&mut conn, &path.display().to_string()).await?;
    Ok(conn)
}

/// A connection that may write.
pub(super) async fn connect(path: &Path) -> Result<Conn, StoreError> {
    SqliteConnection::connect_with(&writer_options(path))
        .await
        .map(Conn::Sqlite)
        .map_err(|e| opening(&path.display().to_string(), e))
}

/// Opens the pool of readers; the file's version must have been checked.
pub(super) async fn readers(path: &Path) -> Result<Db, StoreError> {
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(0)
        .acquire_timeout(Duration::from_secs(30))
        .test_before_acquire(false)
        .connect_with(reader_options(path))
        .await
        .map(Db::Sqlite)
        .map_err(|e| opening(&path.display().to_string(), e))
}

/// One connection that only reads, of a file whose version was checked with it.
pub(super) async fn reader(path: &Path) -> Result<Conn, StoreError> {
    let place = path.display().to_string();
    let mut conn = SqliteConnection::connect_with(&reader_options(path))
        .await
        .map(Conn::Sqlite)
        .map_err(|e| opening(&place, e))?;
    schema::check_readable(&mut conn, &place).await?;
    Ok(conn)
}

fn reader_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY)
        .statement_cache_capacity(100)
        .pragma("cache_size", (-READER_CACHE_KIB).to_string())
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging()
}

/// Which file a path names now; a file moved or deleted under us is noticed by this.
#[cfg(unix)]
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Which file a path names now: elsewhere only whether it is there.
#[cfg(not(unix))]
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    path.exists().then_some((0, 0))
}
