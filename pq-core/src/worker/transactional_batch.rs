//! A batch of jobs whose handlers run in the transaction that takes them.
//!
//! The transaction holds the jobs, and its commit completes them. A crash rolls it back, so the jobs are ready again at
//! once and no write of their handlers remains.
//!
//! After a handler that sent a statement, the transaction ends, unless the handler's task shares it. The jobs that did
//! not begin are given back in it.

use std::iter;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::leased_batch;
use super::prepared_job::PreparedJob;
use super::queue_set::ServedQueue;
use super::run_handler::run_handler;
use super::settling::{SettledJob, settle_in_transaction};
use super::sharing::SharedTransaction;
use super::tally::{EndedAttempt, Tally};
use super::thread_slots::ThreadSlot;
use super::worker_run::WorkerRun;
use crate::handler::{HandlerResult, Run};
use crate::{Claim, Error, Failure, Isolation, JobSpan, Outcome, Scan, SpanInfo, Store, StoreError, Taken};

/// After this long the rest of a batch is given back, so that the transaction and its locks do not last much longer.
const MAX_DURATION: Duration = Duration::from_millis(200);

/// How often a handler is run again at once after conflicts with other transactions, before that is its failure.
pub(super) const MAX_RERUNS: u32 = 3;

/// The reason why the transaction is rolled back.
enum Rollback<E> {
    /// The jobs must be run under a lease.
    NeedsLease,
    /// The handler of its only job ended with this result, and keeps no writes. The job is settled after the rollback.
    Ended {
        job: Arc<Claim>,
        attempt: EndedAttempt,
        result: Box<HandlerResult>,
        is_conflict: bool,
    },
    /// The handler of its only job needs a transaction at another isolation level.
    WrongIsolation(Arc<Claim>),
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
    position: usize,
    want: usize,
    scan: Scan,
    found: &mut dyn FnMut(),
) -> Result<Batch, S::Error> {
    let (store, served) = (run.store(), &run.queues.all[position]);
    // Acquired before the transaction begins, which would be idle while it waits.
    let permit = served.limiter.acquire(want);
    let ran = store.with_connection(|conn| -> Result<Option<Batch>, S::Error> {
        let mut work = TransactionalBatch::new(run, &run.slots()[thread], served);
        let mut several = None;
        let done = store.transaction(conn, |conn| -> Result<Batch, Rollback<S::Error>> {
            let take = || store.take(conn, served.queue.name(), want, scan);
            let taken = served.queue.in_take_span(want, take)?;
            drop(permit);
            if taken.jobs.is_empty() {
                return Ok(Batch::empty(taken.next_due));
            }
            if needs_lease(&taken) {
                return Err(Rollback::NeedsLease);
            }
            found();
            let batch = Batch::of(&taken.jobs);
            several = (batch.taken > 1).then_some(batch);
            let ran = work.run_all(conn, taken.jobs);
            work.slot.set_buffered_in_transaction(0);
            ran?;
            work.settle(conn)?;
            Ok(Batch { unbegun: work.unbegun, ..batch })
        });
        work.end_settling(&done);
        let batch = match (done, several) {
            (Err(Rollback::Store(error)), Some(batch)) if !error.is_unavailable() && !run.is_abandoned() => {
                tracing::warn!(%error, jobs = batch.taken, "batch was rolled back; its jobs will run one by one");
                work.shared.fail();
                work.tally = Tally::default();
                Batch { unbegun: batch.taken, ..batch }
            }
            (done, _) => match work.conclude(conn, done)? {
                Some(batch) => batch,
                None => return Ok(None),
            },
        };
        served.sharing_limit.record(&work.shared);
        // Counted after the commit.
        work.slot.statistics.add_tally(served.queue.name(), mem::take(&mut work.tally));
        Ok(Some(batch))
    })?;
    match ran {
        Some(batch) => Ok(batch),
        None => leased_batch::run_batch(run, thread, position, want, scan, found),
    }
}

