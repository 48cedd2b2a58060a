//! Operations on all jobs that a filter selects.

use super::Connect;
use crate::{Filter, JobState, Operation};

/// Changes the jobs that a filter selects, in bounded batches.
pub trait Operations: Connect {
    /// Counts the jobs that the filter selects, at most `limit`, without a lock.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn tally(&self, conn: &mut Self::Conn, filter: &Filter, limit: usize) -> Result<u64, Self::Error>;

    /// Changes the first `count` jobs of one source that the filter selects, after the position `after`.
    ///
    /// The states of the filter are such that the operation can change ([`Operation::selection`]). A job that a
    /// transaction holds is passed and never waited for, and so is one whose unique key is in use. Jobs that come
    /// into a queue notify signals as puts do.
    ///
    /// # Errors
    ///
    /// The store's error. No job was changed.
    fn apply(
        &self,
        conn: &mut Self::Conn,
        operation: &Operation,
        filter: &Filter,
        source: Source,
        after: i64,
        count: usize,
    ) -> Result<Batch, Self::Error>;
}

/// Where a store keeps jobs. An operation goes through each in an order of the store's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The queues: jobs that wait, and those that a Python `pq` took.
    Queue,
    /// The leases: jobs that run.
    Leases,
    /// The archive: jobs that have ended.
    Archive,
}

impl Source {
    /// Returns where jobs in this state are.
    #[must_use]
    pub fn of(state: JobState) -> Self {
        match state {
            JobState::Ready | JobState::Blocked | JobState::Scheduled | JobState::Dequeued => Self::Queue,
            JobState::Running => Self::Leases,
            JobState::Dead | JobState::Cancelled | JobState::Done => Self::Archive,
        }
    }
}

/// The jobs of one step of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The number of jobs that the filter selected. Fewer than were asked for are the last ones.
    pub selected: u64,
    /// The number of those that were changed.
    pub changed: u64,
    /// The position of the last one, after which the next batch begins.
    pub last: Option<i64>,
}
