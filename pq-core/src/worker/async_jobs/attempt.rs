//! An attempt of a job whose asynchronous handler runs in the transaction that takes it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tracing::Instrument;

use super::events::{AttemptEnd, Event, Events};
use super::running::run_guarded;
use crate::envelope::Envelope;
use crate::handler::HandlerResult;
use crate::worker::catch_panic::catch_panic;
use crate::worker::prepared_job::PreparedJob;
use crate::worker::queue_set::ServedQueue;
use crate::worker::statistics::ThreadStatistics;
use crate::worker::status::Report;
use crate::worker::tally::Tally;
use crate::worker::transactional_batch::{MAX_RERUNS, needs_lease};
use crate::worker::worker_run::WorkerRun;
use crate::{Claim, Error, Failure, Isolation, JobSpan, Outcome, QueueName, Scan, Store, Taken};

/// One attempt of a job whose asynchronous handler runs in the transaction that takes it.
///
/// For a crate that has asynchronous connections, see [`crate::Handler::in_transactions`]. It begins a transaction,
/// takes a job of [`Attempt::queue`] by [`Attempt::scan`] in [`Attempt::take`], passes it to [`Attempt::begin`], runs
/// its handler by [`Attempt::run`], settles it as [`Attempt::outcome`] says, commits, and calls [`Attempt::record`].
/// If this is dropped before, the worker assumes that the transaction was rolled back.
pub struct Attempt<S: Store> {
    run: Arc<WorkerRun<S>>,
    thread: usize,
    position: usize,
    number: usize,
    scan: Scan,
    events: Arc<Events<S::Error>>,
    job: Option<Arc<Claim>>,
    /// The call of the job, which is read once.
    call: Result<Option<Envelope>, String>,
    began: Instant,
    end: Option<AttemptEnd<S::Error>>,
}

impl<S: Store> fmt::Debug for Attempt<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("queue", self.queue()).field("job", &self.job).finish_non_exhaustive()
    }
}

impl<S: Store> Attempt<S> {
    /// How often a handler is run again at once after conflicts with other transactions, before that is its failure.
    pub const MAX_RERUNS: u32 = MAX_RERUNS;

    pub(super) fn new(
        run: &Arc<WorkerRun<S>>,
        events: &Arc<Events<S::Error>>,
        (thread, position, number): (usize, usize, usize),
        scan: Scan,
    ) -> Self {
        let (run, events) = (Arc::clone(run), Arc::clone(events));
        let (job, call, began, end) = (None, Ok(None), Instant::now(), None);
        Self { run, thread, position, number, scan, events, job, call, began, end }
    }

