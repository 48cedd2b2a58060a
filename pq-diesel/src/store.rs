//! The store: what the core's trait asks for, on PostgreSQL.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::pg::PgConnection;
use diesel::pg::data_types::PgInterval;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use pq_core::{Bell, Claim, Counts, Dead, JobId, NewJob, Payload, QueueName, RawJob, Store, Taken, When};

use crate::listener::{Listener, Subscription};
use crate::pool::Pool;
use crate::prepared::{Statement, Value};
use crate::rows::{TakenRow, TakenSql, found};
use crate::statements::Statements;
use crate::table::Table;
use crate::{Error, Notify};

/// Jobs in a table of PostgreSQL. Made by [`crate::Builder`].
pub struct PgStore {
    pub(crate) table: Table,
    pub(crate) statements: Statements,
    pub(crate) pool: Option<Pool>,
    pub(crate) listener: Option<Listener>,
    pub(crate) notify: Notify,
    pub(crate) poll_interval: Duration,
}

/// The most bytes and jobs that go into one INSERT. More are split, inside one transaction.
const CHUNK_BYTES: usize = 16 << 20;
const CHUNK_JOBS: usize = 1 << 17;

/// How often a take that locked rows it could not see is tried anew.
const RACES: usize = 8;

/// The longest reason that is stored with a dead job, in characters.
const REASON_CHARS: usize = 2_000;

