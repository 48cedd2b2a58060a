//! Workers: threads that take jobs and run their handlers.
//!
//! | what | module |
//! |---|---|
//! | the threads, and the end of a run | `threads` |
//! | the loop of a thread that runs blocking handlers | `threads`, with `poll` for one poll of the queues |
//! | the thread that serves asynchronous handlers | `async_jobs` |
//! | which idle thread waits for jobs | `wait_turn` |
//! | which queue is polled next | `queue_set` |
//! | how many jobs are taken at a time | `batch_sizer`, `take_limiter`, and `sharing` for transactional handlers |
//! | running a batch under a lease, or in a transaction | `leased_batch`, `transactional_batch` |
//! | finding and running the handler of a job, and its outcome | `prepared_job`, `run_handler` |
//! | storing outcomes | `settling` |
//! | extending leases, and heartbeats | `lease_keeper`, `heartbeat` |
//! | returning expired leases, periodic jobs, pruning | `maintenance`, `maintenance_schedule` |
//! | progress and log lines of handlers | `sending_notes` |
//! | status and counters | `progress`, `thread_slots`, `statistics`, `status`, `tally`, `counting` |
//!
//! `worker_run` has what the threads of one run share.

mod async_jobs;
mod batch;
mod batch_sizer;
mod catch_panic;
mod control;
mod counting;
mod error_backoff;
mod heartbeat;
mod lease_keeper;
mod leased_batch;
mod maintenance;
mod maintenance_schedule;
mod poll;
mod prepared_job;
mod progress;
mod queue_set;
mod run_handler;
mod sending_notes;
mod settings;
mod settling;
mod sharing;
mod statistics;
mod status;
pub(crate) mod store_clock;
mod take_limiter;
mod tally;
mod thread_slots;
mod threads;
mod transactional_batch;
mod wait_turn;
mod worker_run;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::async_jobs::{Attempt, AttemptFuture};
pub use self::control::Control;
use self::queue_set::QueueSet;
use self::settings::{RunUntil, Settings};
pub use self::status::{Report, Running, Status};
use self::worker_run::WorkerRun;
use crate::handler::{Executor, Failure, Handler, JobInfo, MapResult, Middleware, Next, OnFailure};
use crate::{Claim, Outcome, Pq, Retention, Store};

/// Runs the handlers of one or several queues in its own threads.
///
/// ```
/// use pq_core::{Pq, Worker, memory::MemoryStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let greet = pq.queue("greetings")?.task::<String>("greet");
/// greet.call(&"world".to_owned())?;
/// let handler = greet.leased(|_context, job| {
///     println!("hello, {}", job.data);
///     Ok::<_, std::io::Error>(())
/// });
/// let report = Worker::new(&pq).serve(handler).threads(4).run_until_empty()?;
/// assert_eq!(report.done, 1);
/// # Ok(())
/// # }
/// ```
///
/// # Batches
///
/// Each thread takes and settles jobs in batches, so that many small jobs need few round trips and commits. The first
/// batch is of the minimum size. While batches are full and take less than 50 ms, the size grows by a factor of 8, 4 or
/// 2, the more the quicker the last batch was. When a batch takes longer than 100 ms or the queue runs short, the size
/// is halved, so that other workers can take the jobs. See [`Worker::batch`] for the limits.
///
/// The jobs of transactional handlers that send no statement share a transaction. After a handler that did, the
/// transaction commits, the jobs that have not begun are given back, and jobs are taken one by one until handlers
/// send nothing for a while. [`crate::Task::share_transaction`] lets handlers that send statements share one. The
/// jobs of leased handlers share a lease, which the worker extends while they run. If a queue has handlers of both
/// kinds, its jobs are leased, and each transactional handler completes its job in a transaction of its own.
///
/// # Failures
///
/// An error, a panic or a timeout of a handler fails the attempt. See [`crate::Failure`] for what follows. While the
/// store cannot be reached, the worker retries with backoff.
///
/// If the process crashes, leased jobs are requeued when their lease expires. That is not a failure and uses up no
/// retry. A job that was alone in its lease has crashed, see [`Handler::max_crashes`]. Of several jobs no attempt
/// counts, and they are taken again in smaller leases, at last alone. Jobs in a transaction are ready again as soon
/// as the server notices. The attempt does not count, and the next one runs under a lease.
///
/// # Maintenance
///
/// Every worker requeues the jobs of expired leases, also of other workers, puts the periodic jobs that are due
/// ([`crate::Cron`]) and prunes the archive. Each worker registers itself, so that `Pq::workers` lists live workers on
/// every host and `Pq::stop_worker` stops one.
///
/// # Connections
///
/// Each thread uses a connection of the handle while it takes jobs, settles them, or runs a transactional handler. Two
/// more threads use one at times: one extends leases and sends heartbeats, one runs maintenance. A pool should have as
/// many connections as threads plus two.
pub struct Worker<S: Store> {
    pq: Pq<S>,
    queues: QueueSet<S>,
    settings: Settings,
    middleware: Vec<Arc<Middleware>>,
    on_failure: Vec<Box<OnFailure>>,
    control: Control<S>,
}

