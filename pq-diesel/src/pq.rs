//! The handle, and the core's types on PostgreSQL.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::PgConnection;
use pq_core::store::Connect;
use pq_core::{
    AuditEntry, ChangeOutcome, Filter, JobId, JobRecord, LimitedQueue, MaintenanceReport, Operation,
    OperationReport, PausedQueue, QueueCounts, Reason, Retention, StopMode, TaskCounters, WorkerId,
    WorkerInfo,
};
#[cfg(feature = "cron")]
use pq_core::{Cron, CronEntry};

use crate::builder::{Builder, CALL_TIMEOUT, Notify, POLL_INTERVAL};
use crate::grants::{self, Role};
use crate::migrate::{self, Pending};
use crate::store::PgStore;
use crate::table::Table;
use crate::{Error, Settings};

/// A queue of jobs with payloads of type `T`, in a table of PostgreSQL. Created by [`Pq::queue`].
pub type Queue<T> = pq_core::Queue<PgStore, T>;

/// A queue on the caller's connection, inside the caller's transaction. Created by [`Queue::on`](pq_core::Queue::on).
pub type BoundQueue<'a, T> = pq_core::BoundQueue<'a, PgStore, T>;

/// A task: a name for work, with arguments of type `A`. Created by [`Queue::task`](pq_core::Queue::task).
pub type Task<A> = pq_core::Task<PgStore, A>;

/// A task on the caller's connection, inside the caller's transaction. Created by [`Task::on`](pq_core::Task::on).
pub type BoundTask<'a, A> = pq_core::BoundTask<'a, PgStore, A>;

/// A worker: threads that take jobs and run their handlers.
pub type Worker = pq_core::Worker<PgStore>;

/// A handler: runs the jobs of a task or of a queue. Created by [`Task::leased`](pq_core::Task::leased) and
/// [`Task::transactional`](pq_core::Task::transactional), and by the methods of the same names of a queue.
pub type Handler = pq_core::Handler<PgStore>;

/// The access of a leased handler to its job and its lease.
pub type Context = pq_core::Context<PgStore>;

/// Stops a worker and reports its status. Created by [`Worker::control`](pq_core::Worker::control).
pub type Control = pq_core::Control<PgStore>;

/// A handle to the queues of one table.
///
/// Cheap to clone, and usable from many threads at once.
#[derive(Clone)]
pub struct Pq(pub(crate) pq_core::Pq<PgStore>);

/// Shows the table.
impl fmt::Debug for Pq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pq({})", self.0.store().table)
    }
}

/// The core's handle to the same table, for [`pq_core::Worker::new`] and for code that is generic over the store.
impl AsRef<pq_core::Pq<PgStore>> for Pq {
    fn as_ref(&self) -> &pq_core::Pq<PgStore> {
        &self.0
    }
}

/// Creating a handle.
impl Pq {
    /// Connects to the database of this URL, or libpq `key=value` string, and returns a handle to the table `pq.queue`.
    ///
    /// The handle has connections of its own. It connects once to check that the server can be reached.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`], without retries.
    pub fn connect(url: &str) -> Result<Self, Error> {
        Self::builder().url(url).connect()
    }

    /// Connects to the database that the environment names, as [`Pq::connect`] does. See [`Settings::from_env`].
    ///
    /// # Errors
    ///
    /// The errors of [`Pq::connect`].
    pub fn from_env() -> Result<Self, Error> {
        Self::connect(Settings::from_env().conninfo())
    }

    /// Returns a handle to the table `pq.queue` that has no connections of its own.
    ///
    /// Its queues work only on the caller's connections, by [`pq_core::Queue::on`].
    #[must_use]
    pub fn detached() -> Self {
        let table = Table::default();
        let notify = Notify::default();
        Self(pq_core::Pq::new(PgStore::new(table, None, None, notify, POLL_INTERVAL, CALL_TIMEOUT)))
    }

    /// Returns a builder for a handle with other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn from_core(pq: pq_core::Pq<PgStore>) -> Self {
        Self(pq)
    }
}

