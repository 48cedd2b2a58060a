//! Places in the line.

use chrono::{DateTime, Utc};
use pq_core::{NewJob, RawJob};

use crate::rows::since_epoch;

/// A place in the line, by the columns of its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) rank: i64,
    pub(super) wanted: i64,
    pub(super) id: i64,
}

impl Place {
    /// Before every job.
    pub(super) const FIRST: Self = Self { rank: i64::MIN, wanted: i64::MIN, id: i64::MIN };

    /// The place of a job, unless its time is one that has no exact number here.
    pub(super) fn of(job: &RawJob) -> Option<Self> {
        let wanted = match job.expected_at {
            None => i64::MAX,
            Some(at) if at == DateTime::<Utc>::MIN_UTC || at == DateTime::<Utc>::MAX_UTC => return None,
            Some(at) => since_epoch(at),
        };
        Some(Self { rank: -i64::from(job.priority), wanted, id: job.id.0 })
    }

    /// Whether this place is behind that of a job that is put now, as far as can be told.
    pub(super) fn is_behind(&self, job: &NewJob) -> bool {
        let rank = -i64::from(job.priority);
        rank < self.rank || (rank == self.rank && job.expected_at.is_some())
    }
}
