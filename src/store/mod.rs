//! The ledger: SQL behind one group-commit writer.
//!
//! Every write is an operation handed to one writer, which gathers what waits into one transaction
//! (at once when idle, wider under load) and wakes each caller when *its* rows are fsynced.
//! Reads go through a small pool beside it. Both live on a thread of their own, so a handle may be
//! used from any runtime, and a caller that goes away takes nothing with it.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`types`] | rows and operations as callers see them |
//! | `queue`, `inbound`, `replay`, `facts` | the handle's methods: outbound, inbound, ids spent, peers and the rest |
//! | `checkpoint`, `held` | how far the broker is known to have come; what is held back from `fed.in` |
//! | `mailbox` | rows that a peer fetches |
//! | `room_events` | events of rooms, as other servers read them |
//! | `manage` | what an operator does to rows, and the counts of each peer |
//! | `ops`, `plan`, `writer` | operations, what a batch of them writes (pure), the loop that gathers |
//! | `backend`, `apply`, `arrive`, `single`, `prune` | a batch written in one transaction |
//! | `read` | questions |
//! | `db`, `value`, `shapes`, `bulk`, `array` | one text on both databases; multi-row statements |
//! | `info`, `backup`, `transfer` | a store looked at, copied, moved to PostgreSQL |
//! | `schema`, `sqlite`, `postgres`, `errors` | versions; what each database has of its own |

mod apply;
mod array;
mod arrive;
mod backend;
mod backup;
mod bulk;
mod checkpoint;
mod db;
mod errors;
mod facts;
mod held;
mod inbound;
mod info;
mod lanes;
mod linger;
mod mailbox;
mod manage;
mod ops;
mod plan;
mod postgres;
mod prune;
mod queue;
mod read;
mod replay;
mod room_events;
mod schema;
mod shapes;
mod single;
mod sqlite;
mod transfer;
pub mod types;
mod value;
mod writer;
pub use backup::{Backup, backup};
pub use checkpoint::{Acked, BodyHorizon, Checkpoint, LedgerEntry, Tip, Way};
pub use held::{HeldBatch, HeldCount, Released};
pub use info::{StoreInfo, TableRows, info};
pub use mailbox::Waiting;
pub use transfer::{Moved, transfer};
pub use types::*;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::backend::{Home, SqlWriter};
use self::db::Db;
use self::errors::{meaning, unavailable};
use self::ops::{Answer, Job, Work};
use self::writer::Gauges;
use crate::clock::Clock;
use crate::config::{Retention, StoreConfig, StorePlace};

/// Bytes that may wait for the writer; whoever wants to hand in more waits.
const ROOM: usize = 32 << 20;
/// Operations that may wait: what fits the room at the smallest cost, and the closing one.
const QUEUE: usize = ROOM / 512 + 1;

/// A question that takes longer is given up.
const READ_PATIENCE: Duration = Duration::from_secs(120);

/// Handle to the store; cloning shares it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    clock: Clock,
    retention: Retention,
    wishes: arc_swap::ArcSwap<Vec<Keeping>>,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    gauges: Arc<Gauges>,
    next_row: Arc<AtomicI64>,
    closed: AtomicBool,
    runtime: tokio::runtime::Handle,
    readers: Db,
}

/// Resolves when the operation it came from is durable.
pub type Commit<T = ()> = futures_util::future::BoxFuture<'static, Result<T, StoreError>>;

/// What the store's thread made when it opened the database.
struct Opened {
    id: String,
    readers: Db,
}

impl Store {
    /// Opens (creates, migrates) the store. A path means an SQLite file there. A store another
    /// process has open for writing, or one newer than this binary, is refused.
    pub async fn open(config: impl Into<StoreConfig>, clock: Clock) -> Result<Self, StoreError> {
        Self::start(config.into(), clock, true).await
    }

    /// Opens it for reading beside whoever writes it: takes no lock, changes nothing; every write
    /// fails with `StoreErrorKind::Unavailable`. For commands that look while the bridge runs.
    pub async fn open_read_only(config: impl Into<StoreConfig>) -> Result<Self, StoreError> {
        Self::start(config.into(), Clock::system(), false).await
    }

