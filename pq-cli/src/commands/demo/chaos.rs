//! Injects random faults for `pq demo --chaos`: kills workers and terminates their backends.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::{Bool, Integer, Text};
use fastrand::Rng;
use pq_diesel::Pq;

use super::environment::Environment;
use super::fault::Fault;
use super::worker_pool::WorkerPool;
use crate::failure::Failure;

/// Results between two random faults, so that the work makes progress.
const RESULTS_BETWEEN: std::ops::Range<i64> = 2..30;
/// Minimum time between two random faults, in milliseconds.
const MILLIS_BETWEEN: std::ops::Range<u64> = 20..200;

/// Selects the sessions of the demo's workers in this database. $1 is their application name.
const SESSIONS: &str = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = $1 AND pid <> pg_backend_pid() ORDER BY pid";

/// Terminates one of these sessions. $2 is its pid. PostgreSQL evaluates conditions in any order, so the session is
/// selected in a materialized CTE before the function is called.
const TERMINATE: &str = "WITH chosen AS MATERIALIZED (
        SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1 AND pid = $2
    ) SELECT pg_terminate_backend(pid) AS done FROM chosen";

pub(super) struct Chaos {
    seed: u64,
    random: Rng,
    terminated: usize,
    next: Option<RandomFault>,
}

/// The next random fault and when it is due. The random numbers do not depend on the speed of the workers.
struct RandomFault {
    kills: bool,
    /// Selects the worker or backend, modulo their number.
    number: usize,
    results: i64,
    at: Instant,
}

#[derive(QueryableByName)]
struct Session {
    #[diesel(sql_type = Integer)]
    pid: i32,
}

#[derive(QueryableByName)]
struct Terminated {
    #[diesel(sql_type = Bool)]
    done: bool,
}

impl Chaos {
    pub(super) fn new(seed: Option<u64>) -> Self {
        // Short enough to type.
        let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        Self { seed, random: Rng::with_seed(seed), terminated: 0, next: None }
    }

    /// Chooses the files in whose jobs a fault is injected, spread over all files.
    ///
    /// There is at least one fault of each kind, however few and short the jobs are.
    pub(super) fn faults<'f>(&mut self, files: &'f [String]) -> Vec<(&'f str, Fault)> {
        let of_each = (files.len() / 40).clamp(1, 25);
        let mut faults = Vec::new();
        for part in 0..of_each {
            let part = &files[part * files.len() / of_each..(part + 1) * files.len() / of_each];
            for fault in [Fault::Kill, Fault::TerminateBackend] {
                faults.extend(self.random.choice(part).map(|path| (path.as_str(), fault)));
            }
        }
        faults
    }

    /// Injects the next random fault if it is due, and describes it.
    ///
    /// It waits until one fault of each kind has happened in the middle of a job. A random fault could otherwise end
    /// the worker that waits for such a fault.
    pub(super) fn inject_random(
        &mut self,
        done: i64,
        workers: &mut WorkerPool,
        pq: &Pq,
        environment: &Environment,
    ) -> Result<Option<&'static str>, Failure> {
        if workers.killed() == 0 || self.terminated == 0 {
            return Ok(None);
        }
        let mut injected = None;
        let due = self.next.as_ref().is_some_and(|fault| done >= fault.results && Instant::now() >= fault.at);
        if let Some(fault) = self.next.take_if(|_| due) {
            if fault.kills {
                injected = workers.kill_nth(fault.number).then_some("killed a worker with SIGKILL");
            } else {
                let sessions: Vec<Session> = pq.transaction(|conn| {
                    let sessions =
                        diesel::sql_query(SESSIONS).bind::<Text, _>(environment.application_name());
                    sessions.load(conn).map_err(Failure::from)
                })?;
                if let Some(session) = sessions.get(fault.number % sessions.len().max(1)) {
                    let done = self.terminate(session.pid, pq, environment)?;
                    injected = done.then_some("terminated the backend of a worker");
                }
            }
        }
        if self.next.is_none() {
            self.next = Some(RandomFault {
                kills: self.random.bool(),
                number: self.random.usize(..1_000_000),
                results: done + self.random.i64(RESULTS_BETWEEN),
                at: Instant::now() + Duration::from_millis(self.random.u64(MILLIS_BETWEEN)),
            });
        }
        Ok(injected)
    }

    /// Terminates a backend if it belongs to a worker of the demo.
    pub(super) fn terminate(
        &mut self,
        backend: i32,
        pq: &Pq,
        environment: &Environment,
    ) -> Result<bool, Failure> {
        let terminated: Option<Terminated> = pq.transaction(|conn| {
            let terminate = diesel::sql_query(TERMINATE);
            let terminate =
                terminate.bind::<Text, _>(environment.application_name()).bind::<Integer, _>(backend);
            terminate.get_result(conn).optional().map_err(Failure::from)
        })?;
        let done = terminated.is_some_and(|terminated| terminated.done);
        self.terminated += usize::from(done);
        Ok(done)
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn terminated(&self) -> usize {
        self.terminated
    }
}
