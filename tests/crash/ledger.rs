//! The bridge's database as the test meddles with it.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::Connection as _;

use crate::support::postgres;

/// The bridge's database as the test meddles with it.
pub enum Ledger {
    /// The file.
    Sqlite(PathBuf),
    /// A server of its own.
    Postgres(postgres::Server),
}

/// A lock that somebody holds until it is dropped.
pub enum Lock {
    Sqlite(#[allow(dead_code, reason = "dropping it ends the lock")] sqlx::SqliteConnection),
    Postgres(#[allow(dead_code, reason = "dropping it ends the lock")] sqlx::PgConnection),
}

impl Ledger {
    /// Locks what the bridge writes, as a backup tool or a person with a shell might.
    pub async fn lock(&self) -> Option<Lock> {
        match self {
            Self::Sqlite(file) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new()
                    .filename(file)
                    .busy_timeout(Duration::from_secs(2));
                let mut conn = sqlx::SqliteConnection::connect_with(&options).await.ok()?;
                sqlx::query("BEGIN IMMEDIATE")
                    .execute(&mut conn)
                    .await
                    .ok()?;
                Some(Lock::Sqlite(conn))
            }
            Self::Postgres(server) => {
                let mut conn = sqlx::PgConnection::connect(&server.url()).await.ok()?;
                for text in [
                    "BEGIN",
                    "SET LOCAL lock_timeout = '2s'",
                    "LOCK TABLE federation_queue, federation_events IN ACCESS EXCLUSIVE MODE",
                ] {
                    sqlx::query(text).execute(&mut conn).await.ok()?;
                }
                Some(Lock::Postgres(conn))
            }
        }
    }

    /// SIGKILL to the server.
    pub async fn kill9(&mut self) {
        if let Self::Postgres(server) = self {
            server.kill9().await;
        }
    }

    /// Up again, with what it had.
    pub async fn start(&mut self) {
        if let Self::Postgres(server) = self {
            server.start().await;
        }
    }
}
