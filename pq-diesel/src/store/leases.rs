//! Leases that are extended, and leases that are over.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool};
use pq_core::{EndedAs, Extended, JobId, MaintenanceReport, Retention, Store, WorkerInfo};

use super::{PgStore, age_micros, micros};
use crate::Error;
use crate::prepared::Value;

/// The most leases that one sweep returns, in one transaction.
const LEASES: usize = 100;

impl PgStore {
    pub(super) fn extend_leases(
        &self,
        conn: &mut PgConnection,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extended>, Error> {
        let values = [Value::BigInts(leases.to_vec()), Value::BigInt(micros(lease))];
        let statement = self.statements.extend.with::<(BigInt, Array<BigInt>)>(&values);
        let rows: Vec<(i64, Vec<i64>)> = statement.load(conn).map_err(|e| self.error(e))?;
        let extended = |(lease, cancelled): (i64, Vec<i64>)| Extended {
            lease,
            cancelled: cancelled.into_iter().map(JobId).collect(),
        };
        Ok(rows.into_iter().map(extended).collect())
    }

    pub(super) fn sweep_once(
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
