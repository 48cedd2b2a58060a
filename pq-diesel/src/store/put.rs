//! Putting jobs into the table.

use std::borrow::Borrow;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::pg::data_types::PgInterval;
use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz};
use pq_core::store::Connect;
use pq_core::{JobId, Key, NewJob, OnConflict, Put, PutOutcome, QueueName, When};

use super::chunks::{chunks, gather};
use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
use crate::copy::copy_in;
use crate::group_commit::{GroupCommit, Leader, MAX_FOLLOWERS, Reply, Turn};
use crate::isolation::needs_transaction;
use crate::prepared::{Statement, Value};
use crate::statements::Trigger;

/// The maximum number of jobs and bytes of a put that can be grouped with those of other threads.
const SHARED_JOBS: usize = 64;
const SHARED_BYTES: usize = 64 << 10;

/// The puts of a handle that commit by themselves.
pub(crate) type GroupPuts = GroupCommit<QueueName, Vec<NewJob>, Result<Vec<Put>, Error>>;
/// From this many jobs on a put is a COPY, which costs less per job and one more round trip.
const COPY_JOBS: usize = 2_000;

impl PgStore {
    /// Puts and commits, grouped with the threads that put into the queue at the same time.
    pub(super) fn put_grouped(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        if !may_be_shared(jobs) {
            return self.put_alone(queue, jobs);
        }
        match self.group_puts.turn(queue, || jobs.to_vec(), |queued| queued.take(MAX_FOLLOWERS).count()) {
            Turn::Lead(leader) => self.put_as_leader(queue, jobs, leader),
            Turn::Answered(answer) => answer,
            Turn::RunAlone => self.put_alone(queue, jobs),
            Turn::LeaderLost => Err(Error::OutcomeUnknown(
                "the thread that led the group of puts panicked or hangs".to_owned(),
            )),
        }
    }

    fn put_alone(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        self.commit_put(queue, |conn, trigger| self.insert(conn, queue, jobs, trigger))
    }

    fn put_as_leader(
        &self,
        queue: &QueueName,
        jobs: &[NewJob],
        leader: Leader<'_, QueueName, Vec<NewJob>, Result<Vec<Put>, Error>>,
    ) -> Result<Vec<Put>, Error> {
        if leader.is_alone() {
            return self.put_alone(queue, jobs);
        }
        let put = {
            let calls: Vec<&[NewJob]> =
                std::iter::once(jobs).chain(leader.requests().map(Vec::as_slice)).collect();
            self.with_connection(|conn| blocking(self.put_calls_on(conn, queue, &calls)))
        };
        match put {
            Ok(put) => {
                let mut put = put.into_iter();
                let own = put.next().unwrap_or_default();
                leader.reply(put.map(|put| Reply::Answer(Ok(put))));
                Ok(own)
            }
            Err(error) => leader.fail(error, Error::for_another, || self.put_alone(queue, jobs)),
        }
    }

