//! Queues and tasks on the caller's connection.

use std::borrow::Borrow;
use std::fmt;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use pq_core::{
    CallOptions, CancelOutcome, Error as Refused, Filter, Job, JobId, JobRecord, NewJob, Outcome, Put,
    PutOptions, QueueCounts, QueueName, Scan, Settlement,
};
use pq_diesel::Error;
use pq_diesel::store::PgStore;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::OnAsync;
use crate::queue::Queue;
use crate::shared::recorded;
use crate::task::Task;

/// A queue on the caller's connection, inside whatever transaction that is in. See [`Queue::on`].
///
/// No method waits for a job, since a wait would keep the caller's transaction open. No method commits a transaction
/// that the caller began. On a connection outside of any transaction, each call is a transaction of its own.
///
/// If a future is dropped before it has ended, the state of the connection's transaction is unknown: drop the
/// connection.
pub struct BoundQueue<'a, T> {
    queue: &'a Queue<T>,
    conn: OnAsync<'a>,
}

impl<T> fmt::Debug for BoundQueue<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundQueue").field("name", self.queue.name()).finish_non_exhaustive()
    }
}

impl<'a, T> BoundQueue<'a, T> {
    pub(crate) fn new(queue: &'a Queue<T>, conn: &'a mut AsyncPgConnection) -> Self {
        Self { queue, conn: OnAsync::new(conn) }
    }

    fn parts(&mut self) -> (&PgStore, &mut OnAsync<'a>, &QueueName) {
        (self.queue.shared.store(), &mut self.conn, self.queue.name())
    }

    /// Encodes and puts jobs.
    pub(crate) async fn put_jobs(
        &mut self,
        encode: impl FnOnce() -> Result<Vec<NewJob>, Refused>,
    ) -> Result<Vec<Put>, Error> {
        let queue = self.queue;
        let (store, conn, name) = self.parts();
        let put = |jobs: Vec<NewJob>| async move { store.put_on(conn, name, &jobs).await };
        let puts = queue.queue.in_put_span_async(encode, put).await?;
        queue.shared.store_put_counts_regularly();
        Ok(puts)
    }

    pub(crate) async fn put_job(
        &mut self,
        encode: impl FnOnce() -> Result<NewJob, Refused>,
    ) -> Result<Put, Error> {
        let put = self.put_jobs(|| encode().map(|job| vec![job])).await?;
        put.into_iter().next().ok_or_else(|| Error::OutcomeUnknown("a trigger skipped the job".to_owned()))
    }

    /// Makes a follow-up due that waits for no job.
    pub(crate) async fn release(&mut self, follow_up: JobId) -> Result<(), Error> {
        let (store, conn, _) = self.parts();
        store.release_on(conn, &[follow_up.0], &[]).await
    }

