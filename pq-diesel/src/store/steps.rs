//! Durable steps of leased jobs, and signals for them.

use std::sync::atomic::Ordering;

use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use pq_core::store::{Keeping, NewStep, Steps};
use pq_core::{Claim, JobId, JobRecord, Payload, QueueName, SentSignal, StepRecord};

use super::transaction::single_statement;
use super::{PgStore, SqlConnection, micros};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{LOOK_AGAIN, SentRow, SentSql, SignalRow, SignalSql, StepRow, StepSql};

impl Steps for PgStore {
    fn steps(&self, conn: &mut PgConnection, job: &JobRecord) -> Result<Vec<StepRecord>, Error> {
        blocking(self.steps_on(conn, job))
    }

    fn keep_step(&self, conn: &mut PgConnection, job: &Claim, step: &NewStep<'_>) -> Result<Keeping, Error> {
        blocking(self.keep_step_on(conn, job, step))
    }

    fn await_signal(
        &self,
        conn: &mut PgConnection,
        job: &Claim,
        step: &NewStep<'_>,
    ) -> Result<Keeping, Error> {
        blocking(self.await_signal_on(conn, job, step))
    }

    fn forget_steps(&self, conn: &mut PgConnection, job: &JobRecord, position: u32) -> Result<u64, Error> {
        blocking(self.forget_steps_on(conn, job, position))
    }

    fn signal(
        &self,
        conn: &mut PgConnection,
        job: JobId,
        name: &str,
        value: &Payload,
    ) -> Result<bool, Error> {
        blocking(self.signal_on(conn, job, name, value))
    }

    fn signals(
        &self,
        conn: &mut PgConnection,
        job: &JobRecord,
        count: usize,
    ) -> Result<Vec<SentSignal>, Error> {
        blocking(self.signals_on(conn, job, count))
    }
}

/// The methods of [`Steps`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn steps_on(
        &self,
        conn: &mut impl SqlConnection,
        job: &JobRecord,
    ) -> Result<Vec<StepRecord>, Error> {
        let values = [Value::BigInt(job.id.0), Value::Instant(Some(job.enqueued_at))];
        let rows: Vec<StepRow> = self.rows::<StepSql, _>(conn, &self.statements.steps, &values).await?;
        Ok(rows.into_iter().filter_map(StepRow::into_record).collect())
    }

    pub async fn keep_step_on(
        &self,
        conn: &mut impl SqlConnection,
        job: &Claim,
        step: &NewStep<'_>,
    ) -> Result<Keeping, Error> {
        let Some(lease) = job.lease() else { return Ok(Keeping::LeaseLost) };
        let as_single = single_statement(conn)?;
        let json = step.result.as_ref().map(Payload::as_str);
        let encoding = self.encoding_for(conn, json.is_none_or(str::is_ascii)).await?;
        // A name that the encoding lacks is refused by the server. Another name would be another step.
        let json = json.map(|json| encoding.escape_json(json));
        let values = [
            Value::BigInt(lease),
            Value::BigInt(job.id.0),
            Value::Instant(Some(job.enqueued_at)),
            Value::Integer(position(step.position)),
            Value::Text(step.kind.as_str()),
            Value::Text(step.name),
            Value::OptionalBigInt(step.after.map(micros)),
            Value::OptionalText(json.as_deref()),
        ];
        let (is_held, kept): (bool, Option<i64>) = self
            .only::<(Bool, Nullable<BigInt>), _>(conn, &self.statements.keep_step, &values)
            .await
            .map_err(as_single)?;
        Ok(match kept {
            _ if !is_held => Keeping::LeaseLost,
            Some(_) => Keeping::Kept(None),
            None => Keeping::OutOfOrder,
        })
    }

    pub async fn await_signal_on(
        &self,
        conn: &mut impl SqlConnection,
        job: &Claim,
        step: &NewStep<'_>,
    ) -> Result<Keeping, Error> {
        let Some(lease) = job.lease() else { return Ok(Keeping::LeaseLost) };
        let put_at = || Value::Instant(Some(job.enqueued_at));
        let values = [Value::BigInt(lease), Value::BigInt(job.id.0), put_at()];
        let (is_held, is_alone): (bool, bool) =
            self.only::<(Bool, Bool), _>(conn, &self.statements.prepare_wait, &values).await?;
        if !is_held {
            return Ok(Keeping::LeaseLost);
        }
        let values = [
            Value::BigInt(job.id.0),
            put_at(),
            Value::Text(step.name),
            Value::Integer(position(step.position)),
            Value::BigInt(step.after.map_or(0, micros)),
            Value::Integer(is_alone.into()),
        ];
        let row: Option<SignalRow> =
            self.one::<SignalSql, _>(conn, &self.statements.await_signal, &values).await?;
        Ok(match row {
            Some(row) => row.into_keeping(!is_alone),
            None if is_alone => Keeping::OutOfOrder,
            None => Keeping::Waits(LOOK_AGAIN),
        })
    }

    pub async fn forget_steps_on(
        &self,
        conn: &mut impl SqlConnection,
        job: &JobRecord,
        from: u32,
    ) -> Result<u64, Error> {
        let values =
            [Value::BigInt(job.id.0), Value::Instant(Some(job.enqueued_at)), Value::Integer(position(from))];
        Ok(self.changed(conn, &self.statements.forget_steps, &values).await? as u64)
    }

    pub async fn signal_on(
        &self,
        conn: &mut impl SqlConnection,
        job: JobId,
        name: &str,
        value: &Payload,
    ) -> Result<bool, Error> {
        let as_single = single_statement(conn)?;
        let encoding = self.encoding_for(conn, value.as_str().is_ascii()).await?;
        let value = encoding.escape_json(value.as_str());
        let values = [Value::BigInt(job.0), Value::Text(name), Value::Text(&value)];
        let (sent, woken): (bool, Option<String>) = self
            .only::<(Bool, Nullable<Text>), _>(conn, &self.statements.send_signal, &values)
            .await
            .map_err(as_single)?;
        if let Some(queue) = woken.and_then(|queue| QueueName::new(queue).ok()) {
            self.fast_path.forget_position(&queue);
        }
        Ok(sent)
    }

    pub async fn signals_on(
        &self,
        conn: &mut impl SqlConnection,
        job: &JobRecord,
        count: usize,
    ) -> Result<Vec<SentSignal>, Error> {
        let values = [
            Value::BigInt(job.id.0),
            Value::Instant(Some(job.enqueued_at)),
            Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX)),
        ];
        let rows: Vec<SentRow> = self.rows::<SentSql, _>(conn, &self.statements.signals, &values).await?;
        Ok(rows.into_iter().map(SentRow::into_signal).collect())
    }

    /// Deletes steps and signals of jobs that have ended, a bounded number of them in each run of maintenance.
    /// Returns whether there may be more.
    pub(super) async fn forget_ended_steps(&self, conn: &mut impl SqlConnection) -> Result<bool, Error> {
        let after = [Value::BigInt(self.steps_position.load(Ordering::Relaxed))];
        let (last, ended): (i64, i64) =
            self.only::<(BigInt, BigInt), _>(conn, &self.statements.forget_ended_steps, &after).await?;
        self.steps_position.store(last, Ordering::Relaxed);
        Ok(last != i64::MIN && ended > 0)
    }
}

/// Returns a position as the store keeps it. No job has as many steps.
fn position(position: u32) -> i32 {
    i32::try_from(position).unwrap_or(i32::MAX)
}