    /// Puts the jobs of several calls by one statement that is a transaction of its own, and returns the results of
    /// each call.
    ///
    /// # Errors
    ///
    /// The database's own. No job was added, unless the outcome is unknown.
    pub async fn put_calls_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        calls: &[&[NewJob]],
    ) -> Result<Vec<Vec<Put>>, Error> {
        let all: Vec<&NewJob> = calls.iter().copied().flatten().collect();
        self.fast_path.note_put(queue, &all);
        let statement = self.statements.put_many.of(self.own_trigger());
        let put = self.insert_chunk(conn, statement, queue, &all).await.map_err(Error::unless_committed)?;
        self.has_put(queue);
        if put.len() != all.len() {
            // A foreign trigger has skipped rows, and it is unknown to which call they belonged.
            return Err(Error::OutcomeUnknown(format!("{} jobs were added of {}", put.len(), all.len())));
        }
        let mut put = put.into_iter();
        Ok(calls.iter().map(|jobs| put.by_ref().take(jobs.len()).collect()).collect())
    }

    /// Puts jobs in a transaction of their own.
    ///
    /// # Errors
    ///
    /// The database's own. No job was added, unless the outcome is unknown.
    pub async fn put_now_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        jobs: &[NewJob],
    ) -> Result<Vec<Put>, Error> {
        let put = self.insert_on(conn, queue, jobs, self.own_trigger()).await;
        let put = put.map_err(Error::unless_committed)?;
        self.has_put(queue);
        Ok(put)
    }

    /// Puts on a connection of the handle, where the statement is a transaction of its own.
    fn commit_put(
        &self,
        queue: &QueueName,
        put: impl FnOnce(&mut PgConnection, Trigger) -> Result<Vec<Put>, Error>,
    ) -> Result<Vec<Put>, Error> {
        let put =
            self.with_connection(|conn| put(conn, self.own_trigger())).map_err(Error::unless_committed)?;
        self.has_put(queue);
        Ok(put)
    }

    pub(super) fn insert(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &[NewJob],
        trigger: Trigger,
    ) -> Result<Vec<Put>, Error> {
        if jobs.len() >= COPY_JOBS && none_is_unique(jobs) && none_is_linked(jobs) {
            self.fast_path.note_put(queue, jobs);
            return self.copy_with_ids(conn, queue, jobs, trigger);
        }
        blocking(self.insert_on(conn, queue, jobs, trigger))
    }

    pub(super) async fn insert_on(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        jobs: &[NewJob],
        trigger: Trigger,
    ) -> Result<Vec<Put>, Error> {
        self.fast_path.note_put(queue, jobs);
        if !none_is_linked(jobs) {
            return self.insert_linked(conn, queue, jobs, trigger).await;
        }
        if let [job] = jobs
            && (job.schedule_at, job.expected_at, job.priority) == (None, None, 0)
            && job.serialization_key.is_none()
            && job.unique.is_none()
            && job.annotations.is_empty()
        {
            let values = [Value::Text(queue.as_str()), Value::Text(job.payload.as_str())];
            let one = self.statements.put_one.of(trigger);
            let id: i64 = self.only::<BigInt, _>(conn, one, &values).await?;
            return Ok(vec![Put::added(JobId(id))]);
        }
        self.insert_chunks(conn, queue, jobs, trigger).await
    }

    /// Inserts jobs that are connected with others, with their connections, in one transaction.
    async fn insert_linked(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        jobs: &[NewJob],
        trigger: Trigger,
    ) -> Result<Vec<Put>, Error> {
        let around = self.begin(conn).await?;
        let put = async {
            self.lock_batches(conn, jobs).await?;
            let put = self.insert_chunks(conn, queue, jobs, trigger).await?;
            self.add_waits(conn, jobs, &put).await?;
            Ok(put)
        }
        .await;
        self.end(conn, around, put).await
    }

    async fn insert_chunks(
        &self,
        conn: &mut impl SqlConnection,
        queue: &QueueName,
        jobs: &[NewJob],
        trigger: Trigger,
    ) -> Result<Vec<Put>, Error> {
        let many = self.statements.put_many.of(trigger);
        let chunks = chunks(jobs, size);
        if let [chunk] = chunks[..] {
            return self.insert_chunk(conn, many, queue, chunk).await;
        }
        let around = self.begin(conn).await?;
        let mut put = Ok(Vec::with_capacity(jobs.len()));
        for chunk in chunks {
            let Ok(ids) = &mut put else { break };
            match self.insert_chunk(conn, many, queue, chunk).await {
                Ok(some) => ids.extend(some),
                Err(error) => put = Err(error),
            }
        }
        self.end(conn, around, put).await
    }

    /// Draws ids for a COPY, and returns them with the time from which delays begin. Returns no ids if PostgreSQL would
    /// refuse a COPY.
    fn prepare_copy(
        &self,
        conn: &mut PgConnection,
        count: usize,
        trigger: Trigger,
    ) -> Result<(Option<Vec<i64>>, DateTime<Utc>), Error> {
        let values = [Value::count(count), Value::Integer(i32::from(trigger == Trigger::Off))];
        let statement = &self.statements.prepare_copy;
        blocking(self.only::<(Nullable<Array<BigInt>>, Timestamptz), _>(conn, statement, &values))
    }

    /// Copies jobs under ids that are drawn for them, ascending in the order of the jobs. A rollback leaves a gap, as
    /// for any put. If PostgreSQL would refuse a COPY, inserts the jobs.
    fn copy_with_ids(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &[NewJob],
        trigger: Trigger,
    ) -> Result<Vec<Put>, Error> {
        let quietly = trigger == Trigger::Off;
        let copy = |conn: &mut PgConnection| {
            let (ids, now) = self.prepare_copy(conn, jobs.len(), trigger)?;
            let Some(ids) = ids else { return blocking(self.insert_chunks(conn, queue, jobs, trigger)) };
            copy_in(conn, &self.table, &self.statements.copy_with_ids, |rows| {
                ids.iter().zip(jobs).try_for_each(|(id, job)| rows.job(Some(*id), queue, job, now))
            })?;
            Ok(ids.into_iter().map(|id| Put::added(JobId(id))).collect())
        };
        // The setting that switches the trigger off ends with the transaction.
        if quietly || needs_transaction(conn)? { self.transaction(conn, copy) } else { copy(conn) }
    }

    /// Copies the jobs of an iterator in a transaction, and returns their number. If PostgreSQL would refuse a COPY,
    /// inserts them in chunks.
    pub(super) fn copy_all(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, pq_core::Error>>,
        trigger: Trigger,
    ) -> Result<u64, Error> {
        let position = self.fast_path.position(queue);
        let mut comes_before = false;
        let copied = self.transaction(conn, |conn| {
            let (ids, now) = self.prepare_copy(conn, 0, trigger)?;
            if ids.is_none() {
                comes_before = true;
                return self.insert_all(conn, queue, jobs, trigger);
            }
            copy_in(conn, &self.table, &self.statements.copy, |rows| {
                for job in jobs {
                    let job = job?;
                    comes_before |= position.may_follow(&job);
                    rows.job(None, queue, &job, now)?;
                }
                Ok(())
            })
        });
        if comes_before {
            self.fast_path.forget_position(queue);
        }
        copied
    }

    fn insert_all(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, pq_core::Error>>,
        trigger: Trigger,
    ) -> Result<u64, Error> {
        let mut count = 0;
        loop {
            let some = gather(jobs, size)?;
            if some.is_empty() {
                return Ok(count);
            }
            count += blocking(self.insert_chunks(conn, queue, &some, trigger))?.len() as u64;
        }
    }

    async fn insert_chunk(
        &self,
        conn: &mut impl SqlConnection,
        statement: &Statement,
        queue: &QueueName,
        jobs: &[impl Borrow<NewJob> + Sync],
    ) -> Result<Vec<Put>, Error> {
        let jobs = || jobs.iter().map(Borrow::borrow);
        let (schedule_at, schedule_in) = split(jobs().map(|job| job.schedule_at));
        let (expected_at, expected_in) = split(jobs().map(|job| job.expected_at));
        let mut values = vec![
            Value::Text(queue.as_str()),
            Value::Texts(jobs().map(|job| job.payload.as_str()).collect()),
            schedule_at,
            schedule_in,
            expected_at,
            expected_in,
            Value::Integers(jobs().map(|job| job.priority).collect()),
            Value::OptionalTexts(jobs().map(|job| job.serialization_key.as_ref().map(Key::as_str)).collect()),
            Value::rare_texts(jobs().map(|job| job.annotations.as_json())),
        ];
        if jobs().all(|job| job.unique.is_none()) {
            let ids: Vec<i64> = self.rows::<BigInt, _>(conn, statement, &values).await?;
            return Ok(ids.into_iter().map(|id| Put::added(JobId(id))).collect());
        }
        values.push(Value::OptionalTexts(
            jobs().map(|job| job.unique.as_ref().map(|(key, _)| key.as_str())).collect(),
        ));
        values.push(Value::OptionalTexts(
            jobs().map(|job| job.unique.as_ref().map(|(_, on_conflict)| word(*on_conflict))).collect(),
        ));
        let put: Vec<(i64, String)> =
            self.rows::<(BigInt, Text), _>(conn, &self.statements.put_unique, &values).await?;
        Ok(put.into_iter().map(|(id, outcome)| Put { id: JobId(id), outcome: done(&outcome) }).collect())
    }
}

