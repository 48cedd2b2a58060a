//! Registered workers.

use std::time::Duration;

use diesel::pg::PgConnection;
use pq_core::store::Workers;
use pq_core::{Heartbeat, HeartbeatReply, QueueName, StopMode, WorkerId, WorkerInfo};

use super::{PgStore, SqlConnection, micros};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{HeartbeatRow, HeartbeatSql, WorkerRow, WorkerSql};

impl Workers for PgStore {
    fn heartbeat(&self, conn: &mut PgConnection, beat: &Heartbeat) -> Result<HeartbeatReply, Error> {
        blocking(self.heartbeat_on(conn, beat))
    }

    fn deregister(&self, conn: &mut PgConnection, worker: WorkerId) -> Result<(), Error> {
        blocking(self.deregister_on(conn, worker))
    }

    fn workers(&self, conn: &mut PgConnection) -> Result<Vec<WorkerInfo>, Error> {
        blocking(self.workers_on(conn))
    }

    fn stop_worker(&self, conn: &mut PgConnection, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        blocking(self.stop_worker_on(conn, worker, mode))
    }
}

/// The methods of [`Workers`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn heartbeat_on(
        &self,
        conn: &mut impl SqlConnection,
        beat: &Heartbeat,
    ) -> Result<HeartbeatReply, Error> {
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
        let heartbeat = &self.statements.heartbeat;
        let row: HeartbeatRow = self.only::<HeartbeatSql, _>(conn, heartbeat, &values).await?;
        Ok(row.into_reply())
    }

    pub async fn deregister_on(&self, conn: &mut impl SqlConnection, worker: WorkerId) -> Result<(), Error> {
        self.changed(conn, &self.statements.deregister, &[Value::BigInt(worker.0)]).await.map(drop)
    }

    pub async fn workers_on(&self, conn: &mut impl SqlConnection) -> Result<Vec<WorkerInfo>, Error> {
        let rows: Vec<WorkerRow> = self.rows::<WorkerSql, _>(conn, &self.statements.workers, &[]).await?;
        Ok(rows.into_iter().map(WorkerRow::into_info).collect())
    }

    pub async fn stop_worker_on(
        &self,
        conn: &mut impl SqlConnection,
        worker: WorkerId,
        mode: StopMode,
    ) -> Result<bool, Error> {
        let values = [Value::Text(mode.as_str()), Value::BigInt(worker.0)];
        Ok(self.changed(conn, &self.statements.stop_worker, &values).await? > 0)
    }

    pub(super) async fn forget_silent(
        &self,
        conn: &mut impl SqlConnection,
        after: Duration,
    ) -> Result<(), Error> {
        let values = [Value::BigInt(micros(after))];
        self.changed(conn, &self.statements.forget_workers, &values).await.map(drop)
    }
}
