//! Multi-row statements: one statement for many rows is several times faster than one each.
//!
//! On PostgreSQL a column of values is one array, so one text serves every count. On SQLite the
//! values are listed; row counts come in steps, so that a few texts per statement serve every batch,
//! each is prepared once per connection, and a batch needs two or three of them.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe};

use super::array::Array;
use super::db::{Conn, Kind, Row};
use super::value::Args;

/// Most rows of one statement; times the columns it stays far below SQLite's 32,766 variables.
pub(super) const MAX_ROWS: usize = 256;

/// What a column of values holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Int,
    Text,
    Blob,
}

/// A statement around a list of row values.
pub(super) struct Shape {
    pub before: &'static str,
    /// A letter a column: `i` number, `t` text, `b` bytes; blanks are for the eye.
    pub columns: &'static str,
    pub after: &'static str,
}

impl Shape {
    fn kinds(&self) -> impl Iterator<Item = Of> {
        self.columns.chars().filter_map(|c| match c {
            'i' => Some(Of::Int),
            't' => Some(Of::Text),
            'b' => Some(Of::Blob),
            _ => None,
        })
    }
}

/// Values to bind, row after row, in the order of the columns.
pub(super) struct Binds {
    to: Rows,
    failed: Option<BoxDynError>,
}

enum Rows {
    Listed(SqliteArguments),
    Arrays { columns: Vec<Array>, next: usize },
}

impl Binds {
    fn new(kind: Kind, shape: &Shape, rows: usize) -> Self {
        let to = match kind {
            Kind::Sqlite => {
                let mut args = SqliteArguments::default();
                args.reserve(rows * shape.kinds().count(), 0);
                Rows::Listed(args)
            }
            Kind::Postgres => Rows::Arrays {
                columns: shape.kinds().map(|of| Array::new(of, rows)).collect(),
                next: 0,
            },
        };
        Self { to, failed: None }
    }

    /// The array the next value belongs into.
    fn column<'a>(columns: &'a mut [Array], next: &mut usize) -> Option<&'a mut Array> {
        let at = *next;
        *next = if at + 1 < columns.len() { at + 1 } else { 0 };
        columns.get_mut(at)
    }

    pub fn opt_int(&mut self, value: Option<i64>) -> &mut Self {
        match &mut self.to {
            Rows::Listed(args) => keep(&mut self.failed, args.add(value)),
            Rows::Arrays { columns, next } => {
                if let Some(column) = Self::column(columns, next) {
                    column.int(value);
                }
            }
        }
        self
    }

    pub fn opt_text(&mut self, value: Option<&str>) -> &mut Self {
        match &mut self.to {
            Rows::Listed(args) => keep(&mut self.failed, args.add(value)),
            Rows::Arrays { columns, next } => {
                if let Some(column) = Self::column(columns, next) {
                    column.text(value);
                }
            }
        }
        self
    }

    pub fn opt_blob(&mut self, value: Option<&[u8]>) -> &mut Self {
        match &mut self.to {
            Rows::Listed(args) => keep(&mut self.failed, args.add(value)),
            Rows::Arrays { columns, next } => {
                if let Some(column) = Self::column(columns, next) {
                    column.blob(value);
                }
            }
        }
        self
    }

    pub fn int(&mut self, value: i64) -> &mut Self {
        self.opt_int(Some(value))
    }

    pub fn text(&mut self, value: &str) -> &mut Self {
        self.opt_text(Some(value))
    }

    pub fn blob(&mut self, value: &[u8]) -> &mut Self {
        self.opt_blob(Some(value))
    }

    /// The arguments, or why one of them could not be encoded.
    fn finish(self) -> Result<Args, sqlx::Error> {
        if let Some(e) = self.failed {
            return Err(sqlx::Error::Encode(e));
        }
        match self.to {
            Rows::Listed(args) => Ok(Args::Sqlite(args)),
            Rows::Arrays { columns, .. } => {
                let mut args = sqlx::postgres::PgArguments::default();
                for column in columns {
                    Arguments::add(&mut args, column).map_err(sqlx::Error::Encode)?;
                }
                Ok(Args::Postgres(args))
            }
        }
    }
}

fn keep(failed: &mut Option<BoxDynError>, added: Result<(), BoxDynError>) {
    if let Err(e) = added {
        failed.get_or_insert(e);
    }
}

/// Texts of multi-row statements made so far.
#[derive(Default)]
pub(super) struct Texts(HashMap<(&'static str, &'static str, usize), Arc<str>>);

impl Texts {
    fn get(&mut self, kind: Kind, shape: &Shape, rows: usize) -> Arc<str> {
        // One text for every count on PostgreSQL.
        let count = if kind == Kind::Postgres { 0 } else { rows };
        self.0
            .entry((shape.before, shape.after, count))
            .or_insert_with(|| match kind {
                Kind::Sqlite => listed(shape, rows).into(),
                Kind::Postgres => from_arrays(shape).into(),
            })
            .clone()
    }

