//! Maintenance: returns the jobs of expired leases, ends waits, prunes, and deletes what is no longer needed.

use diesel::sql_types::{BigInt, Bool};
use pq_core::{JobState, MaintenanceReport, QueueName, Retention, WorkerInfo};

use super::{PgStore, SqlConnection, age_micros};
use crate::Error;
use crate::prepared::Value;

/// The maximum number of expired leases whose jobs one run of maintenance returns.
const MAX_LEASES: usize = 100;

/// The methods of [`pq_core::store::Archive`] about maintenance, on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
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
            // A process that is suspended here would keep all others from maintenance, so its transaction must time
            // out. Tables without statistics have high estimated costs, and compiling a statement would take longer
            // than running it.
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
