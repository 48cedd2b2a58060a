//! A batch of jobs whose handlers run in the transaction that takes them.
//!
//! The transaction holds the jobs, and its commit completes them. A crash rolls it back, so the jobs are ready again at
//! once and no write of their handlers remains.

use std::iter;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::prepared_job::PreparedJob;
use super::queue_set::ServedQueue;
use super::run_handler::run_handler;
use super::settling::settle_in_transaction;
use super::status::Report;
use super::thread_slots::ThreadSlot;
use super::worker_run::WorkerRun;
use crate::handler::{HandlerResult, Run};
use crate::{Claim, Error, Failure, Outcome, Scan, Store, StoreError};

/// After this long the rest of a batch is given back, so that the transaction and its locks do not last much longer.
const MAX_DURATION: Duration = Duration::from_millis(200);

/// The reason why the transaction is rolled back.
enum Rollback<E> {
    /// The handler of its only job failed after it had written. The outcome is settled after the rollback.
    Failed(Arc<Claim>, Outcome),
    Store(E),
}

impl<E> From<E> for Rollback<E> {
    fn from(error: E) -> Self {
        Self::Store(error)
    }
}

/// Takes up to `want` jobs and runs them in one transaction.
///
/// Calls `found` before the first handler begins. Does not call it if there is no job.
pub(super) fn run_batch<S: Store>(
    run: &WorkerRun<S>,
    thread: usize,
    served: &ServedQueue<S>,
    want: usize,
    scan: Scan,
    found: &mut dyn FnMut(),
) -> Result<Batch, S::Error> {
    let store = run.store();
    // Acquired before the transaction begins, which would be idle while it waits.
    let permit = served.limiter.acquire(want);
    store.with_connection(|conn| {
        let mut work = TransactionalBatch::new(run, &run.slots()[thread], served);
        let done = store.transaction(conn, |conn| -> Result<Batch, Rollback<S::Error>> {
            let taken = {
                let _span = tracing::debug_span!("pq.take", queue = %served.queue.name(), want).entered();
                store.take(conn, served.queue.name(), want, scan)?
            };
            drop(permit);
            if taken.jobs.is_empty() {
                return Ok(Batch::empty(taken.next_due));
            }
            found();
            let batch = Batch::of(&taken.jobs);
            let ran = work.run_all(conn, taken.jobs);
            work.slot.set_buffered_in_transaction(0);
            ran?;
            work.settle(conn)?;
            Ok(Batch { unbegun: work.unbegun, ..batch })
        });
        let batch = match (done, work.only_job.take()) {
            (Ok(batch), _) => batch,
            (Err(Rollback::Failed(job, outcome)), _) => work.settle_after_rollback(conn, job, outcome)?,
            (Err(Rollback::Store(error)), Some(job)) if !error.is_passing() => {
                let prepared = served.prepare(Claim::clone(&job));
                let (job, outcome) = prepared.end(run, served, Err(not_kept(&error)));
                work.settle_after_rollback(conn, job, outcome)?
            }
            (Err(Rollback::Store(error)), _) => return Err(error),
        };
        // Counted after the commit.
        work.slot.statistics.add(served.queue.name(), &work.report);
        Ok(batch)
    })
}

/// The failure of a handler that ignored the error of one of its statements, or whose commit failed.
fn not_kept(error: &impl std::error::Error) -> Failure {
    Failure::Error(format!("cannot keep the handler's writes: {error}"))
}

struct TransactionalBatch<'w, S: Store> {
    run: &'w WorkerRun<S>,
    slot: &'w ThreadSlot,
    served: &'w ServedQueue<S>,
    report: Report,
    /// The outcomes to pass to the store. The commit completes a job, so [`Outcome::Complete`] is not among them.
    outcomes: Vec<(Arc<Claim>, Outcome)>,
    /// Jobs that are given back because their handlers did not begin.
    unbegun: usize,
    /// The job of a single-job batch once its handler has run. If the transaction fails after that, the handler failed.
    only_job: Option<Arc<Claim>>,
    /// The statement timeout that is set in the transaction.
    statement_timeout: Option<Duration>,
}

