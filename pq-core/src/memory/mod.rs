//! The reference store: jobs in this process's memory.
//!
//! Small and obvious rather than fast. It says what the trait means, it is what the property tests
//! compare PostgreSQL with, and it lets applications test their handlers without a database. Nothing
//! in it outlives the process.

mod state;
mod transaction;

use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

pub use self::state::Subscription;
use self::state::{Row, Shared};
pub use self::transaction::MemoryConn;
use crate::{
    Bell, Claim, Counts, Dead, Error, JobId, NewJob, Payload, QueueName, RawJob, Store, StoreError, Taken,
    When,
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

    /// The dead jobs of a queue, each with its reason, in the order of their deaths.
    #[must_use]
    pub fn dead(&self, queue: &QueueName) -> Vec<Dead> {
        self.shared.lock().dead.iter().filter(|dead| dead.job.queue == *queue).cloned().collect()
    }
}

impl Store for MemoryStore {
    type Conn = MemoryConn;
    type Error = Error;
    type Subscription = Subscription;

    fn put(&self, conn: &mut MemoryConn, queue: &QueueName, jobs: &[NewJob]) -> Result<Vec<JobId>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let mut ids = Vec::with_capacity(jobs.len());
            for job in jobs {
                let id = state.next_id();
                let row = Row {
                    queue: queue.clone(),
                    payload: job.payload.clone(),
                    enqueued_at: now,
                    schedule_at: job.schedule_at.map(|when| instant(when, now)),
                    expected_at: job.expected_at.map(|when| instant(when, now)),
                    priority: job.priority,
                    attempt: 0,
                    added_by: Some(open.tx),
                    returned_by: None,
                    held_by: None,
                };
                open.set(state, id, row);
                ids.push(id);
            }
            Ok(ids)
        })
    }

    fn take(&self, conn: &mut MemoryConn, queue: &QueueName, count: usize) -> Result<Taken, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            // What others hold may come back, so it counts for when to look again.
            let next_due = state
                .rows
                .values()
                .filter(|row| row.queue == *queue && row.seen_by(open.tx))
                .filter_map(|row| row.schedule_at)
                .filter(|at| *at > now)
                .min();
            let mut line: Vec<(JobId, Row)> = state
                .rows
                .iter()
                .filter(|(_, row)| row.queue == *queue && row.free_for(open.tx) && row.due(now))
                .map(|(id, row)| (*id, row.clone()))
                .collect();
            line.sort_by_key(|(id, row)| {
                (Reverse(row.priority), row.expected_at.is_none(), row.expected_at, *id)
            });
            line.truncate(count);

            let jobs: Vec<RawJob> = line.iter().map(|(id, row)| row.taken(*id, open.tx)).collect();
            for (id, row) in line {
                open.set(state, id, Row { held_by: Some(open.tx), ..row });
            }
            let next_due = next_due.filter(|_| jobs.is_empty());
            Ok(Taken { jobs, next_due: next_due.map(|at| (at - now).to_std().unwrap_or(Duration::ZERO)) })
        })
    }

    fn update(&self, conn: &mut MemoryConn, claim: &Claim, payload: &Payload) -> Result<(), Error> {
        conn.operate(|state, open| {
            let row = held(&state.rows, claim, open.tx)?;
            open.set(state, claim.id, Row { payload: payload.clone(), ..row });
            Ok(())
        })
    }

    fn give_back(&self, conn: &mut MemoryConn, job: &RawJob) -> Result<(), Error> {
        conn.operate(|state, open| {
            let row = held(&state.rows, &job.claim, open.tx)?;
            let back = Row { held_by: None, returned_by: Some(open.tx), attempt: job.attempt, ..row };
            open.set(state, job.id, back);
            Ok(())
        })
    }

    fn bury(&self, conn: &mut MemoryConn, jobs: &[Dead]) -> Result<(), Error> {
        conn.operate(|_, open| {
            jobs.iter().cloned().for_each(|dead| open.bury(dead));
            Ok(())
        })
    }

    fn counts(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<Counts, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let mut counts = Counts::default();
            for row in state.rows.values().filter(|row| row.queue == *queue && row.seen_by(open.tx)) {
                if row.due(now) { counts.ready += 1 } else { counts.scheduled += 1 }
            }
            let dead = state.dead.iter().chain(open.buried());
            counts.dead = dead.filter(|dead| dead.job.queue == *queue).count() as u64;
            Ok(counts)
        })
    }

    fn clear(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<u64, Error> {
        conn.operate(|state, open| {
            let rows: Vec<(JobId, Row)> = state
                .rows
                .iter()
                .filter(|(_, row)| row.queue == *queue && row.free_for(open.tx))
                .map(|(id, row)| (*id, row.clone()))
                .collect();
            let cleared = rows.len() as u64;
            for (id, row) in rows {
                open.set(state, id, Row { held_by: Some(open.tx), ..row });
            }
            Ok(cleared)
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

    fn with_connection<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut MemoryConn) -> Result<R, E>,
    ) -> Result<R, E> {
        work(&mut self.connect())
    }

    fn subscribe(&self, queue: &QueueName, bell: &Arc<Bell>) -> Subscription {
        let bell = Arc::downgrade(bell);
        self.shared.lock().bells.entry(queue.clone()).or_default().push(bell.clone());
        Subscription { shared: Arc::clone(&self.shared), queue: queue.clone(), bell }
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

/// The row of a claim that the transaction `tx` holds.
fn held(rows: &std::collections::BTreeMap<JobId, Row>, claim: &Claim, tx: state::Tx) -> Result<Row, Error> {
    rows.get(&claim.id)
        .filter(|row| row.held_by == Some(tx) && claim.token == tx)
        .cloned()
        .ok_or(Error::NotYours { id: claim.id })
}

/// The instant of a time that was checked when it was given. What leaves chrono's range all the same
/// is held at its end.
fn instant(when: When, now: DateTime<Utc>) -> DateTime<Utc> {
    match when {
        When::At(at) => at,
        When::In(delay) => now.checked_add_signed(delay).unwrap_or(match delay < chrono::TimeDelta::zero() {
            true => DateTime::<Utc>::MIN_UTC,
            false => DateTime::<Utc>::MAX_UTC,
        }),
    }
}
