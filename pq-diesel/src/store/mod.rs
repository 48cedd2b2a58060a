//! The PostgreSQL store, and the traits that it implements.
//!
//! For implementors of stores and for measurements. Not covered by semantic versioning. Applications use
//! [`crate::Pq`] and [`crate::Queue`].
//!
//! Each store trait of the core is implemented in the file of its name, and `Connect` in `transaction.rs`.

mod admin;
mod archive;
mod chunks;
mod encoding;
mod fast_path;
#[cfg(test)]
mod group_commit_tests;
mod group_take;
mod jobs;
mod put;
mod schedules;
mod settle;
mod take;
mod time_travel;
mod transaction;
mod transaction_tracker;
mod workers;

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::query_dsl::methods::LoadQuery;
use diesel::sql_types::Text;
use pq_core::{NewJob, QueueName};

pub use pq_core::store::{
    Admin, Archive, Connect, Jobs, Rows, Schedules, Store, StoreError, TimeTravel, Workers,
};

use self::fast_path::FastPath;
use self::group_take::GroupTakes;
use self::put::{GroupPuts, may_be_notified_later};
use self::take::{FallbackLevels, PayloadStorage};
use crate::listener::Listener;
pub use crate::listener::Subscription;
use crate::pool::Pool;
use crate::prepared::{Bound, Statement, Value};
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
    pub(crate) payload_storage: PayloadStorage,
    pub(crate) fast_path: FastPath,
    pub(crate) group_puts: GroupPuts,
    pub(crate) group_takes: GroupTakes,
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
            payload_storage: PayloadStorage::default(),
            fast_path: FastPath::default(),
            group_puts: GroupPuts::new(call_timeout),
            group_takes: GroupTakes::new(call_timeout),
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
        [
            ("put", put_one.of(Trigger::Fires).text()),
            ("take one", fast_take.from_start.of(1, Measure::No).0.text()),
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

    pub(crate) fn error(&self, error: diesel::result::Error) -> Error {
        Error::of(&self.table, error)
    }

    /// Runs a statement that returns at most one row.
    fn one<'q, Row, T>(
        &self,
        conn: &mut PgConnection,
        statement: &'q Statement,
        values: &'q [Value<'q>],
    ) -> Result<Option<T>, Error>
    where
        Bound<'q, Row>: LoadQuery<'q, PgConnection, T>,
    {
        statement.with(values).get_result(conn).optional().map_err(|e| self.error(e))
    }

    /// Returns whether the statement changed a row.
    fn any(
        &self,
        conn: &mut PgConnection,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<bool, Error> {
        let rows = statement.with::<Text>(values).execute(conn).map_err(|e| self.error(e))?;
        Ok(rows > 0)
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
