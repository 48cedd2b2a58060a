//! Jobs that wait until other jobs have ended.

use super::Connect;
use crate::{JobId, Predecessor};

/// Keeps what jobs wait for.
///
/// [`super::Jobs::put`] stores the [`crate::Links`] of a job, in its transaction. [`super::Archive::maintain`] notes which
/// jobs have ended, and makes a follow-up due when the last of them has, or cancels it. Both are in one transaction, so a
/// follow-up becomes due once, whatever crashes.
///
/// A job has ended if it neither waits nor runs. It is done unless the archive says otherwise.
pub trait FollowUps: Connect {
    /// Returns the jobs for which a job waits or has waited, by id: at most `count`.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn predecessors(
        &self,
        conn: &mut Self::Conn,
        follow_up: JobId,
        count: usize,
    ) -> Result<Vec<Predecessor>, Self::Error>;

    /// Makes a waiting follow-up due if it waits for no job: for a batch without jobs.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn release(&self, conn: &mut Self::Conn, follow_up: JobId) -> Result<(), Self::Error>;
}
