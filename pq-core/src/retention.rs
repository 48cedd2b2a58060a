//! How long archived jobs and the audit log are kept, and what maintenance did.

use std::time::Duration;

use crate::JobState;

/// The time for which the archive keeps jobs after their end, and the audit log its entries. `None` keeps them forever.
///
/// ```
/// use pq_core::Retention;
///
/// let retention = Retention::default().dead_days(30);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Retention {
    /// The time for completed jobs. Default: 7 days.
    pub done: Option<Duration>,
    /// The time for dead jobs. Default: 90 days.
    pub dead: Option<Duration>,
    /// The time for cancelled jobs. Default: 7 days.
    pub cancelled: Option<Duration>,
    /// The time for entries of the audit log. Default: 90 days.
    pub audit: Option<Duration>,
}

impl Retention {
    /// Returns how long jobs in this state are kept; `None` if they are never pruned, and for live jobs.
    #[must_use]
    pub fn of(&self, state: JobState) -> Option<Duration> {
        match state {
            JobState::Done => self.done,
            JobState::Dead => self.dead,
            JobState::Cancelled => self.cancelled,
            _ => None,
        }
    }

    /// Keeps completed jobs for this many days.
    #[must_use]
    pub fn done_days(mut self, days: u16) -> Self {
        self.done = Some(from_days(days));
        self
    }

    /// Keeps dead jobs for this many days.
    #[must_use]
    pub fn dead_days(mut self, days: u16) -> Self {
        self.dead = Some(from_days(days));
        self
    }

    /// Keeps cancelled jobs for this many days.
    #[must_use]
    pub fn cancelled_days(mut self, days: u16) -> Self {
        self.cancelled = Some(from_days(days));
        self
    }

    /// Keeps entries of the audit log for this many days.
    #[must_use]
    pub fn audit_days(mut self, days: u16) -> Self {
        self.audit = Some(from_days(days));
        self
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            done: Some(from_days(7)),
            dead: Some(from_days(90)),
            cancelled: Some(from_days(7)),
            audit: Some(from_days(90)),
        }
    }
}

fn from_days(days: u16) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

/// The results of one run of maintenance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MaintenanceReport {
    /// Jobs of expired leases that were requeued, or archived as cancelled if that was requested.
    pub returned: u64,
    /// Jobs that were deleted from the archive.
    pub pruned: u64,
    /// Whether the run reached one of its limits, so that more leases may have expired, or more jobs may have ended
    /// for which others wait.
    pub more: bool,
    /// Whether jobs wait until others have ended.
    pub waits: bool,
    /// Whether more jobs wait than the run has looked at. The next run goes on behind them.
    pub waits_left: bool,
    /// Whether the job of a workflow is due, which [`crate::Pq::maintain`] runs.
    pub workflows: bool,
}