/// Queues and transactions.
impl Pq {
    /// Returns the queue of this name, with payloads of type `T`.
    ///
    /// Nothing is created in the database: a queue exists as soon as a job is put. For any JSON use
    /// [`serde_json::Value`]. For JSON text, kept byte for byte, use `Box<serde_json::value::RawValue>`.
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::InvalidQueueName`].
    pub fn queue<T>(&self, name: impl AsRef<str>) -> Result<Queue<T>, Error> {
        Ok(self.0.queue(name)?)
    }

    /// Runs `work` in a transaction on a connection of the handle.
    ///
    /// `Ok` commits. An error or a panic rolls back. To use a queue in the transaction, bind it to the connection by
    /// [`pq_core::Queue::on`].
    ///
    /// # Errors
    ///
    /// The error of `work`, or the database's own.
    pub fn transaction<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        self.0.transaction(work)
    }

    /// Returns the store behind the handle, for code that uses the traits of [`crate::store`].
    #[must_use]
    pub fn store(&self) -> &PgStore {
        self.0.store()
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
        Ok(Self(self.0.acting_as(actor)?))
    }

    /// Returns the same handle with a `statement_timeout` for each statement of an operation. See
    /// [`pq_core::Pq::with_operation_timeout`].
    #[must_use]
    pub fn with_operation_timeout(&self, timeout: Duration) -> Self {
        Self(self.0.clone().with_operation_timeout(timeout))
    }

    /// Returns the operator whose operations the handle records, if there is one.
    #[must_use]
    pub fn actor(&self) -> Option<&str> {
        self.0.actor()
    }

    /// Lists the audit log, the latest entry first: at most `count`. See [`pq_core::Pq::audit`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn audit(&self, before: Option<i64>, count: usize) -> Result<Vec<AuditEntry>, Error> {
        self.0.audit(before, count)
    }

    /// Counts the jobs of every queue by state. See [`pq_core::Pq::overview`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn overview(&self) -> Result<Vec<QueueCounts>, Error> {
        self.0.overview()
    }

    /// Lists the paused queues. See [`pq_core::Pq::paused_queues`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn paused_queues(&self) -> Result<Vec<PausedQueue>, Error> {
        self.0.paused_queues()
    }

    /// Returns what became of jobs, by queue and task. See [`pq_core::Pq::counters`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn counters(&self) -> Result<Vec<TaskCounters>, Error> {
        self.0.counters()
    }

    /// Adds what this handle and its clones have put to the counters in the database, which it also does every 10 s
    /// and at its end. See [`pq_core::Pq::store_put_counts`].
    ///
    /// # Errors
    ///
    /// The database's own. The counts are kept, unless the database may have added them.
    pub fn store_put_counts(&self) -> Result<(), Error> {
        self.0.store_put_counts()
    }

    /// Returns the queues that have limits, at most 100, with how much of these is used. See [`pq_core::Pq::limited`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn limited(&self) -> Result<Vec<LimitedQueue>, Error> {
        self.0.limited()
    }

    /// Lists the jobs of all queues that the filter matches: at most `count`. See [`pq_core::Pq::list`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn list(&self, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        self.0.list(filter, count)
    }

    /// Finds a job of any queue by its id. See [`pq_core::Pq::find`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn find(&self, id: JobId) -> Result<Option<JobRecord>, Error> {
        self.0.find(id)
    }

    /// Explains why a job does not run, or what runs it. See [`pq_core::Pq::explain`].
    ///
    /// An open transaction that holds the job is named by its server process, its application and its age. The age of
    /// other roles' transactions is visible to members of `pg_read_all_stats`.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn explain(&self, id: JobId) -> Result<Vec<Reason>, Error> {
        self.0.explain(id)
    }

    /// Explains why a job does not run on the caller's connection, as [`Pq::explain`] does.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn explain_on(&self, conn: &mut PgConnection, id: JobId) -> Result<Vec<Reason>, Error> {
        self.0.explain_on(conn, id)
    }

    /// Changes one job of any queue, in one transaction. See [`pq_core::Pq::change`].
    ///
    /// # Errors
    ///
    /// The database's own; the job was not changed then.
    pub fn change(&self, id: JobId, operation: &Operation) -> Result<ChangeOutcome, Error> {
        self.0.change(id, operation)
    }

    /// Counts the jobs that an operation would select, at most `limit`. See [`pq_core::Pq::preview`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn preview(&self, operation: &Operation, filter: &Filter, limit: usize) -> Result<u64, Error> {
        self.0.preview(operation, filter, limit)
    }

    /// Changes all jobs that the filter selects, in batches, and calls `progress` after each. See
    /// [`pq_core::Pq::operate`].
    ///
    /// # Errors
    ///
    /// The database's own. The batches before have been committed.
    pub fn operate(
        &self,
        operation: &Operation,
        filter: &Filter,
        progress: impl FnMut(OperationReport),
    ) -> Result<OperationReport, Error> {
        self.0.operate(operation, filter, progress)
    }

    /// Reads the database's clock, which decides what is due.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn now(&self) -> Result<DateTime<Utc>, Error> {
        self.0.now()
    }

    /// Lists the live workers of all hosts. See [`pq_core::Pq::workers`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn workers(&self) -> Result<Vec<WorkerInfo>, Error> {
        self.0.workers()
    }

    /// Requests that a worker stops, on any host. See [`pq_core::Pq::stop_worker`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn stop_worker(&self, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        self.0.stop_worker(worker, mode)
    }

    /// Runs the maintenance that every worker runs: for programs without a worker. See [`pq_core::Pq::maintain`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn maintain(&self, retention: &Retention) -> Result<Option<MaintenanceReport>, Error> {
        self.0.maintain(retention)
    }
}

/// Periodic jobs.
#[cfg(feature = "cron")]
impl Pq {
    /// Sets a periodic job, replacing one of the same name. See [`pq_core::Pq::set_cron`].
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::InvalidSetting`] if the expression has no future tick; the database's own.
    pub fn set_cron(&self, cron: &Cron) -> Result<bool, Error> {
        self.0.set_cron(cron)
    }

    /// Lists the periodic jobs, ordered by name.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn crons(&self) -> Result<Vec<CronEntry>, Error> {
        self.0.crons()
    }

    /// Puts the job of a periodic job now. See [`pq_core::Pq::run_cron`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn run_cron(&self, name: &str) -> Result<Option<JobId>, Error> {
        self.0.run_cron(name)
    }

    /// Removes a periodic job. See [`pq_core::Pq::remove_cron`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn remove_cron(&self, name: &str) -> Result<bool, Error> {
        self.0.remove_cron(name)
    }

    /// Pauses a periodic job. See [`pq_core::Pq::pause_cron`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn pause_cron(&self, name: &str) -> Result<bool, Error> {
        self.0.pause_cron(name)
    }

    /// Resumes a periodic job. See [`pq_core::Pq::resume_cron`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn resume_cron(&self, name: &str) -> Result<bool, Error> {
        self.0.resume_cron(name)
    }
}

