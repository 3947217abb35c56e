//! One text on both databases: a statement is written once, with `$1`, `$2`, … for its values, and
//! runs on whichever database the store is in.
//!
//! [`Db`] is the pool of readers, [`Conn`] one connection. Both answer `query(text)`, to which values
//! are bound and which is then executed or fetched. What the two databases say differently
//! (opening, locks, errors, multi-row statements) is in the files named after them and in `bulk`.

use std::time::Duration;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Connection, Postgres, SqlSafeStr, SqlStr, Sqlite};

use super::value::{Args, Bind, Column};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// The readers of a store.
#[derive(Clone, Debug)]
pub(super) enum Db {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// One connection, the writer's for example.
#[derive(Debug)]
pub(super) enum Conn {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

enum Via<'c> {
    SqlitePool(&'c SqlitePool),
    Sqlite(&'c mut SqliteConnection),
    PostgresPool(&'c PgPool),
    Postgres(&'c mut PgConnection),
}

/// A statement with its values, to be run.
#[must_use = "a statement does nothing until it is run"]
pub(super) struct Query<'c> {
    via: Via<'c>,
    sql: SqlStr,
    args: Args,
    failed: Option<BoxDynError>,
}

/// A row read.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Db {
    /// A statement on any connection of the pool.
    pub fn query(&self, sql: impl SqlSafeStr) -> Query<'_> {
        match self {
            Self::Sqlite(pool) => Query::new(Via::SqlitePool(pool), sql, Args::sqlite()),
            Self::Postgres(pool) => Query::new(Via::PostgresPool(pool), sql, Args::postgres()),
        }
    }

    /// The text for this database, where they must differ.
    pub fn either(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self {
            Self::Sqlite(_) => sqlite,
            Self::Postgres(_) => postgres,
        }
    }

    /// Ends the readers.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            // A server that hangs must not keep us from stopping.
            Self::Postgres(pool) => {
                let _ = tokio::time::timeout(Duration::from_secs(2), pool.close()).await;
            }
        }
    }
}

impl Conn {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Sqlite(_) => Kind::Sqlite,
            Self::Postgres(_) => Kind::Postgres,
        }
    }

    /// A statement on this connection.
    pub fn query(&mut self, sql: impl SqlSafeStr) -> Query<'_> {
        match self {
            Self::Sqlite(conn) => Query::new(Via::Sqlite(conn), sql, Args::sqlite()),
            Self::Postgres(conn) => Query::new(Via::Postgres(conn), sql, Args::postgres()),
        }
    }

    /// A statement with its arguments ready.
    pub fn query_with(&mut self, sql: impl SqlSafeStr, args: Args) -> Query<'_> {
        let mut query = self.query(sql);
        query.args = args;
        query
    }

    /// Runs a fixed statement without values.
    pub async fn exec(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        self.query(sql).execute().await.map(drop)
    }

    /// Closes in good order.
    pub async fn close(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(conn) => conn.close().await,
            Self::Postgres(conn) => conn.close().await,
        }
    }

    /// Closes at once.
    pub async fn close_hard(self) {
        // It is given up: nothing is left to be done about an error.
        let _ = match self {
            Self::Sqlite(conn) => conn.close_hard().await,
            Self::Postgres(conn) => conn.close_hard().await,
        };
    }
}

impl Args {
    pub fn sqlite() -> Self {
        Self::Sqlite(sqlx::sqlite::SqliteArguments::default())
    }

    pub fn postgres() -> Self {
        Self::Postgres(sqlx::postgres::PgArguments::default())
    }
}

/// Runs a query by `$method` on whichever connection it has; `$as` makes of the answer what is asked.
macro_rules! run {
    ($query:expr, $method:ident, |$found:ident, $row:ident| $as:expr) => {{
        let Query {
            via,
            sql,
            args,
            failed,
        } = $query;
        if let Some(e) = failed {
            return Err(sqlx::Error::Encode(e));
        }
        match (via, args) {
            (Via::SqlitePool(to), Args::Sqlite(args)) => {
                let $found = sqlx::query_with::<Sqlite, _>(sql, args).$method(to).await?;
                let $row = Row::Sqlite;
                $as
            }
            (Via::Sqlite(to), Args::Sqlite(args)) => {
                let $found = sqlx::query_with::<Sqlite, _>(sql, args).$method(to).await?;
                let $row = Row::Sqlite;
                $as
            }
            (Via::PostgresPool(to), Args::Postgres(args)) => {
                let $found = sqlx::query_with::<Postgres, _>(sql, args)
                    .$method(to)
                    .await?;
                let $row = Row::Postgres;
                $as
            }
            (Via::Postgres(to), Args::Postgres(args)) => {
                let $found = sqlx::query_with::<Postgres, _>(sql, args)
                    .$method(to)
                    .await?;
                let $row = Row::Postgres;
                $as
            }
            (_, Args::Sqlite(_) | Args::Postgres(_)) => Err(sqlx::Error::InvalidArgument(
                "arguments of the other database".into(),
            )),
        }
    }};
}

impl<'c> Query<'c> {
    fn new(via: Via<'c>, sql: impl SqlSafeStr, args: Args) -> Self {
        Self {
            via,
            sql: sql.into_sql_str(),
            args,
            failed: None,
        }
    }

    /// The next value.
    pub fn bind(mut self, value: impl Bind) -> Self {
        if let Err(e) = value.bind(&mut self.args) {
            self.failed.get_or_insert(e);
        }
        self
    }

    /// Runs it; answers how many rows it changed.
    pub async fn execute(self) -> Result<u64, sqlx::Error> {
        run!(self, execute, |done, _row| Ok(done.rows_affected()))
    }

    /// Every row it answers.
    pub async fn fetch_all(self) -> Result<Vec<Row>, sqlx::Error> {
        run!(self, fetch_all, |rows, row| Ok(rows
            .into_iter()
            .map(row)
            .collect()))
    }

    /// Its first row, if there is one.
    pub async fn fetch_optional(self) -> Result<Option<Row>, sqlx::Error> {
        run!(self, fetch_optional, |found, row| Ok(found.map(row)))
    }

    /// Its one row.
    pub async fn fetch_one(self) -> Result<Row, sqlx::Error> {
        self.fetch_optional().await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// The first column of its one row.
    pub async fn scalar<T: Column>(self) -> Result<T, sqlx::Error> {
        self.fetch_one().await?.get(0)
    }
}

impl Row {
    /// A column, counted from 0.
    pub fn get<T: Column>(&self, at: usize) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(row) => T::sqlite(row, at),
            Self::Postgres(row) => T::postgres(row, at),
        }
    }
}
