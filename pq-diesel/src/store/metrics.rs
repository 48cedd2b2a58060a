//! Measuring a table with bounded queries.

use std::time::Duration;

use diesel::PgConnection;
use diesel::sql_types::Text;
use pq_core::WorkerInfo;
use pq_core::store::{Connect, Counting, Limiting};

use super::{PgStore, SqlConnection, micros};
use crate::Error;
use crate::connection::blocking;
use crate::metrics::{Metrics, QueueGauges};
use crate::prepared::Value;
use crate::rows::{BoundedCounts, DatabaseRow, DatabaseSql, GaugesRow, GaugesSql};

/// The largest number of jobs of a part of a state that is counted. Beyond it the planner estimates.
const BOUND: u64 = 10_000;

/// The longest time that each of the queries may take.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// The SQLSTATE of a statement that exceeded its time limit.
const QUERY_CANCELED: &str = "57014";

/// Runs queries in a transaction with a time limit, and with the plans that the bounded counts need.
///
/// The planner takes a scan of the whole table for cheap if only a few rows are wanted, and that of a rare queue
/// reads all. It also takes the counts for expensive, and would compile them for half a second, or have several
/// processes count.
fn bounded<R>(
    store: &PgStore,
    conn: &mut PgConnection,
    query: impl FnOnce(&mut PgConnection) -> Result<R, Error>,
) -> Result<R, Error> {
    store.transaction(conn, |conn| {
        let settings = format!(
            "SET LOCAL statement_timeout TO {}; SET LOCAL jit TO off; SET LOCAL enable_seqscan TO off; \
             SET LOCAL enable_bitmapscan TO off; SET LOCAL max_parallel_workers_per_gather TO 0",
            TIME_LIMIT.as_millis()
        );
        blocking(conn.run(&settings)).map_err(|error| store.error(error))?;
        query(conn)
    })
}

/// Returns nothing if the time limit was exceeded.
fn unless_slow<R>(measured: Result<R, Error>) -> Result<Option<R>, Error> {
    match measured {
        Ok(measured) => Ok(Some(measured)),
        Err(error) if error.sqlstate() == Some(QUERY_CANCELED) => Ok(None),
        Err(error) => Err(error),
    }
}

impl PgStore {
    /// Measures the table. See [`crate::Pq::metrics`].
    pub(crate) fn metrics(&self, max_queues: usize) -> Result<Metrics, Error> {
        self.with_connection(|conn| {
            let database: DatabaseRow = bounded(self, conn, |conn| {
                let most = i64::try_from(BOUND).unwrap_or(i64::MAX);
                let values = [Value::BigInt(micros(WorkerInfo::FORGOTTEN_AFTER)), Value::BigInt(most)];
                blocking(self.only::<DatabaseSql, _>(conn, &self.statements.database, &values))
            })?;
            let counters = bounded(self, conn, |conn| self.counted(conn))?;
            let queues = unless_slow(bounded(self, conn, |conn| self.gauges(conn, max_queues)))?;
            let limited = unless_slow(bounded(self, conn, |conn| self.limited(conn, None)))?;
            let database = database.into_measured();
            Ok(Metrics {
                at: database.at,
                counters,
                queues,
                limited,
                ids: database.ids,
                dead_tuples: database.dead_tuples,
                oldest_snapshot: database.oldest_snapshot,
                workers_live: database.workers_live,
                workers_gone: database.workers_gone,
                steps: database.steps,
                asleep: database.asleep,
                awaiting_signals: database.awaiting_signals,
            })
        })
    }

    fn gauges(&self, conn: &mut PgConnection, max_queues: usize) -> Result<Vec<QueueGauges>, Error> {
        let bound = usize::try_from(BOUND).unwrap_or(usize::MAX);
        let values = [Value::count(max_queues), Value::count(bound)];
        let rows: Vec<GaugesRow> =
            blocking(self.rows::<GaugesSql, _>(conn, &self.statements.gauges, &values))?;
        rows.into_iter().map(|row| self.estimate(conn, row.into_counts())).collect()
    }

    /// Replaces the counts that have reached the bound by estimates.
    fn estimate(&self, conn: &mut PgConnection, counts: BoundedCounts) -> Result<QueueGauges, Error> {
        let BoundedCounts { queue, mut parts, ready, follow_ups, running, oldest, is_paused } = counts;
        let blocked = parts[..3].iter().sum::<u64>().saturating_sub(ready);
        let mut more = [0; 3];
        let is_estimated = parts.iter().any(|part| *part >= BOUND);
        let estimates = if is_estimated {
            let values = [Value::Text(&queue)];
            let plan: String = blocking(self.only::<Text, _>(conn, &self.statements.estimates, &values))?;
            planned_rows(&plan)
        } else {
            Vec::new()
        };
        let to_estimate = parts.iter_mut().zip(estimates).enumerate();
        for (position, (part, estimate)) in to_estimate.filter(|(_, (part, _))| **part >= BOUND) {
            let counted = *part;
            *part = estimate.max(counted);
            if let Some(more) = more.get_mut(position) {
                *more = *part - counted;
            }
        }
        // The keys of jobs beyond the bound are not known. Most of them are those of jobs that were counted.
        let [plain, keyed, after_delay] = more;
        let [.., scheduled, dead, cancelled, done] = parts;
        Ok(QueueGauges {
            queue,
            ready: ready + plain + after_delay,
            blocked: blocked + keyed,
            scheduled,
            follow_ups,
            running,
            dead,
            cancelled,
            done,
            is_estimated,
            oldest,
            is_paused,
        })
    }
}

/// Returns the numbers of rows that a plan expects of the children of its first node.
fn planned_rows(plan: &str) -> Vec<u64> {
    let plan: serde_json::Value = serde_json::from_str(plan).unwrap_or_default();
    let children = plan.pointer("/0/Plan/Plans").and_then(serde_json::Value::as_array);
    children.into_iter().flatten().map(|child| child["Plan Rows"].as_u64().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::planned_rows;

    #[test]
    fn the_expected_rows_are_read_from_a_plan() {
        let nested = r#"{"Node Type": "Bitmap Heap Scan", "Plan Rows": 7, "Plans": [{"Plan Rows": 8}]}"#;
        let plan = format!(
            r#"[{{"Plan": {{"Node Type": "Append", "Plan Rows": 999807, "Plans": [{{"Plan Rows": 999800}}, {nested}]}}}}]"#
        );
        assert_eq!(planned_rows(&plan), [999_800, 7]);
        assert_eq!(planned_rows("[]"), [0; 0]);
    }
}
