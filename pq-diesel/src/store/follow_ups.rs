//! Jobs that wait until other jobs have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Bool, Text};
use pq_core::store::{FollowUps, Wake};
use pq_core::{Filter, JobId, JobRecord, MaintenanceReport, NewJob, Predecessor, Put, PutOutcome, QueueName};

use super::{PgStore, SqlConnection, micros};
use crate::Error;
use crate::connection::blocking;
use crate::prepared::{Statement, Value};
use crate::rows::{PredecessorRow, PredecessorSql, WaitRow, WaitSql};

/// The maximum number of waits that one run of maintenance looks up.
const MAX_WAITS: i64 = 10_000;

/// How often workflows are locked again because other sessions have replaced their rows.
const MAX_LOCKS: usize = 20;

/// A position before all waits.
pub(super) const FIRST_WAIT: (i64, i64) = (i64::MIN, i64::MIN);

impl FollowUps for PgStore {
    fn predecessors(
        &self,
        conn: &mut PgConnection,
        follow_up: JobId,
        count: usize,
    ) -> Result<Vec<Predecessor>, Error> {
        blocking(self.predecessors_on(conn, follow_up, count))
    }

    fn followers(&self, conn: &mut PgConnection, job: JobId, count: usize) -> Result<Vec<JobId>, Error> {
        blocking(self.followers_on(conn, job, count))
    }

    fn waits(&self, conn: &mut PgConnection, follow_up: JobId) -> Result<bool, Error> {
        blocking(self.waits_on(conn, follow_up))
    }

    fn members(
        &self,
        conn: &mut PgConnection,
        workflow: JobId,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        blocking(self.members_on(conn, workflow, after, count))
    }

    fn release(&self, conn: &mut PgConnection, follow_up: JobId) -> Result<(), Error> {
        blocking(self.release_on(conn, &[follow_up.0], &[]))
    }

    fn wait_for_job(&self, conn: &mut PgConnection, follow_up: JobId, job: JobId) -> Result<(), Error> {
        blocking(self.wait_for_job_on(conn, follow_up, job))
    }

    fn cancel_waiting(
        &self,
        conn: &mut PgConnection,
        jobs: &[JobId],
        reason: &str,
    ) -> Result<Vec<JobId>, Error> {
        blocking(self.cancel_waiting_on(conn, jobs, reason))
    }

    fn wait_again(
        &self,
        conn: &mut PgConnection,
        workflow: JobId,
        jobs: &[JobId],
        held: bool,
    ) -> Result<(), Error> {
        blocking(self.wait_again_on(conn, workflow, jobs, held))
    }

    fn wake(
        &self,
        conn: &mut PgConnection,
        workflow: JobId,
        why: Option<Wake>,
        after: Duration,
    ) -> Result<bool, Error> {
        blocking(self.wake_on(conn, workflow, why, after))
    }
}

/// The methods of [`FollowUps`], on a connection of any kind.
#[allow(missing_docs, clippy::missing_errors_doc)]
impl PgStore {
    /// Puts a workflow that is written as JSON. Returns its id.
    pub async fn put_workflow_json_on(
        &self,
        conn: &mut impl SqlConnection,
        json: &str,
    ) -> Result<JobId, Error> {
        let json = self.encoding_for(conn, json.is_ascii()).await?.escape_json(json);
        let put = self.only::<BigInt, i64>(conn, &self.statements.put_workflow, &[Value::Text(&json)]).await;
        put.map(JobId).map_err(Error::into_refusal)
    }

    pub async fn predecessors_on(
        &self,
        conn: &mut impl SqlConnection,
        follow_up: JobId,
        count: usize,
    ) -> Result<Vec<Predecessor>, Error> {
        let values = [Value::BigInt(follow_up.0), Value::count(count)];
        let rows: Vec<PredecessorRow> =
            self.rows::<PredecessorSql, _>(conn, &self.statements.predecessors, &values).await?;
        Ok(rows.into_iter().map(PredecessorRow::into_predecessor).collect())
    }

