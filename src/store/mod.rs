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
//! | [`leases`](Leases) | who serves what, when instances share a database |
//! | `room_events` | events of rooms, as other servers read them |
//! | `manage` | what an operator does to rows, and the counts of each peer |
//! | `ops`, `plan`, `writer` | operations, what a batch of them writes (pure), the loop that gathers |
//! | `common` | what instances that share a database decide in turns |
//! | `backend`, `apply`, `arrive`, `single`, `prune` | a batch written in one transaction |
//! | `read` | questions |
//! | `told` | who hears what became of an operation |
//! | `known` | which message ids are surely new, without a question |
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
mod common;
mod db;
mod errors;
mod facts;
mod held;
mod inbound;
mod info;
mod known;
mod lanes;
mod leases;
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
mod told;
mod transfer;
pub mod types;
mod value;
mod writer;
pub use backup::{Backup, backup};
pub use checkpoint::{Acked, BodyHorizon, Checkpoint, LedgerEntry, Tip, Way};
pub use facts::TRUST;
pub use held::{HeldBatch, HeldCount, Released};
pub use info::{StoreInfo, TableRows, info};
pub use leases::{Lease, LeaseRow, LeaseTable, Leases, Unit};
pub use mailbox::Waiting;
pub use transfer::{Moved, transfer};
pub use types::*;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::backend::{Home, SqlWriter};
use self::db::Db;
use self::errors::{meaning, unavailable};
use self::known::Known;
use self::ops::{Answer, Job, Work};
use self::told::{Failed, Together, Told};
use self::writer::Gauges;
use crate::clock::Clock;
use crate::config::{Retention, StoreConfig, StorePlace};

/// Bytes that may wait for the writer; whoever wants to hand in more waits.
const ROOM: usize = 32 << 20;
/// Operations that may wait: what fits the room at the smallest cost, and the closing one.
const QUEUE: usize = ROOM / 512 + 1;

/// Between two pages of earlier messages' ids: what waits for the database goes first.
const LEARN_PAUSE: Duration = Duration::from_millis(5);
/// How often it is looked whether the filter of known ids is full.
const LEARN_AGAIN: Duration = Duration::from_secs(3600);

/// A question that takes longer is given up.
const READ_PATIENCE: Duration = Duration::from_secs(120);

/// Handle to the store; cloning shares it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Everything this handle writes is written only while this is ours.
    lease: Option<Lease>,
}

struct Inner {
    id: String,
    instance: String,
    shared: bool,
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
    known: Known,
    /// Where the leases are, when instances share the database.
    place: Option<postgres::Place>,
    /// One past the last row number that is ours to give.
    row_end: AtomicI64,
}

/// Resolves when the operation it came from is durable.
pub type Commit<T = ()> = futures_util::future::BoxFuture<'static, Result<T, StoreError>>;

/// What comes back of one operation.
type Reply = oneshot::Receiver<Result<Answer, StoreError>>;

