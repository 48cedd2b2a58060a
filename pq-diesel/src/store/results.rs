//! Waiting for the end of a job.

use std::sync::Arc;

use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Text};
use pq_core::store::Results;
use pq_core::{JobId, JobRecord, QueueName, WakeSignal};

use super::transaction::single_statement;
use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
use crate::listener::Subscription;
use crate::prepared::Value;
use crate::rows::{JobRow, JobSql};

impl Results for PgStore {
    fn look(&self, conn: &mut PgConnection, id: JobId) -> Result<Option<JobRecord>, Error> {
        blocking(self.look_on(conn, id))
    }

    fn mark_awaited(&self, conn: &mut PgConnection, id: JobId) -> Result<bool, Error> {
        blocking(self.mark_awaited_on(conn, id))
    }

    fn is_in_transaction(&self, conn: &mut PgConnection) -> Result<bool, Error> {
        Ok(SqlConnection::depth(conn)? > 0)
    }

    fn subscribe_to_end(&self, id: JobId, signal: &Arc<WakeSignal>) -> Option<Subscription> {
        self.listener.as_ref().map(|listener| listener.subscribe_to_end(id, signal))
    }
}

/// The methods of [`Results`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn look_on(
        &self,
        conn: &mut impl SqlConnection,
        id: JobId,
    ) -> Result<Option<JobRecord>, Error> {
        let look = &self.statements.look;
        let row: Option<JobRow> = self.one::<JobSql, _>(conn, look, &[Value::BigInt(id.0)]).await?;
        Ok(row.and_then(JobRow::into_record))
    }

    pub async fn mark_awaited_on(&self, conn: &mut impl SqlConnection, id: JobId) -> Result<bool, Error> {
        let values = [Value::BigInt(id.0)];
        let as_single = single_statement(conn)?;
        let waiting = &self.statements.await_waiting;
        let queue: Option<String> = self.one::<Text, _>(conn, waiting, &values).await.map_err(&as_single)?;
        if let Some(queue) = queue {
            // The row has moved to a new place in the index.
            if let Ok(queue) = QueueName::new(queue) {
                self.fast_path.forget_position(&queue);
            }
            return Ok(true);
        }
        let leased = &self.statements.await_leased;
        let lease: Option<i64> = self.one::<BigInt, _>(conn, leased, &values).await.map_err(as_single)?;
        Ok(lease.is_some())
    }
}
