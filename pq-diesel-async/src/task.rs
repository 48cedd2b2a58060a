//! Tasks: calls, and asynchronous handlers.

use std::borrow::Borrow;
use std::fmt;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use pq_core::{Backoff, CallOptions, Error as Refused, NewJob, Put};
use pq_diesel::Error;
use serde::Serialize;

use crate::bound::BoundTask;
use crate::queue::Queue;

/// A task: a name for work, with arguments of type `A`. Created by [`Queue::task`].
///
/// The settings, the calls and their encoding are those of [`pq_core::Task`], so blocking and asynchronous programs
/// call each other's tasks.
pub struct Task<A> {
    pub(crate) queue: Queue<()>,
    pub(crate) task: pq_diesel::Task<A>,
}

impl<A> Clone for Task<A> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), task: self.task.clone() }
    }
}

impl<A> fmt::Debug for Task<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.task.fmt(f)
    }
}

impl<A> Task<A> {
    pub(crate) fn new(queue: Queue<()>, task: pq_diesel::Task<A>) -> Self {
        Self { queue, task }
    }

    /// Returns the queue that holds the task's jobs.
    #[must_use]
    pub fn queue(&self) -> &Queue<()> {
        &self.queue
    }

    /// Returns the task's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.task.name()
    }

    /// Returns the same task for threads: its calls block. Its handlers can serve in the same worker as asynchronous
    /// ones.
    #[must_use]
    pub fn blocking(&self) -> &pq_diesel::Task<A> {
        &self.task
    }

    /// Changes the task by the methods of [`pq_core::Task`] that have no equivalent here.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(pq_diesel::Task<A>) -> pq_diesel::Task<A>) -> Self {
        self.task = change(self.task);
        self
    }

    /// Sets the maximum number of retries. Default: 0. See [`pq_core::Task::max_retries`].
    #[must_use]
    pub fn max_retries(self, retries: u32) -> Self {
        self.with(|task| task.max_retries(retries))
    }

    /// Sets the delay before a retry. Default: 30 s.
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.with(|task| task.backoff(backoff))
    }

    /// Sets how long a handler may run. Default: without limit.
    ///
    /// At that time the future of an asynchronous handler is dropped, and the attempt has failed.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|task| task.timeout(timeout))
    }

    /// Sets whether completed jobs are kept in the archive. Default: `false`.
    #[must_use]
    pub fn keep_history(self, keep: bool) -> Self {
        self.with(|task| task.keep_history(keep))
    }

    /// Binds the task to a connection: its calls are part of the transaction that the connection is in.
    pub fn on<'a>(&'a self, conn: &'a mut AsyncPgConnection) -> BoundTask<'a, A> {
        BoundTask::new(self, self.queue.on(conn))
    }
}

impl<A: Serialize> Task<A> {
    /// Enqueues a job that calls the task, as [`Queue::put`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`].
    pub async fn call(&self, arguments: &A) -> Result<Put, Error> {
        self.call_with(arguments, &CallOptions::new()).await
    }

    /// Enqueues a call whose options take precedence over the task's own.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_with`] and [`pq_core::Task::call_with`].
    pub async fn call_with(&self, arguments: &A, options: &CallOptions) -> Result<Put, Error> {
        self.queue.put_job(|| self.task.encode(arguments, options)).await
    }

    /// Enqueues many calls in one round trip, all or none, and returns their ids in the same order.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_many`]; no job was added then.
    pub async fn call_many(
        &self,
        arguments: impl IntoIterator<Item = impl Borrow<A>>,
    ) -> Result<Vec<Put>, Error> {
        self.queue.put_jobs(|| self.encode_each(arguments)).await
    }

    /// Enqueues many calls, each with its own options, as [`Task::call_many`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`]; no job was added then.
    pub async fn call_many_with(
        &self,
        calls: impl IntoIterator<Item = (impl Borrow<A>, impl Borrow<CallOptions>)>,
    ) -> Result<Vec<Put>, Error> {
        self.queue.put_jobs(|| self.task.encode_many(calls)).await
    }

    pub(crate) fn encode_each(
        &self,
        arguments: impl IntoIterator<Item = impl Borrow<A>>,
    ) -> Result<Vec<NewJob>, Refused> {
        let options = CallOptions::new();
        arguments.into_iter().map(|arguments| self.task.encode(arguments.borrow(), &options)).collect()
    }
}
