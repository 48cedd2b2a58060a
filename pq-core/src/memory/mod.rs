//! The reference store: jobs in this process's memory.
//!
//! Small and obvious rather than fast. It says what the trait means, it is what the property tests
//! compare PostgreSQL with, and it lets applications test their handlers without a database. Nothing
//! in it outlives the process.
//!
//! What it does otherwise than a database: pauses and periodic jobs that a transaction has not committed
//! are seen by others, workers are noted whatever becomes of the transaction, and a put with a unique key that another transaction has
//! put and not committed does not wait for that, but keeps it.

mod archive;
mod desk;
mod line;
mod put;
mod settle;
mod state;
mod transaction;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use self::state::Shared;
pub use self::state::Subscription;
use self::transaction::Mark;
pub use self::transaction::MemoryConn;
use crate::{
    Cancelled, Claim, Counts, Cron, CronEntry, Ended, EndedAs, Error, Extended, Filter, Heartbeat,
    HeartbeatReply, Held, JobId, JobStatus, Listed, MaintenanceReport, NewJob, Outcome, Overview, Payload,
    Put, QueueName, RawJob, Retention, Scan, Settlement, StopMode, Store, StoreError, Taken, Undecodable,
    WakeSignal, WorkerId, WorkerInfo,
};

/// A store in memory. Clones share their jobs.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection to the store, such as another process would have.
    #[must_use]
    pub fn connect(&self) -> MemoryConn {
        MemoryConn::new(Arc::clone(&self.shared))
    }
}

impl Store for MemoryStore {
    type Conn = MemoryConn;
    type Error = Error;
    type Subscription = Subscription;
    /// How many changes it had made.
    type Savepoint = usize;

