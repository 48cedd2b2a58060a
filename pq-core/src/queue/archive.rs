//! Jobs that have ended and are kept: listing, retrying and pruning them.

use std::time::Duration;

use super::Queue;
use super::audit::describe_ids;
use crate::{JobId, JobRecord, JobState, Store};

impl<S: Store, T> Queue<S, T> {
    /// Lists archived jobs that ended as `ended`, the latest first: at most `count`.
    ///
    /// With `before`, lists only those that come after that job in this order. To page, pass the last job of the
    /// previous page.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn archived(
        &self,
        ended: JobState,
        before: Option<&JobRecord>,
        count: usize,
    ) -> Result<Vec<JobRecord>, S::Error> {
        self.store().with_connection(|conn| self.store().archived(conn, &self.name, ended, before, count))
    }

    /// Requeues a dead or cancelled job: it is due at once, with its attempts counted from 0.
    ///
    /// Returns `false` if there is no such job in the archive, if its unique key is in use, or if a job with its id
    /// waits or runs. Of several archived jobs with this id (after a restart of the sequence of ids) the latest is
    /// requeued.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn retry(&self, id: JobId) -> Result<bool, S::Error> {
        Ok(self.retry_many(&[id])? == 1)
    }

    /// Requeues dead or cancelled jobs, as [`Queue::retry`] does, and returns their number.
    ///
    /// # Errors
    ///
    /// The store's errors; no job was requeued then.
    pub fn retry_many(&self, ids: &[JobId]) -> Result<u64, S::Error> {
        self.requeue(Some(ids))
    }

    /// Requeues all dead jobs of the queue, as [`Queue::retry`] does, and returns their number.
    ///
    /// # Errors
    ///
    /// The store's errors; no job was requeued then.
    pub fn retry_all_dead(&self) -> Result<u64, S::Error> {
        self.requeue(None)
    }

    fn requeue(&self, ids: Option<&[JobId]>) -> Result<u64, S::Error> {
        let action = self.action("retry").details(ids.map(describe_ids).unwrap_or_default());
        self.pq.recorded(&action, |back| *back, |conn| self.store().requeue(conn, &self.name, ids))
    }

    /// Deletes archived jobs that ended as `ended` more than `age` ago, and returns their number.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn prune(&self, ended: JobState, age: Duration) -> Result<u64, S::Error> {
        let action = self.action("prune").details(format!("{ended} jobs, older than {age:?}"));
        self.pq.recorded(&action, |pruned| *pruned, |conn| self.store().prune(conn, &self.name, ended, age))
    }
}
