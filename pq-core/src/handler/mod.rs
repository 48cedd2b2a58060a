//! Handlers: what runs a job, what it may touch, and what follows.

mod calls;
mod context;
mod executor;
mod failure;
mod incoming;
mod isolation;
mod job_notes;
mod left_to_others;
mod middleware;
mod policy;
mod steps;

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

pub(crate) use self::context::ContextAccess;
pub use self::context::{Checkpoint, Context};
pub use self::executor::Executor;
pub use self::failure::Failure;
pub(crate) use self::incoming::{HandlerResult, Incoming};
pub use self::isolation::Isolation;
pub(crate) use self::job_notes::{Entered, JobNotes, OpenNotes, send_notes};
#[cfg(feature = "log-layer")]
pub(crate) use self::job_notes::{ask_for_current, current};
pub(crate) use self::left_to_others::{is_left_for, leave_to_others};
pub use self::middleware::{JobInfo, Next};
pub(crate) use self::middleware::{Middleware, OnFailure};
pub(crate) use self::policy::Policy;
pub use self::steps::StepRun;
use crate::store::Connect;
use crate::worker::Attempt;
use crate::{Backoff, Claim, Job, Outcome, Queue, QueueName, Store};

type Transactional<S> = dyn Fn(&mut <S as Connect>::Conn, &Incoming) -> HandlerResult + Send + Sync;
type Leased<S> = dyn Fn(&Context<S>, &Incoming) -> HandlerResult + Send + Sync;

/// A function that [`crate::Worker::map_results`] was given.
pub(crate) type MapResult = dyn Fn(&Claim, HandlerResult) -> HandlerResult + Send + Sync;

/// The future of an asynchronous handler.
pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;

type Asynchronous<S> = dyn Fn(&Arc<Context<S>>, &Incoming) -> Result<HandlerFuture, Failure> + Send + Sync;

/// The closure of a handler, with the type of its jobs erased.
pub(crate) enum Run<S: Store> {
    Transactional(Box<Transactional<S>>),
    Leased(Box<Leased<S>>),
    /// Runs under a lease, as the jobs of `Leased` do.
    Asynchronous(Box<Asynchronous<S>>),
}

/// Runs the jobs of a task, or all jobs of a queue. A [`crate::Worker`] serves it.
///
/// [`crate::Task::transactional`], [`crate::Task::leased`], [`Queue::transactional`] and [`Queue::leased`] make one:
///
/// | | transactional | leased |
/// |---|---|---|
/// | for work | in the database | anywhere else |
/// | runs | in the transaction that takes the job | while no transaction is open |
/// | effect | exactly once in the database | at least once |
/// | after a crash | rolled back, ready at once | ready when the lease has expired |
///
/// A handler returns `Ok` of an [`Outcome`], or of `()` for [`Outcome::Complete`]. An error or a panic fails the
/// attempt.
///
/// The settings of a handler made from a task are the task's. What a task's call says takes precedence over both.
pub struct Handler<S: Store> {
    pub(crate) queue: Queue<S, ()>,
    /// The name of the task; `None` for a handler of a whole queue.
    pub(crate) task: Option<String>,
    pub(crate) run: Run<S>,
    /// How an asynchronous handler runs in the transaction that takes its job, if it does.
    pub(crate) in_transaction: Option<InTransaction<S>>,
    pub(crate) policy: Policy,
}

/// A function that runs one attempt. See [`Handler::in_transactions`].
type RunAttempt<S> = dyn Fn(Attempt<S>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// How an asynchronous handler runs in the transaction that takes its job.
pub(crate) struct InTransaction<S: Store> {
    pub(crate) attempt: Box<RunAttempt<S>>,
    /// The handler, of a type that `attempt` knows.
    pub(crate) handler: Box<dyn Any + Send + Sync>,
    pub(crate) maps: Vec<Arc<MapResult>>,
}

impl<S: Store> fmt::Debug for Handler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("queue", self.queue.name())
            .field("task", &self.task)
            .field("transactional", &self.is_transactional())
            .field("policy", &self.policy)
            .finish()
    }
}

