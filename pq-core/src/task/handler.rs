//! What works a job, with its type erased.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Envelope, Task, Trace};
use crate::worker::Context;
use crate::{Backoff, Job, Outcome, Payload, Queue, QueueName, RawJob, Store};

/// Why a job failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The handler returned this error.
    Error(String),
    /// The handler panicked with this text.
    Panic(String),
    /// The handler took longer than it may.
    Timeout(Duration),
    /// This worker knows no task of this name.
    UnknownTask(String),
    /// The payload cannot be what the handler takes. No other attempt can succeed.
    Undecodable(String),
    /// All attempts were begun, and none came to a verdict: workers died, or leases ended.
    Exhausted {
        /// How often it was tried.
        attempts: u32,
    },
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Error(text) => f.write_str(text),
            Self::Panic(text) => write!(f, "the handler panicked: {text}"),
            Self::Timeout(limit) => write!(f, "the handler took longer than {limit:?}"),
            Self::UnknownTask(name) => write!(f, "this worker knows no task called {name:?}"),
            Self::Undecodable(reason) => f.write_str(reason),
            Self::Exhausted { attempts } => {
                write!(f, "given up: the worker died or its lease ended in each of {attempts} attempts")
            }
        }
    }
}

/// A job as a handler's closure is given it.
pub(crate) struct Incoming {
    pub(crate) raw: Arc<RawJob>,
    /// The call, where the job is a task's.
    pub(crate) envelope: Option<Envelope>,
}

pub(crate) type HandlerResult = Result<Outcome, Failure>;
type InTransaction<S> =
    dyn Fn(&mut <S as crate::store::Connect>::Conn, &Incoming) -> HandlerResult + Send + Sync;
type UnderLease<S> = dyn Fn(&Context<S>, &Incoming) -> HandlerResult + Send + Sync;

/// The two kinds of handler.
pub(crate) enum Run<S: Store> {
    Transactional(Box<InTransaction<S>>),
    Leased(Box<UnderLease<S>>),
}

/// What becomes of jobs that fail, that take too long, and that are done, where their calls do not say. As in
/// Python's `pq` there is no retry unless said, and every thirty seconds one where there are any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    pub(crate) max_retries: u32,
    pub(crate) backoff: Backoff,
    pub(crate) timeout: Option<Duration>,
    /// Whether what is done goes to the archive.
    pub(crate) keep: bool,
}

/// What works the jobs of a task, or of a whole queue: given to a [`crate::Worker`].
pub struct Handler<S: Store> {
    pub(crate) queue: Queue<S, ()>,
    /// The task; none for a handler of whatever the queue carries.
    pub(crate) task: Option<String>,
    pub(crate) run: Run<S>,
    pub(crate) policy: Policy,
}

impl<S: Store> Handler<S> {
    /// The queue whose jobs it works.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        self.queue.name()
    }

    /// How often a failed job is tried again; what a task's call says of it goes before.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.policy.max_retries = retries;
        self
    }

    /// How long a failed job waits; what a task's call says of it goes before.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.policy.backoff = backoff;
        self
    }

    /// How long it may run; what a task's call says of it goes before.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.policy.timeout = Some(timeout);
        self
    }

    /// Whether jobs that are done are kept in the archive.
    #[must_use]
    pub fn keep_history(mut self, keep: bool) -> Self {
        self.policy.keep = keep;
        self
    }

    pub(crate) fn is_transactional(&self) -> bool {
        matches!(self.run, Run::Transactional(_))
    }

    pub(crate) fn timeout_of(&self, envelope: Option<&Envelope>) -> Option<Duration> {
        envelope.and_then(|envelope| envelope.duration("timeout")).or(self.policy.timeout)
    }

    /// How often the job may be tried after its first attempt, and how often it was.
    pub(crate) fn tries(&self, job: &RawJob, envelope: Option<&Envelope>) -> (u32, u32) {
        tries(self.policy.max_retries, job, envelope)
    }
}

fn tries(allowed: u32, job: &RawJob, envelope: Option<&Envelope>) -> (u32, u32) {
    let allowed = envelope.map_or(allowed, Envelope::max_retries);
    let taken = u32::try_from(job.attempt).unwrap_or_default().saturating_sub(1);
    // Python counts the failures in the envelope, for each of its retries is a job of its own.
    (allowed, taken.max(envelope.map_or(0, Envelope::retried)))
}

/// Returns the outcome of a failed attempt. `handler` is `None` if the worker has no handler for the job.
pub(crate) fn after_failure<S: Store>(
    handler: Option<&Handler<S>>,
    queue: &Queue<S, ()>,
    job: &RawJob,
    envelope: Option<Envelope>,
    failure: &Failure,
) -> Outcome {
    let error = failure.to_string();
    match failure {
        Failure::Undecodable(_) | Failure::Exhausted { .. } => Outcome::Dead { error },
        _ => retry_or_dead(handler, queue, job, envelope, error, None, None),
    }
}

