//! Counting, listing, cancelling, pausing and moving jobs.

use super::Connect;
use crate::{CancelOutcome, Filter, JobId, JobRecord, PausedQueue, QueueCounts, QueueName};

/// Shows and changes queues and jobs for an operator.
pub trait Admin: Connect {
    /// Counts a queue's jobs by state in one snapshot, without a lock.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn counts(&self, conn: &mut Self::Conn, queue: &QueueName) -> Result<QueueCounts, Self::Error>;

    /// Counts the jobs of every queue, sorted by name.
    ///
    /// A queue is included if it has a job, live or archived, or is paused or limited.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn overview(&self, conn: &mut Self::Conn) -> Result<Vec<QueueCounts>, Self::Error>;

    /// Returns the first `count` jobs that match the filter, sorted by id.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn list(
        &self,
        conn: &mut Self::Conn,
        filter: &Filter,
        count: usize,
    ) -> Result<Vec<JobRecord>, Self::Error>;

    /// Returns a job of the queue, or `None` if there is none with this id: it never existed, or it is done and no
    /// history is kept.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn find(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Option<JobRecord>, Self::Error>;

    /// Cancels a waiting job, or requests the cancellation of a leased one.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn cancel(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        id: JobId,
    ) -> Result<CancelOutcome, Self::Error>;

    /// Deletes every job of a queue that is not held, and returns their number. The archive is not changed.
    ///
    /// # Errors
    ///
    /// The store's error. No job was deleted.
    fn clear(&self, conn: &mut Self::Conn, queue: &QueueName) -> Result<u64, Self::Error>;

    /// Pauses or resumes a queue, and returns whether that changed anything. `by` is the operator who pauses it, if
    /// known.
    ///
    /// No job of a paused queue is taken. Jobs that are held already are not affected. Resuming notifies signals as a
    /// put does. Python's `pq` ignores the pause.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn pause(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        paused: bool,
        by: Option<&str>,
    ) -> Result<bool, Self::Error>;

    /// Lists the paused queues, sorted by name.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn paused(&self, conn: &mut Self::Conn) -> Result<Vec<PausedQueue>, Self::Error>;

    /// Moves jobs that are not held to another queue, with all their attributes, and returns their number.
    ///
    /// With `ids`, these jobs; without, all. A job whose unique key is in use in the other queue, or in an
    /// uncommitted put, stays. A put that keeps the key for one more job meanwhile may be waited for.
    ///
    /// # Errors
    ///
    /// The store's error. No job was moved.
    fn move_jobs(
        &self,
        conn: &mut Self::Conn,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Self::Error>;
}
