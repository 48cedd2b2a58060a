//! A store that blocks, on the asynchronous implementation.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use pq_core::store::{
    Accepted, Archive, Connect, Extension, FollowUps, Jobs, Keeping, NewStep, Notes, Results, Scan, Steps,
    Taken, Undecodable, Wake,
};
use pq_core::{
    Claim, Isolation, JobId, JobProgress, JobRecord, JobState, MaintenanceReport, NewJob, NewNotes, Payload,
    Predecessor, Put, QueueName, Retention, SentSignal, Settlement, StepRecord, StoredLine, WakeSignal,
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

mod operators;

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
    fn write_notes(
        &self,
        conn: &mut Conn,
        notes: &[NewNotes<'_>],
        are_last: bool,
    ) -> Result<Accepted, Error> {
        wait!(self, conn, |store, sql| store.write_notes_on(sql, notes, are_last))
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

    fn needs_maintenance(&self, conn: &mut Conn, queues: &[QueueName]) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.needs_maintenance_on(sql, queues))
    }

    fn maintain(&self, conn: &mut Conn, retention: &Retention) -> Result<Option<MaintenanceReport>, Error> {
        wait!(self, conn, |store, sql| store.maintain_on(sql, retention))
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

    fn followers(&self, conn: &mut Conn, job: JobId, count: usize) -> Result<Vec<JobId>, Error> {
        wait!(self, conn, |store, sql| store.followers_on(sql, job, count))
    }

    fn waits(&self, conn: &mut Conn, follow_up: JobId) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.waits_on(sql, follow_up))
    }

    fn members(
        &self,
        conn: &mut Conn,
        workflow: JobId,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        wait!(self, conn, |store, sql| store.members_on(sql, workflow, after, count))
    }

    fn release(&self, conn: &mut Conn, follow_up: JobId) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.release_on(sql, &[follow_up.0], &[]))
    }

    fn wait_for_job(&self, conn: &mut Conn, follow_up: JobId, job: JobId) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.wait_for_job_on(sql, follow_up, job))
    }

    fn cancel_waiting(&self, conn: &mut Conn, jobs: &[JobId], reason: &str) -> Result<Vec<JobId>, Error> {
        wait!(self, conn, |store, sql| store.cancel_waiting_on(sql, jobs, reason))
    }

    fn wait_again(&self, conn: &mut Conn, workflow: JobId, jobs: &[JobId], held: bool) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.wait_again_on(sql, workflow, jobs, held))
    }

    fn wake(
        &self,
        conn: &mut Conn,
        workflow: JobId,
        why: Option<Wake>,
        after: Duration,
    ) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.wake_on(sql, workflow, why, after))
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

    fn signals(&self, conn: &mut Conn, job: &JobRecord, count: usize) -> Result<Vec<SentSignal>, Error> {
        wait!(self, conn, |store, sql| store.signals_on(sql, job, count))
    }
}
