//! The one writer: gathers what waits into one transaction and answers each caller when it is
//! durable.
//!
//! * Idle, an operation is committed at once; while a commit runs the next batch gathers, so batches
//!   widen by themselves under load, up to [`MAX_WIDTH`] rows or [`MAX_BYTES`].
//! * Rows wait a moment for their outcomes, to be written once instead of twice ([`super::linger`]).
//! * A transaction that fails as a whole (disk full, locked, gone) makes the store unhealthy until a
//!   commit succeeds. Whoever can be told to come again is answered `Unavailable` at once. What the
//!   bridge itself must write sooner or later (rows, outcomes, acknowledgements: [`Work::is_kept`])
//!   stays here, in the order it was handed in, and is tried again each second; so no outcome
//!   overtakes its row, no later outcome an earlier one, and the room they take slows their makers.
//! * Unhealthy with nothing to write, the writer tries a small write itself each second: nobody has
//!   to risk a message to find out.
//! * A transaction that fails for any other reason is repeated one operation at a time, so that one
//!   bad operation cannot take others down.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::leases::Lease;
use super::linger::Linger;
use super::ops::{Answer, Job, Work};
use super::plan::{Plan, plan};
use super::told::Told;
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
    let mut kept = VecDeque::new();
    let mut linger = Linger::default();
    let mut try_at = tokio::time::Instant::now();
    loop {
        let first = match carried.take() {
            Some(job) => Some(job),
            None if gauges.healthy.load(Ordering::Relaxed) && kept.is_empty() => {
                match linger.due() {
                    None => jobs.recv().await,
                    Some(at) => match tokio::time::timeout_at(at, jobs.recv()).await {
                        Ok(job) => job,
                        Err(_) => {
                            linger.sort(&mut batch);
                            commit(&mut backend, &mut batch, &mut kept, &gauges).await;
                            try_at = tokio::time::Instant::now() + PROBE_EVERY;
                            continue;
                        }
                    },
                }
            }
            None => match tokio::time::timeout_at(try_at, jobs.recv()).await {
                Ok(job) => job,
                Err(_) => {
                    if kept.is_empty() {
                        note(&gauges, &backend.probe().await);
                    } else {
                        catch_up(&mut backend, &mut kept, &gauges).await;
                    }
                    try_at = tokio::time::Instant::now() + PROBE_EVERY;
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
            let done = std::mem::replace(&mut job.done, Told::Nobody);
            closers.push(done);
            gauges.waiting.fetch_sub(1, Ordering::AcqRel);
            false
        });
        if kept.is_empty() {
            linger.sort(&mut batch);
        } else {
            linger.flush(&mut kept);
        }
        if !kept.is_empty() {
            // Nothing overtakes what waits; it has its own time.
            for job in batch.drain(..) {
                if job.work.makes_room() {
                    commit(&mut backend, &mut vec![job], &mut kept, &gauges).await;
                } else {
                    keep_or_refuse(job, &away(), &mut kept, &gauges);
                }
            }
        } else if !batch.is_empty() {
            commit(&mut backend, &mut batch, &mut kept, &gauges).await;
            if !gauges.healthy.load(Ordering::Relaxed) {
                try_at = tokio::time::Instant::now() + PROBE_EVERY;
            }
        }
    }
    linger.flush(&mut kept);
    catch_up(&mut backend, &mut kept, &gauges).await;
    if !kept.is_empty() {
        tracing::error!(
            operations = kept.len(),
            "the store takes no writes at the end: messages stay with the broker, and what was \
             delivered meanwhile will be delivered again"
        );
    }
    for job in kept {
        let closed = StoreError {
            kind: StoreErrorKind::Closed,
            detail: "closed while it could not be written".into(),
        };
        reply(job, Err(closed), &gauges);
    }
    finish().await;
    backend.close().await;
    for done in closers {
        done.tell(Ok(Answer::Done));
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

/// Writes what was kept, oldest first, until all is written or the database fails again.
async fn catch_up<B: Backend>(backend: &mut B, kept: &mut VecDeque<Job>, gauges: &Gauges) {
    while !kept.is_empty() {
        let (mut batch, mut width, mut bytes) = (Vec::new(), 0, 0);
        while let Some(job) = kept.pop_front_if(|job| {
            width += job.work.width();
            bytes += job.work.cost();
            width <= MAX_WIDTH && bytes <= MAX_BYTES
        }) {
            batch.push(job);
        }
        if batch.is_empty() {
            batch.extend(kept.pop_front()); // one larger than a batch goes alone
        }
        let mut again = VecDeque::new();
        commit(backend, &mut batch, &mut again, gauges).await;
        if !again.is_empty() {
            again.append(kept);
            *kept = again;
            return;
        }
    }
}

/// Keeps what must be written sooner or later, and turns away whoever can come again.
fn keep_or_refuse(job: Job, error: &StoreError, kept: &mut VecDeque<Job>, gauges: &Gauges) {
    if job.work.is_kept() {
        kept.push_back(job);
    } else {
        reply(job, Err(error.clone()), gauges);
    }
}

fn away() -> StoreError {
    StoreError {
        kind: StoreErrorKind::Unavailable,
        detail: "the database takes no writes at the moment".into(),
    }
}

/// Commits a batch and answers everyone in it; what must wait for the database goes to `kept`.
async fn commit<B: Backend>(
    backend: &mut B,
    batch: &mut Vec<Job>,
    kept: &mut VecDeque<Job>,
    gauges: &Gauges,
) {
    if batch.iter().all(|job| matches!(job.work, Work::Barrier)) {
        // Nothing to write, so nothing learned about whether writing works.
        return answer(batch, Answers::default(), gauges);
    }
    let mut result = attempt(backend, batch).await;
    if batch.len() > 1 && fenced(&result) {
        // What lost its lease goes; the others need not go one by one for that.
        refuse_fenced(backend, batch, gauges).await;
        if batch.is_empty() {
            return;
        }
        result = attempt(backend, batch).await;
    }
    let alone = batch.len() == 1;
    match result {
        Ok(answers) => {
            note(gauges, &Ok(()));
            answer(batch, answers, gauges);
        }
        // Broken for all: trying each alone would only be slower.
        Err(e) if e.kind == StoreErrorKind::Unavailable => {
            note(gauges, &Err(e.clone()));
            for job in batch.drain(..) {
                keep_or_refuse(job, &e, kept, gauges);
            }
        }
        Err(e) if alone => {
            note(gauges, &Err(e.clone()));
            for job in batch.drain(..) {
                reply(job, Err(e.clone()), gauges);
            }
        }
        Err(e) => {
            tracing::warn!(error = %e, operations = batch.len(), "a batch failed; its operations go one by one");
            for job in std::mem::take(batch) {
                if !kept.is_empty() {
                    keep_or_refuse(job, &away(), kept, gauges);
                    continue;
                }
                let mut single = vec![job];
                match attempt(backend, &single).await {
                    Ok(answers) => {
                        note(gauges, &Ok(()));
                        answer(&mut single, answers, gauges);
                    }
                    Err(e) => {
                        note(gauges, &Err(e.clone()));
                        for job in single {
                            if e.kind == StoreErrorKind::Unavailable {
                                keep_or_refuse(job, &e, kept, gauges);
                            } else {
                                reply(job, Err(e.clone()), gauges);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn fenced<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(e) if e.kind == StoreErrorKind::Fenced)
}

/// Takes out of a batch what is under a lease that is no longer ours.
async fn refuse_fenced<B: Backend>(backend: &mut B, batch: &mut Vec<Job>, gauges: &Gauges) {
    let leases: BTreeSet<Lease> = batch.iter().filter_map(|job| job.lease).collect();
    for lease in leases {
        let plan = Plan {
            leases: [lease].into(),
            ..Plan::default()
        };
        let Err(e) = backend.commit(&plan).await else {
            continue;
        };
        if e.kind != StoreErrorKind::Fenced {
            continue; // the next try of the batch meets it
        }
        for job in std::mem::take(batch) {
            if job.lease == Some(lease) {
                reply(job, Err(e.clone()), gauges);
            } else {
                batch.push(job);
            }
        }
    }
}

async fn attempt<B: Backend>(backend: &mut B, batch: &[Job]) -> Result<Answers, StoreError> {
    let mut plan = plan(batch.iter().map(|job| &job.work));
    plan.leases = batch.iter().filter_map(|job| job.lease).collect();
    let begun = std::time::Instant::now();
    let result = backend.commit(&plan).await;
    crate::ops::metrics::store_commit(batch.len(), begun.elapsed().as_secs_f64());
    result
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
    gauges.waiting.fetch_sub(1, Ordering::AcqRel);
    let Job { work, done, .. } = job;
    // First, so that who shares it with us has it alone when the answer comes.
    drop(work);
    done.tell(result);
}

/// Keeps health and says when it changes.
fn note(gauges: &Gauges, result: &Result<(), StoreError>) {
    match result {
        Ok(()) => {
            if !gauges.healthy.swap(true, Ordering::Relaxed) {
                tracing::info!("the store takes writes again");
            }
        }
        // The database is well; it is ours no longer.
        Err(e) if e.kind == StoreErrorKind::Fenced => {}
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ops::Single;
    use crate::store::types::{NewRow, Outcome, Settle};

    /// Refuses row 13 for a reason of its own, and everything while `full`.
    struct Fake {
        full: Arc<AtomicBool>,
        commits: Arc<AtomicUsize>,
        seen: Seen,
    }

    /// Rows settled, in the order they were written.
    type Seen = Arc<std::sync::Mutex<Vec<i64>>>;

    impl Backend for Fake {
        async fn commit(&mut self, plan: &Plan<'_>) -> Result<Answers, StoreError> {
            let kind = if self.full.load(Ordering::SeqCst) {
                StoreErrorKind::Unavailable
            } else if plan.settles.iter().any(|s| s.row == 13) {
                StoreErrorKind::Corrupt
            } else {
                self.commits.fetch_add(1, Ordering::SeqCst);
                let mut seen = self.seen.lock().unwrap();
                seen.extend(plan.settles.iter().map(|s| s.row));
                return Ok(Answers::default());
            };
            let detail = "refused".into();
            Err(StoreError { kind, detail })
        }

        async fn probe(&mut self) -> Result<(), StoreError> {
            self.commit(&Plan::default()).await.map(drop)
        }

        async fn close(self) {}
    }

    type Waiter = tokio::sync::oneshot::Receiver<Result<Answer, StoreError>>;

    struct Rig {
        /// `None`: taken out by a test that goes on handing in.
        open: Option<mpsc::Sender<Job>>,
        jobs: mpsc::Sender<Job>,
        queue: mpsc::Receiver<Job>,
        gauges: Arc<Gauges>,
        full: Arc<AtomicBool>,
        commits: Arc<AtomicUsize>,
        seen: Seen,
    }

    impl Rig {
        fn new() -> Self {
            let (jobs, queue) = mpsc::channel(64);
            let gauges = Gauges {
                healthy: AtomicBool::new(true),
                waiting: AtomicUsize::new(0),
            };
            Self {
                open: Some(jobs.clone()),
                jobs,
                queue,
                gauges: Arc::new(gauges),
                full: Arc::default(),
                commits: Arc::default(),
                seen: Seen::default(),
            }
        }

        fn hand_in(&self, work: Work) -> Waiter {
            let (done, answer) = tokio::sync::oneshot::channel();
            self.gauges.waiting.fetch_add(1, Ordering::SeqCst);
            let _room = None;
            let job = Job {
                work,
                lease: None,
                done: Told::One(done),
                _room,
            };
            self.jobs.try_send(job).unwrap();
            answer
        }

        fn settle(&self, row: i64) -> Waiter {
            self.hand_in(Work::Settle(Settle {
                row,
                outcome: Outcome::Delivered { at_ms: 0 },
                attempts: 1,
                attempt: None,
            }))
        }

        async fn run(self) -> Arc<Gauges> {
            let fake = Fake {
                full: self.full,
                commits: self.commits,
                seen: self.seen,
            };
            drop((self.open, self.jobs));
            run(fake, self.queue, self.gauges.clone(), || async {}).await;
            self.gauges
        }
    }

    #[tokio::test]
    async fn one_bad_operation_takes_no_other_down() {
        let rig = Rig::new();
        let waiters: Vec<_> = (11..16).map(|row| rig.settle(row)).collect();
        let gauges = rig.run().await;
        for (row, waiter) in (11..16).zip(waiters) {
            assert_eq!(waiter.await.unwrap().is_err(), row == 13);
        }
        assert!(gauges.healthy.load(Ordering::SeqCst));
        assert_eq!(gauges.waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn what_waits_together_is_committed_together() {
        let rig = Rig::new();
        let commits = rig.commits.clone();
        let waiters: Vec<_> = (100..150).map(|row| rig.settle(row)).collect();
        rig.run().await;
        for waiter in waiters {
            waiter.await.unwrap().unwrap();
        }
        assert_eq!(commits.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_refuses_who_can_come_again_and_keeps_the_rest_in_order() {
        let mut rig = Rig::new();
        rig.full.store(true, Ordering::SeqCst);
        let (full, commits, seen) = (rig.full.clone(), rig.commits.clone(), rig.seen.clone());
        let first = rig.hand_in(Work::Insert(
            (0..MAX_WIDTH as i64).map(NewRow::example).collect(),
            vec![],
        ));
        let (one, two) = (rig.settle(1), rig.settle(2));
        let epoch = rig.hand_in(Work::Single(Single::NextEpoch));
        let barrier = rig.hand_in(Work::Barrier);
        let jobs = rig.open.take().unwrap();
        let gauges = rig.gauges.clone();
        let running = tokio::spawn(rig.run());
        for waiter in [epoch, barrier] {
            let refused = waiter.await.unwrap().unwrap_err();
            assert_eq!(refused.kind, StoreErrorKind::Unavailable);
        }
        assert!(!gauges.healthy.load(Ordering::SeqCst));
        assert_eq!(commits.load(Ordering::SeqCst), 0);
        full.store(false, Ordering::SeqCst);
        for waiter in [first, one, two] {
            waiter.await.unwrap().unwrap();
        }
        assert!(gauges.healthy.load(Ordering::SeqCst));
        assert_eq!(*seen.lock().unwrap(), [1, 2]);
        drop(jobs);
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_to_the_end_is_answered_as_closed() {
        let rig = Rig::new();
        rig.full.store(true, Ordering::SeqCst);
        let one = rig.settle(1);
        rig.run().await;
        let refused = one.await.unwrap().unwrap_err();
        assert_eq!(refused.kind, StoreErrorKind::Closed);
    }
}
