//! A queue on the caller's connection.

use std::borrow::Borrow;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Queue;
use super::get::Decoded;
use crate::{
    CancelOutcome, Error, Filter, Job, JobId, JobRecord, NewJob, Outcome, Put, PutOptions, QueueCounts, Scan,
    Settlement, Store, Undecodable,
};

/// A queue on the caller's connection, inside whatever transaction that is in. See [`Queue::on`].
///
/// No method waits for a job, since a wait would keep the caller's transaction open. No method commits a transaction
/// that the caller began. On a connection outside of any transaction, each call is a transaction of its own.
pub struct BoundQueue<'a, S: Store, T> {
    pub(super) queue: &'a Queue<S, T>,
    pub(super) conn: &'a mut S::Conn,
}

impl<S: Store, T> fmt::Debug for BoundQueue<'_, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundQueue").field("name", &self.queue.name).finish_non_exhaustive()
    }
}

impl<'a, S: Store, T> BoundQueue<'a, S, T> {
    pub(super) fn new(queue: &'a Queue<S, T>, conn: &'a mut S::Conn) -> Self {
        Self { queue, conn }
    }

    /// Counts the queue's jobs by state, as this transaction sees them.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn counts(&mut self) -> Result<QueueCounts, S::Error> {
        self.queue.store().counts(self.conn, &self.queue.name)
    }

    /// Deletes all jobs of the queue that no other transaction or lease holds, in this transaction, and returns their
    /// number.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn clear(&mut self) -> Result<u64, S::Error> {
        let queue = self.queue;
        queue.pq.recorded_on(
            self.conn,
            &queue.action("clear"),
            |cleared| *cleared,
            |conn| queue.store().clear(conn, &queue.name),
        )
    }

    /// Runs `work` in a transaction on the connection, nested if the connection is in one already.
    ///
    /// `Ok` keeps the writes of `work`. An error or a panic rolls back these writes only.
    ///
    /// # Errors
    ///
    /// The error of `work`, or the store's error.
    pub fn transaction<R, E: From<S::Error>>(
        &mut self,
        work: impl FnOnce(&mut S::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.queue.store().transaction(self.conn, work)
    }

    /// Requeues a job that this transaction holds. Others can take it when the transaction commits.
    ///
    /// The job keeps its id, times and priority, and the payload of the last [`BoundQueue::update`].
    ///
    /// # Errors
    ///
    /// [`Error::NotYours`] if the transaction does not hold the job; the store's errors.
    pub fn give_back(&mut self, job: &Job<T>) -> Result<(), S::Error> {
        self.queue.store().give_back(self.conn, &job.claim)
    }

    /// Lists the jobs of the queue that the filter matches, as [`Queue::list`] does, in this transaction.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn list(&mut self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, S::Error> {
        let filter = Filter { queue: Some(self.queue.name.to_string()), ..filter.clone() };
        self.queue.store().list(self.conn, &filter, count)
    }

    /// Finds a job by its id, as [`Queue::find`] does, in this transaction.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn find(&mut self, id: JobId) -> Result<Option<JobRecord>, S::Error> {
        self.queue.store().find(self.conn, &self.queue.name, id)
    }

    /// Cancels a job, as [`Queue::cancel`] does, in this transaction.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn cancel(&mut self, id: JobId) -> Result<CancelOutcome, S::Error> {
        let queue = self.queue;
        let changes = |outcome: &CancelOutcome| u64::from(outcome.is_accepted());
        queue.pq.recorded_on(self.conn, &queue.action("cancel").job(id), changes, |conn| {
            queue.store().cancel(conn, &queue.name, id)
        })
    }

    /// Encodes and enqueues one job.
    pub(crate) fn put_one(
        &mut self,
        encode: impl FnOnce() -> Result<NewJob, Error>,
    ) -> Result<Put, S::Error> {
        Ok(self.put_jobs(|| encode().map(|job| [job]))?[0])
    }

    /// Encodes and enqueues jobs.
    pub(crate) fn put_jobs<J: AsRef<[NewJob]>>(
        &mut self,
        encode: impl FnOnce() -> Result<J, Error>,
    ) -> Result<Vec<Put>, S::Error> {
        let queue = self.queue;
        queue.put_in_span(encode, |jobs| queue.store().put(self.conn, &queue.name, jobs))
    }

    /// Streams encoded jobs. Refuses unique keys, since no job's outcome is returned.
    pub(crate) fn put_all_jobs<I: Iterator<Item = Result<NewJob, Error>>>(
        &mut self,
        encode: impl FnOnce() -> I,
    ) -> Result<u64, S::Error> {
        let queue = self.queue;
        queue.put_all_in_span(encode, |jobs| queue.store().put_all(self.conn, &queue.name, jobs))
    }
}