/// Returns whether an attempt of these jobs must be recorded even if their transaction does not commit.
///
/// A rollback leaves no trace but [`Taken::rolled_back`]. So after an attempt that was rolled back, the next one runs
/// under a lease, where a failure is recorded for certain and the death of the worker is counted: of a job that kills
/// its worker, one attempt is not counted. The same holds for a job that has crashed or been in a lost lease before,
/// for the jobs of a limited queue, whose places and tokens a transaction would hold as long as it is open, and for the
/// retry of a single job, whose failure could be lost between its rollback and [`crate::store::Jobs::retake`].
pub(super) fn needs_lease(taken: &Taken) -> bool {
    taken.rolled_back
        || taken.jobs.iter().any(|job| job.limited || job.crashes > 0 || job.lease_limit.is_some())
        || matches!(taken.jobs.as_slice(), [job] if job.attempt > 1)
}

struct TransactionalBatch<'w, S: Store> {
    run: &'w WorkerRun<S>,
    slot: &'w ThreadSlot,
    served: &'w ServedQueue<S>,
    tally: Tally,
    /// The outcomes to pass to the store. The commit completes a job, so [`Outcome::Complete`] is not among them.
    outcomes: Vec<SettledJob>,
    /// The jobs that the commit completes.
    completed: Vec<Arc<Claim>>,
    /// The span of the settlement, which lasts until the transaction has ended.
    settling: Option<JobSpan>,
    /// Jobs that are given back because their handlers did not begin, or because they run again alone.
    unbegun: usize,
    /// The job of a single-job batch once its handler has run. If the transaction fails after that, the handler failed.
    only_job: Option<OnlyJob>,
    /// The statement timeout that is set in the transaction.
    statement_timeout: Option<Duration>,
    shared: SharedTransaction,
}

struct OnlyJob {
    job: Arc<Claim>,
    attempt: EndedAttempt,
    /// Whether one of the handler's statements conflicted with another transaction, and the handler ignored that.
    is_conflict: bool,
}

