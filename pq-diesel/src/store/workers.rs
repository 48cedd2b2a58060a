//! Registered workers.

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::Text;
use pq_core::store::Workers;
use pq_core::{Heartbeat, HeartbeatReply, QueueName, StopMode, WorkerId, WorkerInfo};

use super::{PgStore, micros};
use crate::Error;
use crate::prepared::Value;
use crate::rows::{HeartbeatRow, HeartbeatSql, WorkerRow, WorkerSql};

impl Workers for PgStore {
    fn heartbeat(&self, conn: &mut PgConnection, beat: &Heartbeat) -> Result<HeartbeatReply, Error> {
        let status = serde_json::to_string(&beat.status)
            .map_err(|error| pq_core::Error::Encode(pq_core::CodecError::new(error.to_string())))?;
        let values = [
            Value::OptionalBigInt(beat.worker.map(|worker| worker.0)),
            Value::Text(&beat.host),
            Value::BigInt(i64::from(beat.pid)),
            Value::BigInt(i64::from(beat.supervisor)),
            Value::Texts(beat.queues.iter().map(QueueName::as_str).collect()),
            Value::Integer(i32::try_from(beat.threads).unwrap_or(i32::MAX)),
            Value::Text(&status),
        ];
        let row: HeartbeatRow = self
            .statements
            .heartbeat
            .with::<HeartbeatSql>(&values)
            .get_result(conn)
            .map_err(|e| self.error(e))?;
        Ok(row.into_reply())
    }

    fn deregister(&self, conn: &mut PgConnection, worker: WorkerId) -> Result<(), Error> {
        let left = self.statements.deregister.with::<Text>(&[Value::BigInt(worker.0)]).execute(conn);
        left.map(drop).map_err(|e| self.error(e))
    }

    fn workers(&self, conn: &mut PgConnection) -> Result<Vec<WorkerInfo>, Error> {
        let rows: Vec<WorkerRow> =
            self.statements.workers.with::<WorkerSql>(&[]).load(conn).map_err(|e| self.error(e))?;
        Ok(rows.into_iter().map(WorkerRow::into_info).collect())
    }

    fn stop_worker(&self, conn: &mut PgConnection, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        self.any(conn, &self.statements.stop_worker, &[Value::Text(mode.as_str()), Value::BigInt(worker.0)])
    }
}

impl PgStore {
    pub(super) fn forget_silent(&self, conn: &mut PgConnection, after: Duration) -> Result<(), Error> {
        let values = [Value::BigInt(micros(after))];
        let forgotten = self.statements.forget_workers.with::<Text>(&values).execute(conn);
        forgotten.map(drop).map_err(|e| self.error(e))
    }
}