impl<S: Store, T: Serialize> BoundQueue<'_, S, T> {
    /// Enqueues a job in this transaction, as [`Queue::put`] does. Others see it when the transaction commits.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put`]. If the payload is refused, the transaction remains usable.
    pub fn put<Q: Serialize + ?Sized>(&mut self, data: &Q) -> Result<Put, S::Error>
    where
        T: Borrow<Q>,
    {
        self.put_with(data, &PutOptions::new())
    }

    /// Enqueues a job with options in this transaction, as [`Queue::put_with`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_with`].
    pub fn put_with<Q: Serialize + ?Sized>(&mut self, data: &Q, options: &PutOptions) -> Result<Put, S::Error>
    where
        T: Borrow<Q>,
    {
        let queue = self.queue;
        self.put_one(|| queue.encode(data, options))
    }

    /// Enqueues many jobs in this transaction, as [`Queue::put_many`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_many`].
    pub fn put_many(&mut self, data: impl IntoIterator<Item = impl Borrow<T>>) -> Result<Vec<Put>, S::Error> {
        let queue = self.queue;
        self.put_jobs(|| queue.encode_each(data).collect::<Result<Vec<_>, _>>())
    }

    /// Enqueues many jobs, each with its own options, in this transaction.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_many_with`].
    pub fn put_many_with(
        &mut self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> Result<Vec<Put>, S::Error> {
        let queue = self.queue;
        self.put_jobs(|| queue.encode_each_with(jobs).collect::<Result<Vec<_>, _>>())
    }

    /// Enqueues all jobs of an iterator in this transaction, as [`Queue::put_all`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_all`]. The transaction is then as it was before the call.
    pub fn put_all(&mut self, data: impl IntoIterator<Item = impl Borrow<T>>) -> Result<u64, S::Error> {
        let queue = self.queue;
        self.put_all_jobs(|| queue.encode_each(data))
    }

    /// Enqueues all jobs of an iterator, each with its own options, in this transaction.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::put_all_with`]. The transaction is then as it was before the call.
    pub fn put_all_with(
        &mut self,
        jobs: impl IntoIterator<Item = (impl Borrow<T>, impl Borrow<PutOptions>)>,
    ) -> Result<u64, S::Error> {
        let queue = self.queue;
        self.put_all_jobs(|| queue.encode_each_with(jobs))
    }

    /// Replaces the payload of a job that this transaction or a lease holds.
    ///
    /// If the job is requeued by [`BoundQueue::give_back`], it has the new payload. For a leased job this is a
    /// checkpoint: the next attempt starts with the new payload.
    ///
    /// # Errors
    ///
    /// [`Error::NotYours`] if the transaction does not hold the job, [`Error::LeaseLost`] if its lease has been lost,
    /// and the errors of [`Queue::put`] for the payload. The job is unchanged then.
    pub fn update(&mut self, job: &mut Job<T>, data: T) -> Result<(), S::Error> {
        let payload = self.queue.encode_payload(&data)?;
        self.queue.store().update(self.conn, &job.claim, &payload)?;
        job.replace(data, payload);
        Ok(())
    }
}

impl<S: Store, T: DeserializeOwned> BoundQueue<'_, S, T> {
    /// Takes the next ready job in this transaction. Returns `None` if no job is ready.
    ///
    /// The job is completed when the transaction commits, and back in its place as soon as the transaction rolls back.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn get(&mut self) -> Result<Option<Job<T>>, S::Error> {
        Ok(self.get_many(1)?.pop())
    }

    /// Takes up to `count` ready jobs in this transaction, in queue order, as [`Queue::get_many`] does.
    ///
    /// A transaction can hold jobs of about 4,000 serialization keys, because each holds a lock until the transaction
    /// ends.
    ///
    /// # Errors
    ///
    /// The store's errors, also if the transaction holds too many keys: commit it and take the rest in another one.
    pub fn get_many(&mut self, count: usize) -> Result<Vec<Job<T>>, S::Error> {
        Ok(self.take(count, Scan::Full)?.jobs)
    }

    /// Takes jobs in this transaction. Jobs that cannot be decoded are archived as dead.
    pub(super) fn take(&mut self, count: usize, scan: Scan) -> Result<Decoded<T>, S::Error> {
        let store = self.queue.store();
        loop {
            let taken =
                self.queue.in_take_span(count, || store.take(self.conn, &self.queue.name, count, scan))?;
            let found = self.queue.decode(taken);
            if !found.dead.is_empty() {
                store.move_to_dead(self.conn, &found.dead)?;
            }
            if !found.jobs.is_empty() || found.dead.is_empty() {
                return Ok(found);
            }
        }
    }

    /// Takes jobs under a lease in this transaction. Jobs that cannot be decoded are archived as dead.
    pub(super) fn take_leased(
        &mut self,
        count: usize,
        lease: Duration,
        scan: Scan,
    ) -> Result<Decoded<T>, S::Error> {
        let store = self.queue.store();
        loop {
            let taken = self
                .queue
                .in_take_span(count, || store.lease(self.conn, &self.queue.name, count, lease, scan))?;
            let found = self.queue.decode(taken);
            if !found.dead.is_empty() {
                let outcome = |dead: &Undecodable| Outcome::Dead { error: dead.reason.clone() };
                let settlements: Vec<Settlement<'_>> = found
                    .dead
                    .iter()
                    .map(|dead| Settlement { job: &dead.job, outcome: outcome(dead) })
                    .collect();
                // The lease is as old as this transaction, so none is refused.
                let _ = store.settle(self.conn, &settlements)?;
            }
            if !found.jobs.is_empty() || found.dead.is_empty() {
                return Ok(found);
            }
        }
    }
}