    async fn start(config: StoreConfig, clock: Clock, write: bool) -> Result<Self, StoreError> {
        let retention = config.retention.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| thread_failed(&e))?;
        let handle = runtime.handle().clone();
        let (jobs, queue) = mpsc::channel(QUEUE);
        let gauges = Arc::new(Gauges {
            healthy: AtomicBool::new(true),
            waiting: AtomicUsize::new(0),
        });
        let next_row = Arc::new(AtomicI64::new(1));
        let (tell, opened) = oneshot::channel();
        let own = (clock.clone(), gauges.clone(), next_row.clone());
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let (clock, gauges, next_row) = own;
                runtime.block_on(async move {
                    if write {
                        serve(config, clock, queue, gauges, next_row, tell).await;
                    } else {
                        serve_reading(config, queue, gauges, tell).await;
                    }
                });
            })
            .map_err(|e| thread_failed(&e))?;
        let opened = opened.await.map_err(|_| closed())??;
        Ok(Self {
            inner: Arc::new(Inner {
                id: opened.id,
                clock,
                retention,
                wishes: arc_swap::ArcSwap::default(),
                jobs,
                room: Arc::new(Semaphore::new(ROOM)),
                gauges,
                next_row,
                closed: AtomicBool::new(false),
                runtime: handle,
                readers: opened.readers,
            }),
        })
    }

    /// Finishes what waits and closes. Later operations fail with `StoreErrorKind::Closed`.
    pub async fn close(&self) {
        if self.inner.closed.swap(true, Ordering::AcqRel) {
            // Someone else closes: wait until the writer is gone.
            self.inner.jobs.closed().await;
            return;
        }
        self.inner.room.close();
        if let Ok(done) = self.hand_in(Work::Close, None).await {
            let _ = done.await;
        }
    }

    /// Identity of this database, made once; in consumer metadata.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Last commit succeeded (false: disk full, gone). For readiness.
    pub fn healthy(&self) -> bool {
        self.inner.gauges.healthy.load(Ordering::Relaxed)
    }

    /// Operations handed to the writer and not answered yet, for a gauge.
    pub fn waiting(&self) -> usize {
        self.inner.gauges.waiting.load(Ordering::Relaxed)
    }

    /// Waits for room and hands an operation in.
    async fn submit(
        &self,
        work: Work,
    ) -> Result<oneshot::Receiver<Result<Answer, StoreError>>, StoreError> {
        // One larger than the room itself goes when it has all of it.
        let cost = u32::try_from(work.cost().min(ROOM)).unwrap_or(u32::MAX);
        let room = self
            .inner
            .room
            .clone()
            .acquire_many_owned(cost)
            .await
            .map_err(|_| closed())?;
        self.hand_in(work, Some(room)).await
    }

    async fn hand_in(
        &self,
        work: Work,
        room: Option<tokio::sync::OwnedSemaphorePermit>,
    ) -> Result<oneshot::Receiver<Result<Answer, StoreError>>, StoreError> {
        let (done, answer) = oneshot::channel();
        // The place is taken before the operation counts as waiting: a caller that goes away in
        // between leaves no trace.
        let place = self.inner.jobs.reserve().await.map_err(|_| closed())?;
        self.inner.gauges.waiting.fetch_add(1, Ordering::AcqRel);
        place.send(Job {
            work,
            done,
            _room: room,
        });
        Ok(answer)
    }

    /// Hands an operation in; the commit answers through `map`.
    async fn write<T: Send + 'static>(
        &self,
        work: Work,
        map: fn(Answer) -> T,
    ) -> Result<Commit<T>, StoreError> {
        let answer = self.submit(work).await?;
        Ok(answer
            .map(move |result| result.map_err(|_| closed())?.map(map))
            .boxed())
    }

    /// The same for an operation whose answer says nothing.
    async fn put(&self, work: Work) -> Result<Commit, StoreError> {
        self.write(work, |_| ()).await
    }

    /// Waits until everything handed in before this call is committed; `Unavailable` while the
    /// database takes no writes.
    async fn barrier(&self) -> Result<(), StoreError> {
        if self.inner.gauges.waiting.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        self.submit(Work::Barrier)
            .await?
            .await
            .map_err(|_| closed())?
            .map(drop)
    }

    /// Runs a read on the store's own thread.
    async fn read<T, F, R>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Db) -> R,
        R: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
    {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        let reading = read(self.inner.readers.clone());
        let reading = tokio::time::timeout(READ_PATIENCE, reading);
        match self.inner.runtime.spawn(reading).await {
            Err(_) => Err(closed()),
            Ok(Err(_)) => Err(unavailable("the database does not answer a question")),
            Ok(Ok(answer)) => answer.map_err(meaning),
        }
    }

    /// A read that sees everything handed to the writer before it.
    async fn read_after<T, F, R>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Db) -> R,
        R: Future<Output = Result<T, sqlx::Error>> + Send + 'static,
    {
        self.barrier().await?;
        self.read(read).await
    }
}