    /// Counts the queue's jobs by state, as this transaction sees them.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn counts(&mut self) -> Result<QueueCounts, Error> {
        let (store, conn, name) = self.parts();
        store.counts_on(conn, name).await
    }

    /// Lists the jobs of the queue that the filter matches, in this transaction: at most `count`.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn list(&mut self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        let (store, conn, name) = self.parts();
        let filter = Filter { queue: Some(name.to_string()), ..filter.clone() };
        store.list_on(conn, &filter, count).await
    }

    /// Finds a job by its id, in this transaction.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn find(&mut self, id: JobId) -> Result<Option<JobRecord>, Error> {
        let (store, conn, name) = self.parts();
        store.find_on(conn, name, id).await
    }

    /// Cancels a job, as [`Queue::cancel`] does, in this transaction.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn cancel(&mut self, id: JobId) -> Result<CancelOutcome, Error> {
        let queue = self.queue;
        let (store, conn, name) = self.parts();
        let call = recorded!(store, conn, queue.actor(), store.cancel_on(conn, name, id), |outcome| queue
            .record("cancel", Some(id), u64::from(outcome.is_accepted())));
        call.await
    }

    /// Deletes all jobs of the queue that no other transaction or lease holds, in this transaction.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn clear(&mut self) -> Result<u64, Error> {
        let queue = self.queue;
        let (store, conn, name) = self.parts();
        let call = recorded!(store, conn, queue.actor(), store.clear_on(conn, name), |cleared| queue
            .record("clear", None, cleared));
        call.await
    }

    /// Requeues a job that this transaction holds, or whose lease is held. Others can take it when the transaction
    /// commits.
    ///
    /// # Errors
    ///
    /// [`Refused::NotYours`] if the transaction does not hold the job, [`Refused::LeaseLost`] if its lease has been
    /// lost; the database's own.
    pub async fn give_back(&mut self, job: &Job<T>) -> Result<(), Error> {
        let (store, conn, _) = self.parts();
        store.give_back_on(conn, job).await
    }

    /// Settles a leased job, or a job that this transaction holds, in this transaction.
    ///
    /// If the lease has been lost, roll the transaction back: otherwise its other writes commit, although another
    /// worker may run the job too.
    ///
    /// # Errors
    ///
    /// [`Refused::LeaseLost`] or [`Refused::NotYours`]; the database's own.
    pub async fn settle(&mut self, job: &Job<T>, outcome: Outcome) -> Result<(), Error> {
        let settlements = [Settlement { job, outcome }];
        let queue = self.queue;
        let parts = settlements.iter().map(Settlement::parts);
        let span = queue.queue.pq().settle_span(queue.name(), parts);
        let (store, conn, _) = self.parts();
        let accepted = span.run_async(store.settle_on(conn, &settlements)).await?;
        match job.lease() {
            _ if accepted.all() => Ok(()),
            Some(_) => Err(Refused::lease_lost(job.id).into()),
            None => Err(Refused::not_yours(job.id).into()),
        }
    }

    /// Corrects the cost of a leased job in this transaction. See [`pq_core::BoundQueue::correct_cost`].
    ///
    /// # Errors
    ///
    /// [`Refused::LeaseLost`] if the lease has been lost; the other errors of [`pq_core::BoundQueue::correct_cost`];
    /// the database's own.
    pub async fn correct_cost(&mut self, job: &Job<T>, cost: u32) -> Result<(), Error> {
        if !job.is_cost_correctable(cost)? {
            return Ok(());
        }
        let (store, conn, _) = self.parts();
        let is_held = store.correct_cost_on(conn, job, cost).await?;
        if is_held { Ok(()) } else { Err(Refused::lease_lost(job.id).into()) }
    }

    /// Completes a leased job in this transaction: the caller's writes and the completion commit together.
    ///
    /// # Errors
    ///
    /// The errors of [`BoundQueue::settle`].
    pub async fn complete(&mut self, job: &Job<T>) -> Result<(), Error> {
        self.settle(job, Outcome::Complete).await
    }
}

impl<T: Serialize> BoundQueue<'_, T> {
    /// Enqueues a job in this transaction, as [`Queue::put`] does. Others see it when the transaction commits.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`]. If the payload is refused, the transaction remains usable.
    pub async fn put<Q: Serialize + ?Sized>(&mut self, data: &Q) -> Result<Put, Error>
    where
        T: Borrow<Q>,
    {
        let queue = &self.queue.queue;
        self.put_job(|| queue.encode(data, &PutOptions::new())).await
    }

    /// Enqueues a job with options in this transaction, as [`Queue::put_with`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_with`].
    pub async fn put_with<Q: Serialize + ?Sized>(
        &mut self,
        data: &Q,
        options: &PutOptions,
    ) -> Result<Put, Error>
    where
        T: Borrow<Q>,
    {
        let queue = &self.queue.queue;
        self.put_job(|| queue.encode(data, options)).await
    }

    /// Enqueues many jobs in this transaction, as [`Queue::put_many`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_many`].
    pub async fn put_many(
        &mut self,
        data: impl IntoIterator<Item = impl Borrow<T>>,
    ) -> Result<Vec<Put>, Error> {
        let queue = &self.queue.queue;
        self.put_jobs(|| queue.encode_each(data).collect()).await
    }

    /// Enqueues many jobs, each with its own options, in this transaction.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_many_with`].
    pub async fn put_many_with(
        &mut self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> Result<Vec<Put>, Error> {
        let queue = &self.queue.queue;
        self.put_jobs(|| queue.encode_each_with(jobs).collect()).await
    }

    /// Replaces the payload of a job that this transaction or a lease holds.
    ///
    /// If the job is requeued by [`BoundQueue::give_back`], it has the new payload. For a leased job this is a
    /// checkpoint: the next attempt starts with the new payload.
    ///
    /// # Errors
    ///
    /// [`Refused::NotYours`] if the transaction does not hold the job, [`Refused::LeaseLost`] if its lease has been
    /// lost, and the errors of [`Queue::put`] for the payload. The job is unchanged then.
    pub async fn update(&mut self, job: &mut Job<T>, data: T) -> Result<(), Error> {
        let payload = self.queue.queue.encode_payload(&data)?;
        let (store, conn, _) = self.parts();
        store.update_on(conn, job, &payload).await?;
        job.replace(data, payload);
        Ok(())
    }
}

