//! What a case works with: one table, and the same calls by either way of access.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Scope;
use std::time::Duration;

use pq_core::store::{Archive, Connect};
use pq_core::{
    Counts, Ended, EndedAs, Job, JobId, MaintenanceReport, Outcome, Pq, Put, PutOptions, Queue, Retention,
    StoreError, Wait,
};
use serde_json::Value;

use crate::Fixture;

/// On whose connection a case's calls run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Own,
    Callers,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own connection",
            Self::Callers => "caller's connection",
        })
    }
}

/// How long something that must happen may take before the case gives up. Nothing is measured by it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) type Conn<F> = <<F as Fixture>::Store as Connect>::Conn;
pub(crate) type Error<F> = <<F as Fixture>::Store as Connect>::Error;

/// An error of a case's own, which rolls back.
#[derive(Debug)]
pub(crate) struct Undo(pub(crate) String);

impl<E: StoreError> From<E> for Undo {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a case's transaction ends with to roll back.
pub(crate) fn undo<R>() -> Result<R, Undo> {
    Err(Undo("on purpose".to_owned()))
}

pub(crate) struct Harness<F: Fixture> {
    pub(crate) fixture: Arc<F>,
    pub(crate) pq: Pq<F::Store>,
    pub(crate) access: Access,
}

impl<F: Fixture> Harness<F> {
    pub(crate) fn new(fixture: Arc<F>, access: Access) -> Self {
        let pq = fixture.fresh();
        Self { fixture, pq, access }
    }

    /// The queue that most cases use.
    pub(crate) fn queue(&self) -> Queue<F::Store, Value> {
        self.named("apples")
    }

    pub(crate) fn named<T>(&self, name: &str) -> Queue<F::Store, T> {
        self.pq.queue(name).unwrap()
    }

    /// Another consumer's connection.
    pub(crate) fn connect(&self) -> Conn<F> {
        self.fixture.connect(&self.pq)
    }

    pub(crate) fn put(&self, data: impl Into<Value>) -> JobId {
        self.put_with(data, &PutOptions::new())
    }

    pub(crate) fn put_with(&self, data: impl Into<Value>, options: &PutOptions) -> JobId {
        self.try_put(&data.into(), options).unwrap()
    }

    pub(crate) fn try_put(&self, data: &Value, options: &PutOptions) -> Result<JobId, Error<F>> {
        match self.access {
            Access::Own => self.queue().put_with(data, options),
            Access::Callers => self.queue().on(&mut self.connect()).put_with(data, options),
        }
        .map(|put| put.id)
    }

    /// Gets without waiting.
    pub(crate) fn get(&self) -> Option<Job<Value>> {
        self.get_many(1).pop()
    }

    pub(crate) fn get_many(&self, count: usize) -> Vec<Job<Value>> {
        match self.access {
            Access::Own => self.queue().get_many(count, Wait::No).unwrap(),
            Access::Callers => self.queue().on(&mut self.connect()).get_many(count).unwrap(),
        }
    }

    /// Leases without waiting.
    pub(crate) fn lease(&self, count: usize, lease: Duration) -> Vec<Job<Value>> {
        match self.access {
            Access::Own => self.queue().lease(count, lease, Wait::No).unwrap(),
            Access::Callers => self.queue().on(&mut self.connect()).lease(count, lease).unwrap(),
        }
    }

    /// Leases the one job that is there.
    pub(crate) fn lease_one(&self) -> Job<Value> {
        self.lease(1, TIMEOUT).pop().unwrap()
    }

    pub(crate) fn try_settle(&self, job: &Job<Value>, outcome: Outcome) -> Result<(), Error<F>> {
        match self.access {
            Access::Own => self.queue().settle(job, outcome),
            Access::Callers => self.queue().on(&mut self.connect()).settle(job, outcome),
        }
    }

    pub(crate) fn settle(&self, job: &Job<Value>, outcome: Outcome) {
        self.try_settle(job, outcome).unwrap();
    }

    /// Does what any process may do at any time: returns the jobs of leases that are over.
    pub(crate) fn maintain(&self) -> MaintenanceReport {
        let store = self.pq.store();
        let swept: Result<_, Error<F>> =
            store.with_connection(|conn| store.maintain(conn, &Retention::default()));
        swept.unwrap().unwrap()
    }

    /// Has the job's lease be over, and its job returned.
    pub(crate) fn lose_lease(&self, job: &Job<Value>) {
        self.queue().extend(job, Duration::ZERO).unwrap();
        assert!(self.maintain().returned > 0);
    }

    pub(crate) fn is_lease_lost(&self, outcome: Result<(), Error<F>>) -> bool {
        let Err(error) = outcome else { return false };
        self.fixture.core_error(&error).is_some_and(pq_core::Error::is_lease_lost)
    }

    /// The jobs of the archive that ended so, the last first.
    pub(crate) fn archived(&self, ended: EndedAs) -> Vec<Ended> {
        self.queue().archived(ended, None, 100).unwrap()
    }

    /// What is in line, taken job by job.
    pub(crate) fn drain(&self) -> Vec<Value> {
        std::iter::from_fn(|| self.get()).map(|job| job.data).collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        match self.access {
            Access::Own => self.queue().counts().unwrap(),
            Access::Callers => self.queue().on(&mut self.connect()).counts().unwrap(),
        }
    }

    pub(crate) fn clear(&self) -> u64 {
        match self.access {
            Access::Own => self.queue().clear().unwrap(),
            Access::Callers => self.queue().on(&mut self.connect()).clear().unwrap(),
        }
    }

    pub(crate) fn transaction<R>(
        &self,
        work: impl FnOnce(&mut Conn<F>) -> Result<R, Undo>,
    ) -> Result<R, Undo> {
        match self.access {
            Access::Own => self.queue().transaction(work),
            Access::Callers => self.nested(&mut self.connect(), work),
        }
    }

    /// A transaction on this connection, inside of the one that it is in.
    pub(crate) fn nested<R>(
        &self,
        conn: &mut Conn<F>,
        work: impl FnOnce(&mut Conn<F>) -> Result<R, Undo>,
    ) -> Result<R, Undo> {
        self.pq.store().transaction(conn, work)
    }

    pub(crate) fn is_not_yours(&self, outcome: Result<(), Error<F>>) -> bool {
        let Err(error) = outcome else { return false };
        matches!(self.fixture.core_error(&error), Some(pq_core::Error::NotYours { .. }))
    }

    /// A waiter that must be woken: it has looked, most likely, and found nothing, and it waits for longer than the
    /// case has patience, for at its end it looks once more.
    pub(crate) fn sleeper<'s>(&'s self, threads: &'s Scope<'s, '_>) -> Receiver<Option<Value>> {
        let sleeper = self.waiter(threads, Wait::For(2 * TIMEOUT));
        assert_eq!(sleeper.recv_timeout(Duration::from_millis(50)), Err(RecvTimeoutError::Timeout));
        sleeper
    }

    /// Gets with this wait on a thread of its own, and gives what it got when it comes back.
    pub(crate) fn waiter<'s>(&'s self, threads: &'s Scope<'s, '_>, wait: Wait) -> Receiver<Option<Value>> {
        let (got, waiter) = channel();
        threads.spawn(move || {
            let job = self.queue().get(wait).unwrap();
            let _ = got.send(job.map(|job| job.data));
        });
        waiter
    }
}

/// The ids of jobs that were put.
pub(crate) fn ids(put: Vec<Put>) -> Vec<JobId> {
    put.into_iter().map(|put| put.id).collect()
}
