//! What is SQLite's own: opening, pragmas, the lock against a second process, migrations, and what
//! its errors mean.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row, SqlSafeStr};

use super::types::{StoreError, StoreErrorKind};

/// Page cache of the writer and of each reader, KiB. What is hot beyond it is in the machine's own
/// page cache.
const WRITER_CACHE_KIB: i64 = 32 * 1024;
const READER_CACHE_KIB: i64 = 4 * 1024;
/// Readers at most.
const READERS: u32 = 4;
/// Pages (4 KiB) in the write-ahead log before a commit moves them to the file.
const CHECKPOINT_PAGES: i64 = 4_000;
/// The log's file is cut back to this after a burst.
const LOG_LIMIT_BYTES: i64 = 64 << 20;
/// How long to wait for another process (a backup tool, a shell) that holds the file.
const BUSY: Duration = Duration::from_secs(5);

/// Every migration, oldest first.
fn migrations() -> Vec<Migration> {
    vec![
        Migration::new(
            1,
            "init".into(),
            MigrationType::Simple,
            include_str!("../../migrations/sqlite/0001_init.sql").into_sql_str(),
            false,
        ),
        Migration::new(
            3,
            "door".into(),
            MigrationType::Simple,
            include_str!("../../migrations/sqlite/0003_door.sql").into_sql_str(),
            false,
        ),
    ]
}

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
pub(super) fn writer_options(path: &Path) -> SqliteConnectOptions {
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
pub(super) async fn open(path: &Path) -> Result<SqliteConnection, StoreError> {
    private_file(path)?;
    let mut conn = SqliteConnection::connect_with(&writer_options(path))
        .await
        .map_err(|e| opening(path, e))?;
    check_ours(&mut conn, path).await?;
    Migrator::with_migrations(migrations())
        .run(&mut conn)
        .await
        .map_err(|e| match e {
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => opening(path, e),
            e => StoreError {
                kind: StoreErrorKind::Corrupt,
                detail: format!("{}: {e}", path.display()),
            },
        })?;
    Ok(conn)
}

/// Opens the pool of readers; the file's version must have been checked.
pub(super) async fn readers(path: &Path) -> Result<SqlitePool, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY)
        .statement_cache_capacity(100)
        .pragma("cache_size", (-READER_CACHE_KIB).to_string())
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging();
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(0)
        .acquire_timeout(Duration::from_secs(30))
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .map_err(|e| opening(path, e))
}

/// For a file opened only to read: ours, and not newer or older than this binary.
pub(super) async fn check_readable(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let mut conn = pool.acquire().await.map_err(|e| opening(path, e))?;
    check_ours(&mut conn, path).await?;
    let known = migrations().last().map_or(0, |m| m.version);
    match applied(&mut conn, path).await? {
        Some(version) if version == known => Ok(()),
        _ => Err(StoreError {
            kind: StoreErrorKind::Corrupt,
            detail: format!(
                "{} was written by an older drawbridge; start this one's `run` once to bring it up to date",
                path.display()
            ),
        }),
    }
}

/// Refuses a database that is not ours, or newer than this binary.
async fn check_ours(conn: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let tables: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master")
        .fetch_one(&mut *conn)
        .await
        .map_err(|e| opening(path, e))?;
    let known = migrations().last().map_or(0, |m| m.version);
    match applied(conn, path).await? {
        Some(version) if version > known => Err(StoreError {
            kind: StoreErrorKind::Newer,
            detail: format!(
                "{} was written by a newer drawbridge (schema {version}, this one knows {known}); run that version",
                path.display()
            ),
        }),
        None if tables > 0 => Err(StoreError {
            kind: StoreErrorKind::Corrupt,
            detail: format!(
                "{} is a database of something else; give another path",
                path.display()
            ),
        }),
        _ => Ok(()),
    }
}

/// The newest migration applied; `None` when none ever was.
async fn applied(conn: &mut SqliteConnection, path: &Path) -> Result<Option<i64>, StoreError> {
    let table = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = '_sqlx_migrations'")
        .fetch_optional(&mut *conn)
        .await
        .map_err(|e| opening(path, e))?;
    if table.is_none() {
        return Ok(None);
    }
    let row = sqlx::query("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations")
        .fetch_one(conn)
        .await
        .map_err(|e| opening(path, e))?;
    row.try_get(0).map(Some).map_err(|e| opening(path, e))
}

fn opening(path: &Path, e: sqlx::Error) -> StoreError {
    let mut error = meaning(e);
    error.detail = format!("{}: {}", path.display(), error.detail);
    error
}

fn unavailable(detail: String) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Unavailable,
        detail,
    }
}

/// What a database error means for whoever asked: the primary result code decides.
pub(super) fn meaning(e: sqlx::Error) -> StoreError {
    let (kind, hint) = match &e {
        sqlx::Error::Database(db) => {
            let code = db.code().and_then(|c| c.parse::<i32>().ok()).unwrap_or(0) & 0xff;
            match code {
                5 | 6 => (StoreErrorKind::Unavailable, "another process holds it"),
                7 => (StoreErrorKind::Unavailable, "out of memory"),
                8 => (StoreErrorKind::Unavailable, "it cannot be written"),
                10 => (
                    StoreErrorKind::Unavailable,
                    "reading or writing the disk failed",
                ),
                13 => (
                    StoreErrorKind::Unavailable,
                    "the disk, or the size allowed, is full",
                ),
                14 => (StoreErrorKind::Unavailable, "the file cannot be opened"),
                11 => (
                    StoreErrorKind::Corrupt,
                    "the file is damaged; restore a copy",
                ),
                26 => (StoreErrorKind::Corrupt, "the file is no database"),
                _ => (StoreErrorKind::Corrupt, "the database refused"),
            }
        }
        sqlx::Error::PoolClosed => (StoreErrorKind::Closed, "closed"),
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => {
            (StoreErrorKind::Unavailable, "the database does not answer")
        }
        _ => (StoreErrorKind::Corrupt, "unexpected"),
    };
    StoreError {
        kind,
        detail: format!("{hint}: {e}"),
    }
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
