//! The progress and the logs of jobs.

use super::Pq;
use crate::{JobId, JobProgress, Store, StoredLine};

impl<S: Store> Pq<S> {
    /// Returns how far handlers have come with these jobs of any queue, of those jobs that have any progress, in the
    /// order of their ids. See [`crate::Context::progress`].
    ///
    /// That of a running job is at most about a second old. That of an archived job is of its last attempt.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn progress(&self, jobs: &[JobId]) -> Result<Vec<JobProgress>, S::Error> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        self.store.with_connection(|conn| self.store.progress(conn, jobs))
    }

    /// Returns the log of a job of any queue, the oldest line first: the newest 64 KiB of what all of its attempts
    /// have logged. See [`crate::Context::log`].
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn log(&self, job: JobId) -> Result<Vec<StoredLine>, S::Error> {
        let lines = self.store.with_connection(|conn| self.store.log(conn, job, None))?;
        Ok(StoredLine::keep_newest(lines))
    }

    /// Returns the lines of a job's log that were stored after the position of an earlier line, to follow it.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn log_after(&self, job: JobId, position: i64) -> Result<Vec<StoredLine>, S::Error> {
        self.store.with_connection(|conn| self.store.log(conn, job, Some(position)))
    }
}