impl<S: Store> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("queues", &self.queues.names())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<S: Store> Worker<S>
where
    S::Conn: Send,
{
    /// Creates a worker that serves no queue yet, with the defaults of the methods below.
    #[must_use]
    pub fn new(pq: impl AsRef<Pq<S>>) -> Self {
        Self {
            pq: pq.as_ref().clone(),
            queues: QueueSet::default(),
            settings: Settings::default(),
            middleware: Vec::new(),
            on_failure: Vec::new(),
            control: Control::new(),
        }
    }

    /// Registers a handler.
    ///
    /// Queues have strict priority in registration order: a queue is polled only while all earlier ones are empty. See
    /// [`Worker::weight`] for another order.
    #[must_use]
    pub fn serve(mut self, handler: Handler<S>) -> Self {
        self.queues.add(handler);
        self
    }

    /// Serves the queues by weight instead of in registration order.
    ///
    /// A queue of weight 3 gets three batches for each batch of a queue of weight 1. Default: 1 for each queue, once
    /// any weight is set.
    #[must_use]
    pub fn weight(mut self, queue: &str, weight: u32) -> Self {
        self.queues.set_weight(queue, weight);
        self
    }

    /// Sets the number of threads that run handlers. Default: 1.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.settings.threads = threads;
        self
    }

    /// Sets how many asynchronous handlers run at the same time. Default: 100. See [`crate::Task::leased_async`].
    ///
    /// [`Worker::queue_concurrency`] limits the handlers of one queue, and [`Handler::concurrency`] those of one
    /// task. While handlers are quick, a few more jobs than that are taken ahead: as many as end in 50 ms.
    #[must_use]
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.settings.concurrency = handlers;
        self
    }

    /// Sets how many asynchronous handlers of one queue run at the same time. Default: as many as of all queues.
    #[must_use]
    pub fn queue_concurrency(mut self, queue: &str, handlers: usize) -> Self {
        self.queues.set_concurrency(queue, handlers);
        self
    }

    /// Sets what runs the futures of asynchronous handlers. Default: none.
    #[must_use]
    pub fn executor(mut self, executor: Arc<dyn Executor>) -> Self {
        self.settings.executor = Some(executor);
        self
    }

    /// Sets the minimum and maximum number of jobs that a thread takes at a time. Default: 1 and 4,096.
    ///
    /// Within these limits the size follows the duration of the batches, see [`Worker`]. Further limits apply: a
    /// thread holds about 8 MiB of payload; a batch with serialization keys has at most 512 jobs, or `min` if that is
    /// more; after a batch that the store refused the next one is an eighth of its size, down to one job; and of jobs
    /// whose transactional handlers send statements a thread takes as many as may share a transaction, by default
    /// one.
    #[must_use]
    pub fn batch(mut self, min: usize, max: usize) -> Self {
        (self.settings.min_batch, self.settings.max_batch) = (min, max);
        self
    }

    /// Sets the length of leases. Default: 30 s. Minimum: 10 ms.
    ///
    /// While the worker runs it extends a lease when a third of it has passed, and at least every 2 s. After a crash
    /// the jobs are requeued when the lease has expired.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// Sets the interval of maintenance. Default: 1 s.
    ///
    /// Maintenance requeues the jobs of expired leases, prunes the archive, and puts the periodic jobs that are due.
    /// After a slow search for expired leases that found none, the next search waits for 40 times as long as it took,
    /// at most 10 s. Periodic jobs are put at each interval all the same.
    ///
    /// With [`Duration::MAX`] this worker runs no maintenance, and relies on others.
    #[must_use]
    pub fn maintain_every(mut self, interval: Duration) -> Self {
        self.settings.maintain_every = interval;
        self
    }

    /// Sets the interval of heartbeats. Default: 2 s.
    ///
    /// A heartbeat stores the worker's status, and receives a request to stop. The worker's counters
    /// ([`crate::Counters`]) are stored as often. With `None` the worker is not registered, so it is not listed and
    /// can be stopped by its [`Control`] only, and its counters are not stored.
    #[must_use]
    pub fn heartbeat_every(mut self, interval: Option<Duration>) -> Self {
        self.settings.heartbeat_every = interval;
        self
    }

    /// Sets the id of the process that supervises this one. Default: this process.
    ///
    /// It is stored with the heartbeats, so that an operator knows which process to stop.
    #[must_use]
    pub fn supervised_by(mut self, process: u32) -> Self {
        self.settings.supervisor = Some(process);
        self
    }

    /// Sets how long maintenance keeps archived jobs. Default: see [`Retention`].
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.settings.retention = retention;
        self
    }

    /// Sets for how long jobs are left to other workers if this one has no handler for their tasks, or one that asks
    /// for other steps than they have kept. Default: 24 h.
    ///
    /// Another worker may have a handler, for example a newer version of the program. Such a job goes back with an
    /// error that names the task, and no attempt is counted. Workers look at it again after a second, and then after
    /// delays that double up to a minute. Once workers without a handler have left it to others for this long, it is
    /// archived as dead. Time in which no worker takes it does not count.
    #[must_use]
    pub fn leave_unknown_tasks_for(mut self, duration: Duration) -> Self {
        self.settings.leave_unknown_tasks_for = duration;
        self
    }

    /// Calls `on_failure` after each failed attempt, with the failure and whether the job is archived as dead.
    ///
    /// An attempt fails by an error, a panic or a timeout of its handler, or by [`Outcome::Retry`] or
    /// [`Outcome::Dead`]. It also fails without a handler: for an unknown task, a payload that cannot be decoded, and
    /// a job whose workers died as often as allowed. Of a crash after which the job is tried again,
    /// [`Failure::Crashed`], the functions hear when the next attempt begins, with that attempt's information.
    /// Functions are called in the order in which they were added, on the thread of the handler, before the outcome
    /// is stored. If the store refuses the outcome, or a transaction runs again, the function may be called again for
    /// the same attempt. A panic of the function is logged.
    ///
    /// ```
    /// # use pq_core::{Pq, Worker, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let worker = Worker::new(&pq).on_failure(|info, failure, is_last| {
    ///     if is_last {
    ///         eprintln!("job {} is dead after {} attempts: {failure}", info.job.id, info.attempt);
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn on_failure(
        mut self,
        on_failure: impl Fn(&JobInfo<'_>, &Failure, bool) + Send + Sync + 'static,
    ) -> Self {
        self.on_failure.push(Box::new(on_failure));
        self
    }

    /// Runs `middleware` around every handler. The first one added is outermost.
    ///
    /// It receives the job and the rest of the chain, and its result is the attempt's. It also runs for a job that
    /// has no handler: the rest of the chain then returns the reason, such as [`Failure::UnknownTask`]. A panic of
    /// the middleware fails the attempt.
    ///
    /// ```
    /// # use pq_core::{Pq, Worker, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let worker = Worker::new(&pq).wrap(|info, next| {
    ///     let result = next.run();
    ///     println!("job {} succeeded: {}", info.job.id, result.is_ok());
    ///     result
    /// });
    /// ```
    #[must_use]
    pub fn wrap(
        mut self,
        middleware: impl Fn(&JobInfo<'_>, Next<'_>) -> Result<Outcome, Failure> + Send + Sync + 'static,
    ) -> Self {
        self.middleware.push(Arc::new(middleware));
        self
    }

    /// Passes the result of each handler that was registered so far through `map`, for tests that inject failures.
    ///
    /// `map` runs where the handler has run: in its transaction, if it is transactional. So an error or a panic of
    /// `map` rolls back what the handler wrote. Middleware sees the result of `map`. It does not run for a job
    /// without a handler.
    ///
    /// ```
    /// # use pq_core::{Failure, Pq, Worker, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// let worker = Worker::new(&pq).map_results(|job, result| match job.attempt {
    ///     1 => Err(Failure::Error("the first attempt fails".to_owned())),
    ///     _ => result,
    /// });
    /// ```
    #[must_use]
    pub fn map_results(
        mut self,
        map: impl Fn(&Claim, Result<Outcome, Failure>) -> Result<Outcome, Failure> + Send + Sync + 'static,
    ) -> Self {
        let map: Arc<MapResult> = Arc::new(map);
        self.queues.map_results(&map);
        self
    }

    /// Sets how long a stop may take. Default: without limit.
    ///
    /// The time is counted from the first request to stop, of any mode. A tenth of it before the end, running
    /// handlers are asked to end, as by [`crate::StopMode::Abort`]. At the end the worker returns although a handler
    /// has not. That handler continues on its thread until it returns or the process ends. Its outcome is not stored,
    /// and its transaction is rolled back, so the job runs again: one that was leased after a lease length. Neither an
    /// attempt nor a crash is counted.
    ///
    /// Set it to less than the time after which the process is killed.
    #[must_use]
    pub fn stop_within(mut self, limit: Duration) -> Self {
        self.settings.stop_within = Some(limit);
        self
    }

    /// Has the worker end at the deadline of a stop as if its process were killed. `pq-testing` tests crashes by it.
    #[doc(hidden)]
    #[must_use]
    pub fn dies_at_deadline(mut self) -> Self {
        self.settings.dies_at_deadline = true;
        self
    }

    /// Returns a handle that stops this worker and returns its status.
    #[must_use]
    pub fn control(&self) -> Control<S> {
        self.control.clone()
    }

    /// Runs until the worker is stopped, and its handlers have returned or [`Worker::stop_within`] has passed.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidSetting`] if a setting or the set of handlers is invalid. The store's error if no poll
    /// has succeeded yet and a retry cannot succeed, for example because the table does not exist. Other errors are
    /// logged, and the worker retries with backoff.
    pub fn run(self) -> Result<Report, S::Error> {
        self.run_until(RunUntil::Stopped)
    }

    /// Runs until no job of the queues is ready or under an expired lease, or the worker is stopped.
    ///
    /// The jobs of expired leases are returned and run first, unless [`Worker::maintain_every`] is [`Duration::MAX`]. A
    /// lease that another worker still holds is not waited for.
    ///
    /// # Errors
    ///
    /// See [`Worker::run`].
    pub fn run_until_empty(self) -> Result<Report, S::Error> {
        self.run_until(RunUntil::Empty)
    }

    /// Runs until handlers have been run for this number of jobs, or the worker is stopped.
    ///
    /// # Errors
    ///
    /// See [`Worker::run`].
    pub fn run_jobs(self, jobs: u64) -> Result<Report, S::Error> {
        self.run_until(RunUntil::Jobs(jobs))
    }

    fn run_until(self, until: RunUntil) -> Result<Report, S::Error> {
        self.settings.check()?;
        self.queues.check()?;
        if self.queues.has_asynchronous() && self.settings.executor.is_none() {
            let wrong = "asynchronous handlers need an executor: use the worker of `pq-diesel-async`";
            return Err(crate::Error::InvalidSetting(wrong.to_owned()).into());
        }
        if self.queues.has_asynchronous() && !self.middleware.is_empty() {
            let wrong = "middleware of `Worker::wrap` blocks, so it cannot run around asynchronous handlers";
            return Err(crate::Error::InvalidSetting(wrong.to_owned()).into());
        }
        let Self { pq, queues, settings, middleware, on_failure, control } = self;
        let _attached = control.attach(queues.names(), &pq);
        tracing::info!(queues = ?queues.names(), threads = settings.threads, "worker started");
        let run = WorkerRun::new(pq, queues, settings, middleware, on_failure, &control, until);
        let result = threads::run_threads(&Arc::new(run));
        match &result {
            Ok(Report { done, failed, dead, cancelled, snoozed, given_back, lost, .. }) => {
                tracing::info!(done, failed, dead, cancelled, snoozed, given_back, lost, "worker ended");
            }
            Err(error) => tracing::error!(%error, "worker failed"),
        }
        result
    }
}
