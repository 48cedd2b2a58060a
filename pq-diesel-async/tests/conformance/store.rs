//! A store that blocks, on the asynchronous implementation.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use pq_core::store::{
    Accepted, Admin, Archive, Audit, Batch, Circumstances, Connect, Counting, Explain, Extension, FollowUps,
    Jobs, Keeping, Limiting, NewStep, Notes, Operations, Results, Scan, Schedules, Source, Steps, Taken,
    TimeTravel, Undecodable, Workers,
};
use pq_core::{
    AuditEntry, AuditRecord, CancelOutcome, Claim, Cron, CronEntry, Filter, Heartbeat, HeartbeatReply,
    Isolation, JobId, JobProgress, JobRecord, JobState, Limits, MaintenanceReport, NewJob, NewNotes,
    Operation, PausedQueue, Payload, Predecessor, Put, QueueCounts, QueueName, Retention, Settlement,
    StepRecord, StopMode, StoredLine, TaskCounters, WakeSignal, WorkerId, WorkerInfo,
};
use pq_diesel::store::{PgStore, SqlConnection};
use pq_diesel_async::testing::{Lent, OnAsync, Shared};
use pq_diesel_async::{Error, Pq};
use tokio::runtime::Handle;

/// Runs each call of the asynchronous implementation to its end.
pub(crate) struct Blocking {
    pq: Pq,
    runtime: Handle,
}

impl Blocking {
    pub(crate) fn new(pq: Pq, runtime: Handle) -> Self {
        Self { pq, runtime }
    }

    fn shared(&self) -> &Shared {
        self.pq.shared()
    }

    fn store(&self) -> &PgStore {
        self.pq.blocking().store()
    }
}

/// A connection of the application, or one that the pool has lent.
pub(crate) struct Conn {
    inner: Inner,
    runtime: Handle,
}

enum Inner {
    Own(Box<AsyncPgConnection>),
    Lent(Lent),
}

impl Conn {
    pub(crate) fn open(url: &str, runtime: &Handle) -> Result<Self, diesel::ConnectionError> {
        let conn = runtime.block_on(AsyncPgConnection::establish(url))?;
        Ok(Self { inner: Inner::Own(Box::new(conn)), runtime: runtime.clone() })
    }

    fn sql(&mut self) -> OnAsync<'_> {
        match &mut self.inner {
            Inner::Own(conn) => OnAsync::new(conn),
            Inner::Lent(lent) => lent.sql(),
        }
    }
}

/// Runs a call of the store on the connection.
macro_rules! wait {
    ($self:ident, $conn:ident, |$store:ident, $sql:ident| $call:expr) => {{
        let runtime = $conn.runtime.clone();
        let $store = $self.store();
        let mut sql = $conn.sql();
        let $sql = &mut sql;
        runtime.block_on($call)
    }};
}

impl Connect for Blocking {
    type Conn = Conn;
    type Error = Error;
    type Savepoint = u32;

    fn with_connection<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        let lent = self.runtime.block_on(self.shared().lend())?;
        let mut conn = Conn { inner: Inner::Lent(lent), runtime: self.runtime.clone() };
        let done = work(&mut conn);
        if let Inner::Lent(lent) = conn.inner {
            let _entered = self.runtime.enter();
            lent.release();
        }
        done
    }

    fn transaction_at<R, E: From<Error>>(
        &self,
        conn: &mut Conn,
        isolation: Isolation,
        work: impl FnOnce(&mut Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        let around = conn.sql().depth().map_err(Error::from)?;
        wait!(self, conn, |store, sql| async {
            sql.begin(around, isolation).await.map_err(|e| store.error(e))
        })?;
        let done = catch_unwind(AssertUnwindSafe(|| work(conn)));
        if let Ok(Ok(done)) = done {
            let committed: Result<(), Error> = wait!(self, conn, |store, sql| async {
                sql.commit(around).await.map_err(|e| store.error(e))
            });
            return match committed {
                Ok(()) => Ok(done),
                Err(error) => {
                    let _ = wait!(self, conn, |_store, sql| sql.roll_back_to(around));
                    Err(if around == 0 { error.unless_committed() } else { error }.into())
                }
            };
        }
        let _ = wait!(self, conn, |_store, sql| sql.roll_back_to(around));
        match done {
            Ok(done) => done,
            Err(panic) => resume_unwind(panic),
        }
    }

    fn savepoint(&self, conn: &mut Conn, earlier: Option<u32>) -> Result<u32, Error> {
        wait!(self, conn, |store, sql| store.save_on(sql, earlier, ""))
    }

    fn rollback_to(&self, conn: &mut Conn, savepoint: u32) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.roll_back_to_savepoint(sql, savepoint))
    }

    fn now(&self, conn: &mut Conn) -> Result<DateTime<Utc>, Error> {
        wait!(self, conn, |store, sql| store.now_on(sql))
    }
}

