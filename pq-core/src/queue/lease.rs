//! Taking jobs under a lease: held for a limited time, while no transaction is open.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{BoundQueue, Queue};
use crate::lease_table::ask_until_unlocked;
use crate::store::Extension;
use crate::wait::Polled;
use crate::{Accepted, Error, Extended, Job, Outcome, Scan, Settlement, Store, Wait};

impl<S: Store, T: DeserializeOwned> Queue<S, T> {
    /// Takes up to `count` jobs under a lease, waiting for the first one if necessary.
    ///
    /// Returns an empty list if the wait ended without a job, and may return fewer jobs than are ready, as
    /// [`Queue::get_many`] does. The jobs are held for `lease`, or until they are settled
    /// by [`Queue::settle`]. [`Queue::extend`] extends the lease.
    ///
    /// **At least once**: after a crash the lease expires, on the store's clock. The next maintenance, by any
    /// [`crate::Worker`] or [`crate::Pq::maintain`], then requeues the jobs. A job that was alone in its lease has
    /// crashed ([`crate::JobRecord::crashes`]). Of several jobs none has, and [`crate::Claim::lease_limit`] says how
    /// many of the next lease should be begun.
    ///
    /// # Errors
    ///
    /// The errors of [`Queue::get`].
    pub fn lease(&self, count: usize, lease: Duration, wait: Wait) -> Result<Vec<Job<T>>, S::Error> {
        let found = self.wait(wait, |scan| {
            self.store().with_connection(|conn| {
                let taken = self.on(conn).take_leased(count, lease, scan)?;
                Ok(match taken.jobs {
                    jobs if jobs.is_empty() => Polled::Nothing { next_due: taken.next_due },
                    jobs => Polled::Found(jobs),
                })
            })
        })?;
        Ok(found.unwrap_or_default())
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Settles a leased job with its outcome. Committed when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] if the lease has been lost; nothing was changed then. The store's errors.
    pub fn settle(&self, job: &Job<T>, outcome: Outcome) -> Result<(), S::Error> {
        self.store().with_connection(|conn| self.on(conn).settle(job, outcome))
    }

    /// Settles many leased jobs in one round trip, and returns for each whether its outcome was accepted.
    ///
    /// An outcome is refused if the job's lease has been lost.
    ///
    /// # Errors
    ///
    /// The store's errors; no job was settled then.
    pub fn settle_many(&self, settlements: &[Settlement<'_>]) -> Result<Accepted, S::Error> {
        let span = self.pq.settle_span(&self.name, settlements.iter().map(Settlement::parts));
        span.run(|| self.store().with_connection(|conn| self.store().settle(conn, settlements)))
    }

    /// Extends the lease of the job, and of all jobs taken with it, to expire `lease` from now.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] if the lease has been lost. [`Error::LeaseLocked`] if an open transaction settles the jobs
    /// of the lease and does not end within half a second; the lease was not extended then. The store's errors.
    pub fn extend(&self, job: &Job<T>, lease: Duration) -> Result<Extended, S::Error> {
        let Some(token) = job.lease() else { return Err(Error::lease_lost(job.id).into()) };
        let store = self.store();
        let answer = ask_until_unlocked(|| {
            let answers = store.with_connection(|conn| store.extend(conn, &[token], lease))?;
            Ok::<_, S::Error>(answers.into_iter().next())
        })?;
        match answer {
            Some(Extension::Extended(extended)) => Ok(extended),
            Some(Extension::Locked(_)) => Err(Error::lease_locked(job.id).into()),
            None => Err(Error::lease_lost(job.id).into()),
        }
    }
}

impl<S: Store, T: DeserializeOwned> BoundQueue<'_, S, T> {
    /// Takes up to `count` ready jobs under a lease, in this transaction. They are held from its commit.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn lease(&mut self, count: usize, lease: Duration) -> Result<Vec<Job<T>>, S::Error> {
        Ok(self.take_leased(count, lease, Scan::Full)?.jobs)
    }
}

impl<S: Store, T> BoundQueue<'_, S, T> {
    /// Settles a leased job, or a job that this transaction holds, in this transaction.
    ///
    /// If the lease has been lost, roll the transaction back: otherwise its other writes commit, although another
    /// worker may run the job too.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] or [`Error::NotYours`]; the store's errors.
    pub fn settle(&mut self, job: &Job<T>, outcome: Outcome) -> Result<(), S::Error> {
        let settlement = Settlement { job: &job.claim, outcome };
        let (queue, settlements) = (self.queue, std::slice::from_ref(&settlement));
        let span = queue.pq.settle_span(&queue.name, settlements.iter().map(Settlement::parts));
        let accepted = span.run(|| queue.store().settle(self.conn, settlements))?;
        match job.lease() {
            _ if accepted.all() => Ok(()),
            Some(_) => Err(Error::lease_lost(job.id).into()),
            None => Err(Error::not_yours(job.id).into()),
        }
    }
}
