//! A job as a store keeps it, and the state that it is in.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};

use crate::{Annotations, AttemptEntry, Error, JobId, Key, Payload, QueueName};

/// A job with all its attributes, live or archived. Its payload is not decoded.
///
/// A listing fills every field. A take reads only what a worker needs: in the record of a [`crate::Claim`], `error`,
/// `result`, `lease_until` and `ended_at` are `None`.
///
/// Other programs can store timestamps that chrono cannot represent, such as `infinity`. Those become the nearest that
/// it can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobRecord {
    /// The job's id.
    pub id: JobId,
    /// The queue that the job is or was in.
    pub queue: QueueName,
    /// The state that the job is in.
    pub state: JobState,
    /// The payload, byte for byte as it was stored.
    pub payload: Payload,
    /// When the job was put, on the store's clock.
    pub enqueued_at: DateTime<Utc>,
    /// When the job falls due. Without one it was due at once.
    pub schedule_at: Option<DateTime<Utc>>,
    /// When the job should be done. Of two jobs of the same priority, the one with the earlier time is taken first.
    pub expected_at: Option<DateTime<Utc>>,
    /// The priority. Higher ones are taken first.
    pub priority: i32,
    /// The number of attempts that were begun, including the current one.
    ///
    /// An attempt does not count if it is given back or snoozed, if its transaction was rolled back, or if a lease of
    /// several jobs was lost.
    pub attempt: i32,
    /// The number of these attempts in which the worker died or lost its lease. They are not failures.
    pub crashes: i32,
    /// Its serialization key: jobs of a queue that share one are taken one at a time.
    pub serialization_key: Option<Key>,
    /// Its unique key: at most one job of a queue that has it waits or runs.
    pub unique_key: Option<Key>,
    /// The error of the last attempt, or the reason why the job ended.
    pub error: Option<String>,
    /// The result that its handler returned, if history is kept.
    pub result: Option<Payload>,
    /// When its lease expires, if it is held under one.
    pub lease_until: Option<DateTime<Utc>>,
    /// When it ended, if it has.
    pub ended_at: Option<DateTime<Utc>>,
    /// What was noted with the job when it was put.
    pub annotations: Annotations,
    /// The newest of its attempts that failed or were lost, the oldest of them first.
    pub attempt_log: Vec<AttemptEntry>,
}

impl JobRecord {
    /// Returns the size of the stored payload in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.payload.as_str().len()
    }

    /// Returns whether the job waits until other jobs have ended: it is due in a year after 9000 then.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.schedule_at.is_some_and(|at| at.year() >= 9_000)
    }
}

/// The state of a job, as others see it. Until a transaction commits, its jobs are in the state that they had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Due, and not taken. If its queue is paused, it waits until that is resumed.
    Ready,
    /// Due, and waiting for its serialization key.
    Blocked,
    /// Not due yet.
    Scheduled,
    /// Held under a lease.
    Running,
    /// Taken by a Python `pq`, which keeps the row. The outcome is unknown.
    Dequeued,
    /// In the archive: it failed for good.
    Dead,
    /// In the archive: it was cancelled.
    Cancelled,
    /// In the archive: it is done, and history is kept.
    Done,
}

impl JobState {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::Blocked,
        Self::Scheduled,
        Self::Running,
        Self::Dequeued,
        Self::Dead,
        Self::Cancelled,
        Self::Done,
    ];

    /// The states of archived jobs.
    pub const ENDED: [Self; 3] = [Self::Dead, Self::Cancelled, Self::Done];

    /// Returns whether jobs in this state are in the archive.
    #[must_use]
    pub fn is_ended(self) -> bool {
        Self::ENDED.contains(&self)
    }

    /// Returns the word for the state, in lower case: `ready`, `dead` and so on.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Blocked => "blocked",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Dequeued => "dequeued",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            Error::InvalidSetting(format!("unknown job state {text:?}; expected one of {all}"))
        })
    }
}
