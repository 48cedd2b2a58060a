//! The handle.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel_async::AsyncPgConnection;
use pq_core::{
    Filter, JobId, JobRecord, MaintenanceReport, QueueCounts, Retention, StopMode, WorkerId, WorkerInfo,
};
use pq_diesel::Error;

use crate::builder::Builder;
use crate::queue::Queue;
use crate::shared::{Shared, change_on_connection, finish, on_connection};
use crate::transaction::AsyncFunc;

/// A handle to the queues of one table.
///
/// Cheap to clone, and usable from many tasks at once.
#[derive(Clone)]
pub struct Pq {
    pub(crate) shared: Arc<Shared>,
}

/// Shows the table.
impl fmt::Debug for Pq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.blocking.fmt(f)
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
        Self { shared: Arc::new(Shared::new(pq_diesel::Pq::detached(), None, timeout)) }
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
        &self.shared.blocking
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
        Ok(Queue::new(Arc::clone(&self.shared), self.shared.blocking.queue(name)?))
    }

    /// Runs `work` in a transaction at READ COMMITTED on a connection of the handle.
    ///
    /// `Ok` commits. An error rolls back. If the future is dropped, the connection is closed, and the server rolls back. To
    /// use a queue in the transaction, bind it to the connection by [`Queue::on`].
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

/// Operating all queues of the table.
impl Pq {
    /// Counts the jobs of every queue by state. See [`pq_core::Pq::overview`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn overview(&self) -> Result<Vec<QueueCounts>, Error> {
        on_connection!(self.shared, |conn| self.shared.store().overview_on(conn))
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
        change_on_connection!(self.shared, |conn| self.shared.store().stop_worker_on(conn, worker, mode))
    }

    /// Returns the jobs of expired leases to their queues and prunes the archive: for programs without a worker.
    ///
    /// It takes as long as it needs: the call timeout does not apply. It does not put the periodic jobs that are due: [`pq_diesel::Pq::maintain`] of [`Pq::blocking`] does.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn maintain(&self, retention: &Retention) -> Result<Option<MaintenanceReport>, Error> {
        let mut lent = self.shared.lend().await?;
        let done = self.shared.store().maintain_on(&mut lent.sql(), retention).await;
        finish(lent, done)
    }

    /// Creates the table or migrates it to this version, on a connection of [`Pq::blocking`] in a thread of its own.
    ///
    /// # Errors
    ///
    /// The errors of [`pq_diesel::Pq::migrate`].
    pub async fn migrate(&self) -> Result<Vec<String>, Error> {
        let blocking = self.shared.blocking.clone();
        let migrated = tokio::task::spawn_blocking(move || blocking.migrate()).await;
        migrated.unwrap_or_else(|error| Err(Error::Migration(error.to_string())))
    }
}
