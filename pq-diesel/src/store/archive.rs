//! Jobs that have ended, and maintenance.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use pq_core::store::{Archive, Connect};
use pq_core::{Ended, EndedAs, JobId, MaintenanceReport, QueueName, Retention, WorkerInfo};

use super::{PgStore, age_micros};
use crate::Error;
use crate::prepared::Value;
use crate::rows::{EndedRow, EndedSql, ended};

/// The most leases that one sweep returns, in one transaction.
const LEASES: usize = 100;

impl Archive for PgStore {
    fn archived(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        ended: EndedAs,
        before: Option<&Ended>,
        count: usize,
    ) -> Result<Vec<Ended>, Error> {
        self.list_archive(conn, queue, &[ended], before, None, count)
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
        let revived = self.statements.revive.with::<BigInt>(&values).execute(conn);
        revived.map(|count| count as u64).map_err(|e| self.error(e))
    }

    fn prune(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        ended: EndedAs,
        age: Duration,
    ) -> Result<u64, Error> {
        let values =
            [Value::Text(queue.as_str()), Value::Text(ended.as_str()), Value::BigInt(age_micros(age))];
        let pruned = self.statements.prune.with::<BigInt>(&values).execute(conn);
        pruned.map(|count| count as u64).map_err(|e| self.error(e))
    }

    fn maintain(
        &self,
        conn: &mut PgConnection,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Error> {
        self.transaction(conn, |conn| {
            // Each statement must see what was committed before it, whatever the session's default is. And a process
            // that is put to sleep between two of them must not keep all others from sweeping for as long.
            conn.batch_execute(
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout TO '5s'",
            )?;
            let turn = self.statements.sweep_turn.with::<Bool>(&[]).get_result::<bool>(conn);
            if !turn.map_err(|e| self.error(e))? {
                return Ok(None);
            }
            let mut swept = MaintenanceReport::default();
            let most = [Value::BigInt(LEASES as i64)];
            let over: Vec<i64> =
                self.statements.sweep_over.with::<BigInt>(&most).load(conn).map_err(|e| self.error(e))?;
            swept.more = over.len() == LEASES;
            if !over.is_empty() {
                let values = [Value::BigInts(over)];
                let returned = self.statements.sweep_expire.with::<BigInt>(&values).get_result::<i64>(conn);
                swept.returned = returned.map_err(|e| self.error(e))?.max(0).unsigned_abs();
            }
            let forget = self.statements.sweep_forget.with::<BigInt>(&[]);
            forget.execute(conn).map_err(|e| self.error(e))?;
            self.forget_silent(conn, WorkerInfo::FORGOTTEN_AFTER)?;
            for ended in [EndedAs::Done, EndedAs::Dead, EndedAs::Cancelled] {
                let Some(age) = retention.of(ended) else { continue };
                let values = [Value::Text(ended.as_str()), Value::BigInt(age_micros(age))];
                let pruned = self.statements.prune_all.with::<BigInt>(&values).execute(conn);
                swept.pruned += pruned.map_err(|e| self.error(e))? as u64;
            }
            Ok(Some(swept))
        })
    }
}

impl PgStore {
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
}
