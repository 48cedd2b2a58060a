//! Jobs that have ended, and maintenance.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Bool};
use pq_core::store::{Archive, Connect};
use pq_core::{JobId, JobRecord, JobState, MaintenanceReport, QueueName, Retention, WorkerInfo};

use super::transaction::depth;
use super::{PgStore, age_micros};
use crate::Error;
use crate::pool::with_call_timeout;
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
        let values = [
            Value::Text(queue.as_str()),
            Value::Text(state.as_str()),
            Value::Instant(before.and_then(|job| job.ended_at)),
            Value::OptionalBigInt(before.map(|job| job.id.0)),
            Value::count(count),
        ];
        let rows: Vec<JobRow> =
            self.statements.archived.with::<JobSql>(&values).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().filter_map(JobRow::into_record).collect())
    }

    fn requeue(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        let ids = ids.map(|ids| ids.iter().map(|id| id.0).collect());
        let values = [Value::Text(queue.as_str()), Value::OptionalBigInts(ids)];
        self.fast_path.forget_position(queue);
        let requeue = self.statements.requeue.with::<BigInt>(&values);
        let requeued = self.autocommit(conn, |conn| {
            with_call_timeout(conn, None, |conn| requeue.execute(conn)).map_err(|e| self.error(e))
        })?;
        Ok(requeued as u64)
    }

    fn prune(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        state: JobState,
        age: Duration,
    ) -> Result<u64, Error> {
        let values =
            [Value::Text(queue.as_str()), Value::Text(state.as_str()), Value::BigInt(age_micros(age))];
        let prune = self.statements.prune.with::<BigInt>(&values);
        let pruned = self.autocommit(conn, |conn| {
            with_call_timeout(conn, None, |conn| prune.execute(conn)).map_err(|e| self.error(e))
        })?;
        Ok(pruned as u64)
    }

    fn has_expired_leases(&self, conn: &mut PgConnection, queues: &[QueueName]) -> Result<bool, Error> {
        let values = [Value::Texts(queues.iter().map(QueueName::as_str).collect())];
        let found = self.statements.has_expired_leases.with::<Bool>(&values).get_result(conn);
        found.map_err(|e| self.error(e))
    }

    fn maintain(
        &self,
        conn: &mut PgConnection,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Error> {
        // The transaction of a caller, such as a test, would keep the lock and the setting.
        let is_own = depth(conn)? == 0;
        self.transaction(conn, |conn| {
            // A process that is suspended here would keep all others from maintenance, so its transaction must time
            // out.
            if is_own {
                conn.batch_execute("SET LOCAL idle_in_transaction_session_timeout TO '5s'")?;
                let locked = self.statements.maintenance_lock.with::<Bool>(&[]).get_result::<bool>(conn);
                if !locked.map_err(|e| self.error(e))? {
                    return Ok(None);
                }
            }
            let mut report = MaintenanceReport::default();
            let limit = [Value::BigInt(MAX_LEASES as i64)];
            let expired: Vec<i64> = self
                .statements
                .expired_leases
                .with::<BigInt>(&limit)
                .load(conn)
                .map_err(|e| self.error(e))?;
            report.more = expired.len() == MAX_LEASES;
            if !expired.is_empty() {
                let values = [Value::BigInts(expired)];
                let returned = self.statements.return_expired.with::<BigInt>(&values).get_result::<i64>(conn);
                report.returned = returned.map_err(|e| self.error(e))?.max(0).unsigned_abs();
            }
            let forget = self.statements.forget_settled.with::<BigInt>(&[]);
            forget.execute(conn).map_err(|e| self.error(e))?;
            self.forget_silent(conn, WorkerInfo::FORGOTTEN_AFTER)?;
            for state in JobState::ENDED {
                let Some(age) = retention.of(state) else { continue };
                let values = [Value::Text(state.as_str()), Value::BigInt(age_micros(age))];
                let pruned = self.statements.prune_all.with::<BigInt>(&values).execute(conn);
                report.pruned += pruned.map_err(|e| self.error(e))? as u64;
            }
            Ok(Some(report))
        })
    }
}
