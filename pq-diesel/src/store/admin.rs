//! Counting, listing, cancelling, pausing and moving jobs.

use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Nullable, Text};
use pq_core::store::Admin;
use pq_core::{CancelOutcome, Filter, JobId, JobRecord, PausedQueue, QueueCounts, QueueName, WORKFLOWS};

use super::operations::filter_values;
use super::transaction::single_statement;
use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::Value;
use crate::rows::{CountsRow, CountsSql, JobRow, JobSql, PausedRow, PausedSql};

/// The number of times that a cancellation tries to find a job that moves between the queue and a lease meanwhile.
const CANCEL_TRIES: usize = 3;

impl Admin for PgStore {
    fn counts(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<QueueCounts, Error> {
        blocking(self.counts_on(conn, queue))
    }

    fn overview(&self, conn: &mut PgConnection) -> Result<Vec<QueueCounts>, Error> {
        blocking(self.overview_on(conn))
    }

    fn list(&self, conn: &mut PgConnection, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        blocking(self.list_on(conn, filter, count))
    }

    fn find(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Option<JobRecord>, Error> {
        blocking(self.find_on(conn, queue, id))
    }

    fn cancel(&self, conn: &mut PgConnection, queue: &QueueName, id: JobId) -> Result<CancelOutcome, Error> {
        blocking(self.cancel_on(conn, queue, id))
    }

    fn clear(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<u64, Error> {
        blocking(self.clear_on(conn, queue))
    }

    fn pause(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        paused: bool,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        blocking(self.pause_on(conn, queue, paused, by))
    }

    fn paused(&self, conn: &mut PgConnection) -> Result<Vec<PausedQueue>, Error> {
        blocking(self.paused_on(conn))
    }

    fn move_jobs(
        &self,
        conn: &mut PgConnection,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        blocking(self.move_jobs_on(conn, from, to, ids))
    }
}

/// The methods of [`Admin`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    pub async fn counts_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
    ) -> Result<QueueCounts, Error> {
        let counts = self.count(conn, Some(queue)).await?.pop();
        Ok(counts.unwrap_or_else(|| QueueCounts::new(queue.clone())))
    }

    pub async fn overview_on(&self, conn: &mut impl SqlConnection) -> Result<Vec<QueueCounts>, Error> {
        self.count(conn, None).await
    }

    /// Counts the jobs of a queue, or of every queue.
    async fn count(
        &self,
        conn: &mut impl SqlConnection,
        queue: Option<&QueueName>,
    ) -> Result<Vec<QueueCounts>, Error> {
        let values = [Value::OptionalText(queue.map(QueueName::as_str))];
        let rows: Vec<CountsRow> =
            self.rows::<CountsSql, _>(conn, &self.statements.overview, &values).await?;
        Ok(rows.into_iter().filter_map(CountsRow::into_counts).collect())
    }

    pub async fn list_on(
        &self,
        conn: &mut impl SqlConnection,
        filter: &Filter,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        self.list_with(conn, filter, count, true).await
    }

    /// Lists jobs, with their payloads, results and logs, or without.
    pub(super) async fn list_with(
        &self,
        conn: &mut impl SqlConnection,
        filter: &Filter,
        count: usize,
        whole: bool,
    ) -> Result<Vec<JobRecord>, Error> {
        let annotations = filter.annotations();
        let mut values = filter_values(filter, annotations.as_deref());
        values.extend([Value::Integer(i32::from(whole)), Value::count(count)]);
        let list = &self.statements.list;
        let rows: Vec<JobRow> = if filter.id.is_some() {
            self.rows::<JobSql, _>(conn, list, &values).await?
        } else {
            let around = self.begin_without_jit(conn).await?;
            let rows = self.rows::<JobSql, _>(conn, list, &values).await;
            conn.roll_back_to(around).await?;
            rows?
        };
        Ok(rows.into_iter().filter_map(JobRow::into_record).collect())
    }

    pub async fn find_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Option<JobRecord>, Error> {
        let filter = Filter { id: Some(id), ..Filter::queue(queue) };
        Ok(self.list_on(conn, &filter, 1).await?.pop())
    }

    pub async fn cancel_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        id: JobId,
    ) -> Result<CancelOutcome, Error> {
        let waiting = [
            Value::OptionalText(Some(queue.as_str())),
            Value::BigInts(vec![id.0]),
            Value::OptionalText(None),
        ];
        let leased = [Value::BigInt(id.0), Value::Text(queue.as_str())];
        let as_single = single_statement(conn)?;
        for _ in 0..CANCEL_TRIES {
            let cancelled: Option<i64> = self
                .one::<BigInt, _>(conn, &self.statements.cancel_waiting, &waiting)
                .await
                .map_err(&as_single)?;
            if cancelled.is_some() {
                let is_workflow = queue.as_str() == WORKFLOWS;
                return Ok(if is_workflow { CancelOutcome::Requested } else { CancelOutcome::Cancelled });
            }
            let answer: Option<Option<String>> = self
                .one::<Nullable<Text>, _>(conn, &self.statements.cancel_leased, &leased)
                .await
                .map_err(&as_single)?;
            match answer.flatten().as_deref() {
                Some("requested") => return Ok(CancelOutcome::Requested),
                Some(_) => return Ok(CancelOutcome::Held),
                None => {}
            }
            // Both statements miss a job that is taken or returned between them.
            if self.find_on(conn, queue, id).await?.is_none_or(|job| job.state.is_ended()) {
                return Ok(CancelOutcome::NotFound);
            }
        }
        Ok(CancelOutcome::Held)
    }

    pub async fn clear_on(&self, conn: &mut impl SqlConnection, queue: &QueueName) -> Result<u64, Error> {
        let as_single = single_statement(conn)?;
        let _unlimited = conn.without_time_limit();
        let cleared = self
            .only::<BigInt, i64>(conn, &self.statements.clear, &[Value::Text(queue.as_str())])
            .await
            .map_err(as_single)?;
        Ok(cleared.max(0).unsigned_abs())
    }

    pub async fn pause_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        paused: bool,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        if paused {
            let by = self.optional_storable_on(conn, by).await?;
            let values = [Value::Text(queue.as_str()), Value::OptionalText(by.as_deref())];
            return Ok(self.changed(conn, &self.statements.pause, &values).await? > 0);
        }
        let resumed = self.changed(conn, &self.statements.resume, &[Value::Text(queue.as_str())]).await? > 0;
        if resumed {
            self.notify_queues(conn, [queue]).await?;
        }
        Ok(resumed)
    }

    pub async fn paused_on(&self, conn: &mut impl SqlConnection) -> Result<Vec<PausedQueue>, Error> {
        let rows: Vec<PausedRow> = self.rows::<PausedSql, _>(conn, &self.statements.paused, &[]).await?;
        Ok(rows.into_iter().filter_map(PausedRow::into_paused).collect())
    }

    pub async fn move_jobs_on(
        &self,
        conn: &mut impl SqlConnection,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        let ids = ids.map(|ids| ids.iter().map(|id| id.0).collect());
        let values = [Value::Text(from.as_str()), Value::Text(to.as_str()), Value::OptionalBigInts(ids)];
        self.fast_path.forget_position(to);
        let _unlimited = conn.without_time_limit();
        Ok(self.changed(conn, &self.statements.move_jobs, &values).await? as u64)
    }
}
