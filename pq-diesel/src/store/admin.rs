//! Counting, listing, cancelling, pausing and moving jobs.

use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Nullable, Text};
use pq_core::store::Admin;
use pq_core::{CancelOutcome, Filter, JobId, JobRecord, QueueCounts, QueueName};

use super::PgStore;
use crate::Error;
use crate::pool::with_call_timeout;
use crate::prepared::Value;
use crate::rows::{CountsRow, CountsSql, JobRow, JobSql};

/// The number of times that a cancellation tries to find a job that moves between the queue and a lease meanwhile.
const CANCEL_TRIES: usize = 3;

impl Admin for PgStore {
    fn counts(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<QueueCounts, Error> {
        let counts = self.count(conn, Some(queue))?.pop();
        Ok(counts.unwrap_or_else(|| QueueCounts::new(queue.clone())))
    }

    fn overview(&self, conn: &mut PgConnection) -> Result<Vec<QueueCounts>, Error> {
        self.count(conn, None)
    }

    fn list(&self, conn: &mut PgConnection, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
        let values = [
            Value::OptionalText(filter.queue.as_deref()),
            Value::OptionalBigInt(filter.id.map(|id| id.0)),
            Value::OptionalBigInt(filter.after.map(|id| id.0)),
            Value::OptionalText(filter.serialization_key.as_deref()),
            Value::SomeTexts((!states.is_empty()).then_some(states)),
            Value::count(count),
        ];
        let rows: Vec<JobRow> =
            self.statements.list.with::<JobSql>(&values).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(JobRow::into_record).collect())
    }

    fn find(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Option<JobRecord>, Error> {
        let filter = Filter { id: Some(id), ..Filter::queue(queue) };
        Ok(self.list(conn, &filter, 1)?.pop())
    }

    fn cancel(&self, conn: &mut PgConnection, queue: &QueueName, id: JobId) -> Result<CancelOutcome, Error> {
        let waiting = [Value::Text(queue.as_str()), Value::BigInt(id.0)];
        let leased = [Value::BigInt(id.0), Value::Text(queue.as_str())];
        for _ in 0..CANCEL_TRIES {
            let cancelled: Option<i64> = self.autocommit(conn, |conn| {
                self.one::<BigInt, _>(conn, &self.statements.cancel_waiting, &waiting)
            })?;
            if cancelled.is_some() {
                return Ok(CancelOutcome::Cancelled);
            }
            let answer: Option<Option<String>> = self.autocommit(conn, |conn| {
                self.one::<Nullable<Text>, _>(conn, &self.statements.cancel_leased, &leased)
            })?;
            match answer.flatten().as_deref() {
                Some("requested") => return Ok(CancelOutcome::Requested),
                Some(_) => return Ok(CancelOutcome::Held),
                None => {}
            }
            // Both statements miss a job that is taken or returned between them.
            if self.find(conn, queue, id)?.is_none_or(|job| job.state.is_ended()) {
                return Ok(CancelOutcome::NotFound);
            }
        }
        Ok(CancelOutcome::Held)
    }

    fn clear(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<u64, Error> {
        let values = [Value::Text(queue.as_str())];
        let clear = self.statements.clear.with::<BigInt>(&values);
        let cleared: i64 = self.autocommit(conn, |conn| {
            with_call_timeout(conn, None, |conn| clear.get_result(conn)).map_err(|e| self.error(e))
        })?;
        Ok(cleared.max(0).unsigned_abs())
    }

    fn pause(&self, conn: &mut PgConnection, queue: &QueueName, paused: bool) -> Result<bool, Error> {
        let statement = if paused { &self.statements.pause } else { &self.statements.resume };
        let changed = self.any(conn, statement, &[Value::Text(queue.as_str())])?;
        if changed && !paused {
            self.notify_queues(conn, [queue])?;
        }
        Ok(changed)
    }

    fn move_jobs(
        &self,
        conn: &mut PgConnection,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        let ids = ids.map(|ids| ids.iter().map(|id| id.0).collect());
        let values = [Value::Text(from.as_str()), Value::Text(to.as_str()), Value::OptionalBigInts(ids)];
        self.fast_path.forget_position(to);
        let move_jobs = self.statements.move_jobs.with::<Text>(&values);
        let moved = with_call_timeout(conn, None, |conn| move_jobs.execute(conn));
        moved.map(|count| count as u64).map_err(|e| self.error(e))
    }
}

impl PgStore {
    /// Counts the jobs of a queue, or of every queue.
    fn count(&self, conn: &mut PgConnection, queue: Option<&QueueName>) -> Result<Vec<QueueCounts>, Error> {
        let values = [Value::OptionalText(queue.map(QueueName::as_str))];
        let rows: Vec<CountsRow> =
            self.statements.overview.with::<CountsSql>(&values).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(CountsRow::into_counts).collect())
    }
}
