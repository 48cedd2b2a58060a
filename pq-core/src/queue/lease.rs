//! Jobs under a lease: yours for a time, while no transaction is open.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{BoundQueue, Queue};
use crate::wait::Look;
use crate::{Error, Extended, Job, Outcome, Scan, Settlement, Store, Wait};

impl<S: Store, T: DeserializeOwned> Queue<S, T> {
    /// Takes up to `count` jobs under a lease, waiting until there is at least one; an empty list where
    /// none came in time. They are yours for this long, and then anyone's unless they have their verdict
    /// ([`Queue::settle`]) or the lease was extended ([`Queue::extend`]).
    ///
    /// **At least once**: a crash gives the jobs back when the lease is over. A lease ends on the store's
    /// clock, and its jobs return at the next sweep after that, which any [`crate::Worker`] makes, or
    /// [`crate::Pq::maintain`].
    ///
    /// # Errors
    ///
    /// As [`Queue::get`].
    pub fn lease(&self, count: usize, lease: Duration, wait: Wait) -> Result<Vec<Job<T>>, S::Error> {
        let found = self.wait(wait, |scan| {
            self.store().with_connection(|conn| {
                let taken = self.on(conn).take_leased(count, lease, scan)?;
                Ok(match taken.jobs {
                    jobs if jobs.is_empty() => Look::Nothing { next_due: taken.next_due },
                    jobs => Look::Found(jobs),
                })
            })
        })?;
        Ok(found.unwrap_or_default())
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Passes the verdict on a leased job, committed when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] where it comes too late; it has changed nothing then. The store's own.
    pub fn settle(&self, job: &Job<T>, outcome: Outcome) -> Result<(), S::Error> {
        self.store().with_connection(|conn| self.on(conn).settle(job, outcome))
    }

    /// Passes verdicts on many leased jobs in one round trip, and says of each whether it was accepted.
    ///
    /// # Errors
    ///
    /// The store's own; none was accepted then.
    pub fn settle_many(&self, verdicts: &[Settlement<'_>]) -> Result<Vec<bool>, S::Error> {
        self.store().with_connection(|conn| self.store().settle(conn, verdicts))
    }

    /// Has the job's lease, and that of all jobs taken with it, end this long from now.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] where it is over and the jobs are anyone's; the store's own.
    pub fn extend(&self, job: &Job<T>, lease: Duration) -> Result<Extended, S::Error> {
        let Some(token) = job.claim.lease() else { return Err(Error::lease_lost(job.id).into()) };
        let extended = self.store().with_connection(|conn| self.store().extend(conn, &[token], lease))?;
        extended.into_iter().next().ok_or_else(|| Error::lease_lost(job.id).into())
    }
}

impl<S: Store, T: DeserializeOwned> BoundQueue<'_, S, T> {
    /// Takes up to `count` ready jobs under a lease, with this transaction: they are yours when it
    /// commits.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn lease(&mut self, count: usize, lease: Duration) -> Result<Vec<Job<T>>, S::Error> {
        Ok(self.take_leased(count, lease, Scan::Full)?.jobs)
    }
}

impl<S: Store, T> BoundQueue<'_, S, T> {
    /// Passes the verdict on a leased job, or on one that this transaction holds, with this transaction.
    ///
    /// A verdict that comes too late is an error: let it roll back the transaction, so that what was
    /// written beside the verdict goes with it.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] or [`Error::NotYours`]; the store's own.
    pub fn settle(&mut self, job: &Job<T>, outcome: Outcome) -> Result<(), S::Error> {
        let verdict = Settlement { job: &job.raw, outcome };
        let accepted = self.queue.store().settle(self.conn, std::slice::from_ref(&verdict))?;
        match (accepted.first(), job.claim.lease()) {
            (Some(true), _) => Ok(()),
            (_, Some(_)) => Err(Error::lease_lost(job.id).into()),
            (_, None) => Err(Error::not_yours(job.id).into()),
        }
    }
}
