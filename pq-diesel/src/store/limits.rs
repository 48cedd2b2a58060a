//! Limits of queues.

use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Nullable, Text};
use pq_core::store::Limiting;
use pq_core::{Claim, LimitedQueue, Limits, QueueName, Reason};

use super::transaction::single_statement;
use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{LimitedRow, LimitedSql};

impl Limiting for PgStore {
    fn limits(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<Limits, Error> {
        blocking(self.limits_on(conn, queue))
    }

    fn set_limits(&self, conn: &mut PgConnection, queue: &QueueName, limits: &Limits) -> Result<(), Error> {
        blocking(self.set_limits_on(conn, queue, limits))
    }

    fn correct_cost(&self, conn: &mut PgConnection, job: &Claim, cost: u32) -> Result<bool, Error> {
        blocking(self.correct_cost_on(conn, job, cost))
    }

    fn limited(
        &self,
        conn: &mut PgConnection,
        queue: Option<&QueueName>,
    ) -> Result<Vec<LimitedQueue>, Error> {
        blocking(self.limited_on(conn, queue))
    }
}

/// The methods of [`Limiting`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn limits_on(&self, conn: &mut impl SqlConnection, queue: &QueueName) -> Result<Limits, Error> {
        let values = [Value::Text(queue.as_str())];
        let limits: Option<String> = self.one::<Text, _>(conn, &self.statements.limits, &values).await?;
        Ok(Limits::from_stored(limits.as_deref()))
    }

    pub async fn set_limits_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        limits: &Limits,
    ) -> Result<(), Error> {
        let json = limits.to_json()?;
        let values = [Value::Text(queue.as_str()), Value::OptionalText(json.as_deref())];
        let _set: Option<Option<String>> =
            self.one::<Nullable<Text>, _>(conn, &self.statements.set_limits, &values).await?;
        self.notify_queues(conn, [queue]).await
    }
    pub async fn correct_cost_on(
        &self,
        conn: &mut impl SqlConnection,
        job: &Claim,
        cost: u32,
    ) -> Result<bool, Error> {
        let Some(lease) = job.lease() else { return Ok(false) };
        let as_single = single_statement(conn)?;
        let group = job.annotations.group();
        let values = [
            Value::Text(job.queue.as_str()),
            Value::BigInt(lease),
            Value::BigInt(job.id.0),
            Value::Instant(Some(job.enqueued_at)),
            Value::Integer(job.attempt),
            Value::OptionalText(group.as_deref()),
            Value::BigInt(job.annotations.cost().unwrap_or(1).into()),
            Value::BigInt(cost.into()),
        ];
        let more: Option<i64> = self
            .only::<Nullable<BigInt>, _>(conn, &self.statements.correct_cost, &values)
            .await
            .map_err(as_single)?;
        if more.is_some_and(|more| more < 0) {
            self.notify_queues(conn, [&job.queue]).await?;
        }
        Ok(more.is_some())
    }

    pub async fn limited_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: Option<&QueueName>,
    ) -> Result<Vec<LimitedQueue>, Error> {
        let most = i64::try_from(Reason::MAX_COUNTED).unwrap_or(i64::MAX);
        let values = [Value::OptionalText(queue.map(QueueName::as_str)), Value::BigInt(most)];
        let rows: Vec<LimitedRow> =
            self.rows::<LimitedSql, _>(conn, &self.statements.limited, &values).await?;
        Ok(rows.into_iter().fold(Vec::new(), |queues, row| row.add_to(queues)))
    }
}
