//! Counting, listing, cancelling, pausing and moving jobs.

use super::Connect;
use crate::{Cancelled, Filter, JobId, JobStatus, Listed, Overview, QueueName};

/// Shows and changes queues and jobs for an operator.
pub trait Admin: Connect {
    /// Counts a queue's jobs by state, without a lock.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn counts(&self, conn: &mut Self::Conn, queue: &QueueName) -> Result<Counts, Self::Error>;

    /// Counts the jobs of every queue, sorted by name.
    ///
    /// A queue is included if it has a job, live or archived, or is paused.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn overview(&self, conn: &mut Self::Conn) -> Result<Vec<Overview>, Self::Error>;

    /// Returns the first `count` jobs that match the filter, sorted by id.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn list(&self, conn: &mut Self::Conn, filter: &Filter, count: usize) -> Result<Vec<Listed>, Self::Error>;

    /// Returns a job of the queue, or `None` if there is none of this id: it never existed, or it is done and no
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
    ) -> Result<Option<JobStatus>, Self::Error>;

    /// Cancels a waiting job, or requests the cancellation of a leased one.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn cancel(&self, conn: &mut Self::Conn, queue: &QueueName, id: JobId) -> Result<Cancelled, Self::Error>;

    /// Deletes every job of a queue that nobody holds, and returns their number. The archive is not changed.
    ///
    /// # Errors
    ///
    /// The store's error. No job was deleted.
    fn clear(&self, conn: &mut Self::Conn, queue: &QueueName) -> Result<u64, Self::Error>;

    /// Pauses or resumes a queue, and returns whether that changed anything.
    ///
    /// No job of a paused queue is taken. Jobs that are held already are not affected. Resuming notifies signals as a
    /// put does. Python's `pq` ignores the pause.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn pause(&self, conn: &mut Self::Conn, queue: &QueueName, paused: bool) -> Result<bool, Self::Error>;

    /// Moves jobs that nobody holds to another queue, with all their attributes, and returns their number.
    ///
    /// With `ids`, these jobs; without, all. A job whose unique key is in use in the other queue stays.
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

/// A queue's jobs by state, as one snapshot sees them: what a transaction under way holds counts as
/// what it was before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Due, and taken by nobody: what Python's `len(queue)` counts. Those that wait for their
    /// serialization key are among them.
    pub ready: u64,
    /// Not due yet.
    pub scheduled: u64,
    /// Held under a lease.
    pub leased: u64,
    /// Taken by a Python `pq`, which keeps the row; the outcome is unknown.
    pub dequeued: u64,
    /// In the archive: failed for good.
    pub dead: u64,
    /// In the archive: cancelled.
    pub cancelled: u64,
    /// In the archive: done, where history is kept.
    pub done: u64,
}

impl Counts {
    /// Jobs that are still to be worked, or are being worked under a lease.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.ready + self.scheduled + self.leased
    }
}
