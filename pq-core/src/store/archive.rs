//! Jobs that have ended, and maintenance.

use std::time::Duration;

use super::Connect;
use crate::{JobId, JobRecord, JobState, MaintenanceReport, QueueName, Retention};

/// Keeps jobs that have ended.
pub trait Archive: Connect {
    /// Returns up to `count` archived jobs of the queue that are in this state, the latest first.
    ///
    /// With `before`, returns only the jobs that come after it in this order (by end, then by id), so that the last job
    /// of one page starts the next.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn archived(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        state: JobState,
        before: Option<&JobRecord>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Self::Error>;

    /// Returns archived jobs to the queue and reports how many.
    ///
    /// With `ids`, these dead or cancelled jobs; without, all dead jobs of the queue. They are due at once, keep
    /// their ids, and their attempts start at zero. A job stays in the archive if its unique key is in use or in an
    /// uncommitted put, or if a job with its id waits or runs. Of several with the same id the latest is returned.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn requeue(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Self::Error>;

    /// Deletes archived jobs in this state that ended at least `age` ago, and returns their number.
    ///
    /// Jobs that have not ended are not in the archive, so a state such as [`JobState::Ready`] deletes nothing.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn prune(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        state: JobState,
        age: Duration,
    ) -> Result<u64, Self::Error>;

    /// Returns whether a lease of one of these queues has expired and its jobs have not been returned, or a job has
    /// ended for which another one waits still.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn needs_maintenance(&self, conn: &mut Self::Conn, queues: &[QueueName]) -> Result<bool, Self::Error>;

    /// Runs one bounded step of maintenance on all queues.
    ///
    /// Returns jobs whose lease has expired, prunes the archive by `retention`, and forgets workers without a recent
    /// heartbeat. Any process may call it at any time. Returns `None` if another process is running it. In a caller's
    /// transaction it does not keep others from running it meanwhile.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn maintain(
        &self,
        conn: &mut Self::Conn,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Self::Error>;
}
