//! Counting, listing and operating a queue.

use pq_core::{Action, AuditRecord, CancelOutcome, Filter, JobId, JobRecord, JobState, QueueCounts};
use pq_diesel::Error;

use crate::queue::Queue;
use crate::shared::{change_on_connection, finish, on_connection, recorded};

impl<T> Queue<T> {
    /// Returns the operator whose operations are recorded.
    pub(crate) fn actor(&self) -> Option<&str> {
        self.queue.pq().actor()
    }

    /// Returns the record of an operation, if there is an operator and it changed anything.
    pub(crate) fn record(&self, action: &str, job: Option<JobId>, count: u64) -> Option<AuditRecord> {
        let actor = self.actor().filter(|_| count > 0)?;
        let action = Action::new(action).queue(self.name().as_str());
        Some(job.into_iter().fold(action, Action::job).record(actor, count))
    }

    /// Counts the queue's jobs by state.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn counts(&self) -> Result<QueueCounts, Error> {
        on_connection!(self.shared, |conn| self.shared.store().counts_on(conn, self.name()))
    }

    /// Lists the jobs of the queue that the filter matches: at most `count`. See [`pq_core::Queue::list`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn list(&self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        let filter = Filter { queue: Some(self.name().to_string()), ..filter.clone() };
        on_connection!(self.shared, |conn| self.shared.store().list_on(conn, &filter, count))
    }

    /// Finds a job by its id, waiting, running or ended.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn find(&self, id: JobId) -> Result<Option<JobRecord>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().find_on(conn, self.name(), id))
    }

    /// Cancels a job. See [`pq_core::Queue::cancel`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn cancel(&self, id: JobId) -> Result<CancelOutcome, Error> {
        let store = self.shared.store();
        change_on_connection!(self.shared, |conn| recorded!(
            store,
            conn,
            self.actor(),
            store.cancel_on(conn, self.name(), id),
            |outcome| self.record("cancel", Some(id), u64::from(outcome.is_accepted()))
        ))
    }

    /// Lists jobs that have ended in this state, the newest first: at most `count`.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn archived(&self, state: JobState, count: usize) -> Result<Vec<JobRecord>, Error> {
        on_connection!(self.shared, |conn| {
            self.shared.store().archived_on(conn, self.name(), state, None, count)
        })
    }

    /// Requeues dead jobs, those with these ids or all, and returns their number. See [`pq_core::Queue::retry`].
    ///
    /// It takes as long as it needs: the call timeout does not apply.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn requeue(&self, ids: Option<&[JobId]>) -> Result<u64, Error> {
        let mut lent = self.shared.lend().await?;
        let store = self.shared.store();
        let done = {
            let mut sql = lent.sql();
            let conn = &mut sql;
            let call =
                recorded!(store, conn, self.actor(), store.requeue_on(conn, self.name(), ids), |back| self
                    .record("retry", None, back));
            call.await
        };
        finish(lent, done)
    }

    /// Deletes all jobs of the queue that nothing holds, and returns their number.
    ///
    /// It takes as long as it needs: the call timeout does not apply.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn clear(&self) -> Result<u64, Error> {
        let mut lent = self.shared.lend().await?;
        let store = self.shared.store();
        let done = {
            let mut sql = lent.sql();
            let conn = &mut sql;
            let call =
                recorded!(store, conn, self.actor(), store.clear_on(conn, self.name()), |cleared| self
                    .record("clear", None, cleared));
            call.await
        };
        finish(lent, done)
    }

    /// Pauses the queue: its jobs are not taken until it is resumed. Returns whether anything changed.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn pause(&self) -> Result<bool, Error> {
        self.set_paused(true).await
    }

    /// Resumes the queue. Returns whether anything changed.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn resume(&self) -> Result<bool, Error> {
        self.set_paused(false).await
    }

    async fn set_paused(&self, paused: bool) -> Result<bool, Error> {
        let (store, by) = (self.shared.store(), self.actor());
        let action = if paused { "pause" } else { "resume" };
        change_on_connection!(self.shared, |conn| recorded!(
            store,
            conn,
            by,
            store.pause_on(conn, self.name(), paused, by),
            |changed| self.record(action, None, u64::from(changed))
        ))
    }
}
