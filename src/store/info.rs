//! What a store is and holds: for `store info`, and to compare two of them.

use serde::Serialize;
use sqlx::AssertSqlSafe;

use super::db::{Conn, Kind};
use super::errors::meaning;
use super::types::StoreError;
use super::{postgres, read, schema, sqlite};
use crate::config::{StoreConfig, StorePlace};

/// A store, looked at from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreInfo {
    /// The file, or host and database.
    pub place: String,
    /// Identity of this database.
    pub id: String,
    /// Version of its schema.
    pub schema: i64,
    /// Room it takes, bytes.
    pub bytes: u64,
    pub tables: Vec<TableRows>,
}

/// A table and how many rows it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableRows {
    pub table: &'static str,
    pub rows: u64,
}

/// Looks at a store beside whoever writes it; changes nothing.
pub async fn info(config: &StoreConfig) -> Result<StoreInfo, StoreError> {
    let mut conn = reader(config).await?;
    let mut tables = Vec::new();
    for table in schema::tables() {
        let rows = rows_of(&mut conn, table).await.map_err(meaning)?;
        tables.push(TableRows { table, rows });
    }
    let found = StoreInfo {
        place: config.place.shown(),
        id: read::stored_identity(&mut conn).await.map_err(meaning)?,
        schema: schema::newest(),
        bytes: size(&mut conn).await.map_err(meaning)?,
        tables,
    };
    conn.close_hard().await;
    Ok(found)
}

/// One connection to look through.
pub(super) async fn reader(config: &StoreConfig) -> Result<Conn, StoreError> {
    match &config.place {
        StorePlace::Sqlite(path) => sqlite::reader(path).await,
        StorePlace::Postgres(url) => postgres::Place::new(url, config.timeout)?.reader().await,
    }
}

/// How many rows a table has. What a database keeps about itself alone does not count.
pub(super) async fn rows_of(conn: &mut Conn, table: &'static str) -> Result<u64, sqlx::Error> {
    let own = if table == "meta" {
        " WHERE name NOT IN ('openings', 'probe')"
    } else {
        ""
    };
    // Names of our own tables.
    let sql = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}{own}"));
    let rows: i64 = conn.query(sql).scalar().await?;
    Ok(u64::try_from(rows).unwrap_or(0))
}

async fn size(conn: &mut Conn) -> Result<u64, sqlx::Error> {
    let mut bytes: i64 = 0;
    match conn.kind() {
        Kind::Sqlite => {
            bytes = conn
                .query("SELECT p.page_count * s.page_size FROM pragma_page_count() p, pragma_page_size() s")
                .scalar()
                .await?;
        }
        Kind::Postgres => {
            for table in schema::tables() {
                let one: i64 = conn
                    .query("SELECT pg_total_relation_size($1::text::regclass)")
                    .bind(table)
                    .scalar()
                    .await?;
                bytes = bytes.saturating_add(one);
            }
        }
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}
