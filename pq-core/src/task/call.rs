//! Calls of tasks: enqueueing a job that names the task and carries its arguments.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Task;
use crate::envelope::{Arguments, Envelope, format_duration};
use crate::store::Rows;
use crate::{
    Answer, BoundQueue, CallOptions, CancelOutcome, CodecError, Error, Filter, JobId, JobRecord, Key, NewJob,
    Put, Queue, Store, Wait,
};

/// A task on the caller's connection, inside whatever transaction that is in. See [`Task::on`].
pub struct BoundTask<'a, S: Store, A> {
    pub(super) task: &'a Task<S, A>,
    pub(super) queue: BoundQueue<'a, S, ()>,
}

impl<S: Store, A> fmt::Debug for BoundTask<'_, S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundTask").field("name", &self.task.name).finish_non_exhaustive()
    }
}

impl<S: Store, A> Task<S, A> {
    /// Returns the queue that holds the task's jobs.
    #[must_use]
    pub fn queue(&self) -> &Queue<S, ()> {
        &self.queue
    }

    /// Binds the task to a connection: its calls are part of the transaction that the connection is in.
    ///
    /// They commit or roll back with the caller's own writes. See [`Queue::on`].
    pub fn on<'a>(&'a self, conn: &'a mut S::Conn) -> BoundTask<'a, S, A> {
        BoundTask { task: self, queue: self.queue.on(conn) }
    }
}

impl<S: Store, A: Serialize> Task<S, A> {
    /// Enqueues a job that calls the task, as [`Queue::put`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`].
    pub fn call(&self, arguments: &A) -> Result<Put, S::Error> {
        self.call_with(arguments, &CallOptions::new())
    }

    /// Enqueues a call whose options take precedence over the task's own.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_with`], and [`Error::InvalidSetting`] for a backoff that is a function: it cannot be
    /// stored with the call.
    pub fn call_with(&self, arguments: &A, options: &CallOptions) -> Result<Put, S::Error> {
        self.queue.put_one(|| self.encode(arguments, options))
    }

