//! The PostgreSQL store, and the traits that it implements.
//!
//! For implementors of stores and for measurements. Not covered by semantic versioning. Applications use
//! [`crate::Pq`] and [`crate::Queue`].
//!
//! Each store trait of the core is implemented in the file of its name, and `Connect` in `transaction.rs`.

mod admin;
mod archive;
mod audit;
mod chunks;
mod counting;
mod encoding;
mod explain;
mod fast_path;
mod follow_ups;
#[cfg(test)]
mod group_commit_tests;
mod group_take;
mod jobs;
mod limits;
mod maintenance;
mod metrics;
mod notes;
mod operations;
mod put;
mod results;
mod schedules;
mod settle;
mod steps;
mod take;
mod time_travel;
mod transaction;
mod transaction_tracker;
mod workers;

use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::Text;
use pq_core::{Isolation, NewJob, QueueName};

pub use pq_core::store::{
    Admin, Archive, Audit, Connect, Counting, Explain, FollowUps, Jobs, Limiting, Notes, Operations, Results,
    Rows, Schedules, Steps, Store, StoreError, TimeTravel, Workers,
};

use self::fast_path::FastPath;
use self::group_take::GroupTakes;
pub use self::put::may_be_shared;
use self::put::{GroupPuts, may_be_notified_later};
use self::take::{BusyPauses, FallbackLevels, PayloadStorage};
pub use crate::connection::{Answer, Failed, Limited, Load, SqlConnection};
use crate::listener::Listener;
pub use crate::listener::Subscription;
use crate::pool::Pool;
pub use crate::prepared::Bound;
use crate::prepared::{Statement, Value};
use crate::statements::{Measure, Statements, Trigger};
pub use crate::table::Table;
use crate::{Error, Notify};

/// Keeps jobs in a table of PostgreSQL. [`crate::Builder`] creates it.
pub struct PgStore {
    pub(crate) table: Table,
    pub(crate) statements: Statements,
    pub(crate) pool: Option<Pool>,
    pub(crate) listener: Option<Listener>,
    pub(crate) notify: Notify,
    pub(crate) poll_interval: Duration,
    pub(crate) fallback_levels: FallbackLevels,
    pub(crate) busy_pauses: BusyPauses,
    pub(crate) payload_storage: PayloadStorage,
    pub(crate) fast_path: FastPath,
    pub(crate) group_puts: GroupPuts,
    pub(crate) group_takes: GroupTakes,
    /// The last note of which maintenance has checked whether its job still exists.
    pub(crate) notes_checked: Mutex<(i64, i64)>,
    pub(crate) waits_checked: Mutex<(i64, i64)>,
    pub(crate) waits_forgotten: AtomicI64,
    /// The job after which maintenance looks for steps of jobs that have ended.
    pub(crate) steps_position: AtomicI64,
}

/// The maximum length of an error that is stored with a job, in characters.
const ERROR_CHARS: usize = 2_000;

impl std::fmt::Debug for PgStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PgStore({})", self.table)
    }
}

impl PgStore {
    pub(crate) fn new(
        table: Table,
        pool: Option<Pool>,
        listener: Option<Listener>,
        notify: Notify,
        poll_interval: Duration,
        call_timeout: Duration,
    ) -> Self {
        Self {
            statements: Statements::new(&table),
            table,
            pool,
            listener,
            notify,
            poll_interval,
            fallback_levels: FallbackLevels::default(),
            busy_pauses: BusyPauses::default(),
            payload_storage: PayloadStorage::default(),
            fast_path: FastPath::default(),
            group_puts: GroupPuts::new(call_timeout),
            group_takes: GroupTakes::new(call_timeout),
            notes_checked: Mutex::new(notes::FIRST_NOTE),
            waits_checked: Mutex::new(follow_ups::FIRST_WAIT),
            waits_forgotten: AtomicI64::new(i64::MIN),
            steps_position: AtomicI64::new(i64::MIN),
        }
    }