/// What a handler returned and did.
struct Ran {
    result: HandlerResult,
    attempt: EndedAttempt,
    /// Whether it may have used the connection.
    has_sent: bool,
    keeps_writes: bool,
    /// Whether one of its statements conflicted with another transaction.
    is_conflict: bool,
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
            tally: Tally::default(),
            outcomes: Vec::new(),
            completed: Vec::new(),
            settling: None,
            unbegun: 0,
            only_job: None,
            statement_timeout: None,
            shared: SharedTransaction::default(),
        }
    }

    fn run_all(&mut self, conn: &mut S::Conn, mut jobs: Vec<Arc<Claim>>) -> Result<(), Rollback<S::Error>> {
        let (began, served) = (Instant::now(), self.served);
        if jobs.len() == 1
            && !self.run.stop.is_finishing()
            && let Some(job) = jobs.pop()
        {
            let prepared = served.prepare(job);
            return match prepared.isolation() {
                Isolation::ReadCommitted => self.run_only(conn, prepared),
                _ => Err(Rollback::WrongIsolation(prepared.incoming.claim)),
            };
        }
        let mut jobs = jobs.into_iter();
        let mut next = jobs.next().map(|job| served.prepare(job));
        let mut kept = self.set_savepoint(conn, None, next.as_ref())?;
        while let Some(prepared) = next {
            self.slot.set_buffered_in_transaction(jobs.len());
            let now = Instant::now();
            let may_begin = now - began <= MAX_DURATION
                && !self.run.stop.is_finishing()
                && self.shared.admits(prepared.max_senders());
            if !may_begin {
                let unbegun = iter::once(prepared.incoming.claim).chain(jobs);
                unbegun.for_each(|job| self.give_back(job));
                return Ok(());
            }
            next = jobs.next().map(|job| served.prepare(job));
            self.run_one(conn, prepared, now, &mut kept, next.as_ref())?;
        }
        Ok(())
    }

    /// Runs the job of a single-job batch without a savepoint, which saves two round trips.
    ///
    /// If the handler does not keep its writes, the whole transaction is rolled back.
    fn run_only(
        &mut self,
        conn: &mut S::Conn,
        prepared: PreparedJob<'_, S>,
    ) -> Result<(), Rollback<S::Error>> {
        let Ran { result, attempt, has_sent, keeps_writes, is_conflict } =
            self.run_handler(conn, &prepared, Instant::now())?;
        let job = Arc::clone(&prepared.incoming.claim);
        if has_sent && !keeps_writes {
            return Err(Rollback::Ended { job, attempt, result: Box::new(result), is_conflict });
        }
        self.only_job = Some(OnlyJob { job, attempt: attempt.clone(), is_conflict });
        let (job, outcome) = prepared.end(self.run, self.served, result);
        self.add(job, outcome, attempt);
        Ok(())
    }

    /// Runs one job of several.
    ///
    /// A savepoint separates its writes from those of the handlers before it, so that a failure rolls back the writes
    /// of one handler. A handler that does not use the connection costs no savepoint. After a conflict the job is given
    /// back, and the transaction ends with what the handlers before it did.
    fn run_one(
        &mut self,
        conn: &mut S::Conn,
        prepared: PreparedJob<'_, S>,
        now: Instant,
        kept: &mut SavepointState<S::Savepoint>,
        next: Option<&PreparedJob<'_, S>>,
    ) -> Result<(), S::Error> {
        let Ran { result, attempt, has_sent, keeps_writes, is_conflict } =
            self.run_handler(conn, &prepared, now)?;
        let done = match (has_sent, keeps_writes) {
            (false, _) => Ok(()),
            (true, false) => self.roll_back_to(conn, kept),
            (true, true) => self.set_savepoint(conn, Some(kept.savepoint), next).map(|moved| *kept = moved),
        };
        let result = match done {
            Ok(()) => result,
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => {
                self.roll_back_to(conn, kept)?;
                Err(Failure::not_kept(&error))
            }
        };
        if is_conflict && result.is_err() {
            tracing::info!(job_id = %prepared.incoming.claim.id, "handler conflicted with another transaction");
            self.shared.fail();
            self.give_back(prepared.incoming.claim);
            return Ok(());
        }
        let (job, outcome) = prepared.end(self.run, self.served, result);
        self.add(job, outcome, attempt);
        Ok(())
    }

    /// Runs a handler.
    fn run_handler(
        &mut self,
        conn: &mut S::Conn,
        prepared: &PreparedJob<'_, S>,
        now: Instant,
    ) -> Result<Ran, S::Error> {
        let store = self.run.store();
        let timeout = prepared.timeout();
        if self.statement_timeout != timeout {
            store.set_statement_timeout(conn, timeout)?;
            self.statement_timeout = timeout;
        }
        let (sent, conflicts) = (store.activity(conn), store.conflicts(conn));
        let result = run_handler(self.run, self.slot, prepared, now, &mut |handler| match handler {
            Run::Transactional(handler) => {
                store.with_call_timeout(conn, None, |conn| handler(conn, &prepared.incoming))
            }
            Run::Leased(_) | Run::Asynchronous(_) => {
                Err(Failure::Error("the handler is not transactional".to_owned()))
            }
        });
        if self.run.is_abandoned() {
            return Err(Error::Stopped.into());
        }
        let attempt = prepared.ended_attempt(&self.run.clock, now, Instant::now());
        let has_sent = sent.is_none() || store.activity(conn) != sent;
        let has_timed_out = matches!(result, Err(Failure::Timeout { .. }));
        // Without a count a failure in a shared transaction may be a conflict. Alone the handler shows what it is.
        let is_conflict = match conflicts {
            _ if has_timed_out => false,
            Some(_) => store.conflicts(conn) != conflicts,
            None => self.shared.has_senders() && result.is_err(),
        };
        self.shared.record(has_sent, prepared.max_senders());
        let (result, keeps_writes) = match result.map(Outcome::into_parts) {
            Ok((outcome, keeps_writes)) => (Ok(outcome), keeps_writes),
            Err(failure) => (Err(failure), false),
        };
        Ok(Ran { result, attempt, has_sent, keeps_writes, is_conflict })
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

    fn add(&mut self, job: Arc<Claim>, outcome: Outcome, attempt: EndedAttempt) {
        match outcome {
            Outcome::Complete => {
                self.tally.record(&outcome, Some(&attempt));
                self.completed.push(job);
            }
            _ => self.outcomes.push((job, outcome, Some(attempt))),
        }
    }

    fn give_back(&mut self, job: Arc<Claim>) {
        self.unbegun += 1;
        self.outcomes.push((job, Outcome::GiveBack, None));
    }

    fn settle(&mut self, conn: &mut S::Conn) -> Result<(), S::Error> {
        let completed = self.completed.iter().map(|job| (&**job, &Outcome::Complete));
        let others = self.outcomes.iter().map(|(job, outcome, _)| (&**job, outcome));
        let span = self.run.pq.settle_span(self.served.queue.name(), completed.chain(others));
        let span = self.settling.insert(span);
        if self.outcomes.is_empty() {
            return Ok(());
        }
        let store = self.run.store();
        span.run(|| {
            if self.statement_timeout.is_some() {
                store.set_statement_timeout(conn, None)?;
            }
            settle_in_transaction(store, conn, &mem::take(&mut self.outcomes), &mut self.tally)
        })
    }

    /// Ends the span of the settlement with the transaction.
    fn end_settling(&mut self, done: &Result<Batch, Rollback<S::Error>>) {
        if let (Some(span), Err(Rollback::Store(error))) = (self.settling.take(), done) {
            span.describe(|| SpanInfo::Failed(error.to_string()));
        }
    }

    /// Follows up on the transaction of a single-job batch: runs the job again or settles it in another transaction.
    /// Returns `None` if the jobs must be run under a lease.
    fn conclude(
        &mut self,
        conn: &mut S::Conn,
        mut done: Result<Batch, Rollback<S::Error>>,
    ) -> Result<Option<Batch>, S::Error> {
        let mut reruns = 0;
        loop {
            let (job, attempt, result, is_conflict) = match done {
                Ok(batch) => return Ok(Some(batch)),
                Err(Rollback::NeedsLease) => return Ok(None),
                Err(Rollback::WrongIsolation(job)) => {
                    done = self.run_retaken(conn, &job);
                    continue;
                }
                Err(Rollback::Ended { job, attempt, result, is_conflict }) => {
                    (job, attempt, *result, is_conflict)
                }
                Err(Rollback::Store(error)) => match self.only_job.take() {
                    Some(OnlyJob { job, attempt, is_conflict })
                        if is_conflict || error.is_conflict() || !error.is_passing() =>
                    {
                        (job, attempt, Err(Failure::not_kept(&error)), is_conflict || error.is_conflict())
                    }
                    _ => return Err(error),
                },
            };
            if !is_conflict || reruns == MAX_RERUNS {
                return self.settle_after_rollback(conn, job, attempt, result).map(Some);
            }
            reruns += 1;
            tracing::info!(job_id = %job.id, reruns, "handler conflicted with another transaction");
            done = self.run_retaken(conn, &job);
        }
    }

    /// Runs the only job in a new transaction at the handler's isolation level, if no other worker has taken it since
    /// the rollback.
    fn run_retaken(&mut self, conn: &mut S::Conn, job: &Arc<Claim>) -> Result<Batch, Rollback<S::Error>> {
        *self = Self::new(self.run, self.slot, self.served);
        let store = self.run.store();
        let batch = Batch::of(std::slice::from_ref(job));
        let prepared = self.served.prepare(Arc::clone(job));
        let done = store.transaction_at(conn, prepared.isolation(), |conn| {
            if !store.retake(conn, job)? {
                return Ok(Batch { unbegun: 1, ..batch });
            }
            self.run_only(conn, prepared)?;
            self.settle(conn)?;
            Ok(batch)
        });
        self.end_settling(&done);
        done
    }

    /// Settles the only job in a new transaction after the rollback.
    ///
    /// If another worker has taken the job meanwhile, this attempt has no effect, as after a crash: the other worker's
    /// attempt has the same number.
    fn settle_after_rollback(
        &mut self,
        conn: &mut S::Conn,
        job: Arc<Claim>,
        attempt: EndedAttempt,
        result: HandlerResult,
    ) -> Result<Batch, S::Error> {
        let store = self.run.store();
        let batch = Batch::of(std::slice::from_ref(&job));
        let prepared = self.served.prepare(Arc::clone(&job));
        let (job, outcome) = prepared.end(self.run, self.served, result);
        let span = self.run.pq.settle_span(&job.queue, iter::once((&*job, &outcome)));
        let settle = |conn: &mut S::Conn| -> Result<Tally, S::Error> {
            let mut tally = Tally::default();
            if store.retake(conn, &job)? {
                let settled = (Arc::clone(&job), outcome.clone(), Some(attempt));
                settle_in_transaction(store, conn, &[settled], &mut tally)?;
            } else {
                tracing::warn!(job_id = %job.id, attempt = job.attempt, "failed job was taken by another worker");
                tally.report.lost += 1;
            }
            Ok(tally)
        };
        self.tally = span.run(|| store.transaction(conn, settle))?;
        Ok(batch)
    }
}
