//! Jobs that wait until other jobs have ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Connect;
use crate::{JobId, JobRecord, Predecessor};

/// Why the job of a workflow is due other than because jobs of the workflow have ended. It is noted with the job
/// ([`crate::Annotations::wake`]) until jobs that have ended make it due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wake {
    /// A job of the workflow was requeued.
    Reopen,
    /// The job of the workflow was requeued.
    Retry,
    /// The cancellation of the workflow was requested.
    Cancel,
}

impl Wake {
    /// Returns the word for it, as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reopen => "reopen",
            Self::Retry => "retry",
            Self::Cancel => "cancel",
        }
    }
}

/// Keeps what jobs wait for.
///
/// [`super::Jobs::put`] stores the [`crate::Links`] of a job, in its transaction. [`super::Archive::maintain`] notes
/// which jobs have ended, and makes a follow-up due when the last of them has, or cancels it. Both are in one
/// transaction, so a follow-up becomes due once, whatever crashes.
///
/// A job has ended if it neither waits nor runs. It is done unless the archive says otherwise.
///
/// The job of a workflow, in the queue [`crate::WORKFLOWS`], is never cancelled because of jobs that it waits for. It
/// is due also when maintenance notes that one of those that must be done is not, and
/// [`crate::MaintenanceReport::workflows`] says that one is due. [`super::Archive::requeue`] and an
/// [`crate::Operation::Retry`] of a dead or cancelled job let the follow-ups wait again that wait for it, and wake
/// the jobs of workflows as [`FollowUps::wake`] does: those that wait for a requeued job ([`Wake::Reopen`]), and
/// those that are requeued themselves ([`Wake::Retry`]).
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

    /// Returns the jobs that wait for the end of a job, by id: at most `count`.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn followers(&self, conn: &mut Self::Conn, job: JobId, count: usize) -> Result<Vec<JobId>, Self::Error>;

    /// Returns whether a job has not ended that a follow-up waits for, as far as maintenance has noted it.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn waits(&self, conn: &mut Self::Conn, follow_up: JobId) -> Result<bool, Self::Error>;

    /// Returns the jobs of a workflow, by id: at most `count`, of those with ids above `after`. Their payloads are
    /// null, and they have no results and no logs.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn members(
        &self,
        conn: &mut Self::Conn,
        workflow: JobId,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Self::Error>;

    /// Makes a waiting follow-up due if it waits for no job: for a batch without jobs.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn release(&self, conn: &mut Self::Conn, follow_up: JobId) -> Result<(), Self::Error>;

    /// Notes that a job waits for another one, whatever its outcome, also if it has waited for that before. The
    /// caller must return the job to its queue in the same transaction, held until [`crate::After::HELD_UNTIL`].
    ///
    /// # Errors
    ///
    /// [`crate::Error::Circle`] if the other job waits for this one; the store's error.
    fn wait_for_job(&self, conn: &mut Self::Conn, follow_up: JobId, job: JobId) -> Result<(), Self::Error>;

    /// Archives jobs as cancelled that wait and that no transaction holds, with this reason, and returns those.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn cancel_waiting(
        &self,
        conn: &mut Self::Conn,
        jobs: &[JobId],
        reason: &str,
    ) -> Result<Vec<JobId>, Self::Error>;

    /// Lets jobs of a workflow run again that have ended, whatever their outcomes: at once, or held until all have
    /// ended that they have waited for.
    ///
    /// Held jobs, and those of the given ones that wait already, wait again for all that they have waited for, and
    /// the workflow waits again for the given jobs. A job of whose id one waits or runs is not requeued.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn wait_again(
        &self,
        conn: &mut Self::Conn,
        workflow: JobId,
        jobs: &[JobId],
        held: bool,
    ) -> Result<(), Self::Error>;

    /// Makes the job of a workflow due after this time, whether it waits or is archived, and notes why. Returns
    /// `false` if a transaction holds it, or if there is none.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn wake(
        &self,
        conn: &mut Self::Conn,
        workflow: JobId,
        why: Option<Wake>,
        after: Duration,
    ) -> Result<bool, Self::Error>;
}
