//! A queue's jobs, counted by state, and its pause.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{Limits, QueueName};

/// The jobs of one queue, counted by state in one snapshot.
///
/// Until a transaction commits, others count its jobs in the state that they had before.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QueueCounts {
    /// The queue.
    pub queue: QueueName,
    /// Due, and not waiting for a serialization key. See also [`QueueCounts::due`].
    pub ready: u64,
    /// Due, and waiting for a serialization key.
    pub blocked: u64,
    /// Not due yet.
    pub scheduled: u64,
    /// Held under a lease.
    pub running: u64,
    /// Taken by a Python `pq`, which keeps the row. The outcome is unknown.
    pub dequeued: u64,
    /// In the archive: failed for good.
    pub dead: u64,
    /// In the archive: cancelled.
    pub cancelled: u64,
    /// In the archive: done.
    pub done: u64,
    /// The longest time that a job has been due.
    pub oldest: Option<Duration>,
    /// The error of a waiting job, such as an unknown task; of several the last in the order of their bytes.
    pub error: Option<String>,
    /// Since when the queue is paused, if it is.
    pub paused_at: Option<DateTime<Utc>>,
    /// The operator who paused the queue, if it is paused and that is known.
    pub paused_by: Option<String>,
    /// The limits of the queue, if it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Jobs that ended per second, by the last heartbeats of the queue's workers.
    pub per_second: f64,
}

/// A queue that is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PausedQueue {
    /// The queue.
    pub queue: QueueName,
    /// Since when it is paused.
    pub paused_at: DateTime<Utc>,
    /// The operator who paused it, if that is known.
    pub paused_by: Option<String>,
}

impl QueueCounts {
    /// Returns whether ready jobs wait because as many run as the limit of the queue allows.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let limit = self.limits.as_ref().and_then(|limits| limits.running);
        self.ready > 0 && limit.is_some_and(|limit| self.running >= u64::from(limit))
    }

    /// Returns the counts of a queue that has no jobs.
    #[must_use]
    pub fn new(queue: QueueName) -> Self {
        Self {
            queue,
            ready: 0,
            blocked: 0,
            scheduled: 0,
            running: 0,
            dequeued: 0,
            dead: 0,
            cancelled: 0,
            done: 0,
            oldest: None,
            error: None,
            paused_at: None,
            paused_by: None,
            limits: None,
            per_second: 0.0,
        }
    }

    /// Returns the number of due jobs, ready or blocked. This is what Python's `len(queue)` returns.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.ready + self.blocked
    }

    /// Returns the number of jobs that are not taken: due or scheduled.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.due() + self.scheduled
    }

    /// Returns the number of jobs that still have to be done: waiting or running.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.waiting() + self.running
    }

    /// Returns the number of all jobs, the archived ones included.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.live() + self.dequeued + self.dead + self.cancelled + self.done
    }
}
