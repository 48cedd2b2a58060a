//! A batch of jobs whose handlers run in the transaction that takes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{iter, mem};

use super::queue_set::ServedQueue;
use super::run::Prepared;
use super::shared::Shared;
use super::status::Report;
use super::threads::Batch;
use crate::task::{Failure, HandlerResult, Run};
use crate::{Outcome, RawJob, Scan, Settlement, Store, StoreError};

/// A batch that takes longer than this is ended before its end, and the rest given back.
const AT_MOST: Duration = Duration::from_millis(200);

/// Why a transaction is rolled back.
enum Undo<E> {
    /// What its only handler wrote is not to stay, and this is to become of its job.
    Failed(Arc<RawJob>, Outcome),
    Store(E),
}

impl<E> From<E> for Undo<E> {
    fn from(error: E) -> Self {
        Self::Store(error)
    }
}

/// Takes up to `want` jobs and works them in one transaction. `found` is called when there are some, before the
/// first one is begun.
pub(super) fn batch<S: Store>(
    shared: &Arc<Shared<S>>,
    thread: usize,
    served: &ServedQueue<S>,
    want: usize,
    scan: Scan,
    found: &mut dyn FnMut(),
) -> Result<Batch, S::Error> {
    let store = shared.pq.store();
    // Before the transaction, which is not to lie open for it.
    let turn = served.limiter.acquire(thread, want);
    store.with_connection(|conn| {
        let (counts, verdicts) = (Report::default(), Vec::new());
        let mut work = Work { shared, thread, served, counts, verdicts, alone: None, limit: None };
        let done = store.transaction(conn, |conn| -> Result<Batch, Undo<S::Error>> {
            let taken = {
                let _span = tracing::debug_span!("pq.take", queue = %served.queue.name(), want).entered();
                store.take(conn, served.queue.name(), want, scan)?
            };
            drop(turn);
            if taken.jobs.is_empty() {
                return Ok(Batch::nothing(taken.next_due));
            }
            found();
            let batch = Batch::of(&taken.jobs);
            let worked = work.all(conn, taken.jobs);
            shared.signals.totals.buffered.store(0, Ordering::Relaxed);
            worked?;
            let (jobs, outcomes): (Vec<_>, Vec<_>) = mem::take(&mut work.verdicts).into_iter().unzip();
            let verdicts: Vec<Settlement<'_>> =
                jobs.iter().zip(outcomes).map(|(job, outcome)| Settlement { job, outcome }).collect();
            if !verdicts.is_empty() {
                let _span = tracing::debug_span!("pq.settle", verdicts = verdicts.len()).entered();
                if work.limit.is_some() {
                    store.set_statement_timeout(conn, None)?;
                }
                store.settle(conn, &verdicts)?;
            }
            Ok(Batch { given_back: usize::try_from(work.counts.given_back).unwrap_or(batch.taken), ..batch })
        });
        let batch = match (done, work.alone.take()) {
            (Ok(batch), _) => batch,
            (Err(Undo::Failed(job, outcome)), _) => work.fail(conn, &job, outcome)?,
            (Err(Undo::Store(error)), Some(job)) if !error.is_unavailable() && !error.is_conflict() => {
                let (job, outcome) =
                    served.prepare(RawJob::clone(&job)).outcome_for(served, Err(not_kept(&error)));
                work.fail(conn, &job, outcome)?
            }
            (Err(Undo::Store(error)), _) => return Err(error),
        };
        // Only what is committed has happened.
        shared.signals.totals.add_of(served.queue.name(), &work.counts);
        Ok(batch)
    })
}

/// A handler has overlooked that a statement of its own failed, or the commit is what failed.
fn not_kept(error: &impl std::error::Error) -> Failure {
    Failure::Error(format!("the handler's writes could not be kept: {error}"))
}

struct Work<'w, S: Store> {
    shared: &'w Arc<Shared<S>>,
    thread: usize,
    served: &'w ServedQueue<S>,
    counts: Report,
    /// What the transaction must still do with its jobs. What is completed needs no verdict.
    verdicts: Vec<(Arc<RawJob>, Outcome)>,
    /// The only job, once its handler has run: if the transaction fails now, it is that handler's failure.
    alone: Option<Arc<RawJob>>,
    /// How long a statement of the transaction may take as it is now.
    limit: Option<Duration>,
}

/// How far the transaction has come whatever the next handler does.
struct Behind<M> {
    mark: M,
    /// How long a statement may take after an undo to the mark.
    limit: Option<Duration>,
}

