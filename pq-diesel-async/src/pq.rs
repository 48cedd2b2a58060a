//! The handle.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel_async::AsyncPgConnection;
use pq_core::{
    Action, AuditEntry, ChangeOutcome, Filter, JobId, JobRecord, LimitedQueue, MaintenanceReport, Operation,
    OperationReport, PausedQueue, Predecessor, QueueCounts, Reason, Retention, StopMode, WorkerId,
    WorkerInfo,
};
use pq_diesel::Error;

use crate::builder::Builder;
use crate::queue::Queue;
use crate::shared::{Shared, change_on_connection, finish, on_connection, recorded};
use crate::transaction::AsyncFunc;

/// A handle to the queues of one table.
///
/// Cheap to clone, and usable from many tasks at once.
#[derive(Clone)]
pub struct Pq {
    pub(crate) shared: Arc<Shared>,
    /// The handle for threads, with the same actor.
    blocking: pq_diesel::Pq,
}

/// Shows the table.
impl fmt::Debug for Pq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.blocking.fmt(f)
    }
}

/// Creating a handle.
impl Pq {
    /// Connects to the database of this URL, and returns a handle to the table `pq.queue`.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] or [`Error::Unavailable`], without retries.
    #[cfg(feature = "deadpool")]
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let pq = Self::builder().url(url).build()?;
        pq.now().await?;
        Ok(pq)
    }

    /// Returns a handle to the table `pq.queue` that has no connections of its own.
    ///
    /// Its queues work only on the caller's connections, by [`Queue::on`].
    #[must_use]
    pub fn detached() -> Self {
        let timeout = Builder::default().call_timeout;
        Self::from_shared(Shared::new(pq_diesel::Pq::detached(), None, timeout))
    }

    pub(crate) fn from_shared(shared: Shared) -> Self {
        let blocking = shared.blocking.clone();
        Self { shared: Arc::new(shared), blocking }
    }

    /// Returns a builder for a handle with other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns the same handle for threads: its methods block, so they must not be called in an asynchronous task.
    ///
    /// It has connections of its own, and opens none before they are needed. It has what this crate lacks: the doctor,
    /// grants, periodic jobs.
    #[must_use]
    pub fn blocking(&self) -> &pq_diesel::Pq {
        &self.blocking
    }
}

impl Pq {
    /// Returns the shared state, for the conformance tests.
    #[doc(hidden)]
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Queues and transactions.
impl Pq {
    /// Returns the queue of this name, with payloads of type `T`.
    ///
    /// Nothing is created in the database: a queue exists as soon as a job is put.
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::InvalidQueueName`].
    pub fn queue<T>(&self, name: impl AsRef<str>) -> Result<Queue<T>, Error> {
        Ok(Queue::new(Arc::clone(&self.shared), self.blocking.queue(name)?))
    }

    /// Adds what this handle and its clones have put to the counters in the database.
    ///
    /// The handle does that every 10 s, so only a program that ends needs this call. See
    /// [`pq_core::Pq::store_put_counts`].
    ///
    /// # Errors
    ///
    /// The database's own. The counts are kept, unless the database may have added them.
    pub async fn store_put_counts(&self) -> Result<(), Error> {
        self.shared.store_put_counts().await
    }

    /// Runs `work` in a transaction at READ COMMITTED on a connection of the handle.
    ///
    /// `Ok` commits. An error rolls back. If the future is dropped, the connection is closed, and the server rolls
    /// back. To use a queue in the transaction, bind it to the connection by [`Queue::on`].
    ///
    /// # Errors
    ///
    /// The error of `work`, or the database's own.
    pub async fn transaction<R, E>(
        &self,
        work: impl for<'c> AsyncFnOnce(&'c mut AsyncPgConnection) -> Result<R, E>
        + for<'c> AsyncFunc<(&'c mut AsyncPgConnection,), Result<R, E>>
        + Send,
    ) -> Result<R, E>
    where
        R: Send,
        E: From<Error> + Send,
    {
        let mut lent = self.shared.begin().await?;
        let done = AsyncFunc::call(work, (lent.connection(),)).await;
        self.shared.end(lent, done).await
    }
}

/// Operations on jobs, on a connection of [`Pq::blocking`] in a thread of their own.
///
/// If the future is dropped, the operation goes on.
impl Pq {
    /// Explains why a job does not run, or what runs it. See [`pq_core::Pq::explain`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn explain(&self, id: JobId) -> Result<Vec<Reason>, Error> {
        self.in_thread(move |pq| pq.explain(id)).await
    }

    /// Returns the jobs for which a job waits or has waited, by id: at most `count`. See
    /// [`pq_core::PutOptions::after`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn predecessors(&self, follow_up: JobId, count: usize) -> Result<Vec<Predecessor>, Error> {
        self.in_thread(move |pq| pq.predecessors(follow_up, count)).await
    }

    /// Returns the queues that have limits, at most 100, with how much of these is used. See [`pq_core::Pq::limited`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn limited(&self) -> Result<Vec<LimitedQueue>, Error> {
        self.in_thread(move |pq| pq.limited()).await
    }

    /// Returns the jobs that wait for the end of a job, by id: at most `count`. See [`pq_core::PutOptions::after`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn followers(&self, job: JobId, count: usize) -> Result<Vec<JobId>, Error> {
        self.in_thread(move |pq| pq.followers(job, count)).await
    }

    /// Changes one job of any queue. See [`pq_core::Pq::change`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn change(&self, id: JobId, operation: &Operation) -> Result<ChangeOutcome, Error> {
        let operation = operation.clone();
        self.in_thread(move |pq| pq.change(id, &operation)).await
    }

    /// Counts the jobs that an operation would select, at most `limit`. See [`pq_core::Pq::preview`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn preview(&self, operation: &Operation, filter: &Filter, limit: usize) -> Result<u64, Error> {
        let (operation, filter) = (operation.clone(), filter.clone());
        self.in_thread(move |pq| pq.preview(&operation, &filter, limit)).await
    }

    /// Changes all jobs that the filter selects, in batches, and calls `progress` in that thread after each. See
    /// [`pq_core::Pq::operate`].
    ///
    /// # Errors
    ///
    /// The database's own. The batches before have been committed.
    pub async fn operate(
        &self,
        operation: &Operation,
        filter: &Filter,
        progress: impl FnMut(OperationReport) + Send + 'static,
    ) -> Result<OperationReport, Error> {
        let (operation, filter) = (operation.clone(), filter.clone());
        self.in_thread(move |pq| pq.operate(&operation, &filter, progress)).await
    }

    /// Runs a call of the handle for threads.
    pub(crate) async fn in_thread<R: Send + 'static>(
        &self,
        call: impl FnOnce(&pq_diesel::Pq) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Error> {
        let blocking = self.blocking.clone();
        let done = tokio::task::spawn_blocking(move || call(&blocking)).await;
        // The thread panicked, or the runtime is shutting down.
        done.unwrap_or_else(|error| Err(Error::OutcomeUnknown(error.to_string())))
    }
}

/// Operating all queues of the table.
impl Pq {
    /// Returns the same handle for an operator, whose operations are recorded in the audit log. See
    /// [`pq_core::Pq::acting_as`].
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::InvalidSetting`] unless the name has 1 to 200 bytes without NUL.
    pub fn acting_as(&self, actor: &str) -> Result<Self, Error> {
        Ok(Self { shared: Arc::clone(&self.shared), blocking: self.blocking.acting_as(actor)? })
    }

