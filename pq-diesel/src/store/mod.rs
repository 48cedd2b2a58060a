//! The store: what the core's trait asks for, on PostgreSQL.

mod archive;
mod chunks;
mod desk;
mod fast_path;
#[cfg(test)]
mod group_commit_tests;
mod group_take;
mod leases;
mod open;
mod put;
mod take;
mod transaction;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::query_dsl::methods::LoadQuery;
use diesel::sql_types::BigInt;
use pq_core::{
    Cancelled, Claim, Counts, Cron, CronEntry, Ended, EndedAs, Extended, Filter, Heartbeat, HeartbeatReply,
    JobId, JobStatus, Listed, MaintenanceReport, NewJob, Outcome, Overview, Payload, Put, QueueName, RawJob,
    Retention, Scan, Settlement, StopMode, Store, Taken, Undecodable, WakeSignal, WorkerId, WorkerInfo,
};

pub(crate) use self::fast_path::FastPath;
pub(crate) use self::group_take::GroupTakes;
pub(crate) use self::put::GroupPuts;
use self::put::may_be_told_later;
pub(crate) use self::take::FallbackLevels;
use self::take::{Owner, TakeRequest};
use self::transaction::set_limit;
use crate::listener::{Listener, Subscription};
use crate::pool::{self, Pool};
use crate::prepared::{Bound, Statement, Value};
use crate::statements::{Statements, Trigger};
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
    pub(crate) fallback_levels: FallbackLevels,
    pub(crate) fast_path: FastPath,
    pub(crate) group_puts: GroupPuts,
    pub(crate) group_takes: GroupTakes,
}

/// The longest error that is stored with a job, in characters.
const ERROR_CHARS: usize = 2_000;

impl PgStore {
    /// The text of the statements that put a job, take one, take many, and take many with scheduled jobs sorted in: for
    /// EXPLAIN, and to measure what the bare SQL costs. `$1` is the queue's name; `$2` is the payload, a number by which
    /// the transaction knows the take, and the number of jobs.
    #[must_use]
    pub fn hot_statements(&self) -> [(&'static str, String); 4] {
        let Statements { put_one, walk, take, .. } = &self.statements;
        [
            ("put", put_one.of(Trigger::Fires).text()),
            ("take one", walk.from_start.of(1).0.text()),
            ("take", take[0].of(0).0.text()),
            ("take with jobs sorted in", take[1].of(0).0.text()),
        ]
    }

    /// What the table's trigger does about puts that are a transaction of their own.
    fn own_trigger(&self) -> Trigger {
        if self.notify == Notify::InCommit { Trigger::Fires } else { Trigger::Off }
    }

    /// What it does about a put of these jobs in a transaction of the connection's, which is noted if it is one that
    /// this handle commits.
    fn trigger_in(&self, conn: &PgConnection, queue: &QueueName, jobs: &[NewJob]) -> Trigger {
        let is_ours = may_be_told_later(jobs) && open::note(self, conn, queue);
        let later = self.notify == Notify::AfterCommit && self.listener.is_some();
        if is_ours && later { Trigger::OffForThis } else { Trigger::Fires }
    }

    /// A put into the queue has committed: wakes those who wait for it by this handle, who need not wait for the
    /// server's word, and has the others told if the commit did not.
    fn has_put(&self, queue: &QueueName) {
        let Some(listener) = self.listener.as_ref().filter(|_| self.notify != Notify::Off) else { return };
        listener.wake_own_waiters(queue);
        if self.notify == Notify::AfterCommit {
            listener.notify(queue);
        }
    }

    pub(crate) fn error(&self, error: diesel::result::Error) -> Error {
        Error::of(&self.table, error)
    }

    /// What a statement returns that has one row or none.
    fn one<'q, Row, T>(
        &self,
        conn: &mut PgConnection,
        statement: &'q Statement,
        values: &'q [Value<'q>],
    ) -> Result<Option<T>, Error>
    where
        Bound<'q, Row>: LoadQuery<'q, PgConnection, T>,
    {
        statement.with(values).get_result(conn).optional().map_err(|e| self.error(e))
    }
}

impl Store for PgStore {
    type Conn = PgConnection;
    type Error = Error;
    type Subscription = Option<Subscription>;
    /// How many transactions were open in one another.
    type Savepoint = u32;

    fn put(&self, conn: &mut PgConnection, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        let trigger = self.trigger_in(conn, queue, jobs);
        self.insert(conn, queue, jobs, trigger)
    }

    fn put_all(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, pq_core::Error>>,
    ) -> Result<u64, Error> {
        self.copy_all(conn, queue, jobs, Trigger::Fires)
    }

    fn take(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        scan: Scan,
    ) -> Result<Taken, Error> {
        self.take_for(conn, queue, TakeRequest { count, scan }, Owner::Transaction)
    }