    /// Enqueues a call and waits until its job has ended. After `wait` the answer is the job's state.
    ///
    /// The job is kept in the archive when it is done ([`crate::PutOptions::awaited`]), so its result can also be
    /// read later by [`crate::Pq::result`]. A call whose unique key is in use waits for the job that has the key.
    ///
    /// ```
    /// use pq_core::{Outcome, Pq, Wait, Worker, memory::MemoryStore};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pq = Pq::new(MemoryStore::new());
    /// let double = pq.queue::<()>("sums")?.task::<i64>("double");
    /// let handler = double.leased(|_, job| Outcome::result(&(job.data * 2)));
    /// std::thread::scope(|threads| {
    ///     threads.spawn(|| Worker::new(&pq).serve(handler).run_jobs(1));
    ///     let answer = double.call_and_wait::<i64>(&21, Wait::Forever)?;
    ///     assert_eq!(answer.result.done(), Some(42));
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`] and [`crate::Pq::wait_for`]. After an error of the wait the job has been put.
    pub fn call_and_wait<R: DeserializeOwned>(
        &self,
        arguments: &A,
        wait: Wait,
    ) -> Result<Answer<R>, S::Error> {
        self.call_and_wait_with(arguments, &CallOptions::new(), wait)
    }

    /// Enqueues a call with options and waits until its job has ended, as [`Task::call_and_wait`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`] and [`Task::call_and_wait`].
    pub fn call_and_wait_with<R: DeserializeOwned>(
        &self,
        arguments: &A,
        options: &CallOptions,
        wait: Wait,
    ) -> Result<Answer<R>, S::Error> {
        let id = self.call_with(arguments, &options.clone().awaited())?.id;
        Ok(Answer { id, result: self.queue.pq().wait_for(id, wait)? })
    }

    /// Enqueues many calls in one round trip, all or none, and returns their ids in the same order.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_many`]; no job was added then.
    pub fn call_many(
        &self,
        arguments: impl IntoIterator<Item = impl Borrow<A>>,
    ) -> Result<Vec<Put>, S::Error> {
        self.queue.put_now(|| self.jobs(arguments).collect::<Result<Vec<_>, _>>())
    }

    /// Enqueues many calls, each with its own options, as [`Task::call_many`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`]; no job was added then.
    pub fn call_many_with(
        &self,
        calls: impl IntoIterator<Item = (impl Borrow<A>, impl Borrow<CallOptions>)>,
    ) -> Result<Vec<Put>, S::Error> {
        self.queue.put_now(|| self.encode_many(calls))
    }

    /// Enqueues a call for each item of an iterator, all or none, and returns their number.
    ///
    /// The calls are streamed to the store, as by [`Queue::put_all`].
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_all_with`]; no job was added then.
    pub fn call_all(&self, arguments: impl IntoIterator<Item = impl Borrow<A>>) -> Result<u64, S::Error> {
        self.queue.put_all_now(|| self.jobs(arguments))
    }

    /// Returns the row of a call, for a statement of the application that inserts it, perhaps with other rows.
    ///
    /// The row carries what the call would: arguments, options, trace context, serialization key. Nothing is sent.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::row_with`].
    pub fn row(&self, arguments: &A) -> Result<S::Row, S::Error>
    where
        S: Rows,
    {
        self.row_with(arguments, &CallOptions::new())
    }

    /// Returns the row of a call whose options take precedence over the task's own.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`] for the arguments and the options, and [`Error::InvalidSetting`] if a row
    /// cannot carry them: an insert cannot keep or replace a job that has the same unique key.
    pub fn row_with(&self, arguments: &A, options: &CallOptions) -> Result<S::Row, S::Error>
    where
        S: Rows,
    {
        self.queue.store().row(self.queue.name(), self.encode(arguments, options)?)
    }

    /// Returns a job with the payload and the priority of a periodic call.
    #[cfg(feature = "cron")]
    pub(crate) fn periodic(&self, arguments: &A) -> Result<NewJob, Error> {
        self.encode(arguments, &CallOptions::new())
    }

    /// Encodes calls, each with its own options, as [`Task::encode`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::encode`].
    pub fn encode_many(
        &self,
        calls: impl IntoIterator<Item = (impl Borrow<A>, impl Borrow<CallOptions>)>,
    ) -> Result<Vec<NewJob>, Error> {
        calls
            .into_iter()
            .map(|(arguments, options)| self.encode(arguments.borrow(), options.borrow()))
            .collect()
    }

    fn jobs(
        &self,
        arguments: impl IntoIterator<Item = impl Borrow<A>>,
    ) -> impl Iterator<Item = Result<NewJob, Error>> {
        arguments.into_iter().map(|arguments| self.encode(arguments.borrow(), &CallOptions::new()))
    }

    /// Encodes a call without enqueueing it.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`] that are not the store's.
    pub fn encode(&self, arguments: &A, options: &CallOptions) -> Result<NewJob, Error> {
        let json = serde_json::to_string(arguments)
            .map_err(|found| Error::Encode(CodecError::new(found.to_string())))?;
        let grouped = self.group.as_ref().map(|group| CallOptions::new().group(group(arguments)));
        let grouped = grouped.map(|grouped| options.or(&grouped));
        let mut job = self.encode_arguments(Arguments::of(&json), grouped.as_ref().unwrap_or(options))?;
        if let (None, Some(key)) = (&job.serialization_key, &self.key) {
            job.serialization_key = Some(Key::new(key(arguments))?);
        }
        Ok(job)
    }
}

impl<S: Store, A> Task<S, A> {
    /// Enqueues a call whose arguments are JSON: an array of positional and an object of keyword arguments.
    ///
    /// For callers that do not have the type of the arguments, and for tasks of Python that take both kinds. The key of
    /// [`Task::serialize_by`] and the group of [`Task::group_by`] are not computed.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`], and [`Error::InvalidSetting`] if `args` is not an array or `kwargs` is not an
    /// object.
    pub fn call_json(
        &self,
        args: &RawValue,
        kwargs: &RawValue,
        options: &CallOptions,
    ) -> Result<Put, S::Error> {
        let refused = |what: &str| Error::InvalidSetting(format!("invalid {what}"));
        if !args.get().starts_with('[') {
            return Err(refused("args: they must be a JSON array").into());
        }
        if !kwargs.get().starts_with('{') {
            return Err(refused("kwargs: they must be a JSON object").into());
        }
        let arguments = Arguments { args: args.get().to_owned(), kwargs: kwargs.get().to_owned() };
        self.queue.put_one(|| self.encode_arguments(arguments, options))
    }