impl PgStore {
    /// The text of the statements that put a job, take one and take many, with `$1` for the queue's name
    /// and `$2` for the payload or the number of jobs: for EXPLAIN, and to measure what the bare SQL costs.
    #[must_use]
    pub fn hot_statements(&self) -> [(&'static str, String); 3] {
        let Statements { put_one, take_one, take, .. } = &self.statements;
        [("put", put_one.text()), ("take one", take_one.text()), ("take", take.text())]
    }

    fn error(&self, error: diesel::result::Error) -> Error {
        Error::of(&self.table, error)
    }

    fn insert(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &[NewJob],
        quietly: bool,
    ) -> Result<Vec<JobId>, Error> {
        let statements = &self.statements;
        let (one, many) = if quietly {
            (&statements.put_one_quietly, &statements.put_quietly)
        } else {
            (&statements.put_one, &statements.put)
        };
        if let [job] = jobs
            && (job.schedule_at, job.expected_at, job.priority) == (None, None, 0)
        {
            let values = [Value::Text(queue.as_str()), Value::Text(job.payload.as_str())];
            let id: i64 = one.with::<BigInt>(&values).get_result(conn).map_err(|e| self.error(e))?;
            return Ok(vec![JobId(id)]);
        }
        let chunks = chunks(jobs);
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

    fn insert_chunk(
        &self,
        conn: &mut PgConnection,
        statement: &Statement,
        queue: &QueueName,
        jobs: &[NewJob],
    ) -> Result<Vec<JobId>, Error> {
        let (schedule_at, schedule_in) = split(jobs.iter().map(|job| job.schedule_at));
        let (expected_at, expected_in) = split(jobs.iter().map(|job| job.expected_at));
        let values = [
            Value::Text(queue.as_str()),
            Value::Texts(jobs.iter().map(|job| job.payload.as_str()).collect()),
            schedule_at,
            schedule_in,
            expected_at,
            expected_in,
            Value::Integers(jobs.iter().map(|job| job.priority).collect()),
        ];
        let ids: Vec<i64> = statement.with::<BigInt>(&values).load(conn).map_err(|e| self.error(e))?;
        Ok(ids.into_iter().map(JobId).collect())
    }
}

impl Store for PgStore {
    type Conn = PgConnection;
    type Error = Error;
    type Subscription = Option<Subscription>;

    fn put(&self, conn: &mut PgConnection, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<JobId>, Error> {
        self.insert(conn, queue, jobs, false)
    }

    fn take(&self, conn: &mut PgConnection, queue: &QueueName, count: usize) -> Result<Taken, Error> {
        let values = [Value::Text(queue.as_str()), Value::BigInt(i64::try_from(count).unwrap_or(i64::MAX))];
        let (statement, values) = match count {
            1 => (&self.statements.take_one, &values[..1]),
            _ => (&self.statements.take, &values[..]),
        };
        let mut looked = found(queue, Vec::new());
        for _ in 0..RACES {
            let rows: Vec<TakenRow> =
                statement.with::<TakenSql>(values).load(conn).map_err(|e| self.error(e))?;
            looked = found(queue, rows);
            if !looked.look_again {
                break;
            }
        }
        Ok(Taken { jobs: looked.jobs, next_due: looked.next_due })
    }

    fn update(&self, conn: &mut PgConnection, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        let values = [Value::BigInt(claim.id.0), Value::Text(payload.as_str()), Value::BigInt(claim.token)];
        let noted: Option<String> = self
            .statements
            .update
            .with::<Text>(&values)
            .get_result(conn)
            .optional()
            .map_err(|e| self.error(e))?;
        noted.map(drop).ok_or_else(|| pq_core::Error::not_yours(claim.id).into())
    }

    fn give_back(&self, conn: &mut PgConnection, job: &RawJob) -> Result<(), Error> {
        let values = [
            Value::BigInt(job.id.0),
            Value::Text(job.payload.as_str()),
            Value::BigInt(job.claim.token),
            Value::Text(job.queue.as_str()),
            Value::Instant(Some(job.enqueued_at)),
            Value::Instant(job.schedule_at),
            Value::Instant(job.expected_at),
            Value::Integer(job.priority),
            Value::Integer(job.attempt),
        ];
        let back: Option<i64> = self
            .statements
            .give_back
            .with::<BigInt>(&values)
            .get_result(conn)
            .optional()
            .map_err(|e| self.error(e))?;
        back.map(drop).ok_or_else(|| pq_core::Error::not_yours(job.id).into())
    }

    fn bury(&self, conn: &mut PgConnection, jobs: &[Dead]) -> Result<(), Error> {
        for Dead { job, reason } in jobs {
            // PostgreSQL's text cannot hold NUL.
            let reason: String = reason.chars().filter(|c| *c != '\0').take(REASON_CHARS).collect();
            let values = [
                Value::BigInt(job.id.0),
                Value::Text(job.payload.as_str()),
                Value::Text(job.queue.as_str()),
                Value::Instant(Some(job.enqueued_at)),
                Value::Instant(job.schedule_at),
                Value::Instant(job.expected_at),
                Value::Integer(job.priority),
                Value::Integer(job.attempt),
                Value::Text(&reason),
            ];
            self.statements.bury.with::<BigInt>(&values).execute(conn).map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    fn counts(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<Counts, Error> {
        let values = [Value::Text(queue.as_str())];
        let (ready, scheduled, dequeued, dead): (i64, i64, i64, i64) = self
            .statements
            .counts
            .with::<(BigInt, BigInt, BigInt, BigInt)>(&values)
            .get_result(conn)
            .map_err(|e| self.error(e))?;
        let [ready, scheduled, dequeued, dead] =
            [ready, scheduled, dequeued, dead].map(|count| count.max(0).unsigned_abs());
        Ok(Counts::new(ready, scheduled, dequeued, dead))
    }

    fn clear(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<u64, Error> {
        let values = [Value::Text(queue.as_str())];
        let clear = self.statements.clear.with::<BigInt>(&values);
        let cleared = clear.execute(conn).map_err(|e| self.error(e))?;
        Ok(cleared as u64)
    }

    /// A transaction is begun and ended through diesel, so one that was begun with plain SQL
    /// (`BEGIN` by `batch_execute`) is not recognised as one to nest in.
    fn transaction<R, E: From<Error>>(
        &self,
        conn: &mut PgConnection,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        let around = depth(conn).map_err(Error::from)?;
        AnsiTransactionManager::begin_transaction(conn).map_err(Error::from)?;
        // What the panic may have left half done on the connection is rolled back before it goes on.
        match catch_unwind(AssertUnwindSafe(|| work(conn))) {
            Ok(Ok(done)) => match commit(conn, around) {
                Ok(()) => Ok(done),
                Err(error) => {
                    let _ = roll_back_to(conn, around);
                    let error = Error::from(error);
                    Err(if around == 0 { error.unless_committed() } else { error }.into())
                }
            },
            Ok(Err(error)) => {
                // The error that `work` returned says more than one of the rollback, which fails only
                // where the connection is lost, and then the server rolls back.
                let _ = roll_back_to(conn, around);
                Err(error)
            }
            Err(panic) => {
                let _ = roll_back_to(conn, around);
                resume_unwind(panic)
            }
        }
    }

    fn with_connection<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        match &self.pool {
            Some(pool) => pool.with(work),
            None => Err(Error::from(pq_core::Error::NoConnection).into()),
        }
    }

    fn put_now(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<JobId>, Error> {
        let quietly = self.notify != Notify::InCommit;
        let ids = self
            .with_connection(|conn| self.insert(conn, queue, jobs, quietly))
            .map_err(Error::unless_committed)?;
        if let (Notify::AfterCommit, Some(listener)) = (self.notify, &self.listener) {
            listener.tell(queue);
        }
        Ok(ids)
    }

    fn subscribe(&self, queue: &QueueName, bell: &Arc<Bell>) -> Option<Subscription> {
        self.listener.as_ref().map(|listener| listener.subscribe(queue, bell))
    }

    fn poll_interval(&self) -> Duration {
        self.poll_interval
    }
}

/// How many transactions are open on the connection, in one another.
fn depth(conn: &mut PgConnection) -> QueryResult<u32> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    Ok(status.transaction_depth()?.map_or(0, |depth| depth.get()))
}

/// Commits the innermost transaction, within which `around` others are open.
///
/// PostgreSQL answers COMMIT with success where the transaction had failed before, and rolls back; diesel
/// does not see the difference. A handler that overlooked a failed statement would be told that its job is
/// done. The empty SELECT goes with the COMMIT, fails where the transaction has, and costs no round trip.
/// diesel learns from the connection's state that the transaction is over.
fn commit(conn: &mut PgConnection, around: u32) -> QueryResult<()> {
    if around == 0 {
        conn.batch_execute("SELECT; COMMIT")
    } else {
        AnsiTransactionManager::commit_transaction(conn)
    }
}

/// Rolls back until `around` transactions are open: a panic may have left nested ones behind.
fn roll_back_to(conn: &mut PgConnection, around: u32) -> QueryResult<()> {
    while depth(conn)? > around {
        AnsiTransactionManager::rollback_transaction(conn)?;
    }
    Ok(())
}

fn chunks(jobs: &[NewJob]) -> Vec<&[NewJob]> {
    let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (position, job) in jobs.iter().enumerate() {
        let size = job.payload.as_str().len();
        if position > start && (bytes + size > CHUNK_BYTES || position - start == CHUNK_JOBS) {
            chunks.push(&jobs[start..position]);
            (start, bytes) = (position, 0);
        }
        bytes += size;
    }
    if start < jobs.len() {
        chunks.push(&jobs[start..]);
    }
    chunks
}

/// Times as two arrays: the instants, and the delays.
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
