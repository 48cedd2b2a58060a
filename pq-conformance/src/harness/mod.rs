//! What each case is given: a fresh table, and the same calls through both kinds of access.

mod workers;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::Scope;
use std::time::Duration;

use pq_core::store::{Archive, Connect};
use pq_core::{
    Job, JobId, JobRecord, JobState, MaintenanceReport, Outcome, Pq, Put, PutOptions, Queue, QueueCounts,
    Retention, StoreError, Wait,
};
use serde_json::Value;

pub(crate) use self::workers::{
    SHORT_LEASE, Seen, both, gate, run_asserting, run_beside, run_until_empty, task, wait_for_extension,
    wait_until,
};
use crate::Fixture;

/// The connection on which a case's calls run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The handle takes a connection of its own for each call.
    Own,
    /// The caller passes a connection to each call.
    Callers,
}

/// The kinds of access that a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Runs once, on the handle's own connections: a second run on the caller's connection would check the same.
    Own,
    /// Runs twice, once with each kind of access.
    Both,
}

impl Needs {
    pub(crate) fn accesses(self) -> &'static [Access] {
        match self {
            Self::Own => &[Access::Own],
            Self::Both => &[Access::Own, Access::Callers],
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own connection",
            Self::Callers => "caller's connection",
        })
    }
}

/// The longest time that a case waits for an event. It is long, so that no case fails on a slow machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) type Conn<F> = <<F as Fixture>::Store as Connect>::Conn;
pub(crate) type Error<F> = <<F as Fixture>::Store as Connect>::Error;

/// An error with which a case's own code ends a transaction.
#[derive(Debug)]
pub(crate) struct CaseError(pub(crate) String);

impl<E: StoreError> From<E> for CaseError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for CaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the error that rolls a case's transaction back.
pub(crate) fn roll_back<R>() -> Result<R, CaseError> {
    Err(CaseError("on purpose".to_owned()))
}

/// The numbers of the tables that no case uses.
#[derive(Default)]
pub(crate) struct FreeTables {
    made: AtomicUsize,
    free: Mutex<Vec<usize>>,
}

impl FreeTables {
    fn take(&self) -> usize {
        let free = self.free.lock().unwrap().pop();
        free.unwrap_or_else(|| self.made.fetch_add(1, Ordering::Relaxed))
    }
}

pub(crate) struct Harness<F: Fixture> {
    pub(crate) fixture: Arc<F>,
    pub(crate) pq: Pq<F::Store>,
    access: Access,
    access_was_used: AtomicBool,
    /// The caller's connection, between two calls.
    callers: Mutex<Option<Conn<F>>>,
    free: Arc<FreeTables>,
    tables: Mutex<Vec<usize>>,
}

impl<F: Fixture> Harness<F> {
    pub(crate) fn new(fixture: Arc<F>, access: Access, free: Arc<FreeTables>) -> Self {
        let table = free.take();
        let pq = fixture.fresh(table);
        let tables = Mutex::new(vec![table]);
        Self {
            fixture,
            pq,
            access,
            access_was_used: AtomicBool::new(false),
            callers: Mutex::default(),
            free,
            tables,
        }
    }

    /// Returns a handle to another table.
    pub(crate) fn other_table(&self) -> Pq<F::Store> {
        let table = self.free.take();
        self.tables.lock().unwrap().push(table);
        self.fixture.fresh(table)
    }

    /// Lets other cases use the tables. Those of a failed case are not used again: its threads may still run.
    pub(crate) fn release(self) {
        drop((self.pq, self.callers));
        self.free.free.lock().unwrap().append(&mut self.tables.lock().unwrap());
    }

    /// Returns the kind of access for the next call.
    pub(crate) fn access(&self) -> Access {
        self.access_was_used.store(true, Ordering::Relaxed);
        self.access
    }

    /// Fails a case that is said to need both kinds of access and never used the one it was given.
    pub(crate) fn assert_access_was_needed(&self, needs: Needs) {
        let used = self.access_was_used.load(Ordering::Relaxed);
        assert!(used || needs == Needs::Own, "this case does the same with either access; mark it `Own`");
    }

    /// Returns the queue that most cases use.
    pub(crate) fn queue(&self) -> Queue<F::Store, Value> {
        self.named("apples")
    }

    pub(crate) fn named<T>(&self, name: &str) -> Queue<F::Store, T> {
        self.pq.queue(name).unwrap()
    }

    /// Opens a connection of another consumer.
    pub(crate) fn connect(&self) -> Conn<F> {
        self.fixture.connect(&self.pq)
    }

    /// Runs calls on the caller's connection.
    fn on_callers<R>(&self, work: impl FnOnce(&mut Conn<F>) -> R) -> R {
        let open = self.callers.lock().unwrap().take();
        let mut conn = open.unwrap_or_else(|| self.connect());
        let done = work(&mut conn);
        *self.callers.lock().unwrap() = Some(conn);
        done
    }

    pub(crate) fn put(&self, data: impl Into<Value>) -> JobId {
        self.put_with(data, &PutOptions::new())
    }

    pub(crate) fn put_with(&self, data: impl Into<Value>, options: &PutOptions) -> JobId {
        self.try_put(&data.into(), options).unwrap()
    }

    pub(crate) fn try_put(&self, data: &Value, options: &PutOptions) -> Result<JobId, Error<F>> {
        match self.access() {
            Access::Own => self.queue().put_with(data, options),
            Access::Callers => self.on_callers(|conn| self.queue().on(conn).put_with(data, options)),
        }
        .map(|put| put.id)
    }

