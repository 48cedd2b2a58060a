//! What an operator sees: queues with their numbers, and jobs with all that is known of them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Error, JobId, Key, Payload, QueueName};

/// The state of a job, as a look from outside sees it: what a transaction under way holds is in the state that
/// it was in before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Due, and taken by nobody. Where its queue is paused it waits for that.
    Ready,
    /// Due, and behind its serialization key.
    Blocked,
    /// Not due yet.
    Scheduled,
    /// Held under a lease.
    Running,
    /// Taken by a Python `pq`, which keeps the row; the outcome is unknown.
    Dequeued,
    /// In the archive: failed for good.
    Dead,
    /// In the archive: cancelled.
    Cancelled,
    /// In the archive: done, where history is kept.
    Done,
}

impl JobState {
    /// All of them.
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

    /// The state as a word.
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
            Error::InvalidSetting(format!("{text:?} is no state of a job; there are {all}"))
        })
    }
}

/// A queue's numbers, as one snapshot sees them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Overview {
    /// The queue.
    pub queue: QueueName,
    /// Due, and not behind a serialization key.
    pub ready: u64,
    /// Due, and behind a serialization key.
    pub blocked: u64,
    /// Not due yet.
    pub scheduled: u64,
    /// Held under a lease.
    pub running: u64,
    /// Taken by a Python `pq`; the outcome is unknown.
    pub dequeued: u64,
    /// Failed for good.
    pub dead: u64,
    /// Cancelled, and kept.
    pub cancelled: u64,
    /// Done, and kept.
    pub done: u64,
    /// For how long the oldest of the jobs that wait has been due.
    pub oldest: Option<Duration>,
    /// Since when the queue is paused, if it is.
    pub paused_at: Option<DateTime<Utc>>,
    /// Jobs of it that ended a second, by what its workers last told.
    pub per_second: f64,
}

impl Overview {
    /// A queue of which nothing is known but its name.
    #[must_use]
    pub fn of(queue: QueueName) -> Self {
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
            paused_at: None,
            per_second: 0.0,
        }
    }

    /// Jobs that nobody has taken.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.ready + self.blocked + self.scheduled
    }
}

/// A job with all that is known of it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The job's number.
    pub id: JobId,
    /// The queue that it stands or stood in.
    pub queue: QueueName,
    /// Where it is.
    pub state: JobState,
    /// What it carries, as it is stored.
    pub payload: Payload,
    /// When it was put.
    pub enqueued_at: DateTime<Utc>,
    /// Not before this time.
    pub schedule_at: Option<DateTime<Utc>>,
    /// Wanted by this time.
    pub expected_at: Option<DateTime<Utc>>,
    /// Higher goes first.
    pub priority: i32,
    /// How often it has been taken.
    pub attempt: i32,
    /// Of the jobs that share one, one is taken at a time.
    pub serialization_key: Option<Key>,
    /// One job with it waits or runs at a time.
    pub unique_key: Option<Key>,
    /// Why its last attempt failed, or why it ended.
    pub error: Option<String>,
    /// What its handler returned to be kept.
    pub result: Option<Payload>,
    /// Until when its lease is, while it is held under one.
    pub lease_until: Option<DateTime<Utc>>,
    /// When it ended, if it has.
    pub ended_at: Option<DateTime<Utc>>,
}

/// Which jobs are listed.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Filter {
    /// In these states; in any where there are none.
    pub states: Vec<JobState>,
    /// With this serialization key.
    pub serialization_key: Option<Key>,
    /// With this number, whatever the queue.
    pub id: Option<JobId>,
    /// Of this queue.
    pub queue: Option<QueueName>,
    /// With higher numbers than this: where the page before ended.
    pub after: Option<JobId>,
}

impl Filter {
    /// All jobs of a queue.
    pub fn queue(queue: &QueueName) -> Self {
        Self { queue: Some(queue.clone()), ..Self::default() }
    }

    /// The job of this number.
    pub fn id(id: JobId) -> Self {
        Self { id: Some(id), ..Self::default() }
    }

    /// Only those in this state, or in one that was said before.
    pub fn state(mut self, state: JobState) -> Self {
        self.states.push(state);
        self
    }

    /// Only those that come after this one.
    pub fn after(mut self, id: JobId) -> Self {
        self.after = Some(id);
        self
    }

    /// Only those with this serialization key.
    pub fn serialization_key(mut self, key: Key) -> Self {
        self.serialization_key = Some(key);
        self
    }
}
