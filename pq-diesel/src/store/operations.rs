//! Operations on all jobs that a filter selects.

use diesel::pg::PgConnection;
use diesel::sql_types::BigInt;
use pq_core::store::{Batch, Operations, Source};
use pq_core::{Filter, Operation, QueueName, When};

use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::{Statement, Value};
use crate::rows::{BatchRow, BatchSql};

impl Operations for PgStore {
    fn tally(&self, conn: &mut PgConnection, filter: &Filter, limit: usize) -> Result<u64, Error> {
        blocking(self.tally_on(conn, filter, limit))
    }

    fn apply(
        &self,
        conn: &mut PgConnection,
        operation: &Operation,
        filter: &Filter,
        source: Source,
        after: i64,
        count: usize,
    ) -> Result<Batch, Error> {
        blocking(self.apply_on(conn, operation, filter, source, after, count))
    }
}

/// The methods of [`Operations`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn tally_on(
        &self,
        conn: &mut impl SqlConnection,
        filter: &Filter,
        limit: usize,
    ) -> Result<u64, Error> {
        let annotations = filter.annotations();
        let mut values = filter_values(filter, annotations.as_deref());
        values.push(Value::count(limit));
        let _unlimited = conn.without_time_limit();
        let around = self.begin_without_jit(conn).await?;
        let counted = self.only::<BigInt, i64>(conn, &self.statements.tally, &values).await;
        conn.roll_back_to(around).await?;
        Ok(counted?.max(0).unsigned_abs())
    }

    pub async fn apply_on(
        &self,
        conn: &mut impl SqlConnection,
        operation: &Operation,
        filter: &Filter,
        source: Source,
        after: i64,
        count: usize,
    ) -> Result<Batch, Error> {
        let annotations = filter.annotations();
        let mut values = filter_values(filter, annotations.as_deref());
        values.extend([Value::BigInt(after), Value::count(count)]);
        let statements = &self.statements;
        if matches!((source, operation), (Source::Archive, Operation::Retry)) {
            return self.requeue_batch(conn, values).await;
        }
        let _unlimited = conn.without_time_limit();
        match (source, operation) {
            (Source::Queue, Operation::Cancel) => {
                self.change_batch(conn, &statements.cancel_selected, &values).await
            }
            (Source::Queue, Operation::Delete) => {
                self.change_batch(conn, &statements.delete_selected, &values).await
            }
            (Source::Leases, Operation::Cancel) => self.cancel_running(conn, values).await,
            (Source::Archive, Operation::Delete) => {
                self.change_batch(conn, &statements.delete_archived, &values).await
            }
            (Source::Queue, operation) => {
                values.extend(change_values(operation));
                self.change_batch(conn, &statements.change_waiting, &values).await
            }
            _ => Ok(Batch::default()),
        }
    }

    /// Runs a statement that changes a batch. Takes of this handle find what has come into its queues.
    async fn change_batch(
        &self,
        conn: &mut impl SqlConnection,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Batch, Error> {
        let row: BatchRow = self.only::<BatchSql, _>(conn, statement, values).await?;
        for queue in row.queues() {
            self.fast_path.forget_position(&queue);
        }
        Ok(row.batch())
    }

    /// Requeues archived jobs, in one transaction with the locks of their workflows.
    async fn requeue_batch(
        &self,
        conn: &mut impl SqlConnection,
        mut values: Vec<Value<'_>>,
    ) -> Result<Batch, Error> {
        let around = self.begin(conn).await?;
        let done = async {
            // The wait for another transaction is limited as any call is.
            let locked = self.lock_workflows(conn, &self.statements.lock_selected_workflows, &values).await?;
            values.push(Value::BigInts(locked));
            let _unlimited = conn.without_time_limit();
            self.change_batch(conn, &self.statements.retry_selected, &values).await
        }
        .await;
        self.end(conn, around, done).await
    }

    /// Requests the cancellation of running jobs. The locks and the request are in one transaction.
    async fn cancel_running(
        &self,
        conn: &mut impl SqlConnection,
        mut values: Vec<Value<'_>>,
    ) -> Result<Batch, Error> {
        let around = self.begin(conn).await?;
        let done = async {
            let locked: Vec<i64> =
                self.rows::<BigInt, _>(conn, &self.statements.lock_leases, &values).await?;
            values.push(Value::BigInts(locked));
            self.change_batch(conn, &self.statements.cancel_running, &values).await
        }
        .await;
        self.end(conn, around, done).await
    }
}

/// Returns the parameters of a filter, given its annotations as JSON.
pub(super) fn filter_values<'f>(filter: &'f Filter, annotations: Option<&'f str>) -> Vec<Value<'f>> {
    let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
    vec![
        Value::OptionalText(filter.queue.as_deref()),
        Value::OptionalBigInt(filter.id.map(|id| id.0)),
        Value::OptionalBigInt(filter.after.map(|id| id.0)),
        Value::OptionalText(filter.serialization_key.as_deref()),
        Value::SomeTexts((!states.is_empty()).then_some(states)),
        Value::OptionalText(filter.task.as_deref()),
        Value::OptionalText(filter.error.as_deref()),
        Value::Instant(filter.until),
        Value::OptionalText(annotations),
    ]
}

/// Returns the parameters for what an operation changes of waiting jobs.
fn change_values(operation: &Operation) -> [Value<'_>; 7] {
    let queue = match operation {
        Operation::Move { to } => Some(QueueName::as_str(to)),
        _ => None,
    };
    let (old, new) = match operation {
        Operation::EditPayload { from, to } => (Some(from.as_str()), Some(to.as_str())),
        _ => (None, None),
    };
    let (is_moved, at, delay) = match operation {
        Operation::RunNow => (1, None, None),
        Operation::Reschedule { to: When::At(at) } => (1, Some(*at), None),
        Operation::Reschedule { to: When::In(delay) } => (1, None, delay.num_microseconds()),
        _ => (0, None, None),
    };
    let priority = match operation {
        Operation::SetPriority { to } => Some(*to),
        _ => None,
    };
    [
        Value::OptionalText(queue),
        Value::OptionalText(old),
        Value::OptionalText(new),
        Value::Integer(is_moved),
        Value::Instant(at),
        Value::OptionalBigInt(delay),
        Value::OptionalInteger(priority),
    ]
}