impl Jobs for Blocking {
    type Subscription = <PgStore as Jobs>::Subscription;

    fn put(&self, conn: &mut Conn, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        wait!(self, conn, |store, sql| store.put_on(sql, queue, jobs))
    }

    fn take(&self, conn: &mut Conn, queue: &QueueName, count: usize, scan: Scan) -> Result<Taken, Error> {
        wait!(self, conn, |store, sql| store.take_on(sql, queue, count, scan))
    }

    fn retake(&self, conn: &mut Conn, job: &Claim) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.retake_on(sql, job))
    }

    fn lease(
        &self,
        conn: &mut Conn,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        scan: Scan,
    ) -> Result<Taken, Error> {
        wait!(self, conn, |store, sql| store.lease_on(sql, queue, count, lease, scan))
    }

    fn extend(&self, conn: &mut Conn, leases: &[i64], lease: Duration) -> Result<Vec<Extension>, Error> {
        wait!(self, conn, |store, sql| store.extend_on(sql, leases, lease))
    }

    fn settle(&self, conn: &mut Conn, settlements: &[Settlement<'_>]) -> Result<Accepted, Error> {
        wait!(self, conn, |store, sql| store.settle_on(sql, settlements))
    }

    fn update(&self, conn: &mut Conn, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.update_on(sql, claim, payload))
    }

    fn give_back(&self, conn: &mut Conn, job: &Claim) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.give_back_on(sql, job))
    }

    fn move_to_dead(&self, conn: &mut Conn, jobs: &[Undecodable]) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.move_to_dead_on(sql, jobs))
    }

    fn put_now(&self, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        self.runtime.block_on(self.pq.queue::<()>(queue.as_str())?.put_encoded(jobs.to_vec()))
    }

    fn take_now(&self, queue: &QueueName, count: usize, scan: Scan) -> Result<Taken, Error> {
        self.runtime.block_on(self.pq.queue::<()>(queue.as_str())?.take_encoded(count, scan))
    }

    fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Self::Subscription {
        self.store().subscribe(queue, signal)
    }

    fn poll_interval(&self) -> Duration {
        self.store().poll_interval()
    }
}

impl Results for Blocking {
    fn look(&self, conn: &mut Conn, id: JobId) -> Result<Option<JobRecord>, Error> {
        wait!(self, conn, |store, sql| store.look_on(sql, id))
    }

    fn mark_awaited(&self, conn: &mut Conn, id: JobId) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.mark_awaited_on(sql, id))
    }

    fn is_in_transaction(&self, conn: &mut Conn) -> Result<bool, Error> {
        Ok(conn.sql().depth()? > 0)
    }

    fn subscribe_to_end(&self, id: JobId, signal: &Arc<WakeSignal>) -> Self::Subscription {
        self.store().subscribe_to_end(id, signal)
    }
}

impl Notes for Blocking {
    fn write_notes(&self, conn: &mut Conn, notes: &[NewNotes<'_>]) -> Result<Accepted, Error> {
        wait!(self, conn, |store, sql| store.write_notes_on(sql, notes))
    }

    fn progress(&self, conn: &mut Conn, jobs: &[JobId]) -> Result<Vec<JobProgress>, Error> {
        wait!(self, conn, |store, sql| store.progress_on(sql, jobs))
    }

    fn log(&self, conn: &mut Conn, job: JobId, after: Option<i64>) -> Result<Vec<StoredLine>, Error> {
        wait!(self, conn, |store, sql| store.log_on(sql, job, after))
    }
}

impl Archive for Blocking {
    fn archived(
        &self,
        conn: &mut Conn,
        queue: &QueueName,
        state: JobState,
        before: Option<&JobRecord>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        wait!(self, conn, |store, sql| store.archived_on(sql, queue, state, before, count))
    }