    /// Lists the audit log, the latest entry first: at most `count`. See [`pq_core::Pq::audit`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn audit(&self, before: Option<i64>, count: usize) -> Result<Vec<AuditEntry>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().audit_on(conn, before, count))
    }

    /// Counts the jobs of every queue by state. See [`pq_core::Pq::overview`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn overview(&self) -> Result<Vec<QueueCounts>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().overview_on(conn))
    }

    /// Lists the paused queues. See [`pq_core::Pq::paused_queues`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn paused_queues(&self) -> Result<Vec<PausedQueue>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().paused_on(conn))
    }

    /// Lists the jobs of all queues that the filter matches: at most `count`. See [`pq_core::Pq::list`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn list(&self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().list_on(conn, filter, count))
    }

    /// Finds a job of any queue by its id.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn find(&self, id: JobId) -> Result<Option<JobRecord>, Error> {
        let filter = Filter { id: Some(id), ..Filter::default() };
        Ok(self.list(&filter, 1).await?.pop())
    }

    /// Reads the database's clock, which decides what is due. Also shows that the database can be reached.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().now_on(conn))
    }

    /// Lists the live workers of all hosts. See [`pq_core::Pq::workers`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn workers(&self) -> Result<Vec<WorkerInfo>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().workers_on(conn))
    }

    /// Requests that a worker stops, on any host. See [`pq_core::Pq::stop_worker`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn stop_worker(&self, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        let (store, actor) = (self.shared.store(), self.blocking.actor());
        let action = Action::stop_worker(worker, mode);
        change_on_connection!(self.shared, |conn| recorded!(
            store,
            conn,
            actor,
            store.stop_worker_on(conn, worker, mode),
            |known| actor.filter(|_| known).map(|actor| action.record(actor, 1))
        ))
    }

    /// Returns the jobs of expired leases to their queues and prunes the archive: for programs without a worker.
    ///
    /// It takes as long as it needs: the call timeout does not apply. It does not put the periodic jobs that are due:
    /// [`pq_diesel::Pq::maintain`] of [`Pq::blocking`] does.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn maintain(&self, retention: &Retention) -> Result<Option<MaintenanceReport>, Error> {
        let mut lent = self.shared.lend().await?;
        let done = self.shared.store().maintain_on(&mut lent.sql(), retention).await;
        let mut report = finish(lent, done)?;
        if let Some(report) = report.as_mut().filter(|report| report.workflows) {
            report.more |= self.in_thread(|pq| pq.advance_workflows()).await?;
        }
        Ok(report)
    }

    /// Creates the table or migrates it to this version, on a connection of [`Pq::blocking`] in a thread of its own.
    ///
    /// # Errors
    ///
    /// The errors of [`pq_diesel::Pq::migrate`].
    pub async fn migrate(&self) -> Result<Vec<String>, Error> {
        self.in_thread(|pq| pq.migrate()).await
    }
}