    /// Returns the texts of the most frequent statements, for EXPLAIN and to measure what bare SQL costs.
    ///
    /// They put a job, take one, take many of a queue that has only ready jobs, and take many of any queue. `$1` is the
    /// name of the queue. `$2` is the payload of the put, a number that identifies the take of one job, and null in the
    /// takes of many, whose `$3` is the number of jobs.
    #[must_use]
    pub fn hot_statements(&self) -> [(&'static str, String); 4] {
        let Statements { put_one, fast_take, fallbacks, .. } = &self.statements;
        let take_one = fast_take.behind_key.of(1, Measure::No).0.text();
        let from_start = [("$3", "'-9223372036854775808'"), ("$4", "'-infinity'"), ("$5", "0")];
        let take_one = from_start.into_iter().fold(take_one, |text, (key, first)| text.replace(key, first));
        [
            ("put", put_one.of(Trigger::Fires).text()),
            ("take one", take_one),
            ("take", fallbacks[0].of(usize::MAX, Measure::No).0.text()),
            ("take with jobs sorted in", fallbacks[1].of(usize::MAX, Measure::No).0.text()),
        ]
    }

    /// Returns whether the table's trigger fires for puts that are a transaction of their own.
    fn own_trigger(&self) -> Trigger {
        if self.notify == Notify::InCommit { Trigger::Fires } else { Trigger::Off }
    }

    /// Returns whether the trigger fires for a put of these jobs in the transaction of the connection, and records the
    /// put if this handle commits that transaction.
    fn trigger_in(&self, conn: &PgConnection, queue: &QueueName, jobs: &[NewJob]) -> Trigger {
        let is_ours = may_be_notified_later(jobs) && transaction_tracker::record_put(self, conn, queue);
        let later = self.notify == Notify::AfterCommit && self.listener.is_some();
        if !is_ours && let Some(listener) = &self.listener {
            listener.record_put(queue);
        }
        if is_ours && later { Trigger::OffForThis } else { Trigger::Fires }
    }

    /// Notifies waiters of a committed put.
    ///
    /// Waiters of this handle need no notification of the server. Others get one here if the commit sent none.
    fn has_put(&self, queue: &QueueName) {
        let Some(listener) = self.listener.as_ref().filter(|_| self.notify != Notify::Off) else { return };
        listener.wake_own_waiters(queue);
        if self.notify == Notify::AfterCommit {
            listener.notify(queue);
        } else {
            listener.record_put(queue);
        }
    }

    /// Converts the error of a statement that used the table.
    #[must_use]
    pub fn error(&self, error: Failed) -> Error {
        Error::of(&self.table, error)
    }

    /// Runs a statement and returns its rows.
    async fn rows<Row, T>(
        &self,
        conn: &mut impl Load<Row, T>,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<T>, Error> {
        conn.load(statement.with::<Row>(values)).await.map_err(|e| self.error(e))
    }

    /// Runs a statement that returns at most one row.
    async fn one<Row, T>(
        &self,
        conn: &mut impl Load<Row, T>,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Option<T>, Error> {
        Ok(self.rows::<Row, T>(conn, statement, values).await?.into_iter().next())
    }

    /// Runs a statement that returns one row.
    async fn only<Row, T>(
        &self,
        conn: &mut impl Load<Row, T>,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<T, Error> {
        let row = self.one::<Row, T>(conn, statement, values).await?;
        row.ok_or_else(|| diesel::result::Error::NotFound.into())
    }

    /// Runs a statement and returns the number of its rows.
    async fn changed(
        &self,
        conn: &mut impl SqlConnection,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<usize, Error> {
        conn.execute(statement.with::<Text>(values)).await.map_err(|e| self.error(e))
    }

    /// Begins a transaction, or a nested one, in which no query is compiled (JIT), and returns in how many others it
    /// is.
    ///
    /// Queries of large tables have high estimated costs, and compiling them would take longer than running them. The
    /// caller rolls the transaction back, which restores the setting.
    async fn begin_without_jit(&self, conn: &mut impl SqlConnection) -> Result<u32, Error> {
        let around = self.begin(conn).await?;
        match conn.run("SET LOCAL jit = off").await {
            Ok(()) => Ok(around),
            Err(error) => self.end(conn, around, Err(self.error(error))).await,
        }
    }

    /// Begins a transaction at READ COMMITTED, or a nested one, and returns in how many others it is.
    #[allow(clippy::missing_errors_doc)]
    pub async fn begin(&self, conn: &mut impl SqlConnection) -> Result<u32, Error> {
        let around = conn.depth()?;
        conn.begin(around, Isolation::ReadCommitted).await.map_err(|e| self.error(e))?;
        Ok(around)
    }

    /// Commits the transaction that is in `around` others, or rolls it back after an error, and returns the result.
    #[allow(clippy::missing_errors_doc)]
    pub async fn end<R>(
        &self,
        conn: &mut impl SqlConnection,
        around: u32,
        done: Result<R, Error>,
    ) -> Result<R, Error> {
        let error = match done {
            Ok(done) => match conn.commit(around).await.map_err(|e| self.error(e)) {
                Ok(()) => return Ok(done),
                Err(error) if around == 0 => error.unless_committed(),
                Err(error) => error,
            },
            Err(error) => error,
        };
        // A rollback fails only if the connection is lost, and then the server rolls back.
        let _ = conn.roll_back_to(around).await;
        Err(error)
    }
}

/// Returns the error as PostgreSQL can store it: without NUL, and at most [`ERROR_CHARS`] long.
fn storable(error: &str) -> String {
    error.chars().filter(|c| *c != '\0').take(ERROR_CHARS).collect()
}

/// Returns a time span in microseconds, at most 10,000 years.
fn micros(span: Duration) -> i64 {
    const MAX: i64 = 315_360_000_000 * 1_000_000;
    i64::try_from(span.as_micros()).map_or(MAX, |micros| micros.min(MAX))
}

/// Returns an age in microseconds, limited so that PostgreSQL can subtract it from a timestamp.
fn age_micros(age: Duration) -> i64 {
    micros(age).min(189_216_000_000 * 1_000_000)
}
