//! What is PostgreSQL's own: connecting, the settings of a session, and the lock against a second
//! process.
//!
//! The lock is an advisory one, held by the writer's own session: it ends with the connection, and a
//! connection without it never writes. Each opening also leaves a count behind. A writer that lost
//! its connection takes the lock again and finds the count as it left it, or another process has had
//! the database meanwhile; then nothing is written any more, since ledger numbers handed out here
//! may have been handed out there too.
//!
//! Instances that share a database (`store.shared`) hold the same lock in its shared form, so they and
//! one that wants it alone exclude each other. Numbers come from the database then, within the
//! commit that uses them, and a lost connection needs no proof that nobody else wrote. The schema is
//! brought up to date under the lock taken alone: instances of an older version must stop first.

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use super::db::{Conn, Db};
use super::errors::{meaning, unavailable};
use super::schema::{self, opening};
use super::single;
use super::types::{StoreError, StoreErrorKind};
use crate::config::PostgresUrl;

/// Readers at most.
const READERS: u32 = 4;
/// A reader used within this time is not asked whether it is still there.
const TRUSTED: Duration = Duration::from_secs(1);
/// Texts kept prepared on a connection.
const STATEMENTS: usize = 256;
/// First half of the advisory lock's key ("drwb"); the second is the schema's.
const LOCK: i32 = 0x6472_7762;
/// Pause before the lock is tried again.
const LOCK_AGAIN: Duration = Duration::from_millis(100);
/// Several instances: a transaction in which nothing happens for so long is given up.
const FROZEN_AFTER: Duration = Duration::from_secs(3);
/// The mark in `meta` that counts openings.
const OPENINGS: &str = "openings";

/// Where the database is, and how patient to be with it.
#[derive(Clone)]
pub(super) struct Place {
    options: PgConnectOptions,
    /// The address for logs and errors, without its password.
    pub shown: String,
    /// The longest that one transaction, or connecting, may take.
    pub patience: Duration,
    /// Other instances may write as well.
    pub shared: bool,
}

/// How the lock is held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Alone,
    Shared,
}