    /// Gets one job without waiting.
    pub(crate) fn get(&self) -> Option<Job<Value>> {
        self.get_many(1).pop()
    }

    pub(crate) fn get_many(&self, count: usize) -> Vec<Job<Value>> {
        match self.access() {
            Access::Own => self.queue().get_many(count, Wait::No).unwrap(),
            Access::Callers => self.on_callers(|conn| self.queue().on(conn).get_many(count).unwrap()),
        }
    }

    /// Leases jobs without waiting.
    pub(crate) fn lease(&self, count: usize, lease: Duration) -> Vec<Job<Value>> {
        match self.access() {
            Access::Own => self.queue().lease(count, lease, Wait::No).unwrap(),
            Access::Callers => self.on_callers(|conn| self.queue().on(conn).lease(count, lease).unwrap()),
        }
    }

    /// Leases the only ready job.
    pub(crate) fn lease_one(&self) -> Job<Value> {
        self.lease(1, TIMEOUT).pop().unwrap()
    }

    pub(crate) fn try_settle(&self, job: &Job<Value>, outcome: Outcome) -> Result<(), Error<F>> {
        match self.access() {
            Access::Own => self.queue().settle(job, outcome),
            Access::Callers => self.on_callers(|conn| self.queue().on(conn).settle(job, outcome)),
        }
    }

    pub(crate) fn settle(&self, job: &Job<Value>, outcome: Outcome) {
        self.try_settle(job, outcome).unwrap();
    }

    /// Runs maintenance, as any process may at any time: returns the jobs of expired leases.
    pub(crate) fn maintain(&self) -> MaintenanceReport {
        let store = self.pq.store();
        let report: Result<_, Error<F>> =
            store.with_connection(|conn| store.maintain(conn, &Retention::default()));
        report.unwrap().unwrap()
    }

    /// Expires the job's lease and returns the job.
    pub(crate) fn lose_lease(&self, job: &Job<Value>) {
        self.queue().extend(job, Duration::ZERO).unwrap();
        assert!(self.maintain().returned > 0);
    }

    pub(crate) fn is_lease_lost(&self, outcome: Result<(), Error<F>>) -> bool {
        let Err(error) = outcome else { return false };
        self.fixture.core_error(&error).is_some_and(pq_core::Error::is_lease_lost)
    }

    /// Returns the archived jobs that ended in this way, newest first.
    pub(crate) fn archived(&self, ended: JobState) -> Vec<JobRecord> {
        self.queue().archived(ended, None, 100).unwrap()
    }

    /// Takes the ready jobs one by one and returns their data.
    pub(crate) fn drain(&self) -> Vec<Value> {
        std::iter::from_fn(|| self.get()).map(|job| job.data).collect()
    }

    pub(crate) fn counts(&self) -> QueueCounts {
        match self.access() {
            Access::Own => self.queue().counts().unwrap(),
            Access::Callers => self.on_callers(|conn| self.queue().on(conn).counts().unwrap()),
        }
    }

    pub(crate) fn clear(&self) -> u64 {
        match self.access() {
            Access::Own => self.queue().clear().unwrap(),
            Access::Callers => self.on_callers(|conn| self.queue().on(conn).clear().unwrap()),
        }
    }

    pub(crate) fn transaction<R>(
        &self,
        work: impl FnOnce(&mut Conn<F>) -> Result<R, CaseError>,
    ) -> Result<R, CaseError> {
        match self.access() {
            Access::Own => self.queue().transaction(work),
            Access::Callers => self.on_callers(|conn| self.nested(conn, work)),
        }
    }

    /// Runs a transaction on this connection, nested in the one that is open.
    pub(crate) fn nested<R>(
        &self,
        conn: &mut Conn<F>,
        work: impl FnOnce(&mut Conn<F>) -> Result<R, CaseError>,
    ) -> Result<R, CaseError> {
        self.pq.store().transaction(conn, work)
    }

    pub(crate) fn is_not_yours(&self, outcome: Result<(), Error<F>>) -> bool {
        let Err(error) = outcome else { return false };
        matches!(self.fixture.core_error(&error), Some(pq_core::Error::NotYours { .. }))
    }

    /// Starts a waiter that only a notification can wake within a case's time.
    ///
    /// By the time this returns it has most likely polled once and found nothing. Its wait is longer than
    /// [`TIMEOUT`], because a wait polls once more when it times out.
    pub(crate) fn blocked_waiter<'s>(&'s self, threads: &'s Scope<'s, '_>) -> Receiver<Option<Value>> {
        let waiter = self.waiter(threads, Wait::For(2 * TIMEOUT));
        assert_eq!(waiter.recv_timeout(Duration::from_millis(50)), Err(RecvTimeoutError::Timeout));
        waiter
    }

    /// Gets a job on a thread of its own, and sends its data when the call returns.
    pub(crate) fn waiter<'s>(&'s self, threads: &'s Scope<'s, '_>, wait: Wait) -> Receiver<Option<Value>> {
        let (result, waiter) = channel();
        threads.spawn(move || {
            let job = self.queue().get(wait).unwrap();
            let _ = result.send(job.map(|job| job.data));
        });
        waiter
    }
}

/// Returns the ids of jobs that were put.
pub(crate) fn ids(put: Vec<Put>) -> Vec<JobId> {
    put.into_iter().map(|put| put.id).collect()
}