/// A savepoint after the last handler that wrote.
struct SavepointState<P> {
    savepoint: P,
    /// The statement timeout that a rollback to the savepoint restores.
    statement_timeout: Option<Duration>,
}

impl<'w, S: Store> TransactionalBatch<'w, S> {
    fn new(run: &'w WorkerRun<S>, slot: &'w ThreadSlot, served: &'w ServedQueue<S>) -> Self {
        Self {
            run,
            slot,
            served,
            report: Report::default(),
            outcomes: Vec::new(),
            unbegun: 0,
            only_job: None,
            statement_timeout: None,
        }
    }

    fn run_all(&mut self, conn: &mut S::Conn, mut jobs: Vec<Claim>) -> Result<(), Rollback<S::Error>> {
        if jobs.len() == 1 && !self.run.stop.is_finishing() {
            return jobs.pop().map_or(Ok(()), |job| self.run_only(conn, job));
        }
        let (began, served) = (Instant::now(), self.served);
        let mut jobs = jobs.into_iter();
        let mut next = jobs.next().map(|job| served.prepare(job));
        let mut kept = self.set_savepoint(conn, None, next.as_ref())?;
        while let Some(prepared) = next {
            self.slot.set_buffered_in_transaction(jobs.len());
            let now = Instant::now();
            if now - began > MAX_DURATION || self.run.stop.is_finishing() {
                let unbegun_jobs = 1 + jobs.len();
                let unbegun = iter::once(prepared.incoming.claim).chain(jobs.map(Arc::new));
                self.outcomes.extend(unbegun.map(|job| (job, Outcome::GiveBack)));
                self.unbegun = unbegun_jobs;
                return Ok(());
            }
            next = jobs.next().map(|job| served.prepare(job));
            self.run_one(conn, prepared, now, &mut kept, next.as_ref())?;
        }
        Ok(())
    }

    /// Runs the job of a single-job batch without a savepoint, which saves two round trips.
    ///
    /// If the handler fails after it wrote, the whole transaction is rolled back.
    fn run_only(&mut self, conn: &mut S::Conn, job: Claim) -> Result<(), Rollback<S::Error>> {
        let prepared = self.served.prepare(job);
        let (result, wrote) = self.run_handler(conn, &prepared, Instant::now())?;
        let failed = result.is_err();
        let (job, outcome) = prepared.end(self.run, self.served, result);
        if failed && wrote {
            return Err(Rollback::Failed(job, outcome));
        }
        self.only_job = Some(Arc::clone(&job));
        self.add(job, outcome);
        Ok(())
    }

    /// Runs one job of several.
    ///
    /// A savepoint separates its writes from those of the handlers before it, so that a failure rolls back the writes
    /// of one handler. A handler that does not use the connection costs no savepoint.
    fn run_one(
        &mut self,
        conn: &mut S::Conn,
        prepared: PreparedJob<'_, S>,
        now: Instant,
        kept: &mut SavepointState<S::Savepoint>,
        next: Option<&PreparedJob<'_, S>>,
    ) -> Result<(), S::Error> {
        let (result, wrote) = self.run_handler(conn, &prepared, now)?;
        let done = match (wrote, &result) {
            (false, _) => Ok(()),
            (true, Err(_)) => self.roll_back_to(conn, kept),
            (true, Ok(_)) => self.set_savepoint(conn, Some(kept.savepoint), next).map(|moved| *kept = moved),
        };
        let result = match done {
            Ok(()) => result,
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => {
                self.roll_back_to(conn, kept)?;
                Err(not_kept(&error))
            }
        };
        let (job, outcome) = prepared.end(self.run, self.served, result);
        self.add(job, outcome);
        Ok(())
    }

