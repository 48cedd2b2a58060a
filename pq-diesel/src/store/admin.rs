//! Counting, listing, cancelling, pausing and moving jobs.

use diesel::pg::PgConnection;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Timestamptz};
use pq_core::store::{Admin, Counts};
use pq_core::{Cancelled, EndedAs, Filter, JobId, JobState, JobStatus, Key, Listed, Overview, QueueName};

use super::PgStore;
use crate::Error;
use crate::prepared::Value;
use crate::rows::desk::{ListedRow, ListedSql, OverviewRow, OverviewSql, listed, overview};
use crate::rows::nearest;

/// How often a job that is between two tables is looked for.
const LOOKS: usize = 3;

impl Admin for PgStore {
    fn counts(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<Counts, Error> {
        type Numbers = (BigInt, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt);
        let values = [Value::Text(queue.as_str())];
        let counted = self.statements.counts.with::<Numbers>(&values);
        let (ready, scheduled, leased, dequeued, dead, cancelled, done): (i64, i64, i64, i64, i64, i64, i64) =
            counted.get_result(conn).map_err(|e| self.error(e))?;
        let number = |count: i64| count.max(0).unsigned_abs();
        let mut counts = Counts::default();
        (counts.ready, counts.scheduled, counts.leased) = (number(ready), number(scheduled), number(leased));
        (counts.dead, counts.cancelled, counts.done) = (number(dead), number(cancelled), number(done));
        counts.dequeued = number(dequeued);
        Ok(counts)
    }

    fn overview(&self, conn: &mut PgConnection) -> Result<Vec<Overview>, Error> {
        let rows: Vec<OverviewRow> =
            self.statements.overview.with::<OverviewSql>(&[]).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(overview).collect())
    }

    fn list(&self, conn: &mut PgConnection, filter: &Filter, count: usize) -> Result<Vec<Listed>, Error> {
        let states: Vec<&str> = filter.states.iter().map(|state| JobState::as_str(*state)).collect();
        let values = [
            Value::OptionalText(filter.queue.as_ref().map(QueueName::as_str)),
            Value::OptionalBigInt(filter.id.map(|id| id.0)),
            Value::OptionalBigInt(filter.after.map(|id| id.0)),
            Value::OptionalText(filter.serialization_key.as_ref().map(Key::as_str)),
            Value::SomeTexts((!states.is_empty()).then_some(states)),
            Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)),
        ];
        let rows: Vec<ListedRow> =
            self.statements.list.with::<ListedSql>(&values).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(listed).collect())
    }

    fn find(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Option<JobStatus>, Error> {
        type Columns = (Text, Integer, Nullable<Timestamptz>, Nullable<Text>, Nullable<BigInt>);
        type Row = (String, i32, Option<PgTimestamp>, Option<String>, Option<i64>);
        let values = [Value::Text(queue.as_str()), Value::BigInt(id.0)];
        for _ in 0..LOOKS {
            let row: Option<Row> = self.one::<Columns, _>(conn, &self.statements.find, &values)?;
            let Some((place, attempt, schedule_at, error, lease)) = row else { return Ok(None) };
            match (place.as_str(), lease) {
                ("waiting", _) => {
                    let schedule_at = schedule_at.map(nearest);
                    return Ok(Some(JobStatus::Waiting { attempt, schedule_at, error }));
                }
                ("leased", Some(lease)) => return Ok(Some(JobStatus::Leased { lease, attempt })),
                _ => {}
            }
            let all = [EndedAs::Done, EndedAs::Dead, EndedAs::Cancelled];
            let found = self.list_archive(conn, queue, &all, None, Some(id), 1)?.pop();
            if let Some(found) = found {
                return Ok(Some(JobStatus::Ended(Box::new(found))));
            }
            // It was put back between the two statements.
        }
        Ok(None)
    }

    fn cancel(&self, conn: &mut PgConnection, queue: &QueueName, id: JobId) -> Result<Cancelled, Error> {
        let values = [Value::Text(queue.as_str()), Value::BigInt(id.0)];
        let mut answer = Cancelled::NotFound;
        // A job that moves between the line and a lease meanwhile may be missed in both.
        for _ in 0..LOOKS {
            let cancelled: Option<i64> =
                self.one::<BigInt, _>(conn, &self.statements.cancel_waiting, &values)?;
            if cancelled.is_some() {
                return Ok(Cancelled::Done);
            }
            let turned = [Value::BigInt(id.0), Value::Text(queue.as_str())];
            let told: Option<i64> = self.one::<BigInt, _>(conn, &self.statements.cancel_leased, &turned)?;
            if told.is_some() {
                return Ok(Cancelled::Asked);
            }
            answer = match self.find(conn, queue, id)? {
                Some(JobStatus::Waiting { .. }) => Cancelled::Held,
                Some(JobStatus::Leased { .. }) => continue,
                _ => return Ok(Cancelled::NotFound),
            };
        }
        Ok(answer)
    }

    fn clear(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<u64, Error> {
        let values = [Value::Text(queue.as_str())];
        let cleared: i64 =
            self.statements.clear.with::<BigInt>(&values).get_result(conn).map_err(|e| self.error(e))?;
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
        let moved = self.statements.transfer.with::<Text>(&values).execute(conn);
        moved.map(|count| count as u64).map_err(|e| self.error(e))
    }
}