    fn retake(&self, conn: &mut PgConnection, job: &RawJob) -> Result<bool, Error> {
        self.take_again(conn, job)
    }

    fn lease(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        scan: Scan,
    ) -> Result<Taken, Error> {
        self.take_for(conn, queue, TakeRequest { count, scan }, Owner::Lease(lease))
    }

    fn extend(
        &self,
        conn: &mut PgConnection,
        leases: &[i64],
        lease: Duration,
    ) -> Result<Vec<Extended>, Error> {
        self.extend_leases(conn, leases, lease)
    }

    fn settle(&self, conn: &mut PgConnection, verdicts: &[Settlement<'_>]) -> Result<Vec<bool>, Error> {
        self.settle_all(conn, verdicts)
    }

    fn maintain(
        &self,
        conn: &mut PgConnection,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Error> {
        self.sweep_once(conn, retention)
    }

    fn find(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Option<JobStatus>, Error> {
        self.find_job(conn, queue, id)
    }

    fn cancel(&self, conn: &mut PgConnection, queue: &QueueName, id: JobId) -> Result<Cancelled, Error> {
        self.cancel_job(conn, queue, id)
    }

    fn archived(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        ended: EndedAs,
        before: Option<&Ended>,
        count: usize,
    ) -> Result<Vec<Ended>, Error> {
        self.list_archive(conn, queue, &[ended], before, None, count)
    }

    fn requeue(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        let ids = ids.map(|ids| ids.iter().map(|id| id.0).collect());
        let values = [Value::Text(queue.as_str()), Value::OptionalBigInts(ids)];
        self.fast_path.forget_position(queue);
        let revived = self.statements.revive.with::<BigInt>(&values).execute(conn);
        revived.map(|count| count as u64).map_err(|e| self.error(e))
    }

    fn prune(
        &self,
        conn: &mut PgConnection,
        queue: &QueueName,
        ended: EndedAs,
        age: Duration,
    ) -> Result<u64, Error> {
        let values =
            [Value::Text(queue.as_str()), Value::Text(ended.as_str()), Value::BigInt(age_micros(age))];
        let pruned = self.statements.prune.with::<BigInt>(&values).execute(conn);
        pruned.map(|count| count as u64).map_err(|e| self.error(e))
    }

    fn update(&self, conn: &mut PgConnection, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        self.replace_payload(conn, claim, payload)
    }

    fn give_back(&self, conn: &mut PgConnection, job: &RawJob) -> Result<(), Error> {
        let refused = || match job.claim.lease() {
            Some(_) => pq_core::Error::lease_lost(job.id),
            None => pq_core::Error::not_yours(job.id),
        };
        let accepted = match job.claim.lease() {
            Some(_) => {
                self.settle_all(conn, &[Settlement { job, outcome: Outcome::GiveBack }])?.contains(&true)
            }
            None => self.return_held(conn, job)?,
        };
        if accepted { Ok(()) } else { Err(refused().into()) }
    }

    fn move_to_dead(&self, conn: &mut PgConnection, jobs: &[Undecodable]) -> Result<(), Error> {
        self.move_all_to_dead(conn, jobs)
    }

    fn counts(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<Counts, Error> {
        type Numbers = (BigInt, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt);
        let values = [Value::Text(queue.as_str())];
        let counted = self.statements.counts.with::<Numbers>(&values);
        let (ready, scheduled, leased, dequeued, dead, cancelled, done): (i64, i64, i64, i64, i64, i64, i64) =
            counted.get_result(conn).map_err(|e| self.error(e))?;
        let number = |count: i64| count.max(0).unsigned_abs();
        let mut counts = Counts::default();
        (counts.ready, counts.scheduled, counts.leased) = (number(ready), number(scheduled), number(leased));
        (counts.dead, counts.cancelled, counts.done) = (number(dead), number(cancelled), number(done));
        counts.dequeued = number(dequeued);
        Ok(counts)
    }

    fn clear(&self, conn: &mut PgConnection, queue: &QueueName) -> Result<u64, Error> {
        let values = [Value::Text(queue.as_str())];
        let cleared: i64 =
            self.statements.clear.with::<BigInt>(&values).get_result(conn).map_err(|e| self.error(e))?;
        Ok(cleared.max(0).unsigned_abs())
    }

    fn now(&self, conn: &mut PgConnection) -> Result<DateTime<Utc>, Error> {
        self.clock(conn)
    }

    fn pause(&self, conn: &mut PgConnection, queue: &QueueName, paused: bool) -> Result<bool, Error> {
        self.set_paused(conn, queue, paused)
    }

    fn overview(&self, conn: &mut PgConnection) -> Result<Vec<Overview>, Error> {
        self.all_queues(conn)
    }

    fn list(&self, conn: &mut PgConnection, filter: &Filter, count: usize) -> Result<Vec<Listed>, Error> {
        self.list_jobs(conn, filter, count)
    }

    fn move_jobs(
        &self,
        conn: &mut PgConnection,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        self.move_jobs(conn, from, to, ids)
    }

    fn heartbeat(&self, conn: &mut PgConnection, beat: &Heartbeat) -> Result<HeartbeatReply, Error> {
        self.note_beat(conn, beat)
    }

    fn deregister(&self, conn: &mut PgConnection, worker: WorkerId) -> Result<(), Error> {
        self.forget_worker(conn, worker)
    }

    fn workers(&self, conn: &mut PgConnection) -> Result<Vec<WorkerInfo>, Error> {
        self.known_workers(conn)
    }

    fn stop_worker(&self, conn: &mut PgConnection, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        self.ask_to_stop(conn, worker, mode)
    }

    fn set_cron(
        &self,
        conn: &mut PgConnection,
        cron: &Cron,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        self.put_cron(conn, cron, next_at)
    }

    fn crons(&self, conn: &mut PgConnection) -> Result<Vec<CronEntry>, Error> {
        self.load_crons(conn, false)
    }

    fn remove_cron(&self, conn: &mut PgConnection, name: &str) -> Result<bool, Error> {
        self.drop_cron(conn, name)
    }

    fn pause_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        self.change_cron(conn, name, paused, next_at)
    }

    fn due_crons(&self, conn: &mut PgConnection) -> Result<Vec<CronEntry>, Error> {
        self.load_crons(conn, true)
    }

    fn advance_cron(
        &self,
        conn: &mut PgConnection,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        self.note_tick(conn, name, last_at, next_at)
    }

    /// A transaction is begun and ended through diesel, so one that was begun with plain SQL
    /// (`BEGIN` by `batch_execute`) is not recognised as one to nest in.
    fn transaction<R, E: From<Error>>(
        &self,
        conn: &mut PgConnection,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        self.within(conn, work)
    }

    /// A savepoint that diesel knows nothing of. One that takes the place of another goes with its release.
    fn savepoint(&self, conn: &mut PgConnection, earlier: Option<u32>) -> Result<u32, Error> {
        self.save(conn, earlier, "")
    }

    fn savepoint_and_timeout(
        &self,
        conn: &mut PgConnection,
        earlier: Option<u32>,
        limit: Option<Duration>,
    ) -> Result<u32, Error> {
        self.save(conn, earlier, &format!("{}; ", set_limit(limit)))
    }

    fn rollback_to(&self, conn: &mut PgConnection, mark: u32) -> Result<(), Error> {
        self.undo_to(conn, mark)
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

    fn put_now(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        self.put_grouped(queue, jobs)
    }

    fn take_now(&self, queue: &QueueName, count: usize, scan: Scan) -> Result<Taken, Error> {
        self.take_grouped(queue, TakeRequest { count, scan })
    }

    fn put_all_now(
        &self,
        queue: &QueueName,
        jobs: &mut dyn Iterator<Item = Result<NewJob, pq_core::Error>>,
    ) -> Result<u64, Error> {
        // Until the commit, which knows of itself whether its outcome is known, nothing has happened.
        let count = self.with_connection(|conn| self.copy_all(conn, queue, jobs, self.own_trigger()))?;
        self.has_put(queue);
        Ok(count)
    }

    fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Option<Subscription> {
        self.listener.as_ref().map(|listener| listener.subscribe(queue, signal))
    }

    fn activity(&self, conn: &mut PgConnection) -> Option<u64> {
        pool::statements_sent(conn)
    }

    /// By `statement_timeout`, for the rest of the transaction.
    fn set_statement_timeout(&self, conn: &mut PgConnection, limit: Option<Duration>) -> Result<(), Error> {
        conn.batch_execute(&set_limit(limit)).map_err(|e| self.error(e))
    }

    fn poll_interval(&self) -> Duration {
        self.poll_interval
    }
}

/// Error text as PostgreSQL can hold it, which is without NUL, and not longer than it is of use.
fn storable(error: &str) -> String {
    error.chars().filter(|c| *c != '\0').take(ERROR_CHARS).collect()
}

/// A duration as microseconds, at most some ten thousand years.
fn micros(span: Duration) -> i64 {
    const MOST: i64 = 315_360_000_000 * 1_000_000;
    i64::try_from(span.as_micros()).map_or(MOST, |micros| micros.min(MOST))
}

/// An age as microseconds: at most so much that there were timestamps already.
fn age_micros(age: Duration) -> i64 {
    micros(age).min(189_216_000_000 * 1_000_000)
}
