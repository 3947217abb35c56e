//! Multi-row statements: one statement for many rows is several times faster than one each.
//!
//! Row counts come in steps, so that a few texts per statement serve every batch, each is prepared
//! once per connection, and a batch needs two or three of them.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe};

/// Most rows of one statement; times the columns it stays far below SQLite's 32,766 variables.
pub(super) const MAX_ROWS: usize = 256;

/// A statement around a list of row values.
pub(super) struct Shape {
    pub before: &'static str,
    pub columns: usize,
    pub after: &'static str,
}

/// Values to bind, in order.
#[derive(Default)]
pub(super) struct Binds {
    args: SqliteArguments,
    failed: Option<sqlx::error::BoxDynError>,
}

impl Binds {
    fn add<'t, T: sqlx::Encode<'t, Sqlite> + sqlx::Type<Sqlite>>(&mut self, value: T) -> &mut Self {
        if let Err(e) = self.args.add(value) {
            self.failed.get_or_insert(e);
        }
        self
    }

    pub fn int(&mut self, value: i64) -> &mut Self {
        self.add(value)
    }

    pub fn opt_int(&mut self, value: Option<i64>) -> &mut Self {
        self.add(value)
    }

    pub fn text(&mut self, value: &str) -> &mut Self {
        self.add(value)
    }

    pub fn opt_text(&mut self, value: Option<&str>) -> &mut Self {
        self.add(value)
    }

    pub fn blob(&mut self, value: &[u8]) -> &mut Self {
        self.add(value)
    }

    pub fn opt_blob(&mut self, value: Option<&[u8]>) -> &mut Self {
        self.add(value)
    }

    /// The arguments, or why one of them could not be encoded.
    pub fn finish(self) -> Result<SqliteArguments, sqlx::Error> {
        match self.failed {
            None => Ok(self.args),
            Some(e) => Err(sqlx::Error::Encode(e)),
        }
    }
}

/// Texts of multi-row statements made so far.
#[derive(Default)]
pub(super) struct Texts(HashMap<(&'static str, &'static str, usize), Arc<str>>);

impl Texts {
    fn get(&mut self, shape: &Shape, rows: usize) -> Arc<str> {
        self.0
            .entry((shape.before, shape.after, rows))
            .or_insert_with(|| text(shape, rows).into())
            .clone()
    }

    /// Runs `shape` over all items, at most [`MAX_ROWS`] a statement; answers rows affected.
    pub async fn execute<T>(
        &mut self,
        conn: &mut SqliteConnection,
        shape: &Shape,
        items: &[T],
        mut bind: impl FnMut(&mut Binds, &T),
    ) -> Result<u64, sqlx::Error> {
        let mut affected = 0;
        let mut rest = items;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(chunk(rest.len()));
            rest = later;
            affected += self
                .query(shape, now, now.len(), &mut bind)?
                .execute(&mut *conn)
                .await?
                .rows_affected();
        }
        Ok(affected)
    }

    /// The same for a statement that answers rows; every item appears at least once in the values,
    /// the last one perhaps more often (`pad`, for look-ups).
    pub async fn fetch<T>(
        &mut self,
        conn: &mut SqliteConnection,
        shape: &Shape,
        items: &[T],
        pad: bool,
        mut bind: impl FnMut(&mut Binds, &T),
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let mut found = Vec::new();
        let mut rest = items;
        while !rest.is_empty() {
            let (take, rows) = if pad {
                let take = rest.len().min(MAX_ROWS);
                (take, take.next_power_of_two())
            } else {
                (chunk(rest.len()), chunk(rest.len()))
            };
            let (now, later) = rest.split_at(take);
            rest = later;
            let query = self.query(shape, now, rows, &mut bind)?;
            found.extend(query.fetch_all(&mut *conn).await?);
        }
        Ok(found)
    }

    fn query<T>(
        &mut self,
        shape: &Shape,
        items: &[T],
        rows: usize,
        bind: &mut impl FnMut(&mut Binds, &T),
    ) -> Result<Query<'static, Sqlite, SqliteArguments>, sqlx::Error> {
        let mut binds = Binds::default();
        binds.args.reserve(rows * shape.columns, 0);
        for item in items {
            bind(&mut binds, item);
        }
        if let Some(last) = items.last() {
            for _ in items.len()..rows {
                bind(&mut binds, last);
            }
        }
        let args = binds.finish()?;
        Ok(sqlx::query_with(AssertSqlSafe(self.get(shape, rows)), args))
    }
}

/// The largest count in steps that fits: every one to 16, by 8 to 64, by 32 to [`MAX_ROWS`].
fn chunk(rows: usize) -> usize {
    match rows {
        0..=16 => rows.max(1),
        17..=64 => rows & !7,
        _ => rows.min(MAX_ROWS) & !31,
    }
}

fn text(shape: &Shape, rows: usize) -> String {
    let mut row = String::with_capacity(2 * shape.columns + 2);
    row.push('(');
    for column in 0..shape.columns {
        row.push_str(if column == 0 { "?" } else { ",?" });
    }
    row.push(')');
    let mut sql =
        String::with_capacity(shape.before.len() + shape.after.len() + rows * (row.len() + 1));
    sql.push_str(shape.before);
    for n in 0..rows {
        // Writing to a String does not fail.
        let _ = write!(sql, "{}{row}", if n == 0 { "" } else { "," });
    }
    sql.push_str(shape.after);
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_lists_as_many_rows_as_asked() {
        let shape = Shape {
            before: "INSERT INTO t (a, b) VALUES ",
            columns: 2,
            after: " ON CONFLICT DO NOTHING",
        };
        assert_eq!(
            text(&shape, 2),
            "INSERT INTO t (a, b) VALUES (?,?),(?,?) ON CONFLICT DO NOTHING"
        );
    }

    #[test]
    fn chunks_come_in_steps_and_are_bounded() {
        let counts = [1, 3, 16, 17, 63, 64, 100, 256, 9999];
        assert_eq!(counts.map(chunk), [1, 3, 16, 16, 56, 64, 96, 256, 256]);
    }
}
