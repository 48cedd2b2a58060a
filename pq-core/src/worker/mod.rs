//! Workers: threads that take jobs and run their handlers.

mod batch_sizer;
mod context;
mod heartbeat;
mod leased;
mod maintenance;
mod maintenance_schedule;
mod middleware;
mod queue_set;
mod run;
mod shared;
mod status;
mod take_limiter;
mod threads;
mod transactional;

use std::sync::Arc;
use std::time::Duration;

pub use self::context::Context;
use self::middleware::Middleware;
pub use self::middleware::{JobInfo, Next};
use self::queue_set::QueueSet;
use self::shared::{Shared, Signals};
pub use self::status::{Control, Report, Running, Status, StopMode};
use crate::task::Failure;
use crate::{Error, Handler, Outcome, Pq, Retention, Store};

/// Works the jobs of one or several queues in threads of its own.
///
/// It takes jobs in batches, and settles them in batches, so that many small ones cost few round trips and few
/// commits. A batch begins with one job, doubles while whole batches take less than fifty milliseconds, and
/// shrinks when they take longer, so that no job is held that another worker could start sooner. One thread
/// waits for all that have nothing to do.
///
/// Jobs of transactional handlers share a transaction, each in a nested one where it writes. Jobs of leased
/// handlers share a lease, which is extended while they run. A queue whose handlers are of both kinds is leased
/// as a whole, and its transactional ones complete their jobs in their own transaction.
///
/// Errors, panics and timeouts of handlers are their jobs' failures. While the store cannot be reached the
/// worker tries again with backoff. Each worker also runs maintenance: it returns the jobs of leases that are over, of
/// whichever worker, puts the periodic jobs that are due ([`crate::Cron`]), and prunes the archive. And it tells of
/// itself: [`Pq::workers`] lists those that live, on whichever host, and [`Pq::stop_worker`] stops one.
///
/// Each thread of it has a connection of the handle's while it takes, settles or runs a transactional handler,
/// and the worker one more: a pool should have as many.
pub struct Worker<S: Store> {
    pq: Pq<S>,
    queues: QueueSet<S>,
    settings: Settings,
    middleware: Vec<Arc<Middleware>>,
    signals: Arc<Signals>,
    control: Control<S>,
}

/// What can be set at a worker.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) threads: usize,
    pub(crate) min_batch: usize,
    pub(crate) max_batch: usize,
    pub(crate) lease: Duration,
    pub(crate) maintain_every: Duration,
    pub(crate) retention: Retention,
    /// How often the worker tells of itself; none where it does not.
    pub(crate) heartbeat_every: Option<Duration>,
    /// The process that looks after this one.
    pub(crate) supervisor: Option<u32>,
}

/// When a run ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Stopped,
    Empty,
    Jobs(u64),
}

/// Ends with the run, however that ends.
struct Runs<'c, S: Store>(&'c Control<S>);

impl<S: Store> Drop for Runs<'_, S> {
    fn drop(&mut self) {
        self.0.detach();
    }
}

