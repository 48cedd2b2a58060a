//! Measurements of a table and of a handle, for monitoring.

use std::time::Duration;

use chrono::{DateTime, Utc};
use pq_core::{LimitedQueue, TaskCounters};

use crate::{Error, Pq};

/// What can be measured of a table. Created by [`Pq::metrics`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Metrics {
    /// When the measurement began, by the database's clock.
    pub at: DateTime<Utc>,
    /// What became of jobs, by queue and task, since the table was created.
    pub counters: Vec<TaskCounters>,
    /// The jobs of each queue by state, sorted by name. `None` if they could not be counted within 5 s, which a
    /// snapshot that keeps dead tuples from being removed can cause.
    ///
    /// A queue is included if it has a job, live or archived, or counters, or is paused or limited, or if a worker or
    /// a periodic job names it. So an empty queue that is in use stays.
    pub queues: Option<Vec<QueueGauges>>,
    /// The queues that have limits, with how much of these is used and how many due jobs wait because of them. `None`
    /// if they could not be read within 5 s.
    pub limited: Option<Vec<LimitedQueue>>,
    /// The number of ids that were given to jobs, whatever put them. Puts that were rolled back, and some of those that
    /// met a job with the same unique key, are among them. `None` if the role may not read the sequence.
    pub ids: Option<u64>,
    /// Dead tuples of the table of jobs and of the table of leases, as the server counts them.
    pub dead_tuples: u64,
    /// The age of the oldest snapshot of a session on the database. `None` if there is none that the role can see.
    pub oldest_snapshot: Option<Duration>,
    /// Workers that have sent a heartbeat within [`pq_core::WorkerInfo::FORGOTTEN_AFTER`].
    pub workers_live: u64,
    /// Registered workers that have not, and that maintenance has not removed yet.
    pub workers_gone: u64,
    /// The durable steps that are kept, as the server counts them.
    pub steps: u64,
    /// Jobs whose handler sleeps ([`pq_core::Context::sleep`]), at most 10,000.
    pub asleep: u64,
    /// Jobs that wait for a signal ([`pq_core::Context::wait_for_signal`]), at most 10,000.
    pub awaiting_signals: u64,
}

/// The jobs of one queue by state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueGauges {
    /// The name of the queue.
    pub queue: String,
    /// Due, and not waiting for a serialization key.
    pub ready: u64,
    /// Due, and waiting for a serialization key.
    pub blocked: u64,
    /// Not due yet.
    pub scheduled: u64,
    /// Those of the scheduled ones that wait for other jobs, batches among them, at most 10,000.
    pub follow_ups: u64,
    /// Held under a lease.
    pub running: u64,
    /// In the archive: failed for good.
    pub dead: u64,
    /// In the archive: cancelled.
    pub cancelled: u64,
    /// In the archive: done.
    pub done: u64,
    /// Whether one of the counts is an estimate of the planner, because there are more than 10,000 such jobs.
    pub is_estimated: bool,
    /// The longest time that a job has been due, of the first 10,000 in the order of the queue.
    pub oldest: Option<Duration>,
    /// Whether the queue is paused.
    pub is_paused: bool,
}

/// The pool of a handle. See [`Pq::pool_gauges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolGauges {
    /// The largest number of connections.
    pub size: u32,
    /// Open connections.
    pub open: u32,
    /// Open connections that nothing uses.
    pub idle: u32,
    /// Calls that wait for a connection. Zero for a pool of the application, which does not report them.
    pub waiting: u32,
}

/// The listener of a handle. See [`Pq::listener_gauges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerGauges {
    /// Whether it has been started: by a wait, or by frequent puts.
    pub is_started: bool,
    /// Whether it is connected.
    pub is_connected: bool,
    /// How often it has connected again.
    pub reconnects: u64,
}

/// Monitoring.
impl Pq {
    /// Measures the table, at a cost that does not grow with the number of jobs.
    ///
    /// Counts of up to 10,000 jobs of a queue and a state are exact, and larger ones are estimates
    /// ([`QueueGauges::is_estimated`]). At most `max_queues` queues are measured, the first ones by name. Each of the
    /// three queries may take 5 s. Works on a standby, and for a reader ([`crate::admin::Role`]).
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn metrics(&self, max_queues: usize) -> Result<Metrics, Error> {
        self.store().metrics(max_queues)
    }

    /// Returns the state of the handle's pool. `None` if it has no pool. Does not ask the database.
    #[must_use]
    pub fn pool_gauges(&self) -> Option<PoolGauges> {
        self.store().pool.as_ref().map(crate::pool::Pool::gauges)
    }

    /// Returns the state of the handle's listener. `None` if it does not listen. Does not ask the database.
    #[must_use]
    pub fn listener_gauges(&self) -> Option<ListenerGauges> {
        self.store().listener.as_ref().map(crate::listener::Listener::gauges)
    }
}
