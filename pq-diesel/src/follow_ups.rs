//! What jobs wait for.

use pq_core::{JobId, Predecessor};

use crate::{Error, Pq};

impl Pq {
    /// Returns the jobs for which a job waits or has waited, by id: at most `count`. See
    /// [`pq_core::PutOptions::after`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn predecessors(&self, follow_up: JobId, count: usize) -> Result<Vec<Predecessor>, Error> {
        self.0.predecessors(follow_up, count)
    }

    /// Returns the jobs that wait for the end of a job, by id: at most `count`. See [`pq_core::PutOptions::after`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn followers(&self, job: JobId, count: usize) -> Result<Vec<JobId>, Error> {
        self.0.followers(job, count)
    }
}