    /// Runs `shape` over all items; answers rows affected.
    pub async fn execute<T>(
        &mut self,
        conn: &mut Conn,
        shape: &Shape,
        items: &[T],
        mut bind: impl FnMut(&mut Binds, &T),
    ) -> Result<u64, sqlx::Error> {
        let mut affected = 0;
        let mut rest = items;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(chunk(conn.kind(), rest.len()));
            rest = later;
            let (sql, args) = self.statement(conn.kind(), shape, now, now.len(), &mut bind)?;
            affected += conn.query_with(AssertSqlSafe(sql), args).execute().await?;
        }
        Ok(affected)
    }

    /// The same for a statement that answers rows; every item appears at least once in the values,
    /// the last one perhaps more often (`pad`, for look-ups).
    pub async fn fetch<T>(
        &mut self,
        conn: &mut Conn,
        shape: &Shape,
        items: &[T],
        pad: bool,
        mut bind: impl FnMut(&mut Binds, &T),
    ) -> Result<Vec<Row>, sqlx::Error> {
        let mut found = Vec::new();
        let mut rest = items;
        while !rest.is_empty() {
            let kind = conn.kind();
            let (take, rows) = if pad && kind == Kind::Sqlite {
                let take = rest.len().min(MAX_ROWS);
                (take, take.next_power_of_two())
            } else {
                (chunk(kind, rest.len()), chunk(kind, rest.len()))
            };
            let (now, later) = rest.split_at(take);
            rest = later;
            let (sql, args) = self.statement(kind, shape, now, rows, &mut bind)?;
            found.extend(
                conn.query_with(AssertSqlSafe(sql), args)
                    .fetch_all()
                    .await?,
            );
        }
        Ok(found)
    }

    fn statement<T>(
        &mut self,
        kind: Kind,
        shape: &Shape,
        items: &[T],
        rows: usize,
        bind: &mut impl FnMut(&mut Binds, &T),
    ) -> Result<(Arc<str>, Args), sqlx::Error> {
        let mut binds = Binds::new(kind, shape, rows);
        for item in items {
            bind(&mut binds, item);
        }
        if let Some(last) = items.last() {
            for _ in items.len()..rows {
                bind(&mut binds, last);
            }
        }
        Ok((self.get(kind, shape, rows), binds.finish()?))
    }
}

/// How many of so many rows go into the next statement. SQLite: the largest count in steps that
/// fits: every one to 16, by 8 to 64, by 32 to [`MAX_ROWS`].
fn chunk(kind: Kind, rows: usize) -> usize {
    match (kind, rows) {
        (Kind::Postgres, _) => rows,
        (_, 0..=16) => rows.max(1),
        (_, 17..=64) => rows & !7,
        _ => rows.min(MAX_ROWS) & !31,
    }
}

fn listed(shape: &Shape, rows: usize) -> String {
    let columns = shape.kinds().count();
    let mut row = String::with_capacity(2 * columns + 2);
    row.push('(');
    for column in 0..columns {
        row.push_str(if column == 0 { "?" } else { ",?" });
    }
    row.push(')');
    let mut sql =
        String::with_capacity(shape.before.len() + shape.after.len() + rows * (row.len() + 1) + 8);
    sql.push_str(shape.before);
    sql.push_str("VALUES ");
    for n in 0..rows {
        // Writing to a String does not fail.
        let _ = write!(sql, "{}{row}", if n == 0 { "" } else { "," });
    }
    sql.push_str(shape.after);
    sql
}

fn from_arrays(shape: &Shape) -> String {
    let mut sql = String::from(shape.before);
    sql.push_str("SELECT * FROM UNNEST(");
    for (n, of) in shape.kinds().enumerate() {
        let comma = if n == 0 { "" } else { ", " };
        // Writing to a String does not fail.
        let _ = write!(sql, "{comma}${}::{}", n + 1, of.array_name());
    }
    sql.push(')');
    sql.push_str(shape.after);
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        before: "INSERT INTO t (a, b) ",
        columns: "it",
        after: " ON CONFLICT DO NOTHING",
    };

    #[test]
    fn a_statement_lists_as_many_rows_as_asked() {
        assert_eq!(
            listed(&SHAPE, 2),
            "INSERT INTO t (a, b) VALUES (?,?),(?,?) ON CONFLICT DO NOTHING"
        );
    }

    #[test]
    fn on_postgresql_a_column_is_an_array() {
        assert_eq!(
            from_arrays(&SHAPE),
            "INSERT INTO t (a, b) SELECT * FROM UNNEST($1::bigint[], $2::text[]) ON CONFLICT DO NOTHING"
        );
    }

    #[test]
    fn chunks_come_in_steps_and_are_bounded() {
        let counts = [1, 3, 16, 17, 63, 64, 100, 256, 9999];
        assert_eq!(
            counts.map(|n| chunk(Kind::Sqlite, n)),
            [1, 3, 16, 16, 56, 64, 96, 256, 256]
        );
        assert_eq!(chunk(Kind::Postgres, 9999), 9999);
    }
}
