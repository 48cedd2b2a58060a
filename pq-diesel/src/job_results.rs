//! The results, the progress and the logs of jobs.

use diesel::pg::PgConnection;
use pq_core::{JobId, JobProgress, JobResult, StoredLine, Wait};
use serde::de::DeserializeOwned;

use crate::{Error, Pq};

/// Results, progress and logs of jobs.
impl Pq {
    /// Returns what became of a job of any queue, without waiting. See [`pq_core::Pq::result`].
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::InvalidResult`] if the result is not an `R`; the database's own.
    pub fn result<R: DeserializeOwned>(&self, id: JobId) -> Result<JobResult<R>, Error> {
        self.as_ref().result(id)
    }

    /// Returns what became of a job on the caller's connection. A transaction sees what it has done itself.
    ///
    /// # Errors
    ///
    /// The errors of [`Pq::result`].
    pub fn result_on<R: DeserializeOwned>(
        &self,
        conn: &mut PgConnection,
        id: JobId,
    ) -> Result<JobResult<R>, Error> {
        self.as_ref().result_on(conn, id)
    }

    /// Waits until a job of any queue has ended, and returns what became of it. After `wait` it returns the job's
    /// state. See [`pq_core::Pq::wait_for`].
    ///
    /// # Errors
    ///
    /// The errors of [`pq_core::Pq::wait_for`].
    pub fn wait_for<R: DeserializeOwned>(&self, id: JobId, wait: Wait) -> Result<JobResult<R>, Error> {
        self.as_ref().wait_for(id, wait)
    }

    /// Waits for the end of a job on the caller's connection, as [`Pq::wait_for`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`pq_core::Pq::wait_for`]. [`pq_core::Error::WaitInTransaction`] if the connection is in a
    /// transaction.
    pub fn wait_for_on<R: DeserializeOwned>(
        &self,
        conn: &mut PgConnection,
        id: JobId,
        wait: Wait,
    ) -> Result<JobResult<R>, Error> {
        self.as_ref().wait_for_on(conn, id, wait)
    }

    /// Returns how far handlers have come with these jobs, of those that have any progress. See
    /// [`pq_core::Pq::progress`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn progress(&self, jobs: &[JobId]) -> Result<Vec<JobProgress>, Error> {
        self.as_ref().progress(jobs)
    }

    /// Returns the log of a job, the oldest line first. See [`pq_core::Pq::log`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn log(&self, job: JobId) -> Result<Vec<StoredLine>, Error> {
        self.as_ref().log(job)
    }

    /// Returns the lines of a job's log that were stored after a position. See [`pq_core::Pq::log_after`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn log_after(&self, job: JobId, position: i64) -> Result<Vec<StoredLine>, Error> {
        self.as_ref().log_after(job, position)
    }
}
