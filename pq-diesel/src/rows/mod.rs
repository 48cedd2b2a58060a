//! Named rows of the statements' results, and what they become.
//!
//! Columns are read by position, which costs less than by name. Timestamps are read as PostgreSQL's own numbers,
//! because other programs can store some that chrono cannot represent.

/// Defines the row of a statement and the SQL types of its columns.
macro_rules! row {
    ($(#[$meta:meta])* $row:ident, $sql:ident { $($field:ident: $type:ty => $sql_type:ty,)* }) => {
        $(#[$meta])*
        #[derive(diesel::Queryable)]
        #[allow(missing_debug_implementations, reason = "payloads are not shown")]
        pub struct $row {
            $($field: $type,)*
        }

        /// The SQL types of the columns.
        pub(crate) type $sql = ($($sql_type,)*);
    };
}

mod audit;
mod counters;
mod counts;
mod cron;
mod explain;
mod follow_ups;
mod index_scan;
mod job;
mod limits;
mod metrics;
mod notes;
mod operations;
mod steps;
mod take;
mod worker;

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::data_types::PgTimestamp;
use pq_core::{AttemptEntry, Claim};

pub(crate) use self::audit::{AuditRow, AuditSql};
pub(crate) use self::counters::{CountersRow, CountersSql};
pub(crate) use self::counts::{CountsRow, CountsSql, PausedRow, PausedSql};
pub(crate) use self::cron::{CronRow, CronSql};
pub(crate) use self::explain::{CircumstancesRow, CircumstancesSql};
pub(crate) use self::follow_ups::{PredecessorRow, PredecessorSql, WaitRow, WaitSql};
pub(crate) use self::index_scan::{LeaseRow, LeaseSql, ScannedRow, ScannedSql};
pub(crate) use self::job::{JobRow, JobSql};
pub(crate) use self::limits::{LimitUseRow, LimitUseSql, LimitedRow, LimitedSql};
pub(crate) use self::metrics::{BoundedCounts, DatabaseRow, DatabaseSql, GaugesRow, GaugesSql};
pub(crate) use self::notes::{LinesRow, LinesSql, ProgressRow, ProgressSql};
pub(crate) use self::operations::{BatchRow, BatchSql};
pub(crate) use self::steps::{LOOK_AGAIN, SentRow, SentSql, SignalRow, SignalSql, StepRow, StepSql};
pub(crate) use self::take::{TakeResult, TakeRow, TakeSql};
pub(crate) use self::worker::{HeartbeatRow, HeartbeatSql, WorkerRow, WorkerSql};

/// Sorts jobs in the order of their queue, because DELETE returns rows in no defined order.
fn sort(jobs: &mut [Arc<Claim>]) {
    jobs.sort_by_key(|job| (Reverse(job.priority), job.expected_at.is_none(), job.expected_at, job.id));
}

/// Returns a time span that the database counted in microseconds. A negative one is zero.
pub(crate) fn span(micros: i64) -> Duration {
    Duration::from_micros(micros.max(0).unsigned_abs())
}

/// Microseconds between the epochs of Unix and of PostgreSQL, which is 2000-01-01.
pub(crate) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The first day that PostgreSQL can represent, 24 November 4714 BC, in its own microseconds.
const FIRST_MICROS: i64 = -211_813_488_000_000_000;

/// Returns an instant in PostgreSQL's microseconds.
pub(crate) fn since_epoch(instant: DateTime<Utc>) -> i64 {
    instant.timestamp_micros() - EPOCH_MICROS
}

/// Returns the nearest instant that both chrono and PostgreSQL can represent.
///
/// Other programs can store infinity, and years up to 294276.
pub(crate) fn nearest(at: PgTimestamp) -> DateTime<Utc> {
    let micros = at.0.max(FIRST_MICROS).saturating_add(EPOCH_MICROS);
    DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Returns the log of a job's attempts. One that another program has written, and that cannot be read, is empty.
fn attempt_log(stored: Option<String>) -> Vec<AttemptEntry> {
    stored.and_then(|stored| serde_json::from_str(&stored).ok()).unwrap_or_default()
}

/// Returns the limit of a lease.
fn limit(stored: i32) -> u32 {
    stored.max(1).unsigned_abs()
}

/// Returns the `expected_at` of a job. The store writes infinity for none in some columns.
fn expected(at: Option<PgTimestamp>) -> Option<DateTime<Utc>> {
    at.filter(|at| at.0 != i64::MAX).map(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unrepresentable_instants_become_the_nearest() {
        assert_eq!(nearest(PgTimestamp(0)).to_rfc3339(), "2000-01-01T00:00:00+00:00");
        assert_eq!(nearest(PgTimestamp(i64::MAX)), DateTime::<Utc>::MAX_UTC);
        assert_eq!(nearest(PgTimestamp(i64::MIN)).format("%Y-%m-%d").to_string(), "-4713-11-24");
    }
}
