//! A stopped bridge's state moved from its SQLite file to PostgreSQL.
//!
//! Everything goes in one transaction of the target, in bounded batches: interrupted at any moment it
//! leaves the target as empty as it was, so it can be run again. A target that holds anything is
//! refused. The counts of every table are compared before the transaction ends. The file is not
//! changed (but for bringing it to this version's schema), and stays the store until the
//! configuration names the other.

use std::path::Path;

use sqlx::AssertSqlSafe;

use super::db::{Conn, Row};
use super::errors::{corrupt, meaning};
use super::info::rows_of;
use super::types::{StoreError, StoreErrorKind};
use super::value::Value;
use super::{postgres, schema, sqlite};
use crate::config::{StoreConfig, StorePlace};

/// Rows in a batch; of tables with bodies, fewer.
const BATCH: i64 = 500;
const BATCH_OF_BODIES: i64 = 50;

/// What became of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub table: &'static str,
    pub from: u64,
    pub to: u64,
}

/// A column, and how its values are read.
struct Column {
    name: String,
    holds: Holds,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Int,
    Text,
    Bytes,
}

/// Moves the store in the file at `from` to the PostgreSQL `to`; `progress` is told table, rows done
/// and rows in all. Refused while a bridge has either open. Answers what stood in each table on
/// either side; where the two differ nothing was kept in the target.
pub async fn transfer(
    from: &Path,
    to: &StoreConfig,
    progress: impl Fn(&str, u64, u64),
) -> Result<Vec<Moved>, StoreError> {
    let StorePlace::Postgres(url) = &to.place else {
        return Err(corrupt(
            "the target of a migration is postgres://USER@HOST/DATABASE; to copy a file, use `store backup`",
        ));
    };
    if !from.exists() {
        return Err(corrupt(format!("there is no {}", from.display())));
    }
    let _lock = sqlite::lock(from)?;
    let mut source = sqlite::open(from).await?;
    let place = postgres::Place::new(url, to.timeout)?;
    let (mut target, _) = place.open().await?;
    let moved = copy_all(&mut source, &mut target, &place.shown, progress).await;
    // Whatever was not committed is undone by the end of the session.
    target.close_hard().await;
    // An SQLite file closed in good order folds its log in.
    let _ = source.close().await;
    moved
}

async fn copy_all(
    source: &mut Conn,
    target: &mut Conn,
    place: &str,
    progress: impl Fn(&str, u64, u64),
) -> Result<Vec<Moved>, StoreError> {
    for sql in [
        "SET statement_timeout = 0",
        "SET idle_in_transaction_session_timeout = 0",
        "BEGIN",
    ] {
        target.exec(sql).await.map_err(meaning)?;
    }
    for table in schema::tables() {
        if rows_of(target, table).await.map_err(meaning)? > 0 {
            return Err(StoreError {
                kind: StoreErrorKind::InUse,
                detail: format!(
                    "{place} is not empty (it has rows in {table}); give an empty database or schema"
                ),
            });
        }
    }
    let mut moved = Vec::new();
    for table in schema::tables() {
        let from = rows_of(source, table).await.map_err(meaning)?;
        copy(source, target, table, |done| progress(table, done, from))
            .await
            .map_err(|e| StoreError {
                detail: format!("table {table}: {}", meaning(e).detail),
                kind: StoreErrorKind::Unavailable,
            })?;
        let to = rows_of(target, table).await.map_err(meaning)?;
        moved.push(Moved { table, from, to });
    }
    number_on(target).await.map_err(meaning)?;
    if moved.iter().all(|m| m.from == m.to) {
        target.exec("COMMIT").await.map_err(meaning)?;
    } else {
        target.exec("ROLLBACK").await.map_err(meaning)?;
    }
    Ok(moved)
}

/// Copies one table, batch by batch in the order of its rows.
async fn copy(
    source: &mut Conn,
    target: &mut Conn,
    table: &'static str,
    progress: impl Fn(u64),
) -> Result<(), sqlx::Error> {
    let columns = columns(source, table).await?;
    let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
    let names = names.join(", ");
    let batch = if columns.iter().any(|c| c.holds == Holds::Bytes) {
        BATCH_OF_BODIES
    } else {
        BATCH
    };
    // Names of our own tables and columns; `openings` is the target's own.
    let own = if table == "meta" {
        " AND name NOT IN ('openings', 'probe')"
    } else {
        ""
    };
    let select =
        format!("SELECT rowid, {names} FROM {table} WHERE rowid > $1{own} ORDER BY rowid LIMIT $2");
    let (mut after, mut done) = (i64::MIN, 0);
    loop {
        let rows = source
            .query(AssertSqlSafe(select.clone()))
            .bind(after)
            .bind(batch)
            .fetch_all()
            .await?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        after = last.get(0)?;
        insert(target, table, &names, &columns, &rows).await?;
        done += u64::try_from(rows.len()).unwrap_or(0);
        progress(done);
    }
}

async fn insert(
    target: &mut Conn,
    table: &str,
    names: &str,
    columns: &[Column],
    rows: &[Row],
) -> Result<(), sqlx::Error> {
    let mut lists = Vec::with_capacity(rows.len());
    for n in 0..rows.len() {
        let first = n * columns.len() + 1;
        let marks: Vec<_> = (first..first + columns.len())
            .map(|n| format!("${n}"))
            .collect();
        lists.push(format!("({})", marks.join(", ")));
    }
    let sql = format!("INSERT INTO {table} ({names}) VALUES {}", lists.join(", "));
    let mut query = target.query(AssertSqlSafe(sql));
    for row in rows {
        for (n, column) in columns.iter().enumerate() {
            // The first column of a row read is its place.
            query = query.bind(match column.holds {
                Holds::Int => Value::Int(row.get(n + 1)?),
                Holds::Text => Value::Text(row.get(n + 1)?),
                Holds::Bytes => Value::Bytes(row.get(n + 1)?),
            });
        }
    }
    query.execute().await.map(drop)
}

/// A table's columns in the file.
async fn columns(source: &mut Conn, table: &'static str) -> Result<Vec<Column>, sqlx::Error> {
    let rows = source
        .query("SELECT name, type FROM pragma_table_info($1) ORDER BY cid")
        .bind(table)
        .fetch_all()
        .await?;
    rows.iter()
        .map(|row| {
            let kind: String = row.get(1)?;
            Ok(Column {
                name: row.get(0)?,
                holds: match kind.as_str() {
                    "TEXT" => Holds::Text,
                    "BLOB" => Holds::Bytes,
                    _ => Holds::Int,
                },
            })
        })
        .collect()
}

/// Numbers that PostgreSQL hands out itself go on after those that came.
async fn number_on(target: &mut Conn) -> Result<(), sqlx::Error> {
    let counted = target
        .query(
            "SELECT table_name::text, column_name::text FROM information_schema.columns \
             WHERE table_schema = current_schema() AND is_identity = 'YES'",
        )
        .fetch_all()
        .await?;
    for row in counted {
        let (table, column): (String, String) = (row.get(0)?, row.get(1)?);
        if schema::tables().contains(&table.as_str()) {
            let sql = format!(
                "SELECT setval(pg_get_serial_sequence($1, $2), \
                 COALESCE((SELECT MAX({column}) FROM {table}), 0) + 1, false)"
            );
            // Names of our own table and column.
            let next = target.query(AssertSqlSafe(sql));
            next.bind(table).bind(column).fetch_all().await?;
        }
    }
    Ok(())
}