    fn requeue(&self, conn: &mut Conn, queue: &QueueName, ids: Option<&[JobId]>) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.requeue_on(sql, queue, ids))
    }

    fn prune(
        &self,
        conn: &mut Conn,
        queue: &QueueName,
        state: JobState,
        age: Duration,
    ) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.prune_on(sql, queue, state, age))
    }

    fn has_expired_leases(&self, conn: &mut Conn, queues: &[QueueName]) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.has_expired_leases_on(sql, queues))
    }

    fn maintain(&self, conn: &mut Conn, retention: &Retention) -> Result<Option<MaintenanceReport>, Error> {
        wait!(self, conn, |store, sql| store.maintain_on(sql, retention))
    }
}

impl Admin for Blocking {
    fn counts(&self, conn: &mut Conn, queue: &QueueName) -> Result<QueueCounts, Error> {
        wait!(self, conn, |store, sql| store.counts_on(sql, queue))
    }

    fn overview(&self, conn: &mut Conn) -> Result<Vec<QueueCounts>, Error> {
        wait!(self, conn, |store, sql| store.overview_on(sql))
    }

    fn list(&self, conn: &mut Conn, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        wait!(self, conn, |store, sql| store.list_on(sql, filter, count))
    }

    fn find(&self, conn: &mut Conn, queue: &QueueName, id: JobId) -> Result<Option<JobRecord>, Error> {
        wait!(self, conn, |store, sql| store.find_on(sql, queue, id))
    }

    fn cancel(&self, conn: &mut Conn, queue: &QueueName, id: JobId) -> Result<CancelOutcome, Error> {
        wait!(self, conn, |store, sql| store.cancel_on(sql, queue, id))
    }

    fn clear(&self, conn: &mut Conn, queue: &QueueName) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.clear_on(sql, queue))
    }

    fn pause(
        &self,
        conn: &mut Conn,
        queue: &QueueName,
        paused: bool,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.pause_on(sql, queue, paused, by))
    }

    fn paused(&self, conn: &mut Conn) -> Result<Vec<PausedQueue>, Error> {
        wait!(self, conn, |store, sql| store.paused_on(sql))
    }

    fn move_jobs(
        &self,
        conn: &mut Conn,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.move_jobs_on(sql, from, to, ids))
    }
}

impl Limiting for Blocking {
    fn limits(&self, conn: &mut Conn, queue: &QueueName) -> Result<Limits, Error> {
        wait!(self, conn, |store, sql| store.limits_on(sql, queue))
    }

    fn set_limits(&self, conn: &mut Conn, queue: &QueueName, limits: &Limits) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.set_limits_on(sql, queue, limits))
    }
}

impl Explain for Blocking {
    fn circumstances(&self, conn: &mut Conn, id: JobId) -> Result<Circumstances, Error> {
        wait!(self, conn, |store, sql| store.circumstances_on(sql, id))
    }
}

impl FollowUps for Blocking {
    fn predecessors(
        &self,
        conn: &mut Conn,
        follow_up: JobId,
        count: usize,
    ) -> Result<Vec<Predecessor>, Error> {
        wait!(self, conn, |store, sql| store.predecessors_on(sql, follow_up, count))
    }

    fn release(&self, conn: &mut Conn, follow_up: JobId) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.release_on(sql, &[follow_up.0]))
    }
}

impl Operations for Blocking {
    fn tally(&self, conn: &mut Conn, filter: &Filter, limit: usize) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.tally_on(sql, filter, limit))
    }

    fn apply(
        &self,
        conn: &mut Conn,
        operation: &Operation,
        filter: &Filter,
        source: Source,
        after: i64,
        count: usize,
    ) -> Result<Batch, Error> {
        wait!(self, conn, |store, sql| store.apply_on(sql, operation, filter, source, after, count))
    }
}

