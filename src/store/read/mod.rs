//! Every question asked of the database, over the pool of readers.

mod facts;
mod inbound;
mod queue;
pub(super) use facts::*;
pub(super) use inbound::*;
pub(super) use queue::*;

use super::db::{Conn, Db};

type Answer<T> = Result<T, sqlx::Error>;

/// The store's identity.
pub(super) async fn identity(db: Db) -> Answer<String> {
    db.query("SELECT value FROM meta WHERE name = 'id'")
        .scalar()
        .await
}

/// The same, over one connection.
pub(super) async fn stored_identity(conn: &mut Conn) -> Answer<String> {
    conn.query("SELECT value FROM meta WHERE name = 'id'")
        .scalar()
        .await
}

fn unreadable(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(why.into())
}

pub(super) fn limit(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