/// Returns [`Outcome::Retry`] if the job has retries left, and [`Outcome::Dead`] otherwise.
///
/// Without a delay that of the call or the handler holds; without a payload the call's envelope is rewritten to count
/// the failure.
pub(crate) fn retry_or_dead<S: Store>(
    handler: Option<&Handler<S>>,
    queue: &Queue<S, ()>,
    job: &RawJob,
    envelope: Option<Envelope>,
    error: String,
    after: Option<Duration>,
    payload: Option<Payload>,
) -> Outcome {
    let max_retries = handler.map_or(0, |handler| handler.policy.max_retries);
    let (allowed, tried) = tries(max_retries, job, envelope.as_ref());
    if tried >= allowed {
        return Outcome::Dead { error };
    }
    let failures = tried.saturating_add(1);
    let after = after.unwrap_or_else(|| {
        let of_call = envelope.as_ref().and_then(Envelope::backoff);
        let of_handler = || handler.map(|handler| handler.policy.backoff.clone());
        of_call.or_else(of_handler).unwrap_or_default().delay(failures, job.id)
    });
    let counted = |mut envelope: Envelope| {
        envelope.put("retried", &failures).ok()?;
        queue.encode_json(envelope.to_json().ok()?).ok()
    };
    Outcome::Retry { after, error, payload: payload.or_else(|| envelope.and_then(counted)) }
}

impl<S: Store, A: DeserializeOwned + 'static> Task<S, A> {
    /// A handler that runs in the transaction that takes its job, on the connection that it is given: what it
    /// writes there and the job's completion commit together, or not at all. For work that lives in the
    /// database. Jobs may share the transaction, each in a nested one of its own.
    ///
    /// An error or a panic rolls back what this handler wrote, and the job has failed.
    #[must_use]
    pub fn transactional<R: Into<Outcome>, E: Display>(
        &self,
        handler: impl Fn(&mut S::Conn, Job<A>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Handler<S> {
        self.handler(Run::Transactional(Box::new(move |conn, incoming| {
            let job = called(incoming)?;
            ended(handler(conn, job))
        })))
    }

    /// A handler that runs while no transaction is open, and its job is held under a lease that the worker
    /// extends. For work that lives elsewhere. At least once: after a crash it runs again.
    #[must_use]
    pub fn leased<R: Into<Outcome>, E: Display>(
        &self,
        handler: impl Fn(&Context<S>, Job<A>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Handler<S> {
        self.handler(Run::Leased(Box::new(move |context, incoming| {
            let job = called(incoming)?;
            ended(handler(context, job))
        })))
    }

    fn handler(&self, run: Run<S>) -> Handler<S> {
        Handler {
            queue: self.queue.clone(),
            task: Some(self.name.to_string()),
            run,
            policy: self.policy.clone(),
        }
    }
}

impl<S: Store, T: DeserializeOwned + 'static> Queue<S, T> {
    /// As [`Task::transactional`], for whatever the queue carries. A failed job is dead unless
    /// [`Handler::max_retries`] says otherwise.
    #[must_use]
    pub fn transactional<R: Into<Outcome>, E: Display>(
        &self,
        handler: impl Fn(&mut S::Conn, Job<T>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Handler<S> {
        let queue = self.clone();
        self.raw_handler(Run::Transactional(Box::new(move |conn, incoming| {
            let job = queue.decoded(&incoming.raw).map_err(Failure::Undecodable)?;
            ended(handler(conn, job))
        })))
    }

    /// As [`Task::leased`], for whatever the queue carries. A failed job is dead unless
    /// [`Handler::max_retries`] says otherwise.
    #[must_use]
    pub fn leased<R: Into<Outcome>, E: Display>(
        &self,
        handler: impl Fn(&Context<S>, Job<T>) -> Result<R, E> + Send + Sync + 'static,
    ) -> Handler<S> {
        let queue = self.clone();
        self.raw_handler(Run::Leased(Box::new(move |context, incoming| {
            let job = queue.decoded(&incoming.raw).map_err(Failure::Undecodable)?;
            ended(handler(context, job))
        })))
    }

    fn raw_handler(&self, run: Run<S>) -> Handler<S> {
        Handler { queue: self.untyped(), task: None, run, policy: Policy::default() }
    }
}

fn called<A: DeserializeOwned>(incoming: &Incoming) -> Result<Job<A>, Failure> {
    let envelope = incoming.envelope.as_ref();
    let arguments = envelope.ok_or_else(|| "the payload is no task".to_owned()).and_then(Envelope::arguments);
    let data = arguments.map_err(Failure::Undecodable)?;
    Ok(Job { data, raw: Arc::clone(&incoming.raw) })
}

fn ended<R: Into<Outcome>, E: Display>(returned: Result<R, E>) -> HandlerResult {
    // The alternate form tells the causes, of errors that have one.
    returned.map(Into::into).map_err(|error| Failure::Error(format!("{error:#}")))
}

impl Incoming {
    /// The name of the task and the context of its trace.
    pub(crate) fn trace(&self) -> Trace {
        self.envelope.as_ref().map(Envelope::trace).unwrap_or_default()
    }
}