impl<S: Store> Worker<S>
where
    S::Conn: Send,
{
    /// A worker on this handle's store: one thread, batches of 1 to 4,096 jobs, leases of thirty seconds, a sweep
    /// each second, and the default [`Retention`].
    #[must_use]
    pub fn new(pq: &Pq<S>) -> Self {
        let signals = Arc::new(Signals::default());
        Self {
            pq: pq.clone(),
            queues: QueueSet::default(),
            settings: Settings {
                threads: 1,
                min_batch: 1,
                max_batch: 4_096,
                lease: Duration::from_secs(30),
                maintain_every: Duration::from_secs(1),
                retention: Retention::default(),
                heartbeat_every: Some(Duration::from_secs(2)),
                supervisor: None,
            },
            middleware: Vec::new(),
            control: Control::new(&signals),
            signals,
        }
    }

    /// Works what this handler is for. Queues are served in the order in which their first handlers are given:
    /// while the first has jobs that are ready, the second waits.
    #[must_use]
    pub fn serve(mut self, handler: Handler<S>) -> Self {
        self.queues.add(handler);
        self
    }

    /// Serves the queues by weight and not in order: one of weight 3 gets three turns while one of weight 1
    /// gets one. Queues that are not named here have weight 1.
    #[must_use]
    pub fn weight(mut self, queue: &str, weight: u32) -> Self {
        self.queues.weigh(queue, weight);
        self
    }

    /// How many threads run handlers; 1 unless said.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.settings.threads = threads;
        self
    }

    /// How many jobs a thread takes at a time: at least and at most. 1 and 4,096 unless said. Between them it goes
    /// by how long batches take, and by how large their payloads are: a thread holds about 8 MiB of them. Where jobs
    /// have serialization keys it is 512 at most, unless the least is more. After a batch that failed the next is an
    /// eighth of its size, at last a single job.
    #[must_use]
    pub fn batch(mut self, min: usize, max: usize) -> Self {
        (self.settings.min_batch, self.settings.max_batch) = (min, max);
        self
    }

    /// How long a lease is; thirty seconds unless said. It is extended long before its end while the worker
    /// lives; after a crash its jobs are back this much later.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How often the worker looks for leases that are over and for what the archive need not keep; each second
    /// unless said, and never with [`Duration::MAX`], which leaves it to others. After a look that took the store long
    /// and found nothing, as where an open transaction keeps very many ended leases from being removed, the next one is
    /// forty times as long away, or ten seconds where that is less. Periodic jobs fire each time.
    #[must_use]
    pub fn maintain_every(mut self, interval: Duration) -> Self {
        self.settings.maintain_every = interval;
        self
    }

    /// How often the worker notes in the store that it lives and what it does, and learns whether it is to stop:
    /// every two seconds unless said. With `None` it is not known there, and nobody can stop it from elsewhere.
    #[must_use]
    pub fn heartbeat_every(mut self, interval: Option<Duration>) -> Self {
        self.settings.heartbeat_every = interval;
        self
    }

    /// The process that looks after this one, and that others are to know as the one to ask. It is told with the
    /// rest.
    #[must_use]
    pub fn supervised_by(mut self, process: u32) -> Self {
        self.settings.supervisor = Some(process);
        self
    }

    /// How long the archive keeps what.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.settings.retention = retention;
        self
    }

    /// Runs `middleware` around every handler. The first one added is outermost.
    ///
    /// It receives the job and the rest of the chain, and its result is the attempt's.
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

    /// What stops the worker and says what it does, from any thread.
    #[must_use]
    pub fn control(&self) -> Control<S> {
        self.control.clone()
    }

    /// Works until it is stopped by its [`Control`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`]; the store's own if the very first look at it fails and will fail again (it has
    /// no table, say). Later errors are logged, and waited out.
    pub fn run(self) -> Result<Report, S::Error> {
        self.run_until(Until::Stopped)
    }

    /// Works until no job of the queues is ready, or it is stopped.
    ///
    /// # Errors
    ///
    /// As [`Worker::run`].
    pub fn run_until_empty(self) -> Result<Report, S::Error> {
        self.run_until(Until::Empty)
    }

    /// Works until handlers were run for so many jobs, or it is stopped.
    ///
    /// # Errors
    ///
    /// As [`Worker::run`].
    pub fn run_jobs(self, jobs: u64) -> Result<Report, S::Error> {
        self.run_until(Until::Jobs(jobs))
    }

    fn run_until(self, until: Until) -> Result<Report, S::Error> {
        self.check()?;
        let Self { pq, queues, settings, middleware, signals, control } = self;
        control.attach(&queues, &pq);
        let _runs = Runs(&control);
        let shared = Shared::new(pq, queues, settings, middleware, signals, until);
        threads::run(&shared)
    }

    fn check(&self) -> Result<(), Error> {
        let Settings { threads, min_batch, max_batch, lease, .. } = self.settings;
        let wrong = if threads == 0 {
            "a worker needs at least one thread".to_owned()
        } else if min_batch == 0 || max_batch < min_batch {
            format!(
                "a batch of {min_batch} to {max_batch} jobs cannot be; the least is 1, and at most the most"
            )
        } else if lease < Duration::from_millis(10) {
            format!("a lease of {lease:?} is over before anything can be done; 10 ms is the least")
        } else {
            return self.queues.check();
        };
        Err(Error::InvalidSetting(wrong))
    }
}
