//! The one writer: gathers what waits into one transaction and answers each caller when it is
//! durable.
//!
//! * Idle, an operation is committed at once; while a commit runs the next batch gathers, so batches
//!   widen by themselves under load, up to [`MAX_WIDTH`] rows or [`MAX_BYTES`].
//! * A transaction that fails as a whole (disk full, locked, gone) answers every operation in it
//!   with `Unavailable`, and the store is unhealthy until a commit succeeds. Unhealthy and idle, the
//!   writer tries a small write itself each second: nobody has to risk a message to find out.
//! * A transaction that fails for any other reason is repeated one operation at a time, so that one
//!   bad operation cannot take others down.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::ops::{Answer, Job, Work};
use super::plan::{Plan, plan};
use super::types::{StoreError, StoreErrorKind};

/// Most rows in one transaction.
const MAX_WIDTH: usize = 2_000;
/// Most bytes in one transaction; one larger operation goes alone.
const MAX_BYTES: usize = 4 << 20;
/// How often an unhealthy, idle store tries to write.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// A database that can commit a plan. The seam between batching and a database's dialect.
pub(super) trait Backend {
    /// Writes all of the plan in one durable transaction, or none of it.
    fn commit(&mut self, plan: &Plan<'_>) -> impl Future<Output = Result<Answers, StoreError>>;

    /// Writes and removes a little, durably: does the disk take writes again?
    fn probe(&mut self) -> impl Future<Output = Result<(), StoreError>>;

    /// Leaves the database tidy.
    fn close(self) -> impl Future<Output = ()>;
}

/// Answers of the operations that have one, in the plan's order.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub arrivals: Vec<Answer>,
    pub singles: Vec<Answer>,
}

/// What the handles see of the writer.
#[derive(Debug)]
pub(super) struct Gauges {
    /// The last commit succeeded.
    pub healthy: AtomicBool,
    /// Operations handed in and not answered.
    pub waiting: AtomicUsize,
}

/// Runs until closed, or until every handle is gone; `finish` ends the reads before the database
/// is closed.
pub(super) async fn run<B: Backend, F: Future<Output = ()>>(
    mut backend: B,
    mut jobs: mpsc::Receiver<Job>,
    gauges: Arc<Gauges>,
    finish: impl FnOnce() -> F,
) {
    let mut carried: Option<Job> = None;
    let mut closers = Vec::new();
    let mut batch = Vec::new();
    loop {
        let first = match carried.take() {
            Some(job) => Some(job),
            None if gauges.healthy.load(Ordering::Relaxed) => jobs.recv().await,
            None => match tokio::time::timeout(PROBE_EVERY, jobs.recv()).await {
                Ok(job) => job,
                Err(_) => {
                    note(&gauges, &backend.probe().await);
                    continue;
                }
            },
        };
        let Some(first) = first else { break };
        carried = gather(first, &mut jobs, &mut batch);
        batch.retain_mut(|job: &mut Job| {
            if !matches!(job.work, Work::Close) {
                return true;
            }
            // What was accepted before the door shut is still written.
            jobs.close();
            let done = std::mem::replace(&mut job.done, oneshot::channel().0);
            closers.push(done);
            gauges.waiting.fetch_sub(1, Ordering::AcqRel);
            false
        });
        if !batch.is_empty() {
            commit(&mut backend, &mut batch, &gauges).await;
        }
    }
    finish().await;
    backend.close().await;
    for done in closers {
        let _ = done.send(Ok(Answer::Done));
    }
}

/// Takes what waits, up to a batch's width; answers the operation that did not fit.
fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>, batch: &mut Vec<Job>) -> Option<Job> {
    let (mut width, mut bytes) = (first.work.width(), first.work.cost());
    batch.push(first);
    while width < MAX_WIDTH && bytes < MAX_BYTES {
        let Ok(job) = jobs.try_recv() else {
            return None;
        };
        width += job.work.width();
        bytes += job.work.cost();
        if width > MAX_WIDTH || bytes > MAX_BYTES {
            return Some(job);
        }
        batch.push(job);
    }
    None
}