/// The store's thread, from opening to closing.
async fn serve(
    config: StoreConfig,
    clock: Clock,
    queue: mpsc::Receiver<Job>,
    gauges: Arc<Gauges>,
    next_row: Arc<AtomicI64>,
    tell: oneshot::Sender<Result<Opened, StoreError>>,
) {
    let opened = async {
        let (home, mut conn, readers) = match &config.place {
            StorePlace::Sqlite(path) => {
                let lock = sqlite::lock(path)?;
                let conn = sqlite::open(path).await?;
                let readers = sqlite::readers(path).await?;
                (Home::sqlite(path, lock), conn, readers)
            }
            StorePlace::Postgres(url) => {
                let place = postgres::Place::new(url, config.timeout)?;
                let (conn, openings) = place.open().await?;
                let readers = place.readers();
                let place = Box::new(place);
                (Home::Postgres { place, openings }, conn, readers)
            }
        };
        let id = single::identity(&mut conn, &fresh_id()?)
            .await
            .map_err(meaning)?;
        let marks = single::load_marks(&mut conn).await.map_err(meaning)?;
        next_row.store(marks.rows, Ordering::Release);
        let writer = SqlWriter::new(home, clock, conn, marks, next_row);
        Ok((writer, Opened { id, readers }))
    };
    match opened.await {
        Ok((writer, opened)) => {
            let readers = opened.readers.clone();
            if tell.send(Ok(opened)).is_ok() {
                writer::run(
                    writer,
                    queue,
                    gauges,
                    || async move { readers.close().await },
                )
                .await;
            }
        }
        Err(e) => {
            let _ = tell.send(Err(e));
        }
    }
}

/// The same for a store opened to read.
async fn serve_reading(
    config: StoreConfig,
    queue: mpsc::Receiver<Job>,
    gauges: Arc<Gauges>,
    tell: oneshot::Sender<Result<Opened, StoreError>>,
) {
    let opened = async {
        let (conn, readers) = match &config.place {
            StorePlace::Sqlite(path) => (sqlite::reader(path).await?, sqlite::readers(path).await?),
            StorePlace::Postgres(url) => {
                let place = postgres::Place::new(url, config.timeout)?;
                (place.reader().await?, place.readers())
            }
        };
        conn.close_hard().await;
        let id = read::identity(readers.clone()).await.map_err(meaning)?;
        Ok(Opened { id, readers })
    };
    match opened.await {
        Ok(opened) => {
            let readers = opened.readers.clone();
            if tell.send(Ok(opened)).is_ok() {
                writer::refuse(queue, gauges).await;
                readers.close().await;
            }
        }
        Err(e) => {
            let _ = tell.send(Err(e));
        }
    }
}

/// 128 random bits as hex.
fn fresh_id() -> Result<String, StoreError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| StoreError {
        kind: StoreErrorKind::Unavailable,
        detail: format!("the system gives no random numbers: {e}"),
    })?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn thread_failed(e: &std::io::Error) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Unavailable,
        detail: format!("cannot start the store's thread: {e}"),
    }
}

fn closed() -> StoreError {
    StoreError {
        kind: StoreErrorKind::Closed,
        detail: "closed".into(),
    }
}
