//! The results of jobs, and waiting for their end.

use serde::de::DeserializeOwned;

use super::Pq;
use crate::incidents::Incidents;
use crate::store::{Scan, next_look};
use crate::wait::{FIRST_RETRY, Polled, Subscribe, poll_and_wait};
use crate::{Error, JobId, JobRecord, JobResult, Store, Wait};

impl<S: Store> Pq<S> {
    /// Returns what became of a job of any queue, without waiting.
    ///
    /// A done job is known if its handler keeps history or returned a result, or if its end is awaited
    /// ([`crate::PutOptions::awaited`]), until its retention ends. Any other done job is [`JobResult::Unknown`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidResult`] if the result is not an `R`; the store's errors.
    pub fn result<R: DeserializeOwned>(&self, id: JobId) -> Result<JobResult<R>, S::Error> {
        self.store.with_connection(|conn| self.result_on(conn, id))
    }

    /// Returns what became of a job on the caller's connection, as [`Pq::result`] does. A transaction sees what it
    /// has done itself.
    ///
    /// # Errors
    ///
    /// The errors of [`Pq::result`].
    pub fn result_on<R: DeserializeOwned>(
        &self,
        conn: &mut S::Conn,
        id: JobId,
    ) -> Result<JobResult<R>, S::Error> {
        let job = self.store.look(conn, id)?;
        Ok(JobResult::of(job.as_ref())?)
    }

    /// Waits until a job of any queue has ended, and returns what became of it. After `wait` it returns the job's
    /// state.
    ///
    /// The wait sleeps until the commit of the job's end wakes it, and looks in any case once in the store's poll
    /// interval. It holds no connection while it sleeps. The job is kept in the archive from the first look on, as if
    /// it had been put with [`crate::PutOptions::awaited`]. If a transaction holds the job then, the wait looks again
    /// after a moment, and the job may be [`JobResult::Unknown`] when that transaction has completed it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidResult`] if the result is not an `R`; [`Error::WaitInTransaction`] if the connections of the
    /// handle are in a transaction, as in a test; [`Error::Stopped`]; the store's errors.
    pub fn wait_for<R: DeserializeOwned>(&self, id: JobId, wait: Wait) -> Result<JobResult<R>, S::Error> {
        self.wait_for_end(id, wait, |look| self.store.with_connection(look))
    }

    /// Waits for the end of a job on the caller's connection, as [`Pq::wait_for`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Pq::wait_for`]. [`Error::WaitInTransaction`] if the connection is in a transaction.
    pub fn wait_for_on<R: DeserializeOwned>(
        &self,
        conn: &mut S::Conn,
        id: JobId,
        wait: Wait,
    ) -> Result<JobResult<R>, S::Error> {
        self.wait_for_end(id, wait, |look| look(conn))
    }

    fn wait_for_end<R: DeserializeOwned>(
        &self,
        id: JobId,
        wait: Wait,
        mut on_connection: impl FnMut(
            &mut dyn FnMut(&mut S::Conn) -> Result<Looked, S::Error>,
        ) -> Result<Looked, S::Error>,
    ) -> Result<JobResult<R>, S::Error> {
        let (store, mut last, mut retry_in) = (&*self.store, None, FIRST_RETRY);
        let token = self.cancellation_token.as_ref();
        let found = poll_and_wait(store, Subscribe::End(id), wait, token, &Incidents::default(), |scan| {
            let looked = on_connection(&mut |conn| {
                if wait != Wait::No && store.is_in_transaction(conn)? {
                    return Err(Error::wait_in_transaction(id).into());
                }
                let job = match store.look(conn, id)? {
                    Some(job) if !job.state.is_ended() => job,
                    ended => return Ok(Looked::Ended(ended)),
                };
                let is_marked = if job.annotations.is_awaited() || scan == Scan::Full {
                    None
                } else {
                    Some(store.mark_awaited(conn, id)?)
                };
                Ok(Looked::Pending { job, is_marked })
            })?;
            Ok(match looked {
                Looked::Ended(job) => Polled::Found(job),
                Looked::Pending { job, is_marked } => {
                    last = Some(job);
                    Polled::Nothing { next_due: next_look(is_marked, &mut retry_in) }
                }
            })
        })?;
        let job = found.unwrap_or(last);
        Ok(JobResult::of(job.as_ref())?)
    }
}

/// The result of a look at a job.
enum Looked {
    Ended(Option<JobRecord>),
    /// The job has not ended. `is_marked` is what [`crate::store::Results::mark_awaited`] returned, if it was called.
    Pending {
        job: JobRecord,
        is_marked: Option<bool>,
    },
}
