//! Jobs that have ended, and maintenance.

use std::time::Duration;

use super::Connect;
use crate::{Ended, EndedAs, JobId, MaintenanceReport, QueueName, Retention};

/// Keeps jobs that have ended.
pub trait Archive: Connect {
    /// Returns up to `count` jobs of the queue that ended so, the latest first.
    ///
    /// With `before`, returns only the jobs that come after it in this order (by end, then by id), so that the last job
    /// of one page starts the next.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn archived(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        ended: EndedAs,
        before: Option<&Ended>,
        count: usize,
    ) -> Result<Vec<Ended>, Self::Error>;

    /// Returns archived jobs to the queue and reports how many.
    ///
    /// With `ids`, these dead or cancelled jobs; without, all dead jobs of the queue. They are due at once, keep their
    /// ids, and their attempts start at zero. A job whose unique key is in use stays in the archive.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn requeue(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Self::Error>;

    /// Deletes jobs of the archive that ended so at least `age` ago, and returns their number.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn prune(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        ended: EndedAs,
        age: Duration,
    ) -> Result<u64, Self::Error>;

    /// Runs one bounded step of maintenance on all queues.
    ///
    /// Returns jobs whose lease has expired, prunes the archive by `retention`, and forgets workers without a recent
    /// heartbeat. Any process may call it at any time. Returns `None` if another process is running it. `conn` must not
    /// be in a transaction.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn maintain(
        &self,
        conn: &mut Self::Conn,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Self::Error>;
}