/// Migrations and grants.
impl Pq {
    /// Creates the table or migrates it to this version, on a connection of the handle.
    ///
    /// Returns the versions of the migrations that it ran: none if the table is up to date. Any number of processes may
    /// call it at once.
    ///
    /// # Errors
    ///
    /// [`Error::Migration`] if there is a table of this name that pq did not create; the database's own.
    pub fn migrate(&self) -> Result<Vec<String>, Error> {
        let store = self.store();
        store.with_connection(|conn| store.with_call_timeout(conn, None, |conn| self.migrate_on(conn)))
    }

    /// Creates or migrates the table on the caller's connection, inside its transaction if it is in one.
    ///
    /// # Errors
    ///
    /// The errors of [`Pq::migrate`].
    pub fn migrate_on(&self, conn: &mut PgConnection) -> Result<Vec<String>, Error> {
        migrate::migrate(conn, &self.store().table)
    }

    /// Reverts all migrations. **This deletes the table and every job in it.**
    ///
    /// Deletes the schema too, if the migrations created it and it is empty.
    ///
    /// # Errors
    ///
    /// The database's own; nothing was deleted then.
    pub fn revert_migrations_on(&self, conn: &mut PgConnection) -> Result<(), Error> {
        migrate::revert(conn, &self.store().table)
    }

    /// Lists the migrations that [`Pq::migrate`] would run now, in order.
    ///
    /// Changes nothing, but needs the permission to.
    ///
    /// # Errors
    ///
    /// The errors of [`Pq::migrate`].
    pub fn pending_migrations_on(&self, conn: &mut PgConnection) -> Result<Vec<Pending>, Error> {
        migrate::pending(conn, &self.store().table)
    }

    /// Lists the migrations that [`Pq::migrate_down_to_on`] would revert, the last first.
    ///
    /// Changes nothing, but needs the permission to.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMigration`] if there is no such version; the database's own.
    pub fn migrations_after_on(&self, conn: &mut PgConnection, version: &str) -> Result<Vec<String>, Error> {
        migrate::applied_after(conn, &self.store().table, version)
    }

    /// Returns the SQL by which [`Pq::migrate_down_to_on`] would revert migrations, the last first.
    ///
    /// Changes nothing, but needs the permission to.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMigration`] if there is no such version; the database's own.
    pub fn revert_sql_on(&self, conn: &mut PgConnection, version: &str) -> Result<Vec<Pending>, Error> {
        migrate::revert_script(conn, &self.store().table, version)
    }

    /// Reverts the migrations after this version, the last first, and returns them. `0` reverts all.
    ///
    /// **Data that only the reverted migrations can hold is deleted.** Each of them says what it keeps.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMigration`] if there is no such version; the database's own. Nothing was reverted then.
    pub fn migrate_down_to_on(&self, conn: &mut PgConnection, version: &str) -> Result<Vec<String>, Error> {
        migrate::revert_after(conn, &self.store().table, version)
    }

    /// Returns the statements that grant a database role the permissions of a kind of process, and no others.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidIdentifier`], [`Error::NotMigrated`], or the database's own.
    pub fn grant_sql_on(&self, conn: &mut PgConnection, role: Role, to: &str) -> Result<Vec<String>, Error> {
        grants::statements(conn, &self.store().table, role, to)
    }

    /// Grants a database role the permissions of a kind of process, all or none. Returns the number of statements.
    ///
    /// # Errors
    ///
    /// [`Error::NotGranted`] if the session's role may not grant them, of which the server only warns. The errors of
    /// [`Pq::grant_sql_on`].
    pub fn grant_on(&self, conn: &mut PgConnection, role: Role, to: &str) -> Result<usize, Error> {
        grants::grant_all(conn, &self.store().table, role, to)
    }

    /// Returns the SQL that [`Pq::migrate`] runs on an empty database, for `psql`.
    #[must_use]
    pub fn schema_sql(&self) -> String {
        migrate::script(&self.store().table)
    }
}
