//! Putting jobs into the table.

use std::borrow::Borrow;

use chrono::{DateTime, Utc};
use diesel::pg::PgConnection;
use diesel::pg::data_types::PgInterval;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz};
use pq_core::store::Connect;
use pq_core::{JobId, Key, NewJob, OnConflict, Put, PutOutcome, QueueName, When};

use super::PgStore;
use super::chunks::{chunks, gather};
use crate::Error;
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
        let sizes: Vec<usize> = leader.requests().map(Vec::len).collect();
        let wanted = jobs.len() + sizes.iter().sum::<usize>();
        let put = self.commit_put(queue, |conn, trigger| {
            let statement = self.statements.put_many.of(trigger);
            let all: Vec<&NewJob> = jobs.iter().chain(leader.requests().flatten()).collect();
            self.fast_path.note_put(queue, &all);
            self.insert_chunk(conn, statement, queue, &all)
        });
        let put = put.and_then(|put| match put.len() {
            given if given == wanted => Ok(put),
            // A foreign trigger has skipped rows, and it is unknown to which call they belonged.
            given => Err(Error::OutcomeUnknown(format!("{given} jobs were added of {wanted}"))),
        });
        match put {
            Ok(mut put) => {
                let others = put.split_off(jobs.len());
                let mut others = others.into_iter();
                leader
                    .reply(sizes.iter().map(|size| Reply::Answer(Ok(others.by_ref().take(*size).collect()))));
                Ok(put)
            }
            Err(error) => leader.fail(error, Error::for_another, || self.put_alone(queue, jobs)),
        }
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
        self.fast_path.note_put(queue, jobs);
        if let [job] = jobs
            && (job.schedule_at, job.expected_at, job.priority) == (None, None, 0)
            && job.serialization_key.is_none()
            && job.unique.is_none()
        {
            let values = [Value::Text(queue.as_str()), Value::Text(job.payload.as_str())];
            let one = self.statements.put_one.of(trigger);
            let id: i64 = one.with::<BigInt>(&values).get_result(conn).map_err(|e| self.error(e))?;
            return Ok(vec![Put::added(JobId(id))]);
        }
        if jobs.len() >= COPY_JOBS && none_is_unique(jobs) {
            return self.copy_with_ids(conn, queue, jobs, trigger);
        }
        self.insert_chunks(conn, queue, jobs, trigger)
    }

    fn insert_chunks(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &[NewJob],
        trigger: Trigger,
    ) -> Result<Vec<Put>, Error> {
        let many = self.statements.put_many.of(trigger);
        let chunks = chunks(jobs, size);
        if let [chunk] = chunks[..] {
            return self.insert_chunk(conn, many, queue, chunk);
        }
        self.transaction(conn, |conn| {
            let mut ids = Vec::with_capacity(jobs.len());
            for chunk in chunks {
                ids.extend(self.insert_chunk(conn, many, queue, chunk)?);
            }
            Ok(ids)
        })
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
            let statements = &self.statements;
            let draw_ids = if quietly { &statements.draw_ids_quietly } else { &statements.draw_ids };
            let values = [Value::BigInt(jobs.len() as i64)];
            let (ids, now): (Option<Vec<i64>>, DateTime<Utc>) = draw_ids
                .with::<(Nullable<Array<BigInt>>, Timestamptz)>(&values)
                .get_result(conn)
                .map_err(|e| self.error(e))?;
            let Some(ids) = ids else { return self.insert_chunks(conn, queue, jobs, trigger) };
            copy_in(conn, &self.table, &statements.copy_with_ids, |rows| {
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
        let statements = &self.statements;
        let clock = if trigger == Trigger::Off { &statements.clock_quietly } else { &statements.clock };
        let copied = self.transaction(conn, |conn| {
            let clock = clock.with::<(Timestamptz, Bool)>(&[]);
            let (now, is_refused): (DateTime<Utc>, bool) =
                clock.get_result(conn).map_err(|e| self.error(e))?;
            if is_refused {
                comes_before = true;
                return self.insert_all(conn, queue, jobs, trigger);
            }
            copy_in(conn, &self.table, &statements.copy, |rows| {
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
            count += self.insert_chunks(conn, queue, &some, trigger)?.len() as u64;
        }
    }

    fn insert_chunk(
        &self,
        conn: &mut PgConnection,
        statement: &Statement,
        queue: &QueueName,
        jobs: &[impl Borrow<NewJob>],
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
        ];
        if jobs().all(|job| job.unique.is_none()) {
            let ids: Vec<i64> = statement.with::<BigInt>(&values).load(conn).map_err(|e| self.error(e))?;
            return Ok(ids.into_iter().map(|id| Put::added(JobId(id))).collect());
        }
        values.push(Value::OptionalTexts(
            jobs().map(|job| job.unique.as_ref().map(|(key, _)| key.as_str())).collect(),
        ));
        values.push(Value::OptionalTexts(
            jobs().map(|job| job.unique.as_ref().map(|(_, on_conflict)| word(*on_conflict))).collect(),
        ));
        let put = self.statements.put_unique.with::<(BigInt, Text)>(&values);
        let put: Vec<(i64, String)> = put.load(conn).map_err(|e| self.error(e))?;
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
fn may_be_shared(jobs: &[NewJob]) -> bool {
    (1..=SHARED_JOBS).contains(&jobs.len())
        && none_is_unique(jobs)
        && jobs.iter().map(size).sum::<usize>() <= SHARED_BYTES
}

/// Returns the bytes of a job that count toward the limits.
fn size(job: &NewJob) -> usize {
    job.payload.as_str().len()
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