    /// Runs a handler. Returns its result, and whether it may have written on the connection.
    fn run_handler(
        &mut self,
        conn: &mut S::Conn,
        prepared: &PreparedJob<'_, S>,
        now: Instant,
    ) -> Result<(HandlerResult, bool), S::Error> {
        let store = self.run.store();
        let timeout = prepared.timeout();
        if self.statement_timeout != timeout {
            store.set_statement_timeout(conn, timeout)?;
            self.statement_timeout = timeout;
        }
        let before = store.activity(conn);
        let result =
            run_handler(self.run, self.slot, prepared, now, &mut |incoming| match &prepared.handler {
                Ok(handler) => match &handler.run {
                    Run::Transactional(handler) => {
                        store.with_call_timeout(conn, None, |conn| handler(conn, incoming))
                    }
                    Run::Leased(_) => Err(Failure::Error("the handler is not transactional".to_owned())),
                },
                Err(failure) => Err(failure.clone()),
            });
        if self.run.is_abandoned() {
            return Err(Error::Stopped.into());
        }
        Ok((result, before.is_none() || store.activity(conn) != before))
    }

    /// Sets a savepoint in place of `earlier`, and the statement timeout of the next job.
    ///
    /// A handler with a timeout may have changed the setting, so it is set again even if the next job has the same one.
    fn set_savepoint(
        &mut self,
        conn: &mut S::Conn,
        earlier: Option<S::Savepoint>,
        next: Option<&PreparedJob<'_, S>>,
    ) -> Result<SavepointState<S::Savepoint>, S::Error> {
        let store = self.run.store();
        let statement_timeout = next.and_then(PreparedJob::timeout);
        let savepoint = match (self.statement_timeout, statement_timeout) {
            (None, None) => store.savepoint(conn, earlier)?,
            _ => store.savepoint_and_timeout(conn, earlier, statement_timeout)?,
        };
        self.statement_timeout = statement_timeout;
        Ok(SavepointState { savepoint, statement_timeout })
    }

    fn roll_back_to(
        &mut self,
        conn: &mut S::Conn,
        kept: &SavepointState<S::Savepoint>,
    ) -> Result<(), S::Error> {
        self.statement_timeout = kept.statement_timeout;
        self.run.store().rollback_to(conn, kept.savepoint)
    }

    fn add(&mut self, job: Arc<Claim>, outcome: Outcome) {
        match outcome {
            Outcome::Complete => self.report.record(&outcome),
            _ => self.outcomes.push((job, outcome)),
        }
    }

    fn settle(&mut self, conn: &mut S::Conn) -> Result<(), S::Error> {
        if self.outcomes.is_empty() {
            return Ok(());
        }
        let store = self.run.store();
        if self.statement_timeout.is_some() {
            store.set_statement_timeout(conn, None)?;
        }
        settle_in_transaction(store, conn, mem::take(&mut self.outcomes), &mut self.report)
    }

    /// Settles the only job in a new transaction after the rollback.
    ///
    /// If another worker has taken the job meanwhile, this attempt has no effect, as after a crash: the other worker's
    /// attempt has the same number.
    fn settle_after_rollback(
        &mut self,
        conn: &mut S::Conn,
        job: Arc<Claim>,
        outcome: Outcome,
    ) -> Result<Batch, S::Error> {
        let store = self.run.store();
        let batch = Batch::of(std::slice::from_ref(&job));
        self.report = store.transaction(conn, |conn| -> Result<Report, S::Error> {
            let mut report = Report::default();
            if store.retake(conn, &job)? {
                settle_in_transaction(store, conn, vec![(job, outcome)], &mut report)?;
            } else {
                tracing::warn!(job_id = %job.id, attempt = job.attempt, "failed job was taken by another worker");
                report.lost += 1;
            }
            Ok(report)
        })?;
        Ok(batch)
    }
}