/// Commits a batch and answers everyone in it.
async fn commit<B: Backend>(backend: &mut B, batch: &mut Vec<Job>, gauges: &Gauges) {
    let alone = batch.len() == 1;
    let result = attempt(backend, batch).await;
    match result {
        Ok(answers) => {
            note(gauges, &Ok(()));
            answer(batch, answers, gauges);
        }
        // Broken for all: trying each alone would only be slower.
        Err(e) if alone || e.kind == StoreErrorKind::Unavailable => {
            note(gauges, &Err(e.clone()));
            for job in batch.drain(..) {
                reply(job, Err(e.clone()), gauges);
            }
        }
        Err(e) => {
            tracing::warn!(error = %e, operations = batch.len(), "a batch failed; its operations go one by one");
            for job in std::mem::take(batch) {
                let mut single = vec![job];
                match attempt(backend, &single).await {
                    Ok(answers) => {
                        note(gauges, &Ok(()));
                        answer(&mut single, answers, gauges);
                    }
                    Err(e) => {
                        note(gauges, &Err(e.clone()));
                        for job in single {
                            reply(job, Err(e.clone()), gauges);
                        }
                    }
                }
            }
        }
    }
}

async fn attempt<B: Backend>(backend: &mut B, batch: &[Job]) -> Result<Answers, StoreError> {
    if batch.iter().all(|job| matches!(job.work, Work::Barrier)) {
        return Ok(Answers::default());
    }
    let plan = plan(batch.iter().map(|job| &job.work));
    backend.commit(&plan).await
}

/// Hands each operation of a committed batch its answer.
fn answer(batch: &mut Vec<Job>, answers: Answers, gauges: &Gauges) {
    let mut arrivals = answers.arrivals.into_iter();
    let mut singles = answers.singles.into_iter();
    for job in batch.drain(..) {
        let answer = match job.work {
            Work::Accept(_) => arrivals.next(),
            Work::Single(_) => singles.next(),
            _ => Some(Answer::Done),
        };
        let result = answer.ok_or_else(|| StoreError {
            kind: StoreErrorKind::Corrupt,
            detail: "an operation was committed without an answer".into(),
        });
        reply(job, result, gauges);
    }
}

fn reply(job: Job, result: Result<Answer, StoreError>, gauges: &Gauges) {
    // A barrier has nothing to write, so nothing of it can fail.
    let result = match job.work {
        Work::Barrier => Ok(Answer::Done),
        _ => result,
    };
    gauges.waiting.fetch_sub(1, Ordering::AcqRel);
    // Whoever asked may have gone; the write stands all the same.
    let _ = job.done.send(result);
}

/// Keeps health and says when it changes.
fn note(gauges: &Gauges, result: &Result<(), StoreError>) {
    match result {
        Ok(()) => {
            if !gauges.healthy.swap(true, Ordering::Relaxed) {
                tracing::info!("the store takes writes again");
            }
        }
        Err(e) => {
            if gauges.healthy.swap(false, Ordering::Relaxed) {
                tracing::error!(error = %e, "the store does not take writes");
            }
        }
    }
}

/// Stands in for the writer of a store opened read-only: refuses every write.
pub(super) async fn refuse(mut jobs: mpsc::Receiver<Job>, gauges: Arc<Gauges>) {
    while let Some(job) = jobs.recv().await {
        let closing = matches!(job.work, Work::Close);
        let result = match job.work {
            Work::Barrier | Work::Close => Ok(Answer::Done),
            _ => Err(StoreError {
                kind: StoreErrorKind::Unavailable,
                detail: "opened for reading only; ask the running bridge, or stop it first".into(),
            }),
        };
        if closing {
            jobs.close();
        }
        reply(job, result, &gauges);
    }
}
