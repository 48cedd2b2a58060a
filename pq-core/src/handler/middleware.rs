//! Middleware: code that runs around every handler of a worker.

use std::fmt;
use std::sync::Arc;

use super::incoming::HandlerResult;
use crate::{Claim, Failure, Outcome, Trace};

/// A function that [`crate::Worker::wrap`] was given.
pub(crate) type Middleware = dyn Fn(&JobInfo<'_>, Next<'_>) -> HandlerResult + Send + Sync;

/// A function that [`crate::Worker::on_failure`] was given.
pub(crate) type OnFailure = dyn Fn(&JobInfo<'_>, &Failure, bool) + Send + Sync;

/// Describes a job to middleware and to the functions of [`crate::Worker::on_failure`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobInfo<'a> {
    /// The job with its encoded payload.
    pub job: &'a Claim,
    /// The name of the task; `None` if the handler serves a whole queue.
    pub task: Option<&'a str>,
    /// The trace context in which the job was put.
    pub trace: Trace,
    /// The number of this attempt, 1 for the first. Attempts by a Python `pq` count.
    pub attempt: u32,
    /// The maximum number of retries of the job.
    pub max_retries: u32,
    /// Whether the job is archived as dead if this attempt fails.
    pub is_last: bool,
}

/// Runs the rest of the chain: the inner middleware, and then the handler.
///
/// [`Next::run`] consumes it, so a middleware cannot run the handler twice:
///
/// ```compile_fail,E0382
/// # use pq_core::{Pq, Worker, memory::MemoryStore};
/// # let pq = Pq::new(MemoryStore::new());
/// let worker = Worker::new(&pq).wrap(|_job, next| {
///     let _first = next.run();
///     next.run()
/// });
/// ```
pub struct Next<'a> {
    middleware: &'a [Arc<Middleware>],
    info: &'a JobInfo<'a>,
    handler: &'a mut dyn FnMut() -> HandlerResult,
}

impl<'a> Next<'a> {
    pub(crate) fn new(
        middleware: &'a [Arc<Middleware>],
        info: &'a JobInfo<'a>,
        handler: &'a mut dyn FnMut() -> HandlerResult,
    ) -> Self {
        Self { middleware, info, handler }
    }

    /// Runs the rest of the chain and returns its result.
    ///
    /// The caller may return another result in its place. A middleware that drops this without a call skips the
    /// handler.
    ///
    /// # Errors
    ///
    /// The [`Failure`] of the attempt: the handler's error, its panic, which does not unwind through the middleware,
    /// its timeout, or the reason why the job has no handler.
    pub fn run(self) -> Result<Outcome, Failure> {
        let Self { middleware, info, handler } = self;
        match middleware.split_first() {
            Some((outer, inner)) => outer(info, Next { middleware: inner, info, handler }),
            None => handler(),
        }
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("job", &self.info.job.id).finish_non_exhaustive()
    }
}