impl<S: Store> Handler<S> {
    /// Returns the name of the queue whose jobs it runs.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        self.queue.name()
    }

    /// Sets the maximum number of retries. Default: 0.
    ///
    /// A job that fails its last attempt is archived as dead.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.policy.max_retries = retries;
        self
    }

    /// Sets in how many attempts the worker may die, before the job is archived as dead. Default: 3. Minimum: 1.
    ///
    /// A lost lease is not a failure of the handler, so it uses up no retry. It counts only for a job that was alone in
    /// its lease. After the loss of a lease of several jobs they are taken in smaller leases, at last alone.
    #[must_use]
    pub fn max_crashes(mut self, crashes: u32) -> Self {
        self.policy.max_crashes = crashes;
        self
    }

    /// Sets the delay before a retry. Default: 30 s.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.policy.backoff = backoff;
        self
    }

    /// Sets how long the handler may run. Default: without limit.
    ///
    /// An attempt that takes longer has failed, whatever the handler returns. See [`crate::Task::timeout`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.policy.timeout = Some(timeout);
        self
    }

    /// Sets whether completed jobs are kept in the archive. Default: `false`.
    ///
    /// A job with a result ([`Outcome::result`]) is kept in any case.
    #[must_use]
    pub fn keep_history(mut self, keep: bool) -> Self {
        self.policy.keep_history = keep;
        self
    }

    /// Lets up to `max` handlers that send statements share a transaction. Default: 1.
    ///
    /// Has no effect on a leased handler. See [`crate::Task::share_transaction`].
    #[must_use]
    pub fn share_transaction(mut self, max: usize) -> Self {
        self.policy.max_sharing = max;
        self
    }

    /// Sets the maximum number of jobs that an asynchronous handler runs at the same time in one worker. Default: no
    /// limit of its own, see [`crate::Worker::concurrency`].
    ///
    /// Has no effect on other handlers. Minimum: 1.
    #[must_use]
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.policy.concurrency = jobs.max(1);
        self
    }

    /// Sets the isolation level of a transactional handler's transaction. Default: [`Isolation::ReadCommitted`].
    ///
    /// Has no effect on a leased handler. See [`crate::Task::isolation`].
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.policy.isolation = isolation;
        self
    }

    /// Has an asynchronous handler run in the transactions that take its jobs, for a crate that has asynchronous
    /// connections.
    ///
    /// `attempt` is called for each job that may be ready, and runs `handler` by [`Attempt::run`]. The handler's own
    /// function runs a job that must be run under a lease, because its worker may have died, and all jobs of a queue
    /// that has other handlers, too.
    #[must_use]
    pub fn in_transactions<H: Send + Sync + 'static>(
        mut self,
        handler: H,
        attempt: impl Fn(Attempt<S>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static,
    ) -> Self {
        let (attempt, handler) = (Box::new(attempt), Box::new(handler));
        self.in_transaction = Some(InTransaction { attempt, handler, maps: Vec::new() });
        self
    }

    /// Passes each result of the closure through `map`, in the same transaction if there is one.
    pub(crate) fn map_results(mut self, map: &Arc<MapResult>) -> Self {
        if let Some(in_transaction) = &mut self.in_transaction {
            in_transaction.maps.push(Arc::clone(map));
        }
        let map = Arc::clone(map);
        let run = match self.run {
            Run::Transactional(run) => {
                Run::Transactional(Box::new(move |conn, incoming| map(&incoming.claim, run(conn, incoming))))
            }
            Run::Leased(run) => {
                Run::Leased(Box::new(move |context, incoming| map(&incoming.claim, run(context, incoming))))
            }
            Run::Asynchronous(run) => Run::Asynchronous(Box::new(move |context, incoming| {
                let (map, claim, future) =
                    (Arc::clone(&map), Arc::clone(&incoming.claim), run(context, incoming)?);
                Ok(Box::pin(async move { map(&claim, future.await) }))
            })),
        };
        Self { run, ..self }
    }

    pub(crate) fn is_transactional(&self) -> bool {
        matches!(self.run, Run::Transactional(_))
    }

    pub(crate) fn is_asynchronous(&self) -> bool {
        matches!(self.run, Run::Asynchronous(_))
    }
}

impl<S: Store, T: DeserializeOwned + 'static> Queue<S, T> {
    /// Creates a transactional handler of all jobs of the queue. See [`crate::Task::transactional`].
    ///
    /// A failed job is archived as dead. See [`Handler::max_retries`].
    #[must_use]
    pub fn transactional<R: Into<Outcome>, E: fmt::Display>(
        &self,
        handler: impl Fn(&mut S::Conn, Job<T>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Handler<S> {
        let queue = self.clone();
        self.handler(Run::Transactional(Box::new(move |conn, incoming| {
            let job = queue.decoded(&incoming.claim).map_err(Failure::Undecodable)?;
            erase_types(handler(conn, job))
        })))
    }

    /// Creates a leased handler of all jobs of the queue. See [`crate::Task::leased`].
    ///
    /// A failed job is archived as dead. See [`Handler::max_retries`].
    #[must_use]
    pub fn leased<R: Into<Outcome>, E: fmt::Display>(
        &self,
        handler: impl Fn(&Context<S>, Job<T>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Handler<S> {
        let queue = self.clone();
        self.handler(Run::Leased(Box::new(move |context, incoming| {
            let job = queue.decoded(&incoming.claim).map_err(Failure::Undecodable)?;
            context.conclude(erase_types(handler(context, job)))
        })))
    }

    /// Creates an asynchronous leased handler of all jobs of the queue. See [`crate::Task::leased_async`].
    ///
    /// A failed job is archived as dead. See [`Handler::max_retries`].
    #[must_use]
    pub fn leased_async<R, E, F>(
        &self,
        handler: impl Fn(Arc<Context<S>>, Job<T>) -> F + Send + Sync + 'static,
    ) -> Handler<S>
    where
        R: Into<Outcome>,
        E: fmt::Display,
        F: Future<Output = Result<R, E>> + Send + 'static,
    {
        let queue = self.clone();
        self.handler(Run::Asynchronous(Box::new(move |context, incoming| {
            let job = queue.decoded(&incoming.claim).map_err(Failure::Undecodable)?;
            let (context, future) = (Arc::clone(context), handler(Arc::clone(context), job));
            Ok(Box::pin(async move { context.conclude(erase_types(future.await)) }))
        })))
    }

    fn handler(&self, run: Run<S>) -> Handler<S> {
        let policy = Policy::default();
        Handler { queue: self.untyped(), task: None, run, in_transaction: None, policy }
    }
}

/// Converts the result of a handler. The text of an error has its causes, for errors that print them with `{:#}`.
pub(crate) fn erase_types<R: Into<Outcome>, E: fmt::Display>(returned: Result<R, E>) -> HandlerResult {
    returned.map(Into::into).map_err(|error| Failure::Error(format!("{error:#}")))
}