impl<T: DeserializeOwned> BoundQueue<'_, T> {
    /// Takes the next ready job in this transaction. Returns `None` if no job is ready.
    ///
    /// The job is completed when the transaction commits, and back in its place as soon as the transaction rolls back.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn get(&mut self) -> Result<Option<Job<T>>, Error> {
        Ok(self.get_many(1).await?.pop())
    }

    /// Takes up to `count` ready jobs in this transaction, in queue order. See [`pq_core::BoundQueue::get_many`].
    ///
    /// # Errors
    ///
    /// The database's own, also if the transaction holds too many keys: commit it and take the rest in another one.
    pub async fn get_many(&mut self, count: usize) -> Result<Vec<Job<T>>, Error> {
        let queue = self.queue;
        let (store, conn, name) = self.parts();
        loop {
            let taking = store.take_on(conn, name, count, Scan::Full);
            let found = queue.queue.decode(queue.queue.in_take_span_async(count, taking).await?);
            if !found.dead.is_empty() {
                store.move_to_dead_on(conn, &found.dead).await?;
            }
            if !found.jobs.is_empty() || found.dead.is_empty() {
                return Ok(found.jobs);
            }
        }
    }

    /// Takes up to `count` ready jobs under a lease, in this transaction. They are held from its commit.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn lease(&mut self, count: usize, lease: Duration) -> Result<Vec<Job<T>>, Error> {
        let queue = self.queue;
        let (store, conn, name) = self.parts();
        loop {
            let taking = store.lease_on(conn, name, count, lease, Scan::Full);
            let found = queue.queue.decode(queue.queue.in_take_span_async(count, taking).await?);
            for dead in &found.dead {
                let outcome = Outcome::Dead { error: dead.reason.clone() };
                // The lease is as old as this transaction, so none is refused.
                let _ = store.settle_on(conn, &[Settlement { job: &dead.job, outcome }]).await?;
            }
            if !found.jobs.is_empty() || found.dead.is_empty() {
                return Ok(found.jobs);
            }
        }
    }
}

/// A task on the caller's connection, inside whatever transaction that is in. See [`Task::on`].
pub struct BoundTask<'a, A> {
    pub(crate) task: &'a Task<A>,
    pub(crate) queue: BoundQueue<'a, ()>,
}

impl<A> fmt::Debug for BoundTask<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundTask").field("name", &self.task.name()).finish_non_exhaustive()
    }
}

impl<'a, A> BoundTask<'a, A> {
    pub(crate) fn new(task: &'a Task<A>, queue: BoundQueue<'a, ()>) -> Self {
        Self { task, queue }
    }

    /// Lists the jobs of the task's queue that the filter matches, in this transaction: at most `count`.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn list(&mut self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        self.queue.list(filter, count).await
    }

    /// Finds a job of the task's queue by its id, in this transaction.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn find(&mut self, id: JobId) -> Result<Option<JobRecord>, Error> {
        self.queue.find(id).await
    }

    /// Cancels a job of the task's queue, as [`Queue::cancel`] does, in this transaction.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn cancel(&mut self, id: JobId) -> Result<CancelOutcome, Error> {
        self.queue.cancel(id).await
    }
}

impl<A: Serialize> BoundTask<'_, A> {
    /// Enqueues a call in this transaction, as [`Task::call`] does. Others see it when the transaction commits.
    ///
    /// # Errors
    ///
    /// The errors of [`BoundQueue::put`].
    pub async fn call(&mut self, arguments: &A) -> Result<Put, Error> {
        self.call_with(arguments, &CallOptions::new()).await
    }

    /// Enqueues a call with options in this transaction, as [`Task::call_with`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_with`].
    pub async fn call_with(&mut self, arguments: &A, options: &CallOptions) -> Result<Put, Error> {
        let task = &self.task.task;
        self.queue.put_job(|| task.encode(arguments, options)).await
    }

    /// Enqueues many calls, each with its own options, in this transaction.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_many_with`].
    pub async fn call_many_with(
        &mut self,
        calls: impl IntoIterator<Item = (impl Borrow<A>, impl Borrow<CallOptions>)>,
    ) -> Result<Vec<Put>, Error> {
        let task = self.task.blocking();
        self.queue.put_jobs(|| task.encode_many(calls)).await
    }

    /// Enqueues many calls in this transaction, as [`Task::call_many`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Task::call_many`].
    pub async fn call_many(
        &mut self,
        arguments: impl IntoIterator<Item = impl Borrow<A>>,
    ) -> Result<Vec<Put>, Error> {
        let task = self.task;
        self.queue.put_jobs(|| task.encode_each(arguments)).await
    }
}