/// What the store's thread made when it opened the database.
struct Opened {
    id: String,
    readers: Db,
    place: Option<postgres::Place>,
    row_end: i64,
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
        let shared = config.shared;
        let instance = fresh_id()?;
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
        let me = instance.clone();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let (clock, gauges, next_row) = own;
                runtime.block_on(async move {
                    if write {
                        serve(config, me, clock, queue, gauges, next_row, tell).await;
                    } else {
                        serve_reading(config, queue, gauges, tell).await;
                    }
                });
            })
            .map_err(|e| thread_failed(&e))?;
        let opened = opened.await.map_err(|_| closed())??;
        let store = Self {
            lease: None,
            inner: Arc::new(Inner {
                id: opened.id,
                instance,
                shared,
                clock,
                retention,
                wishes: arc_swap::ArcSwap::default(),
                jobs,
                room: Arc::new(Semaphore::new(ROOM)),
                gauges,
                next_row,
                row_end: AtomicI64::new(opened.row_end),
                place: opened.place,
                closed: AtomicBool::new(false),
                runtime: handle,
                readers: opened.readers,
                known: Known::new(),
            }),
        };
        if write && !shared {
            let inner = Arc::downgrade(&store.inner);
            store.inner.runtime.spawn(learn(inner));
        }
        Ok(store)
    }

    /// A handle whose writes fail with `Fenced` once this lease is another's.
    pub fn under(&self, lease: Lease) -> Self {
        Self {
            inner: self.inner.clone(),
            lease: Some(lease),
        }
    }

    /// Finishes what waits and closes. Later operations fail with `StoreErrorKind::Closed`.
    pub async fn close(&self) {
        if self.inner.closed.swap(true, Ordering::AcqRel) {
            // Someone else closes: wait until the writer is gone.
            self.inner.jobs.closed().await;
            return;
        }
        self.inner.room.close();
        if let Ok(done) = self.hand_in(Work::Close, None, None).await {
            let _ = done.await;
        }
    }

    /// Identity of this database, made once; in consumer metadata.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// This process among those that share the database: another at each start.
    pub fn instance(&self) -> &str {
        &self.inner.instance
    }

    /// Whether other instances may work on this database too.
    pub fn shared(&self) -> bool {
        self.inner.shared
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
        self.submit_under(self.lease, work).await
    }

    /// The same for one that is written only while this lease is ours.
    async fn submit_under(
        &self,
        lease: Option<Lease>,
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
        self.hand_in(work, lease, Some(room)).await
    }

    /// Waits for room and hands many in, in this order; each has an answer of its own.
    async fn submit_each(&self, works: Vec<Work>) -> Result<Vec<Reply>, StoreError> {
        let (mut room, places) = self.places(&works).await?;
        let mut answers = Vec::with_capacity(works.len());
        for (work, place) in works.into_iter().zip(places) {
            let (done, answer) = oneshot::channel();
            let room = room.split(work.cost());
            place.send(Job {
                work,
                lease: self.lease,
                done: Told::One(done),
                _room: room,
            });
            answers.push(answer);
        }
        Ok(answers)
    }

    /// Waits for room and hands many in; what comes back tells which of them failed, once all are
    /// done.
    async fn submit_all(
        &self,
        lease: Option<Lease>,
        works: Vec<Work>,
    ) -> Result<oneshot::Receiver<Failed>, StoreError> {
        let (room, places) = self.places(&works).await?;
        let (together, told) = Together::new(works.len(), room);
        for ((number, work), place) in works.into_iter().enumerate().zip(places) {
            place.send(Job {
                work,
                lease,
                done: Told::Of(Arc::clone(&together), number),
                _room: None,
            });
        }
        Ok(told)
    }

    /// Room for all of these and a place for each; they count as waiting from now on.
    async fn places(
        &self,
        works: &[Work],
    ) -> Result<(OwnedSemaphorePermit, mpsc::PermitIterator<'_, Job>), StoreError> {
        let cost: usize = works.iter().map(Work::cost).sum();
        let cost = u32::try_from(cost.min(ROOM)).unwrap_or(u32::MAX);
        let room = self.inner.room.clone().acquire_many_owned(cost).await;
        let room = room.map_err(|_| closed())?;
        let places = self.inner.jobs.reserve_many(works.len()).await;
        let places = places.map_err(|_| closed())?;
        let waiting = &self.inner.gauges.waiting;
        waiting.fetch_add(works.len(), Ordering::AcqRel);
        Ok((room, places))
    }

    async fn hand_in(
        &self,
        work: Work,
        lease: Option<Lease>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<oneshot::Receiver<Result<Answer, StoreError>>, StoreError> {
        let (done, answer) = oneshot::channel();
        // The place is taken before the operation counts as waiting: a caller that goes away in
        // between leaves no trace.
        let place = self.inner.jobs.reserve().await.map_err(|_| closed())?;
        self.inner.gauges.waiting.fetch_add(1, Ordering::AcqRel);
        place.send(Job {
            work,
            lease,
            done: Told::One(done),
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

    /// The same, written only while this lease is ours: `Fenced` afterwards.
    async fn put_under(&self, lease: Option<Lease>, work: Work) -> Result<Commit, StoreError> {
        let answer = self.submit_under(lease, work).await?;
        Ok(answer
            .map(|result| result.map_err(|_| closed())?.map(drop))
            .boxed())
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
    me: String,
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
                let place = postgres::Place::new(url, config.timeout)?.of(config.shared);
                let (conn, openings) = place.open().await?;
                let readers = place.readers();
                let place = Box::new(place);
                (Home::Postgres { place, openings }, conn, readers)
            }
        };
        let id = single::identity(&mut conn, &fresh_id()?)
            .await
            .map_err(meaning)?;
        if config.shared {
            common::join(&mut conn).await.map_err(meaning)?;
        }
        let mut marks = single::load_marks(&mut conn).await.map_err(meaning)?;
        let (mut first, mut row_end) = (marks.rows, i64::MAX);
        if home.is_shared() {
            let size = single::ROW_BLOCK;
            first = single::row_block(&mut conn, marks.rows, size)
                .await
                .map_err(meaning)?;
            row_end = first.saturating_add(size);
            // The mark is the database's own then; this one never moves.
            marks.rows = i64::MAX;
        }
        next_row.store(first, Ordering::Release);
        let opened = Opened {
            id,
            readers,
            place: home.shared_place(),
            row_end,
        };
        let writer = SqlWriter::new(home, me, clock, conn, marks, next_row);
        Ok((writer, opened))
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
        Ok(Opened {
            id,
            readers,
            place: None,
            row_end: i64::MAX,
        })
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

/// Reads the ids of the rows there are into the filter of known ones, and makes it anew when it is
/// full. Ends with the store.
async fn learn(inner: Weak<Inner>) {
    loop {
        let mut after = None;
        loop {
            let Some(inner) = open(&inner) else { return };
            match read::ids_after(inner.readers.clone(), after.clone()).await {
                Ok(page) => {
                    let ids = page
                        .iter()
                        .map(|id| (id.protocol.as_str(), id.msg_id.as_str()));
                    inner.known.add(ids);
                    match page.into_iter().next_back() {
                        Some(last) => after = Some(last),
                        None => break inner.known.completed(),
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the ids of earlier messages cannot be read yet");
                    drop(inner);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            }
            drop(inner);
            tokio::time::sleep(LEARN_PAUSE).await;
        }
        loop {
            tokio::time::sleep(LEARN_AGAIN).await;
            let Some(inner) = open(&inner) else { return };
            if inner.known.is_full() {
                break inner.known.restart();
            }
        }
    }
}

/// The store, unless it is gone or closed.
fn open(inner: &Weak<Inner>) -> Option<Arc<Inner>> {
    inner
        .upgrade()
        .filter(|inner| !inner.closed.load(Ordering::Acquire))
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
