//! The schema's versions, and whether a database has one this binary can work with.
//!
//! A version that has shipped never changes; the next one is one line here and one file for each
//! database.

use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use super::db::{Conn, Kind};
use super::errors::{corrupt, meaning};
use super::types::{StoreError, StoreErrorKind};

/// One version: its number and name, and its text for either database.
macro_rules! version {
    ($number:literal, $name:literal) => {
        (
            $number,
            $name,
            include_str!(concat!("../../migrations/sqlite/", $name, ".sql")),
            include_str!(concat!("../../migrations/postgres/", $name, ".sql")),
        )
    };
}

/// Every version, oldest first.
const VERSIONS: &[(i64, &str, &str, &str)] = &[
    version!(1, "0001_init"),
    version!(2, "0002_retention"),
    version!(3, "0003_door"),
    version!(4, "0004_lists"),
    version!(5, "0005_mailbox"),
    version!(6, "0006_rooms"),
    version!(7, "0007_leases"),
];

/// The newest version this binary knows.
pub(super) fn newest() -> i64 {
    VERSIONS.iter().map(|v| v.0).max().unwrap_or(0)
}

/// Every table of ours, in the order in which they were made.
pub(super) fn tables() -> Vec<&'static str> {
    let lines = VERSIONS.iter().flat_map(|(_, _, sqlite, _)| sqlite.lines());
    lines
        .filter_map(|line| line.strip_prefix("CREATE TABLE "))
        .filter_map(|rest| rest.split([' ', '(']).next())
        .collect()
}

fn migrations(kind: Kind) -> Vec<Migration> {
    VERSIONS
        .iter()
        .map(|(number, name, sqlite, postgres)| {
            let sql = match kind {
                Kind::Sqlite => *sqlite,
                Kind::Postgres => *postgres,
            };
            let name = name.split_once('_').map_or(*name, |(_, name)| name);
            Migration::new(
                *number,
                name.into(),
                MigrationType::Simple,
                sql.into_sql_str(),
                false,
            )
        })
        .collect()
}

/// Brings the database up to date; `place` names it in errors. The writer's lock must be held.
pub(super) async fn migrate(conn: &mut Conn, place: &str) -> Result<(), StoreError> {
    check_ours(conn, place).await?;
    let mut migrator = Migrator::with_migrations(migrations(conn.kind()));
    // The store's own lock is held.
    migrator.set_locking(false);
    let done = match conn {
        Conn::Sqlite(conn) => migrator.run(conn).await,
        Conn::Postgres(conn) => migrator.run(conn).await,
    };
    done.map_err(|e| match e {
        MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => opening(place, e),
        e => corrupt(format!("{place}: {e}")),
    })
}

/// For a database opened only to read: ours, and not newer or older than this binary.
pub(super) async fn check_readable(conn: &mut Conn, place: &str) -> Result<(), StoreError> {
    match check_ours(conn, place).await? {
        Some(version) if version == newest() => Ok(()),
        None => Err(corrupt(format!(
            "{place} is empty; start this drawbridge's `run` once to set it up"
        ))),
        Some(_) => Err(corrupt(format!(
            "{place} was written by an older drawbridge; start this one's `run` once to bring it up to date"
        ))),
    }
}

/// Refuses a database that is not ours, or newer than this binary; answers its version, `None` when
/// it is new.
pub(super) async fn check_ours(conn: &mut Conn, place: &str) -> Result<Option<i64>, StoreError> {
    let (ours, others) = found(conn).await.map_err(|e| opening(place, e))?;
    let foreign = || {
        corrupt(format!(
            "{place} is a database of something else; give another one"
        ))
    };
    if !ours {
        // A schema of PostgreSQL may be shared; an SQLite file is one thing only.
        return if others { Err(foreign()) } else { Ok(None) };
    }
    let version: i64 = conn
        .query("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations")
        .scalar()
        .await
        .map_err(|e| opening(place, e))?;
    if version > newest() {
        return Err(StoreError {
            kind: StoreErrorKind::Newer,
            detail: format!(
                "{place} was written by a newer drawbridge (schema {version}, this one knows {}); run that version",
                newest()
            ),
        });
    }
    if version > 0 && !has_table(conn, "federation_queue").await.map_err(meaning)? {
        return Err(foreign());
    }
    Ok(Some(version))
}

/// Whether the table of versions is there, and (SQLite) whether others are without it.
async fn found(conn: &mut Conn) -> Result<(bool, bool), sqlx::Error> {
    let ours = has_table(conn, "_sqlx_migrations").await?;
    let any: i64 = match conn.kind() {
        Kind::Sqlite => {
            conn.query("SELECT COUNT(*) FROM sqlite_master")
                .scalar()
                .await?
        }
        Kind::Postgres => 0,
    };
    Ok((ours, any > 0))
}

/// Whether a table is there.
pub(super) async fn has_table(conn: &mut Conn, name: &str) -> Result<bool, sqlx::Error> {
    let sql = match conn.kind() {
        Kind::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = $1",
        Kind::Postgres => {
            "SELECT COUNT(*) FROM pg_catalog.pg_tables \
             WHERE schemaname = current_schema() AND tablename = $1"
        }
    };
    let found: i64 = conn.query(sql).bind(name).scalar().await?;
    Ok(found > 0)
}

/// An error while opening, with the place it is about.
pub(super) fn opening(place: &str, e: sqlx::Error) -> StoreError {
    let mut error = meaning(e);
    error.detail = format!("{place}: {}", error.detail);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<&str> {
        let mut names: Vec<_> = text
            .split("CREATE TABLE ")
            .skip(1)
            .filter_map(|rest| rest.split([' ', '(']).next())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn both_databases_have_the_same_tables_and_every_one_is_found() {
        let mut all = 0;
        for (number, name, sqlite, postgres) in VERSIONS {
            assert_eq!(named(sqlite), named(postgres), "{name}");
            assert!(name.starts_with(&format!("{number:04}_")), "{name}");
            all += named(sqlite).len();
        }
        assert_eq!(tables().len(), all);
    }
    #[test]
    fn every_migration_that_lies_in_its_folder_is_applied() {
        let mut known: Vec<_> = VERSIONS.iter().map(|v| format!("{}.sql", v.1)).collect();
        known.sort();
        for folder in ["sqlite", "postgres"] {
            let folder = format!("{}/migrations/{folder}", env!("CARGO_MANIFEST_DIR"));
            let files = std::fs::read_dir(&folder).unwrap();
            let name = |file: std::io::Result<std::fs::DirEntry>| file.unwrap().file_name();
            let mut files: Vec<_> = files.map(|f| name(f).into_string().unwrap()).collect();
            files.sort();
            assert_eq!(files, known, "{folder}");
        }
    }
}