    pub async fn followers_on(
        &self,
        conn: &mut impl SqlConnection,
        job: JobId,
        count: usize,
    ) -> Result<Vec<JobId>, Error> {
        let values = [Value::BigInt(job.0), Value::count(count)];
        let ids: Vec<i64> = self.rows::<BigInt, _>(conn, &self.statements.followers, &values).await?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    /// Makes follow-ups due that wait for no more jobs. The next takes of this handle find them.
    pub async fn release_on(
        &self,
        conn: &mut impl SqlConnection,
        follow_ups: &[i64],
        failed: &[i64],
    ) -> Result<(), Error> {
        let values = [Value::BigInts(follow_ups.to_vec()), Value::BigInts(failed.to_vec())];
        let queues: Vec<String> = self.rows::<Text, _>(conn, &self.statements.release, &values).await?;
        self.forget_queues(&queues);
        Ok(())
    }

    /// Has the next takes of this handle begin at the start of these queues, because jobs have come into them.
    fn forget_queues(&self, queues: &[String]) {
        for queue in queues.iter().filter_map(|queue| QueueName::new(queue).ok()) {
            self.fast_path.forget_position(&queue);
        }
    }

    pub async fn wait_for_job_on(
        &self,
        conn: &mut impl SqlConnection,
        follow_up: JobId,
        job: JobId,
    ) -> Result<(), Error> {
        if self.reaches(conn, &[job.0], follow_up.0).await? {
            return Err(pq_core::Error::circle(follow_up, job).into());
        }
        let values =
            [Value::BigInts(vec![follow_up.0]), Value::BigInts(vec![job.0]), Value::Integers(vec![0])];
        self.changed(conn, &self.statements.add_waits, &values).await?;
        let values = [Value::BigInt(follow_up.0), Value::BigInts(vec![job.0])];
        self.changed(conn, &self.statements.wait_again, &values).await?;
        Ok(())
    }

    /// Returns whether one of these jobs is another one, or waits for it.
    async fn reaches(&self, conn: &mut impl SqlConnection, from: &[i64], to: i64) -> Result<bool, Error> {
        let values = [Value::BigInts(from.to_vec()), Value::BigInt(to)];
        self.only::<Bool, bool>(conn, &self.statements.reaches, &values).await
    }

    pub async fn cancel_waiting_on(
        &self,
        conn: &mut impl SqlConnection,
        jobs: &[JobId],
        reason: &str,
    ) -> Result<Vec<JobId>, Error> {
        let ids = jobs.iter().map(|job| job.0).collect();
        let values = [Value::OptionalText(None), Value::BigInts(ids), Value::OptionalText(Some(reason))];
        let cancelled: Vec<i64> =
            self.rows::<BigInt, _>(conn, &self.statements.cancel_waiting, &values).await?;
        Ok(cancelled.into_iter().map(JobId).collect())
    }

    pub async fn wait_again_on(
        &self,
        conn: &mut impl SqlConnection,
        workflow: JobId,
        jobs: &[JobId],
        held: bool,
    ) -> Result<(), Error> {
        let jobs = Value::BigInts(jobs.iter().map(|job| job.0).collect());
        let values = [Value::BigInt(workflow.0), jobs, Value::Integer(i32::from(held))];
        let queues: Vec<String> = self.rows::<Text, _>(conn, &self.statements.run_again, &values).await?;
        self.forget_queues(&queues);
        Ok(())
    }

    pub async fn wake_on(
        &self,
        conn: &mut impl SqlConnection,
        workflow: JobId,
        why: Option<Wake>,
        after: Duration,
    ) -> Result<bool, Error> {
        let values = [
            Value::BigInt(workflow.0),
            Value::OptionalText(why.map(Wake::as_str)),
            Value::BigInt(micros(after)),
        ];
        self.only::<Bool, bool>(conn, &self.statements.wake, &values).await
    }

    pub async fn waits_on(&self, conn: &mut impl SqlConnection, follow_up: JobId) -> Result<bool, Error> {
        Ok(self.open_waits(conn, follow_up, 1).await?.is_some())
    }

    pub async fn members_on(
        &self,
        conn: &mut impl SqlConnection,
        workflow: JobId,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        let filter = Filter { after, ..Filter::default().workflow(workflow) };
        self.list_with(conn, &filter, count, false).await
    }

    /// Returns how many jobs a job waits for, at most `most`, and the first of them. `None` if it waits for none.
    pub(super) async fn open_waits(
        &self,
        conn: &mut impl SqlConnection,
        job: JobId,
        most: u64,
    ) -> Result<Option<(u64, JobId)>, Error> {
        let values = [Value::BigInt(job.0), Value::BigInt(i64::try_from(most).unwrap_or(i64::MAX))];
        let (count, first): (i64, i64) =
            self.only::<(BigInt, BigInt), _>(conn, &self.statements.open_waits, &values).await?;
        Ok((count > 0).then_some((count.unsigned_abs(), JobId(first))))
    }

    /// Checks the batches that the jobs join, and locks their follow-ups, so that no batch ends before the transaction.
    ///
    /// Refuses a job if its batch has ended, or if the job waits for its own batch.
    pub(super) async fn lock_batches(
        &self,
        conn: &mut impl SqlConnection,
        jobs: &[NewJob],
    ) -> Result<(), Error> {
        let batches: BTreeSet<i64> =
            jobs.iter().filter_map(|job| job.links.batch).map(|batch| batch.0).collect();
        for batch in batches {
            // An operation that changes the follow-up replaces its row. A statement that waited for the old row does
            // not see the new one, so it is run again.
            if !self.lock_batch(conn, batch).await? && !self.lock_batch(conn, batch).await? {
                return Err(pq_core::Error::batch_ended(JobId(batch)).into());
            }
            let of_batch = jobs.iter().filter(|job| job.links.batch == Some(JobId(batch)));
            let before: Vec<i64> =
                of_batch.flat_map(|job| &job.links.after).map(|after| after.job.0).collect();
            if !before.is_empty() && self.reaches(conn, &before, batch).await? {
                for job in before {
                    if self.reaches(conn, &[job], batch).await? {
                        return Err(pq_core::Error::circle(JobId(batch), JobId(job)).into());
                    }
                }
            }
        }
        Ok(())
    }

    async fn lock_batch(&self, conn: &mut impl SqlConnection, batch: i64) -> Result<bool, Error> {
        self.only::<Bool, _>(conn, &self.statements.lock_batch, &[Value::BigInt(batch)]).await
    }

    /// Locks the workflows of jobs that are about to be requeued by one of the statements for that, and returns them.
    ///
    /// A session that decides about a workflow replaces its row, and the statement that waited for it does not see
    /// the new one. A workflow that is replaced each time is not returned.
    pub(super) async fn lock_workflows(
        &self,
        conn: &mut impl SqlConnection,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<i64>, Error> {
        let mut tries = 0;
        loop {
            let looked: Vec<(i64, i64)> = self.rows::<(BigInt, BigInt), _>(conn, statement, values).await?;
            let (locked, replaced): (Vec<_>, Vec<_>) =
                looked.into_iter().partition(|(_, locked)| *locked == 1);
            tries += 1;
            if replaced.is_empty() || tries == MAX_LOCKS {
                return Ok(locked.into_iter().map(|(workflow, _)| workflow).collect());
            }
        }
    }

    /// Stores what the jobs of a put wait for, and which batches they belong to.
    pub(super) async fn add_waits(
        &self,
        conn: &mut impl SqlConnection,
        jobs: &[NewJob],
        puts: &[Put],
    ) -> Result<(), Error> {
        let (mut follow_ups, mut waited, mut only_done) = (Vec::new(), Vec::new(), Vec::new());
        let mut add = |follow_up: JobId, job: JobId, must_be_done: bool| {
            follow_ups.push(follow_up.0);
            waited.push(job.0);
            only_done.push(i32::from(must_be_done));
        };
        for (job, put) in jobs.iter().zip(puts) {
            if let Some(batch) = job.links.batch {
                add(batch, put.id, job.links.fails_batch);
            }
            if put.outcome == PutOutcome::Added {
                job.links.after.iter().for_each(|after| add(put.id, after.job, after.only_done));
            }
        }
        let values = [Value::BigInts(follow_ups), Value::BigInts(waited), Value::Integers(only_done)];
        self.changed(conn, &self.statements.add_waits, &values).await?;
        for (batch, kept) in kept_in_batches(jobs, puts) {
            let values = [Value::BigInt(batch.0), Value::BigInts(kept)];
            self.changed(conn, &self.statements.wait_again, &values).await?;
        }
        Ok(())
    }

    /// Ends waits for jobs that have ended: stores the outcomes, and makes follow-ups due or cancels them.
    ///
    /// Looks up a bounded number of waits, behind those of the last run.
    pub(super) async fn end_waits(
        &self,
        conn: &mut impl SqlConnection,
        report: &mut MaintenanceReport,
    ) -> Result<(), Error> {
        let first = *self.waits_checked.lock().unwrap_or_else(PoisonError::into_inner);
        let values = [Value::BigInt(first.0), Value::BigInt(first.1), Value::BigInt(MAX_WAITS)];
        let mut ended: Vec<WaitRow> =
            self.rows::<WaitSql, _>(conn, &self.statements.ended_waits, &values).await?;
        let last = ended.pop_if(|wait| wait.read().is_some());
        let is_full = last.as_ref().and_then(WaitRow::read) == Some(MAX_WAITS);
        let next = last.as_ref().filter(|_| is_full).map_or(FIRST_WAIT, WaitRow::key);
        *self.waits_checked.lock().unwrap_or_else(PoisonError::into_inner) = next;
        let missed = self.forget_waits(conn).await?;
        if !ended.is_empty() || !missed.is_empty() {
            report.more |= self.store_outcomes(conn, &ended, &missed).await?;
        }
        report.more |= is_full && !ended.is_empty();
        // The waits before the position were not read. They are read in the next run.
        report.waits = last.is_some() || first != FIRST_WAIT;
        report.waits_left = is_full;
        Ok(())
    }

    /// Deletes the waits of follow-ups that are gone. Returns follow-ups that wait although all of their jobs have
    /// ended.
    ///
    /// Looks up a bounded number of follow-ups, behind those of the last run.
    async fn forget_waits(&self, conn: &mut impl SqlConnection) -> Result<Vec<i64>, Error> {
        let values = [Value::BigInt(self.waits_forgotten.load(Ordering::Relaxed))];
        let rows: Vec<(i64, i64)> =
            self.rows::<(BigInt, BigInt), _>(conn, &self.statements.forget_waits, &values).await?;
        let (last, missed): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, is_last)| *is_last == 1);
        let next = last.first().map_or(i64::MIN, |(follow_up, _)| *follow_up);
        self.waits_forgotten.store(next, Ordering::Relaxed);
        Ok(missed.into_iter().map(|(follow_up, _)| follow_up).collect())
    }

