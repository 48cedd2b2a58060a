//! The progress and the logs of jobs.

use super::{Accepted, Connect};
use crate::{JobId, JobProgress, NewNotes, StoredLine};

/// Keeps what handlers note while they run.
///
/// A job that has no notes costs nothing. The notes of a job that no longer waits, runs or is archived are deleted by
/// [`super::Archive::maintain`], some time later.
pub trait Notes: Connect {
    /// Stores notes of leased jobs, and returns for each whether they were accepted.
    ///
    /// They are accepted if the claim is valid, as an outcome would be. What is refused changes nothing. Lines are
    /// added to the job's log, of which the newest are kept ([`crate::LogLine::MAX_KEPT`]).
    ///
    /// While a transaction has the lease locked, because it settles all of its jobs or marks one, notes are refused.
    /// Those that `are_last`, and that an outcome follows, wait for that transaction as the outcome would.
    ///
    /// # Errors
    ///
    /// The store's error. No notes were stored, unless the error says that the outcome is unknown.
    fn write_notes(
        &self,
        conn: &mut Self::Conn,
        notes: &[NewNotes<'_>],
        are_last: bool,
    ) -> Result<Accepted, Self::Error>;

    /// Returns the progress of these jobs, of those that have any, in the order of their ids.
    ///
    /// That of a job that runs under a lease was noted under this lease, and that of an archived one by its last
    /// attempt. A waiting job has none.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn progress(&self, conn: &mut Self::Conn, jobs: &[JobId]) -> Result<Vec<JobProgress>, Self::Error>;

    /// Returns the lines of a job's log with a higher position, the oldest first.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn log(
        &self,
        conn: &mut Self::Conn,
        job: JobId,
        after: Option<i64>,
    ) -> Result<Vec<StoredLine>, Self::Error>;
}
