//! The writing side of a store: one connection, replaced when it broke, and one transaction a batch.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::apply::{self, Marks};
use super::bulk::Texts;
use super::db::{Conn, Kind};
use super::errors::{meaning, unavailable};
use super::plan::Plan;
use super::types::StoreError;
use super::writer::{Answers, Backend};
use super::{common, postgres, single, sqlite};
use crate::clock::Clock;

/// Which database, and what makes it this process's own.
pub(super) enum Home {
    Sqlite {
        path: PathBuf,
        /// The file as it was when it was opened.
        file: Option<(u64, u64)>,
        max_pages: Option<i64>,
        _lock: sqlite::Lock,
    },
    Postgres {
        place: Box<postgres::Place>,
        /// Count of openings, this process's the last.
        openings: i64,
    },
}

impl Home {
    /// Where it is, if other instances write it too.
    pub fn shared_place(&self) -> Option<postgres::Place> {
        match self {
            Self::Postgres { place, .. } if place.shared => Some((**place).clone()),
            _ => None,
        }
    }

    /// Other instances write it too.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres { place, .. } if place.shared)
    }

    pub fn sqlite(path: &Path, lock: sqlite::Lock) -> Self {
        Self::Sqlite {
            path: path.into(),
            file: sqlite::identity(path),
            max_pages: None,
            _lock: lock,
        }
    }
}

/// The writer's connection and counters.
pub(super) struct SqlWriter {
    home: Home,
    /// This process among those that share the database.
    me: String,
    clock: Clock,
    /// `None` after it broke; made anew by the next write.
    conn: Option<Conn>,
    texts: Texts,
    marks: Marks,
    /// One past the highest number [`super::Store::reserve_rows`] gave, for a clean close.
    reserved: Arc<AtomicI64>,
}

impl SqlWriter {
    /// Over an opened connection whose `marks` were read (see [`single::load_marks`]).
    pub fn new(
        home: Home,
        me: String,
        clock: Clock,
        conn: Conn,
        marks: Marks,
        reserved: Arc<AtomicI64>,
    ) -> Self {
        Self {
            home,
            me,
            clock,
            conn: Some(conn),
            texts: Texts::default(),
            marks,
            reserved,
        }
    }

    /// The connection, taken out; a broken one is replaced.
    async fn take(&mut self) -> Result<Conn, StoreError> {
        if let Home::Sqlite { path, file, .. } = &self.home
            && (sqlite::identity(path) != *file || file.is_none())
        {
            return Err(unavailable(format!(
                "{} was moved or deleted while in use; put it back",
                path.display()
            )));
        }
        if let Some(conn) = self.conn.take() {
            return Ok(conn);
        }
        match &self.home {
            Home::Sqlite {
                path, max_pages, ..
            } => {
                let mut conn = sqlite::connect(path).await?;
                single::limit_pages(&mut conn, *max_pages)
                    .await
                    .map_err(meaning)?;
                Ok(conn)
            }
            Home::Postgres { place, openings } => {
                let mut conn = place.reopen(*openings).await?;
                // A transaction whose end was not heard of may have been committed.
                let found = single::load_marks(&mut conn).await.map_err(meaning)?;
                self.marks.inbound_bytes = found.inbound_bytes;
                self.marks.held = found.held;
                self.marks.rows = self.marks.rows.max(found.rows);
                self.marks.events = self.marks.events.max(found.events);
                Ok(conn)
            }
        }
    }

    /// Ends a transaction that failed; a connection that cannot even do that is given up.
    async fn undo(&mut self, mut conn: Conn, failed: &StoreError) {
        let usable = match (&self.home, conn.kind()) {
            (Home::Postgres { place, .. }, Kind::Postgres) => {
                let rollback = async { conn.exec("ROLLBACK").await.map_err(meaning) };
                place.within(rollback).await.is_ok()
            }
            // After a full disk SQLite may have rolled back by itself: then this statement fails and
            // the connection is as good as new, which the next BEGIN shows.
            _ => {
                conn.exec("ROLLBACK").await.is_ok()
                    || (conn.exec("BEGIN").await.is_ok() && conn.exec("ROLLBACK").await.is_ok())
            }
        };
        if usable {
            self.conn = Some(conn);
        } else {
            tracing::debug!(error = %failed, "the store's connection is given up");
            conn.close_hard().await;
        }
    }