    /// Builds the job of a call, without what is computed from its arguments.
    fn encode_arguments(&self, arguments: Arguments, options: &CallOptions) -> Result<NewJob, Error> {
        let options = options.or(&self.defaults);
        let backoff = options.backoff.as_ref();
        // The jitter would be that of no job.
        let first = backoff.unwrap_or(&self.policy.backoff).clone().without_jitter().delay(1, JobId(0));
        let max_retries = options.max_retries.unwrap_or(self.policy.max_retries);
        let mut envelope = Envelope::new(&self.name, arguments, max_retries, first)?;
        let wire = match backoff {
            Some(backoff) => backoff.to_wire().ok_or_else(|| {
                Error::InvalidSetting(
                    "cannot store a backoff function with a call; set the function on the task".to_owned(),
                )
            })?,
            None => "\"task\"".to_owned(),
        };
        envelope.set_backoff(wire)?;
        if let Some(retries) = options.max_retries {
            envelope.put("retries", &retries)?;
        }
        if let Some(timeout) = options.timeout {
            envelope.put("timeout", &format_duration(timeout))?;
        }
        if let Some(lease) = options.lease {
            envelope.put("lease", &format_duration(lease))?;
        }
        let job = options.put.job(self.queue.encode_json(envelope.to_json()?)?, self.queue.trace())?;
        Ok(NewJob { task: Some(Arc::clone(&self.name)), ..job })
    }
}

impl<S: Store, A: Serialize> BoundTask<'_, S, A> {
    /// Enqueues a call in this transaction, as [`Task::call`] does. Others see it when the transaction commits.
    ///
    /// # Errors
    ///
    /// The errors of [`BoundQueue::put`].
    pub fn call(&mut self, arguments: &A) -> Result<Put, S::Error> {
        self.call_with(arguments, &CallOptions::new())
    }

    /// Enqueues a call with options in this transaction, as [`Task::call_with`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`].
    pub fn call_with(&mut self, arguments: &A, options: &CallOptions) -> Result<Put, S::Error> {
        self.queue.put_one(|| self.task.encode(arguments, options))
    }

    /// Enqueues many calls in this transaction, as [`Task::call_many`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_many`].
    pub fn call_many(
        &mut self,
        arguments: impl IntoIterator<Item = impl Borrow<A>>,
    ) -> Result<Vec<Put>, S::Error> {
        self.queue.put_jobs(|| self.task.jobs(arguments).collect::<Result<Vec<_>, _>>())
    }

    /// Enqueues many calls, each with its own options, in this transaction.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_many_with`].
    pub fn call_many_with(
        &mut self,
        calls: impl IntoIterator<Item = (impl Borrow<A>, impl Borrow<CallOptions>)>,
    ) -> Result<Vec<Put>, S::Error> {
        let task = self.task;
        self.queue.put_jobs(|| task.encode_many(calls))
    }

    /// Enqueues a call for each item of an iterator in this transaction, as [`Task::call_all`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_all`]. The transaction is then as it was before the call.
    pub fn call_all(&mut self, arguments: impl IntoIterator<Item = impl Borrow<A>>) -> Result<u64, S::Error> {
        self.queue.put_all_jobs(|| self.task.jobs(arguments))
    }
}

impl<'a, S: Store, A> BoundTask<'a, S, A> {
    /// Returns the task.
    #[must_use]
    pub fn task(&self) -> &'a Task<S, A> {
        self.task
    }

    /// Lists the jobs of the task's queue, of all its tasks, as [`Queue::list`] does, in this transaction.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn list(&mut self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, S::Error> {
        self.queue.list(filter, count)
    }

    /// Finds a job of the task's queue by its id, in this transaction.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn find(&mut self, id: JobId) -> Result<Option<JobRecord>, S::Error> {
        self.queue.find(id)
    }

    /// Cancels a job of the task's queue, as [`Queue::cancel`] does, in this transaction.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn cancel(&mut self, id: JobId) -> Result<CancelOutcome, S::Error> {
        self.queue.cancel(id)
    }
}