impl<S: Store> Work<'_, S> {
    fn all(&mut self, conn: &mut S::Conn, mut jobs: Vec<RawJob>) -> Result<(), Undo<S::Error>> {
        if jobs.len() == 1 && !self.shared.signals.is_ending() {
            return jobs.pop().map_or(Ok(()), |job| self.single(conn, job));
        }
        let (began, served) = (Instant::now(), self.served);
        let mut jobs = jobs.into_iter();
        let mut next = jobs.next().map(|job| served.prepare(job));
        let mut behind = self.mark(conn, None, next.as_ref())?;
        while let Some(prepared) = next {
            self.shared.signals.totals.buffered.store(jobs.len() as u64, Ordering::Relaxed);
            let now = Instant::now();
            if now - began > AT_MOST || self.shared.signals.is_ending() {
                let rest = iter::once(prepared.incoming.raw).chain(jobs.map(Arc::new));
                rest.for_each(|job| self.end(job, Outcome::GiveBack));
                return Ok(());
            }
            next = jobs.next().map(|job| served.prepare(job));
            self.one(conn, prepared, now, &mut behind, next.as_ref())?;
        }
        Ok(())
    }

    /// Works the only job, without a mark: two round trips less, one of them before the handler begins. Where the
    /// handler has failed and written, all is rolled back.
    fn single(&mut self, conn: &mut S::Conn, job: RawJob) -> Result<(), Undo<S::Error>> {
        let prepared = self.served.prepare(job);
        let (ran, touched) = self.run(conn, &prepared, Instant::now())?;
        let failed = ran.is_err();
        let (job, outcome) = prepared.outcome_for(self.served, ran);
        if failed && touched {
            return Err(Undo::Failed(job, outcome));
        }
        self.alone = Some(Arc::clone(&job));
        self.end(job, outcome);
        Ok(())
    }

    /// Passes the verdict on the only job after the rollback. If another worker has taken it meanwhile, it is as if
    /// this one had died: the job is that one's, and the attempt is not counted.
    fn fail(&mut self, conn: &mut S::Conn, job: &RawJob, outcome: Outcome) -> Result<Batch, S::Error> {
        let store = self.shared.pq.store();
        self.counts = Report::default();
        let verdict = Settlement { job, outcome };
        let _span = tracing::debug_span!("pq.settle", verdicts = 1).entered();
        let held = store.transaction(conn, |conn| -> Result<bool, S::Error> {
            let held = store.retake(conn, job)?;
            if held {
                store.settle(conn, std::slice::from_ref(&verdict))?;
            }
            Ok(held)
        })?;
        if held {
            self.counts.count(&verdict.outcome);
        } else {
            tracing::warn!(id = %job.id, attempt = job.attempt, "a job failed, and somebody else has it by now");
            self.counts.lost += 1;
        }
        Ok(Batch::of(std::slice::from_ref(job)))
    }

    /// Works a job. What those before it have written is behind the mark, so that a rollback undoes the writes of
    /// one handler alone; handlers that touch nothing on the connection do not pay for it.
    fn one(
        &mut self,
        conn: &mut S::Conn,
        prepared: Prepared<'_, S>,
        now: Instant,
        behind: &mut Behind<S::Savepoint>,
        next: Option<&Prepared<'_, S>>,
    ) -> Result<(), S::Error> {
        let (ran, touched) = self.run(conn, &prepared, now)?;
        let kept = match (touched, &ran) {
            (false, _) => Ok(()),
            (true, Err(_)) => self.undo(conn, behind),
            (true, Ok(_)) => self.mark(conn, Some(behind.mark), next).map(|moved| *behind = moved),
        };
        let ran = match kept {
            Ok(()) => ran,
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                self.undo(conn, behind)?;
                Err(not_kept(&error))
            }
        };
        let (job, outcome) = prepared.outcome_for(self.served, ran);
        self.end(job, outcome);
        Ok(())
    }

    /// Runs a handler, and says whether it has touched anything on the connection, as far as that is known.
    fn run(
        &mut self,
        conn: &mut S::Conn,
        prepared: &Prepared<'_, S>,
        now: Instant,
    ) -> Result<(HandlerResult, bool), S::Error> {
        let store = self.shared.pq.store();
        let timeout = prepared.timeout();
        if self.limit != timeout {
            store.set_statement_timeout(conn, timeout)?;
            self.limit = timeout;
        }
        let before = store.activity(conn);
        let ran = self.shared.run(self.thread, prepared, now, &mut |incoming| match &prepared.handler {
            Ok(handler) => match &handler.run {
                Run::Transactional(handler) => handler(conn, incoming),
                Run::Leased(_) => Err(Failure::Error("it is no transactional handler".to_owned())),
            },
            Err(failure) => Err(failure.clone()),
        });
        Ok((ran, before.is_none() || store.activity(conn) != before))
    }

    /// Puts what was done behind the mark, and has the limit be that of the next job, whatever a handler that had one
    /// has made of it.
    fn mark(
        &mut self,
        conn: &mut S::Conn,
        earlier: Option<S::Savepoint>,
        next: Option<&Prepared<'_, S>>,
    ) -> Result<Behind<S::Savepoint>, S::Error> {
        let store = self.shared.pq.store();
        let limit = next.and_then(Prepared::timeout);
        let mark = match (self.limit, limit) {
            (None, None) => store.savepoint(conn, earlier)?,
            _ => store.savepoint_and_timeout(conn, earlier, limit)?,
        };
        self.limit = limit;
        Ok(Behind { mark, limit })
    }

    fn undo(&mut self, conn: &mut S::Conn, behind: &Behind<S::Savepoint>) -> Result<(), S::Error> {
        self.limit = behind.limit;
        self.shared.pq.store().rollback_to(conn, behind.mark)
    }

    fn end(&mut self, job: Arc<RawJob>, outcome: Outcome) {
        self.counts.count(&outcome);
        if !matches!(outcome, Outcome::Complete) {
            self.verdicts.push((job, outcome));
        }
    }
}