impl Audit for Blocking {
    fn record(&self, conn: &mut Conn, record: &AuditRecord) -> Result<i64, Error> {
        wait!(self, conn, |store, sql| store.record_on(sql, record))
    }

    fn add_to_record(&self, conn: &mut Conn, entry: i64, count: u64) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.add_to_record_on(sql, entry, count))
    }

    fn audit(&self, conn: &mut Conn, before: Option<i64>, count: usize) -> Result<Vec<AuditEntry>, Error> {
        wait!(self, conn, |store, sql| store.audit_on(sql, before, count))
    }
}

impl Workers for Blocking {
    fn heartbeat(&self, conn: &mut Conn, beat: &Heartbeat) -> Result<HeartbeatReply, Error> {
        wait!(self, conn, |store, sql| store.heartbeat_on(sql, beat))
    }

    fn deregister(&self, conn: &mut Conn, worker: WorkerId) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.deregister_on(sql, worker))
    }

    fn workers(&self, conn: &mut Conn) -> Result<Vec<WorkerInfo>, Error> {
        wait!(self, conn, |store, sql| store.workers_on(sql))
    }

    fn stop_worker(&self, conn: &mut Conn, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.stop_worker_on(sql, worker, mode))
    }
}

impl Counting for Blocking {
    fn count(&self, conn: &mut Conn, counted: &[TaskCounters]) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.count_tasks_on(sql, counted))
    }

    fn counted(&self, conn: &mut Conn) -> Result<Vec<TaskCounters>, Error> {
        wait!(self, conn, |store, sql| store.counted_on(sql))
    }
}

impl Schedules for Blocking {
    fn set_cron(&self, conn: &mut Conn, cron: &Cron, next_at: Option<DateTime<Utc>>) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.set_cron_on(sql, cron, next_at))
    }

    fn crons(&self, conn: &mut Conn) -> Result<Vec<CronEntry>, Error> {
        wait!(self, conn, |store, sql| store.crons_on(sql))
    }

    fn remove_cron(&self, conn: &mut Conn, name: &str) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.remove_cron_on(sql, name))
    }

    fn pause_cron(
        &self,
        conn: &mut Conn,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.pause_cron_on(sql, name, paused, next_at, by))
    }

    fn due_cron(&self, conn: &mut Conn, after: Option<&str>) -> Result<Option<CronEntry>, Error> {
        wait!(self, conn, |store, sql| store.due_cron_on(sql, after))
    }

    fn advance_cron(
        &self,
        conn: &mut Conn,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.advance_cron_on(sql, name, last_at, next_at))
    }

    fn fail_cron(
        &self,
        conn: &mut Conn,
        name: &str,
        tick: DateTime<Utc>,
        error: &str,
        pause: Duration,
    ) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.fail_cron_on(sql, name, tick, error, pause))
    }

    fn bring_cron_forward(
        &self,
        conn: &mut Conn,
        name: &str,
        tick: DateTime<Utc>,
        earlier: DateTime<Utc>,
    ) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.bring_cron_forward_on(sql, name, tick, earlier))
    }
}

impl Steps for Blocking {
    fn steps(&self, conn: &mut Conn, job: &JobRecord) -> Result<Vec<StepRecord>, Error> {
        wait!(self, conn, |store, sql| store.steps_on(sql, job))
    }

    fn keep_step(&self, conn: &mut Conn, job: &Claim, step: &NewStep<'_>) -> Result<Keeping, Error> {
        wait!(self, conn, |store, sql| store.keep_step_on(sql, job, step))
    }

    fn await_signal(&self, conn: &mut Conn, job: &Claim, step: &NewStep<'_>) -> Result<Keeping, Error> {
        wait!(self, conn, |store, sql| store.await_signal_on(sql, job, step))
    }

    fn forget_steps(&self, conn: &mut Conn, job: &JobRecord, position: u32) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.forget_steps_on(sql, job, position))
    }

    fn signal(&self, conn: &mut Conn, job: JobId, name: &str, value: &Payload) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.signal_on(sql, job, name, value))
    }
}

impl TimeTravel for Blocking {
    fn advance(&self, conn: &mut Conn, duration: Duration) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.advance_on(sql, duration))
    }
}
