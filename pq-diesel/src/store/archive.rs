//! Where jobs are, jobs that are cancelled, and jobs that have ended.

use diesel::pg::PgConnection;
use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Timestamptz};
use pq_core::{Cancelled, Ended, EndedAs, JobId, JobStatus, Key, QueueName, Undecodable};

use super::{PgStore, storable};
use crate::Error;
use crate::prepared::Value;
use crate::rows::{EndedRow, EndedSql, ended, nearest};

/// How often a job that is between two tables is looked for.
const LOOKS: usize = 3;

impl PgStore {
    pub(super) fn find_job(
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

    /// One by one, for there may be many and each may be large.
    pub(super) fn move_all_to_dead(
        &self,
        conn: &mut PgConnection,
        jobs: &[Undecodable],
    ) -> Result<(), Error> {
        for Undecodable { job, reason } in jobs {
            let reason = storable(reason);
            let values = [
                Value::BigInt(job.id.0),
                Value::Text(job.payload.as_str()),
                Value::Text(job.queue.as_str()),
                Value::Instant(Some(job.enqueued_at)),
                Value::Instant(job.schedule_at),
                Value::Instant(job.expected_at),
                Value::Integer(job.priority),
                Value::Integer(job.attempt),
                Value::OptionalText(job.serialization_key.as_ref().map(Key::as_str)),
                Value::OptionalText(job.unique_key.as_ref().map(Key::as_str)),
                Value::Text(&reason),
            ];
            self.statements.bury.with::<BigInt>(&values).execute(conn).map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    pub(super) fn list_archive(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        outcomes: &[EndedAs],
        before: Option<&Ended>,
        id: Option<JobId>,
        count: usize,
    ) -> Result<Vec<Ended>, Error> {
        let values = [
            Value::Text(queue.as_str()),
            Value::Texts(outcomes.iter().map(|ended| ended.as_str()).collect()),
            Value::Instant(before.map(|job| job.ended_at)),
            Value::OptionalBigInt(before.map(|job| job.id.0)),
            Value::OptionalBigInt(id.map(|id| id.0)),
            Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)),
        ];
        let list = self.statements.archived.with::<EndedSql>(&values);
        let rows: Vec<EndedRow> = list.load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().map(|row| ended(queue, row)).collect())
    }

    pub(super) fn cancel_job(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Cancelled, Error> {
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
            answer = match self.find_job(conn, queue, id)? {
                Some(JobStatus::Waiting { .. }) => Cancelled::Held,
                Some(JobStatus::Leased { .. }) => continue,
                _ => return Ok(Cancelled::NotFound),
            };
        }
        Ok(answer)
    }
}
