//! Positions in the order in which jobs are taken.

use chrono::{DateTime, Utc};
use diesel::pg::data_types::PgTimestamp;
use pq_core::{Claim, NewJob};

use crate::prepared::Value;
use crate::rows::since_epoch;

/// A position in the order in which jobs are taken, by the columns of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SortKey {
    pub(super) neg_priority: i64,
    /// In PostgreSQL's microseconds. `i64::MAX` if the job has no such time.
    pub(super) expected_at: i64,
    pub(super) id: i64,
}

impl SortKey {
    /// Sorts before every job.
    pub(super) const FIRST: Self = Self { neg_priority: i64::MIN, expected_at: i64::MIN, id: i64::MIN };

    /// Returns the key of a job, unless its time has no exact number here.
    pub(super) fn of(job: &Claim) -> Option<Self> {
        let expected_at = match job.expected_at {
            None => i64::MAX,
            Some(at) if at == DateTime::<Utc>::MIN_UTC || at == DateTime::<Utc>::MAX_UTC => return None,
            Some(at) => since_epoch(at),
        };
        Some(Self { neg_priority: -i64::from(job.priority), expected_at, id: job.id.0 })
    }

    /// Returns the values of the parameters for this key.
    pub(super) fn values(self) -> [Value<'static>; 3] {
        let expected_at = Value::Timestamp(PgTimestamp(self.expected_at));
        [Value::BigInt(self.neg_priority), expected_at, Value::BigInt(self.id)]
    }

    /// Returns `true` if a job that is put now may sort before this key. Its id is not known yet.
    pub(super) fn may_follow(&self, job: &NewJob) -> bool {
        let neg_priority = -i64::from(job.priority);
        neg_priority < self.neg_priority || (neg_priority == self.neg_priority && job.expected_at.is_some())
    }
}