    fn put(&self, conn: &mut MemoryConn, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<Put>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            Ok(jobs.iter().map(|job| put::put(state, open, queue, job, now)).collect())
        })
    }

    fn take(&self, conn: &mut MemoryConn, queue: &QueueName, count: usize, _: Scan) -> Result<Taken, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let line = line::first(state, queue, count, open.tx, now);
            let take = state.next_tx();
            let jobs = line.iter().map(|(id, row)| row.taken(*id, take, Held::Transaction)).collect();
            let taken = line::taken(state, queue, jobs, open.tx, now);
            for (id, row) in line {
                open.set(state, id, state::Row { held_by: Some(open.tx), take, ..row });
            }
            Ok(taken)
        })
    }

    fn retake(&self, conn: &mut MemoryConn, job: &RawJob) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let busy = state.busy_keys(&job.queue, open.tx);
            let as_it_was = |row: &&state::Row| {
                row.free_for(open.tx)
                    && (&row.queue, row.attempt + 1) == (&job.queue, job.attempt)
                    && row.serialization_key.as_ref().is_none_or(|key| !busy.contains(key))
            };
            let Some(row) = state.rows.get(&job.id).filter(as_it_was).cloned() else { return Ok(false) };
            open.set(state, job.id, state::Row { held_by: Some(open.tx), take: job.claim.token, ..row });
            Ok(true)
        })
    }

    fn lease(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        count: usize,
        lease: Duration,
        _: Scan,
    ) -> Result<Taken, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let line = line::first(state, queue, count, open.tx, now);
            let (token, jobs) = (state.next_tx(), line.len() as u32);
            let raw = line.iter().map(|(id, row)| row.taken(*id, token, Held::Lease { jobs })).collect();
            let taken = line::taken(state, queue, raw, open.tx, now);
            let lease = state::Lease { token, until: line::after(now, lease), cancel: false };
            for (id, row) in line {
                open.set(state, id, state::Row { lease: Some(lease), attempt: row.attempt + 1, ..row });
            }
            Ok(taken)
        })
    }

    fn extend(&self, conn: &mut MemoryConn, leases: &[i64], lease: Duration) -> Result<Vec<Extended>, Error> {
        let until = line::after(Utc::now(), lease);
        conn.operate(|state, open| {
            Ok(leases.iter().filter_map(|token| settle::extend(state, open, *token, until)).collect())
        })
    }

    fn settle(&self, conn: &mut MemoryConn, verdicts: &[Settlement<'_>]) -> Result<Vec<bool>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            Ok(verdicts.iter().map(|verdict| settle::settle(state, open, verdict, now)).collect())
        })
    }

    fn find(&self, conn: &mut MemoryConn, queue: &QueueName, id: JobId) -> Result<Option<JobStatus>, Error> {
        conn.operate(|state, open| Ok(archive::find(state, open.tx, queue, id)))
    }

    fn cancel(&self, conn: &mut MemoryConn, queue: &QueueName, id: JobId) -> Result<Cancelled, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(settle::cancel(state, open, queue, id, now)))
    }

    fn archived(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        ended: EndedAs,
        before: Option<&Ended>,
        count: usize,
    ) -> Result<Vec<Ended>, Error> {
        conn.operate(|state, open| Ok(archive::list(state, open.tx, queue, ended, before, count)))
    }

    fn requeue(&self, conn: &mut MemoryConn, queue: &QueueName, ids: Option<&[JobId]>) -> Result<u64, Error> {
        conn.operate(|state, open| Ok(archive::requeue(state, open, queue, ids)))
    }

    fn prune(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        ended: EndedAs,
        age: Duration,
    ) -> Result<u64, Error> {
        let end = line::before(Utc::now(), age);
        conn.operate(|state, open| Ok(archive::prune(state, open, Some(queue), ended, end)))
    }

    fn maintain(
        &self,
        conn: &mut MemoryConn,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            desk::forget_silent(state, now);
            let returned = settle::expire(state, open, now);
            let mut pruned = 0;
            for ended in [EndedAs::Done, EndedAs::Dead, EndedAs::Cancelled] {
                if let Some(age) = retention.of(ended) {
                    pruned += archive::prune(state, open, None, ended, line::before(now, age));
                }
            }
            Ok(Some(MaintenanceReport { returned, pruned, more: false }))
        })
    }

    fn update(&self, conn: &mut MemoryConn, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        conn.operate(|state, open| {
            let row = settle::held(state, claim, open.tx).ok_or_else(|| settle::refusal(claim))?;
            open.set(state, claim.id, state::Row { payload: payload.clone(), ..row });
            Ok(())
        })
    }

    fn give_back(&self, conn: &mut MemoryConn, job: &RawJob) -> Result<(), Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let row = settle::held(state, &job.claim, open.tx).ok_or_else(|| settle::refusal(&job.claim))?;
            if job.claim.lease().is_some() {
                settle::settle(state, open, &Settlement { job, outcome: Outcome::GiveBack }, now);
            } else {
                settle::put_back(state, open, job.id, state::Row { attempt: job.attempt, ..row });
            }
            Ok(())
        })
    }

    fn move_to_dead(&self, conn: &mut MemoryConn, jobs: &[Undecodable]) -> Result<(), Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            jobs.iter().for_each(|dead| archive::move_to_dead(state, open, dead, now));
            Ok(())
        })
    }

    fn counts(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<Counts, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(archive::counts(state, open.tx, queue, now)))
    }

    fn clear(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<u64, Error> {
        conn.operate(|state, open| {
            let rows: Vec<_> = state
                .rows
                .iter()
                .filter(|(_, row)| row.queue == *queue && row.free_for(open.tx))
                .map(|(id, row)| (*id, row.clone()))
                .collect();
            let cleared = rows.len() as u64;
            for (id, row) in rows {
                open.set(state, id, state::Row { held_by: Some(open.tx), ended: true, ..row });
            }
            Ok(cleared)
        })
    }

    fn now(&self, _conn: &mut MemoryConn) -> Result<DateTime<Utc>, Error> {
        Ok(Utc::now())
    }

    fn pause(&self, conn: &mut MemoryConn, queue: &QueueName, paused: bool) -> Result<bool, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(desk::pause(state, open, queue, paused, now)))
    }

    fn overview(&self, conn: &mut MemoryConn) -> Result<Vec<Overview>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(desk::overview(state, open.tx, now)))
    }

    fn list(&self, conn: &mut MemoryConn, filter: &Filter, count: usize) -> Result<Vec<Listed>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(desk::list(state, open.tx, filter, count, now)))
    }

    fn move_jobs(
        &self,
        conn: &mut MemoryConn,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        conn.operate(|state, open| Ok(desk::move_jobs(state, open, from, to, ids)))
    }

    fn heartbeat(&self, conn: &mut MemoryConn, beat: &Heartbeat) -> Result<HeartbeatReply, Error> {
        let now = Utc::now();
        conn.operate(|state, _| Ok(desk::heartbeat(state, beat, now)))
    }

    fn deregister(&self, conn: &mut MemoryConn, worker: WorkerId) -> Result<(), Error> {
        conn.operate(|state, _| {
            state.workers.remove(&worker);
            Ok(())
        })
    }

    fn workers(&self, conn: &mut MemoryConn) -> Result<Vec<WorkerInfo>, Error> {
        let now = Utc::now();
        conn.operate(|state, _| Ok(desk::workers(state, now)))
    }

    fn stop_worker(&self, conn: &mut MemoryConn, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        conn.operate(|state, _| Ok(desk::stop_worker(state, worker, mode)))
    }

    fn set_cron(
        &self,
        conn: &mut MemoryConn,
        cron: &Cron,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        conn.operate(|state, open| Ok(desk::set_cron(state, open, cron, next_at)))
    }

    fn crons(&self, conn: &mut MemoryConn) -> Result<Vec<CronEntry>, Error> {
        conn.operate(|state, _| Ok(state.crons.values().map(|periodic| periodic.entry.clone()).collect()))
    }

    fn remove_cron(&self, conn: &mut MemoryConn, name: &str) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let was_there = state.crons.contains_key(name);
            open.set_cron(state, name, None);
            Ok(was_there)
        })
    }

    fn pause_cron(
        &self,
        conn: &mut MemoryConn,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Error> {
        conn.operate(|state, open| {
            let change = |entry: &mut CronEntry| (entry.paused, entry.next_at) = (paused, next_at);
            Ok(desk::change_cron(state, open, name, change))
        })
    }

    fn due_crons(&self, conn: &mut MemoryConn) -> Result<Vec<CronEntry>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(desk::due_crons(state, open, now)))
    }

    fn advance_cron(
        &self,
        conn: &mut MemoryConn,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        conn.operate(|state, open| {
            let change = |entry: &mut CronEntry| (entry.last_at, entry.next_at) = (last_at, next_at);
            desk::change_cron(state, open, name, change);
            Ok(())
        })
    }

    fn transaction<R, E: From<Error>>(
        &self,
        conn: &mut MemoryConn,
        work: impl FnOnce(&mut MemoryConn) -> Result<R, E>,
    ) -> Result<R, E> {
        let mark = conn.begin();
        // The connection is rolled back before the panic goes on, so nobody sees it half changed.
        let done = catch_unwind(AssertUnwindSafe(|| work(conn)));
        match &done {
            Ok(Ok(_)) => conn.commit(mark),
            Ok(Err(_)) | Err(_) => conn.roll_back(mark),
        }
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn savepoint(&self, conn: &mut MemoryConn, _: Option<usize>) -> Result<usize, Error> {
        Ok(conn.changes())
    }

    fn rollback_to(&self, conn: &mut MemoryConn, mark: usize) -> Result<(), Error> {
        conn.roll_back(Mark::Nested(mark));
        Ok(())
    }

    fn with_connection<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut MemoryConn) -> Result<R, E>,
    ) -> Result<R, E> {
        work(&mut self.connect())
    }

    fn subscribe(&self, queue: &QueueName, signal: &Arc<WakeSignal>) -> Subscription {
        let signal = Arc::downgrade(signal);
        self.shared.lock().signals.entry(queue.clone()).or_default().push(signal.clone());
        Subscription { shared: Arc::clone(&self.shared), queue: queue.clone(), signal }
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_secs(5)
    }
}

impl StoreError for Error {
    fn is_unavailable(&self) -> bool {
        false
    }
}
