//! Counters of what became of jobs.

use super::Connect;
use crate::TaskCounters;

/// Keeps counters that outlive workers.
///
/// The store itself counts the jobs that it ends or returns without a worker: by maintenance, a cancellation or a
/// payload that cannot be decoded. It does that in the transaction in which they end.
pub trait Counting: Connect {
    /// Adds to the counters. Waits for no other transaction.
    ///
    /// # Errors
    ///
    /// The store's error. Nothing was added.
    fn count(&self, conn: &mut Self::Conn, counted: &[TaskCounters]) -> Result<(), Self::Error>;

    /// Returns the counters of all queues and tasks, sorted by queue and task.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn counted(&self, conn: &mut Self::Conn) -> Result<Vec<TaskCounters>, Self::Error>;
}

/// The number of queues whose counters a store keeps apart. See [`TaskCounters::merge`].
pub const MAX_COUNTED_QUEUES: usize = 1_000;

/// The number of tasks of a queue whose counters a store keeps apart.
pub const MAX_COUNTED_TASKS: usize = 100;
