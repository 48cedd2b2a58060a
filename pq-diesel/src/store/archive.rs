//! Jobs that have ended, and maintenance.

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Bool};
use pq_core::store::Archive;
use pq_core::{JobId, JobRecord, JobState, MaintenanceReport, QueueName, Retention, WorkerInfo};

use super::transaction::single_statement;
use super::{PgStore, SqlConnection, age_micros};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{JobRow, JobSql};

/// The maximum number of expired leases whose jobs one run of maintenance returns.
const MAX_LEASES: usize = 100;

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
        let values = [Value::Text(queue.as_str()), Value::OptionalBigInts(ids)];
        self.fast_path.forget_position(queue);
        let around = self.begin(conn).await?;
        let done = async {
            // The wait for another transaction is limited as any call is.
            self.lock_workflows(conn, &self.statements.lock_workflows, &values).await?;
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

    pub async fn needs_maintenance_on(
        &self,
        conn: &mut impl SqlConnection,
        queues: &[QueueName],
    ) -> Result<bool, Error> {
        let values = [Value::Texts(queues.iter().map(QueueName::as_str).collect())];
        self.only::<Bool, bool>(conn, &self.statements.needs_maintenance, &values).await
    }

    pub async fn maintain_on(
        &self,
        conn: &mut impl SqlConnection,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Error> {
        let around = self.begin(conn).await?;
        let done = self.maintain_in_transaction(conn, retention, around == 0).await;
        self.end(conn, around, done).await
    }

    async fn maintain_in_transaction(
        &self,
        conn: &mut impl SqlConnection,
        retention: &Retention,
        is_own: bool,
    ) -> Result<Option<MaintenanceReport>, Error> {
        let statements = &self.statements;
        // The transaction of a caller, such as a test, would keep the lock and the settings.
        if is_own {
            // A process that is suspended here would keep all others from maintenance, so its transaction must time out.
            // Tables without statistics have high estimated costs, and compiling a statement would take longer than running it.
            conn.run("SET LOCAL idle_in_transaction_session_timeout TO '5s'; SET LOCAL jit TO off").await?;
            if !self.only::<Bool, bool>(conn, &statements.maintenance_lock, &[]).await? {
                return Ok(None);
            }
        }
        let mut report = MaintenanceReport::default();
        let limit = [Value::BigInt(MAX_LEASES as i64)];
        let expired: Vec<i64> = self.rows::<BigInt, _>(conn, &statements.expired_leases, &limit).await?;
        report.more = expired.len() == MAX_LEASES;
        if !expired.is_empty() {
            let values = [Value::BigInts(expired)];
            let returned = self.only::<BigInt, i64>(conn, &statements.return_expired, &values).await?;
            report.returned = returned.max(0).unsigned_abs();
        }
        self.end_waits(conn, &mut report).await?;
        report.workflows = self.only::<Bool, bool>(conn, &statements.due_workflows, &[]).await?;
        self.changed(conn, &statements.forget_settled, &[]).await?;
        self.changed(conn, &statements.forget_limits, &[]).await?;
        self.forget_silent(conn, WorkerInfo::FORGOTTEN_AFTER).await?;
        self.merge_counters(conn).await?;
        for state in JobState::ENDED {
            let Some(age) = retention.of(state) else { continue };
            let values = [Value::Text(state.as_str()), Value::BigInt(age_micros(age))];
            report.pruned += self.changed(conn, &statements.prune_all, &values).await? as u64;
        }
        if let Some(age) = retention.audit {
            self.prune_audit(conn, age).await?;
        }
        self.forget_notes(conn).await?;
        report.more |= self.forget_ended_steps(conn).await?;
        Ok(Some(report))
    }
}