    /// Stores the outcomes of jobs. Then cancels or makes due the follow-ups of these jobs, and `missed` ones.
    ///
    /// Returns whether follow-ups were cancelled, because others may wait for them.
    async fn store_outcomes(
        &self,
        conn: &mut impl SqlConnection,
        ended: &[WaitRow],
        missed: &[i64],
    ) -> Result<bool, Error> {
        let statements = &self.statements;
        let (follow_ups, jobs): (Vec<i64>, Vec<i64>) = ended.iter().map(WaitRow::key).unzip();
        let mut waiting = follow_ups.clone();
        waiting.extend(missed);
        waiting.sort_unstable();
        waiting.dedup();
        let values = [Value::BigInts(waiting)];
        let locked: Vec<i64> = self.rows::<BigInt, _>(conn, &statements.lock_follow_ups, &values).await?;
        let values = [
            Value::BigInts(follow_ups),
            Value::BigInts(jobs),
            Value::OptionalTexts(ended.iter().map(WaitRow::outcome).collect()),
            Value::BigInts(locked.clone()),
        ];
        let failed: Vec<i64> = self.rows::<BigInt, _>(conn, &statements.mark_waits, &values).await?;
        let values = [Value::BigInts(locked.clone())];
        let cancelled = self.changed(conn, &statements.cancel_follow_ups, &values).await?;
        self.release_on(conn, &locked, &failed).await?;
        Ok(cancelled > 0)
    }
}

/// Returns the jobs that the puts have kept because of their unique keys, by the batches to which they are added.
///
/// Such a job may have ended before and be requeued by now, so its batch must wait for it again.
fn kept_in_batches(jobs: &[NewJob], puts: &[Put]) -> BTreeMap<JobId, Vec<i64>> {
    let mut kept = BTreeMap::<JobId, Vec<i64>>::new();
    for (job, put) in jobs.iter().zip(puts).filter(|(_, put)| put.outcome != PutOutcome::Added) {
        if let Some(batch) = job.links.batch {
            kept.entry(batch).or_default().push(put.id.0);
        }
    }
    kept
}