    /// Other instances write as well.
    fn shared(&self) -> bool {
        matches!(&self.home, Home::Postgres { place, .. } if place.shared)
    }

    /// Runs `work` in one transaction, whole or not at all. `in_turn`: it touches what instances that
    /// share the database decide in turns.
    async fn transact<T>(
        &mut self,
        in_turn: bool,
        work: impl AsyncFnOnce(&mut Conn, &mut Texts, &mut Marks) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut conn = self.take().await?;
        let in_turn = in_turn && self.shared();
        let (mut before, mut marks) = (self.marks, self.marks);
        let (texts, me) = (&mut self.texts, &self.me);
        let whole = async {
            let begin = match conn.kind() {
                Kind::Sqlite => "BEGIN IMMEDIATE",
                Kind::Postgres => "BEGIN",
            };
            conn.exec(begin).await?;
            if in_turn {
                common::turn(&mut conn, &mut marks, me).await?;
                before = marks;
            }
            let done = work(&mut conn, texts, &mut marks).await?;
            if in_turn && marks.held != before.held {
                single::put_mark(&mut conn, "held", marks.held).await?;
            }
            if marks.inbound_bytes != before.inbound_bytes {
                single::put_mark(&mut conn, "inbound_bytes", marks.inbound_bytes).await?;
            }
            conn.exec("COMMIT").await?;
            Ok(done)
        };
        let whole = async { whole.await.map_err(meaning) };
        let (result, hung) = match &self.home {
            Home::Sqlite { .. } => (whole.await, false),
            Home::Postgres { place, .. } => {
                match tokio::time::timeout(place.patience, whole).await {
                    Ok(result) => (result, false),
                    Err(_) => {
                        let detail =
                            format!("{}: no answer within {:?}", place.shown, place.patience);
                        (Err(unavailable(detail)), true)
                    }
                }
            }
        };
        match result {
            Ok(done) => {
                self.conn = Some(conn);
                self.marks = marks;
                Ok(done)
            }
            Err(e) => {
                // Numbers given to events of a transaction that failed are not given again: whether
                // it reached the disk all the same is not certain.
                self.marks.next_event = marks.next_event;
                if hung {
                    conn.close_hard().await;
                } else {
                    self.undo(conn, &e).await;
                }
                Err(e)
            }
        }
    }
}

impl Backend for SqlWriter {
    async fn commit(&mut self, plan: &Plan<'_>) -> Result<Answers, StoreError> {
        let now_ms = self.clock.now_ms();
        let answers = self
            .transact(plan.in_turn(), async |conn, texts, marks| {
                apply::write(conn, texts, plan, now_ms, marks).await
            })
            .await?;
        if let Home::Sqlite { max_pages, .. } = &mut self.home {
            for op in &plan.singles {
                if let Some(pages) = single::page_limit(op) {
                    *max_pages = pages;
                }
            }
        }
        Ok(answers)
    }

    async fn probe(&mut self) -> Result<(), StoreError> {
        self.transact(true, async |conn, _, _| single::try_room(conn).await)
            .await
    }

    async fn close(mut self) {
        // A clean stop knows exactly which numbers are used: no gap at the next start.
        let rows = self.reserved.load(Ordering::Acquire);
        let tidy = match self.shared() {
            true => Ok(()),
            false => {
                self.transact(false, async |conn, _, marks| {
                    single::put_mark(conn, "rows", rows).await?;
                    single::put_mark(conn, "events", marks.next_event).await
                })
                .await
            }
        };
        if let Err(e) = tidy {
            tracing::warn!(error = %e, "closing the store: the last numbers were not noted, the next start skips some");
        }
        if let Some(conn) = self.conn.take()
            && let Err(e) = conn.close().await
        {
            tracing::warn!(error = %e, "closing the store failed; nothing committed is lost");
        }
    }
}