/// Returns the database's word for what to do if a unique key is in use.
fn word(on_conflict: OnConflict) -> &'static str {
    match on_conflict {
        OnConflict::Keep => "keep",
        OnConflict::Replace => "replace",
        OnConflict::Reschedule => "reschedule",
        OnConflict::KeepWaiting => "keep_waiting",
    }
}

/// Returns the outcome for the database's word.
fn done(word: &str) -> PutOutcome {
    match word {
        "kept" => PutOutcome::Kept,
        "replaced" => PutOutcome::Replaced,
        "rescheduled" => PutOutcome::Rescheduled,
        _ => PutOutcome::Added,
    }
}

/// Returns `true` if the trigger can be off for a put in a transaction because the handle notifies after the commit. A
/// COPY, and the function that puts jobs with unique keys, need the trigger.
pub(super) fn may_be_notified_later(jobs: &[NewJob]) -> bool {
    jobs.len() < COPY_JOBS && none_is_unique(jobs)
}

/// Returns `true` if a put can be grouped: it is small, and waits for no other transaction, as a put with a unique key
/// may.
#[must_use]
pub fn may_be_shared(jobs: &[NewJob]) -> bool {
    (1..=SHARED_JOBS).contains(&jobs.len())
        && none_is_unique(jobs)
        && none_is_linked(jobs)
        && jobs.iter().map(size).sum::<usize>() <= SHARED_BYTES
}

/// Returns the bytes of a job that count toward the limits.
fn size(job: &NewJob) -> usize {
    job.payload.as_str().len() + job.annotations.as_json().map_or(0, str::len)
}

fn none_is_linked(jobs: &[NewJob]) -> bool {
    jobs.iter().all(|job| job.links.is_empty())
}

fn none_is_unique(jobs: &[NewJob]) -> bool {
    jobs.iter().all(|job| job.unique.is_none())
}

/// Returns times as two arrays: the instants and the delays.
fn split<'a>(times: impl Iterator<Item = Option<When>>) -> (Value<'a>, Value<'a>) {
    let (mut instants, mut delays) = (Vec::new(), Vec::new());
    for time in times {
        let (instant, delay) = match time {
            None => (None, None),
            Some(When::In(delay)) => (None, delay.num_microseconds()),
            Some(When::At(instant)) => (Some(instant), None),
        };
        instants.push(instant);
        delays.push(delay.map(PgInterval::from_microseconds));
    }
    (Value::Instants(instants), Value::Delays(delays))
}
