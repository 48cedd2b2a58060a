//! Looking after a queue: single jobs, and those that have ended.

use std::time::Duration;

use super::Queue;
use crate::{Cancelled, Ended, EndedAs, JobId, JobStatus, Store};

impl<S: Store, T> Queue<S, T> {
    /// Where a job is; `None` where it is done and nothing was kept of it, or was never there.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn find(&self, id: JobId) -> Result<Option<JobStatus>, S::Error> {
        self.store().with_connection(|conn| self.store().find(conn, &self.name, id))
    }

    /// Cancels a job: one that waits at once, one that runs under a lease by telling its handler.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn cancel(&self, id: JobId) -> Result<Cancelled, S::Error> {
        self.store().with_connection(|conn| self.store().cancel(conn, &self.name, id))
    }

    /// The jobs of the archive that ended so, the last first: at most `count`, and the ones behind
    /// `before` if it is given, so that the last of one page begins the next.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn archived(
        &self,
        ended: EndedAs,
        before: Option<&Ended>,
        count: usize,
    ) -> Result<Vec<Ended>, S::Error> {
        self.store().with_connection(|conn| self.store().archived(conn, &self.name, ended, before, count))
    }

    /// Puts a dead or cancelled job back into the line, due at once and with its attempts counted from
    /// the beginning. `false` where there is none of this id, or its unique key is in use.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn retry(&self, id: JobId) -> Result<bool, S::Error> {
        Ok(self.retry_many(&[id])? == 1)
    }

    /// Puts these dead or cancelled jobs back into the line, as [`Queue::retry`] does, and says how many.
    ///
    /// # Errors
    ///
    /// The store's own; none went back then.
    pub fn retry_many(&self, ids: &[JobId]) -> Result<u64, S::Error> {
        self.store().with_connection(|conn| self.store().requeue(conn, &self.name, Some(ids)))
    }

    /// Puts all dead jobs of the queue back into the line, as [`Queue::retry`] does, and says how many.
    ///
    /// # Errors
    ///
    /// The store's own; none went back then.
    pub fn retry_all_dead(&self) -> Result<u64, S::Error> {
        self.store().with_connection(|conn| self.store().requeue(conn, &self.name, None))
    }

    /// Removes from the archive what ended so longer than `age` ago, and says how many.
    ///
    /// # Errors
    ///
    /// The store's own.
    pub fn prune(&self, ended: EndedAs, age: Duration) -> Result<u64, S::Error> {
        self.store().with_connection(|conn| self.store().prune(conn, &self.name, ended, age))
    }
}