    /// Returns the queue to take a job of.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        self.served().queue.name()
    }

    /// Returns the scan to take it by.
    #[must_use]
    pub fn scan(&self) -> Scan {
        self.scan
    }

    /// Takes the job by a future, in the span of the take.
    ///
    /// # Errors
    ///
    /// The error of the future.
    pub async fn take(&self, take: impl Future<Output = Result<Taken, S::Error>>) -> Result<Taken, S::Error> {
        self.served().queue.in_take_span_async(1, take).await
    }

    /// Begins the attempt of the job that was taken.
    ///
    /// Returns `None` if there is no job to run. If one was taken all the same, the transaction must be rolled back:
    /// the worker takes the job under a lease, as one whose worker may have died.
    pub fn begin(&mut self, taken: &Taken) -> Option<Arc<Claim>> {
        let Some(job) = taken.jobs.first() else {
            self.end = Some(AttemptEnd::Empty { next_due: taken.next_due });
            return None;
        };
        if needs_lease(taken) {
            self.end = Some(AttemptEnd::NeedsLease);
            return None;
        }
        self.run.record_begun(1);
        self.job = Some(Arc::clone(job));
        self.began = Instant::now();
        self.events.push(self.number, Event::JobFound);
        self.call = self.served().read_call(job);
        Some(Arc::clone(job))
    }

    /// Returns the isolation level at which the handler of the job must run.
    ///
    /// A take is at READ COMMITTED. For another level, roll it back and take the same job again in a transaction at
    /// this one.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.prepared().map_or(Isolation::ReadCommitted, |prepared| prepared.isolation())
    }

    /// Runs the handler of the job. `call` gets what [`crate::Handler::in_transactions`] was given, and returns the
    /// handler's future.
    ///
    /// An error, a panic or a timeout is a failure. At a timeout the future is dropped, so what it did on its
    /// connection is unknown: the connection must be closed.
    pub async fn run<'c, H: 'static>(
        &self,
        call: impl FnOnce(&H) -> Result<AttemptFuture<'c>, Failure>,
    ) -> HandlerResult {
        let (future, timeout, maps, span) = {
            let prepared = self.prepared().ok_or_else(|| Failure::Error("no job was begun".to_owned()))?;
            let handler = prepared.handler.as_ref().map_err(Clone::clone)?;
            let in_transaction = handler.in_transaction.as_ref();
            let known = in_transaction.and_then(|known| Some((known.handler.downcast_ref::<H>()?, known)));
            let Some((function, known)) = known else {
                return Err(Failure::Error("the handler is not asynchronous and transactional".to_owned()));
            };
            prepared.report_crash(&self.run);
            let span = prepared.span(&self.run);
            let future = match catch_panic(|| span.span().in_scope(|| call(function))).flatten() {
                Ok(future) => future,
                Err(failure) => {
                    let result = Err(failure);
                    span.end_attempt(&result);
                    return result;
                }
            };
            let timeout = prepared.timeout();
            let running = prepared.running(None, timeout, Instant::now());
            self.run.slots()[self.thread].begin_concurrent(self.number, running);
            (future, timeout, known.maps.clone(), span)
        };
        let executor = self.run.settings.executor.as_ref();
        let timeout = timeout.and_then(|limit| Some((limit, executor?.sleep(limit))));
        let mut result = run_guarded(future, timeout).instrument(span.span().clone()).await;
        if let Some(job) = &self.job {
            for map in &maps {
                result = catch_panic(|| map(job, result)).flatten();
            }
        }
        span.end_attempt(&result);
        result
    }

    /// Returns the outcome that the handler's result leads to. `None` is that of a job which the commit completes.
    ///
    /// A failure is logged, and passed to the functions of [`crate::Worker::on_failure`].
    #[must_use]
    pub fn outcome(&self, result: HandlerResult) -> Option<Outcome> {
        let (_, outcome) = self.prepared()?.end(&self.run, self.served(), result);
        (!matches!(outcome, Outcome::Complete)).then_some(outcome)
    }

    /// Creates the span of the job's settlement and of the commit. The outcome is what [`Attempt::outcome`] returned.
    #[must_use]
    pub fn settle_span(&self, outcome: Option<&Outcome>) -> JobSpan {
        let jobs = self.job.iter().map(|job| (&**job, outcome.unwrap_or(&Outcome::Complete)));
        self.run.pq.settle_span(self.queue(), jobs)
    }

    /// Returns whether the transaction may commit.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if the worker no longer waits for it, see [`crate::Worker::stop_within`].
    pub fn may_commit(&self) -> Result<(), Error> {
        if self.run.is_abandoned() { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Records that the transaction was committed with this outcome of the job, `None` if the commit completed it.
    pub fn record(mut self, outcome: Option<&Outcome>) {
        let ended = self.prepared().map(|job| job.ended_attempt(&self.run.clock, self.began, Instant::now()));
        let mut tally = Tally::default();
        tally.record(outcome.unwrap_or(&Outcome::Complete), ended.as_ref());
        self.statistics().add_tally(self.queue(), tally);
        self.end = Some(AttemptEnd::Ran);
    }

    /// Records that another worker has taken the job, after the transaction was rolled back.
    pub fn record_lost(mut self) {
        self.statistics().add(self.queue(), &Report { lost: 1, ..Report::default() });
        self.end = Some(AttemptEnd::Ran);
    }

    /// Reports an error of the store. The transaction was rolled back, or it is not known whether it was committed.
    pub fn fail(mut self, error: S::Error) {
        self.end = Some(AttemptEnd::Failed(error));
    }

    fn statistics(&self) -> &ThreadStatistics {
        &self.run.slots()[self.thread].statistics
    }

    fn served(&self) -> &ServedQueue<S> {
        &self.run.queues.all[self.position]
    }

    fn prepared(&self) -> Option<PreparedJob<'_, S>> {
        Some(self.served().prepare_call(Arc::clone(self.job.as_ref()?), self.call.clone()))
    }
}

impl<S: Store> Drop for Attempt<S> {
    fn drop(&mut self) {
        if self.job.is_none() {
            self.run.job_limit.release(1);
        }
        self.run.slots()[self.thread].end_concurrent(self.number);
        self.events.push(self.number, Event::AttemptEnded(self.end.take().unwrap_or(AttemptEnd::Dropped)));
    }
}

/// The future of a handler on a connection.
pub type AttemptFuture<'c> = Pin<Box<dyn Future<Output = HandlerResult> + Send + 'c>>;