impl Place {
    /// For a store that is one process's own.
    pub fn new(url: &PostgresUrl, patience: Duration) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.0.0.parse().map_err(meaning)?;
        let options = options
            .application_name("drawbridge")
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging();
        Ok(Self {
            options,
            shown: url.shown(),
            patience,
            shared: false,
        })
    }

    /// The same, of instances that may share it.
    pub fn of(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// Runs `work`, at most as long as patience lasts.
    pub async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.patience, work).await {
            Ok(result) => result,
            Err(_) => Err(unavailable(format!(
                "{}: no answer within {:?}",
                self.shown, self.patience
            ))),
        }
    }

    /// Opens the database for writing: takes the lock, brings the schema up to date. Answers the
    /// connection and the count of openings, this one included.
    pub async fn open(&self) -> Result<(Conn, i64), StoreError> {
        let (mut conn, hold) = self
            .within(async {
                let mut conn = Conn::Postgres(self.connect().await?);
                self.set_up(&mut conn).await?;
                let hold = self.lock_soon(&mut conn).await?;
                self.warn(&mut conn).await?;
                Ok((conn, hold))
            })
            .await?;
        if hold == Hold::Alone {
            // A migration of a large table may take its time.
            conn.exec("SET statement_timeout = 0")
                .await
                .map_err(meaning)?;
            schema::migrate(&mut conn, &self.shown).await?;
        }
        self.within(async {
            self.set_up(&mut conn).await?;
            let openings = self.count_opening(&mut conn).await?;
            if self.shared && hold == Hold::Alone {
                // Never without it: the shared form is taken while the other is still held.
                self.try_lock(&mut conn, Hold::Shared).await?;
                self.unlock(&mut conn, Hold::Alone).await?;
            }
            Ok(openings)
        })
        .await
        .map(|openings| (conn, openings))
    }

    /// A new connection for a writer whose last one is gone, with the lock taken again.
    pub async fn reopen(&self, openings: i64) -> Result<Conn, StoreError> {
        self.within(async {
            let mut conn = Conn::Postgres(self.connect().await?);
            self.set_up(&mut conn).await?;
            if self.shared {
                if !self.try_lock(&mut conn, Hold::Shared).await? {
                    return Err(unavailable(self.in_use().detail));
                }
                // Whoever had it alone before must not think that nobody wrote meanwhile.
                self.count_opening(&mut conn).await?;
                return Ok(conn);
            }
            if !self.try_lock(&mut conn, Hold::Alone).await? {
                return Err(unavailable(self.in_use().detail));
            }
            let now = single::mark(&mut conn, OPENINGS).await.map_err(meaning)?;
            if now != Some(openings) {
                return Err(unavailable(format!(
                    "{}: another drawbridge used this database while the connection was gone; restart this one",
                    self.shown
                )));
            }
            Ok(conn)
        })
        .await
    }

    /// Counts this opening; answers the count.
    async fn count_opening(&self, conn: &mut Conn) -> Result<i64, StoreError> {
        let count: String = conn
            .query(
                "INSERT INTO meta (name, value) VALUES ($1, '1') ON CONFLICT (name) \
                 DO UPDATE SET value = (meta.value::bigint + 1)::text RETURNING value",
            )
            .bind(OPENINGS)
            .scalar()
            .await
            .map_err(meaning)?;
        count
            .parse()
            .map_err(|e| meaning(sqlx::Error::Decode(Box::new(e))))
    }

    /// A connection for the leases, without the lock: it writes nothing else.
    pub async fn plain(&self) -> Result<Conn, StoreError> {
        let mut conn = Conn::Postgres(self.connect().await?);
        self.set_up(&mut conn).await?;
        // Two small tables: reading them whole is the way.
        conn.exec("SET enable_seqscan = on")
            .await
            .map_err(meaning)?;
        Ok(conn)
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        PgConnection::connect_with(&self.options)
            .await
            .map_err(|e| opening(&self.shown, e))
    }

    /// The settings of the writer's session.
    async fn set_up(&self, conn: &mut Conn) -> Result<(), StoreError> {
        let Conn::Postgres(conn) = conn else {
            return Ok(());
        };
        let patience = self.patience.as_millis();
        // The others wait for a transaction's turn: one whose process is frozen must not keep it.
        let idle = match self.shared {
            true => patience.min(FROZEN_AFTER.as_millis()),
            false => patience,
        };
        // The server gives up before we do, and on its own if we vanish: a session that lingers
        // keeps the lock. Plans: every statement of the writer finds its rows by an index, whatever
        // the statistics of a table that was empty a moment ago say. Where there is none, the price put
        // on a scan must not make the server compile the statement first, which takes half a second.
        let sql = format!(
            "SELECT set_config('synchronous_commit', 'on', false) \
               WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply'); \
             SET statement_timeout = {patience}; SET lock_timeout = {patience}; \
             SET idle_in_transaction_session_timeout = {idle}; \
             SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
             SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
             SET plan_cache_mode = force_generic_plan; SET jit = off; SET client_min_messages = warning"
        );
        // Numbers are all that is put in.
        conn.execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .map(drop)
            .map_err(|e| opening(&self.shown, e))
    }

    /// Takes the lock, with some patience for the session of a process that was just killed: it lasts
    /// as long as the statement it was in. A fixed pause instead of `retry::until`, whose last delay
    /// may outlast the limit on the whole opening: that would hide who holds the lock.
    async fn lock_soon(&self, conn: &mut Conn) -> Result<Hold, StoreError> {
        let until = tokio::time::Instant::now() + self.patience / 2;
        loop {
            match self.lock(conn).await {
                Err(e)
                    if (e.kind == StoreErrorKind::InUse
                        || (self.shared && e.kind == StoreErrorKind::Unavailable))
                        && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(LOCK_AGAIN).await;
                }
                result => return result,
            }
        }
    }

    /// Takes the lock: the shared form if that is wanted and the schema is as this binary knows it,
    /// alone otherwise.
    async fn lock(&self, conn: &mut Conn) -> Result<Hold, StoreError> {
        let schema: Option<String> = conn
            .query("SELECT current_schema()::text")
            .scalar()
            .await
            .map_err(|e| opening(&self.shown, e))?;
        if schema.is_none() {
            return Err(unavailable(format!(
                "{}: the search_path names no schema that exists; create it",
                self.shown
            )));
        }
        let mut old_schema = false;
        if self.shared && self.try_lock(conn, Hold::Shared).await? {
            let version = schema::check_ours(conn, &self.shown).await;
            if matches!(version, Ok(Some(version)) if version == schema::newest()) {
                return Ok(Hold::Shared);
            }
            self.unlock(conn, Hold::Shared).await?;
            old_schema = version?.is_some();
        }
        if self.try_lock(conn, Hold::Alone).await? {
            return Ok(Hold::Alone);
        }
        Err(match old_schema {
            true => StoreError {
                kind: StoreErrorKind::InUse,
                detail: format!(
                    "{} was written by an older drawbridge and instances of it still run; stop them all, then start this one",
                    self.shown
                ),
            },
            false => self.in_use(),
        })
    }

    fn in_use(&self) -> StoreError {
        let detail = match self.shared {
            true => format!(
                "{} is in use by a drawbridge process that wants it alone; set store.shared = true on every instance and restart that one",
                self.shown
            ),
            false => format!(
                "{} is in use by another drawbridge process; stop that one, give this one a database of its own, or set store.shared = true on every instance",
                self.shown
            ),
        };
        // One that shares may find another that brings a new database's schema up to date, which
        // passes: whoever starts tries again for a while.
        let kind = match self.shared {
            true => StoreErrorKind::Unavailable,
            false => StoreErrorKind::InUse,
        };
        StoreError { kind, detail }
    }

    async fn try_lock(&self, conn: &mut Conn, hold: Hold) -> Result<bool, StoreError> {
        let sql = match hold {
            Hold::Alone => {
                "SELECT pg_try_advisory_lock($1::bigint::int, hashtext(current_schema()::text))"
            }
            Hold::Shared => {
                "SELECT pg_try_advisory_lock_shared($1::bigint::int, hashtext(current_schema()::text))"
            }
        };
        let lock = conn.query(sql).bind(i64::from(LOCK)).scalar();
        lock.await.map_err(|e| opening(&self.shown, e))
    }

    async fn unlock(&self, conn: &mut Conn, hold: Hold) -> Result<(), StoreError> {
        let sql = match hold {
            Hold::Alone => {
                "SELECT pg_advisory_unlock($1::bigint::int, hashtext(current_schema()::text))"
            }
            Hold::Shared => {
                "SELECT pg_advisory_unlock_shared($1::bigint::int, hashtext(current_schema()::text))"
            }
        };
        let unlock = conn.query(sql).bind(i64::from(LOCK)).scalar::<bool>();
        unlock.await.map(drop).map_err(|e| opening(&self.shown, e))
    }

    /// Says what of the server's settings weakens our promises.
    async fn warn(&self, conn: &mut Conn) -> Result<(), StoreError> {
        for setting in ["fsync", "full_page_writes"] {
            let value: String = conn
                .query("SELECT current_setting($1)")
                .bind(setting)
                .scalar()
                .await
                .map_err(|e| opening(&self.shown, e))?;
            if value == "off" {
                tracing::warn!(
                    database = self.shown,
                    "PostgreSQL runs with {setting} = off: a power cut can lose or damage what was acknowledged"
                );
            }
        }
        Ok(())
    }

    /// The command that makes a backup of the schema our tables are in.
    pub fn dump_command(&self, schema: &str, file: &Path) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
        let o = &self.options;
        let host = match o.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => o.get_host().to_owned(),
        };
        let user = o.get_username();
        format!(
            "pg_dump --host {} --port {} --username {} --dbname {} --schema {} --format custom --file {}",
            quoted(&host),
            o.get_port(),
            quoted(user),
            quoted(o.get_database().unwrap_or(user)),
            quoted(schema),
            quoted(&file.display().to_string()),
        )
    }

    /// The pool of readers. No connection is made before one is needed.
    pub fn readers(&self) -> Db {
        let patience = self.patience.as_millis();
        let pool = PgPoolOptions::new()
            .max_connections(READERS)
            .min_connections(0)
            .acquire_timeout(self.patience)
            .idle_timeout(Duration::from_secs(300))
            // A server that was restarted leaves dead connections behind; to ask before every question
            // would double what a question costs.
            .test_before_acquire(false)
            .before_acquire(|conn, used| {
                Box::pin(async move {
                    if used.idle_for > TRUSTED {
                        conn.ping().await?;
                    }
                    Ok(true)
                })
            })
            .after_connect(move |conn, _| {
                let sql = format!(
                    "SET default_transaction_read_only = on; SET statement_timeout = {}; \
                     SET lock_timeout = {patience}; SET tcp_keepalives_idle = 10; \
                     SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
                     SET client_min_messages = warning",
                    patience * 3
                );
                Box::pin(async move {
                    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
                    Ok(())
                })
            })
            .connect_lazy_with(self.options.clone());
        Db::Postgres(pool)
    }

    /// One connection that only reads, of a database whose version was checked with it.
    pub async fn reader(&self) -> Result<Conn, StoreError> {
        self.within(async {
            let mut conn = Conn::Postgres(self.connect().await?);
            conn.exec("SET default_transaction_read_only = on")
                .await
                .map_err(meaning)?;
            schema::check_readable(&mut conn, &self.shown).await?;
            Ok(conn)
        })
        .await
    }
}
