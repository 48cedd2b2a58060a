//! Limits of a queue.

use super::{BoundQueue, Pq, Queue};
use crate::{Claim, Error, Job, LimitedQueue, Limits, Store};

impl<S: Store> Pq<S> {
    /// Returns the queues that have limits, at most 100 by name, how much of these is used, and how many due jobs
    /// wait because of them.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn limited(&self) -> Result<Vec<LimitedQueue>, S::Error> {
        self.store.with_connection(|conn| self.store.limited(conn, None))
    }

    pub(crate) fn correct_cost(&self, conn: &mut S::Conn, job: &Claim, cost: u32) -> Result<(), S::Error> {
        if !job.is_cost_correctable(cost)? || self.store.correct_cost(conn, job, cost)? {
            return Ok(());
        }
        Err(Error::lease_lost(job.id).into())
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Returns the queue's limits, which are empty if it has none.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn limits(&self) -> Result<Limits, S::Error> {
        self.store().with_connection(|conn| self.store().limits(conn, &self.name))
    }

    /// Replaces the queue's limits. Empty limits remove them.
    ///
    /// They are stored, and apply at once to every worker and every get, on all hosts. Jobs that are under a lease
    /// count. If a limit is lowered, running jobs continue, and none is taken until fewer run than it allows. Limits
    /// are kept while the queue is paused. Python's `pq` ignores them.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidSetting`] or [`crate::Error::InvalidAnnotation`] if a number, a period or a group is
    /// invalid; the store's errors.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), S::Error> {
        let details = limits.to_json()?.unwrap_or_else(|| "none".to_owned());
        let action = self.action("limit").details(details);
        self.pq.recorded(&action, |()| 1, |conn| self.store().set_limits(conn, &self.name, limits))
    }

    /// Corrects the cost of a leased job, as [`crate::Context::cost`] does. Committed when this returns.
    ///
    /// # Errors
    ///
    /// The errors of [`crate::Context::cost`].
    pub fn correct_cost(&self, job: &Job<T>, cost: u32) -> Result<(), S::Error> {
        self.store().with_connection(|conn| self.pq.correct_cost(conn, &job.claim, cost))
    }
}

impl<S: Store, T> BoundQueue<'_, S, T> {
    /// Corrects the cost of a leased job in this transaction, as [`crate::Context::cost`] does. For transactional
    /// handlers.
    ///
    /// The buckets are locked until the transaction ends, so correct the cost late in it. A job that a transaction
    /// took from a queue without limits took no tokens, and nothing is done.
    ///
    /// # Errors
    ///
    /// The errors of [`crate::Context::cost`]. If the lease has been lost, roll the transaction back.
    /// [`Error::InvalidSetting`] if a transaction took the job from a limited queue.
    pub fn correct_cost(&mut self, job: &Job<T>, cost: u32) -> Result<(), S::Error> {
        self.queue.pq.correct_cost(self.conn, &job.claim, cost)
    }
}
