//! Jobs that have ended. `maintenance` has the rest of [`Archive`].

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::BigInt;
use pq_core::store::Archive;
use pq_core::{JobId, JobRecord, JobState, MaintenanceReport, QueueName, Retention};

use super::transaction::single_statement;
use super::{PgStore, SqlConnection, age_micros};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{JobRow, JobSql};

impl Archive for PgStore {
    fn archived(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        state: JobState,
        before: Option<&JobRecord>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        blocking(self.archived_on(conn, queue, state, before, count))
    }

    fn requeue(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        blocking(self.requeue_on(conn, queue, ids))
    }

    fn prune(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        state: JobState,
        age: Duration,
    ) -> Result<u64, Error> {
        blocking(self.prune_on(conn, queue, state, age))
    }

    fn needs_maintenance(&self, conn: &mut PgConnection, queues: &[QueueName]) -> Result<bool, Error> {
        blocking(self.needs_maintenance_on(conn, queues))
    }

    fn maintain(
        &self,
        conn: &mut PgConnection,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Error> {
        blocking(self.maintain_on(conn, retention))
    }
}

/// The methods of [`Archive`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn archived_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        state: JobState,
        before: Option<&JobRecord>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        let values = [
            Value::Text(queue.as_str()),
            Value::Text(state.as_str()),
            Value::Instant(before.and_then(|job| job.ended_at)),
            Value::OptionalBigInt(before.map(|job| job.id.0)),
            Value::count(count),
        ];
        let rows: Vec<JobRow> = self.rows::<JobSql, _>(conn, &self.statements.archived, &values).await?;
        Ok(rows.into_iter().filter_map(JobRow::into_record).collect())
    }

    pub async fn requeue_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        let ids = ids.map(|ids| ids.iter().map(|id| id.0).collect());
        let mut values = vec![Value::Text(queue.as_str()), Value::OptionalBigInts(ids)];
        self.fast_path.forget_position(queue);
        let around = self.begin(conn).await?;
        let done = async {
            // The wait for another transaction is limited as any call is.
            let locked = self.lock_workflows(conn, &self.statements.lock_workflows, &values).await?;
            values.push(Value::BigInts(locked));
            let _unlimited = conn.without_time_limit();
            self.only::<BigInt, i64>(conn, &self.statements.requeue, &values).await
        }
        .await;
        Ok(self.end(conn, around, done).await?.max(0).unsigned_abs())
    }

    pub async fn prune_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        state: JobState,
        age: Duration,
    ) -> Result<u64, Error> {
        let values =
            [Value::Text(queue.as_str()), Value::Text(state.as_str()), Value::BigInt(age_micros(age))];
        let as_single = single_statement(conn)?;
        let _unlimited = conn.without_time_limit();
        let pruned = self.changed(conn, &self.statements.prune, &values).await.map_err(as_single)?;
        Ok(pruned as u64)
    }
}
