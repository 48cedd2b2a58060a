//! The audit log.

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::BigInt;
use pq_core::store::Audit;
use pq_core::{AuditEntry, AuditRecord};

use super::{PgStore, SqlConnection, age_micros};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{AuditRow, AuditSql};

impl Audit for PgStore {
    fn record(&self, conn: &mut PgConnection, record: &AuditRecord) -> Result<i64, Error> {
        blocking(self.record_on(conn, record))
    }

    fn add_to_record(&self, conn: &mut PgConnection, entry: i64, count: u64) -> Result<(), Error> {
        blocking(self.add_to_record_on(conn, entry, count))
    }

    fn audit(
        &self,
        conn: &mut PgConnection,
        before: Option<i64>,
        count: usize,
    ) -> Result<Vec<AuditEntry>, Error> {
        blocking(self.audit_on(conn, before, count))
    }
}

/// The methods of [`Audit`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn record_on(&self, conn: &mut impl SqlConnection, record: &AuditRecord) -> Result<i64, Error> {
        let actor = self.storable_on(conn, &record.actor).await?;
        let details = self.optional_storable_on(conn, record.details.as_deref()).await?;
        let values = [
            Value::Text(&actor),
            Value::Text(&record.action),
            Value::OptionalText(record.queue.as_deref()),
            Value::OptionalBigInt(record.job.map(|job| job.0)),
            Value::OptionalText(details.as_deref()),
            Value::BigInt(i64::try_from(record.count).unwrap_or(i64::MAX)),
        ];
        self.only::<BigInt, i64>(conn, &self.statements.record, &values).await
    }

    pub async fn add_to_record_on(
        &self,
        conn: &mut impl SqlConnection,
        entry: i64,
        count: u64,
    ) -> Result<(), Error> {
        let values = [Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)), Value::BigInt(entry)];
        self.changed(conn, &self.statements.add_to_record, &values).await.map(drop)
    }

    pub async fn audit_on(
        &self,
        conn: &mut impl SqlConnection,
        before: Option<i64>,
        count: usize,
    ) -> Result<Vec<AuditEntry>, Error> {
        let values = [Value::OptionalBigInt(before), Value::count(count)];
        let rows: Vec<AuditRow> = self.rows::<AuditSql, _>(conn, &self.statements.audit, &values).await?;
        Ok(rows.into_iter().map(AuditRow::into_entry).collect())
    }

    /// Deletes some of the entries of at least this age.
    pub(super) async fn prune_audit(
        &self,
        conn: &mut impl SqlConnection,
        age: Duration,
    ) -> Result<(), Error> {
        let values = [Value::BigInt(age_micros(age))];
        self.changed(conn, &self.statements.prune_audit, &values).await.map(drop)
    }
}
