//! How a taken job ends, and what is kept of it.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::{JobId, JobState, Key, Payload, QueueName, RawJob};

/// What is to become of a taken job.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is done, and nothing is kept of it.
    Complete,
    /// It is done, and goes to the archive, with its result if it has one.
    Keep {
        /// What the handler has to say for it, as JSON.
        result: Option<Payload>,
    },
    /// It failed, and waits for another attempt: under its id, with its priority and its
    /// `expected_at`.
    Retry {
        /// Not before this time from now, on the store's clock.
        after: Duration,
        /// Why it failed; stored with the job.
        error: String,
        /// What it carries from now on; as before where there is none.
        payload: Option<Payload>,
    },
    /// It waits for a while, and the take does not count as an attempt.
    Snooze {
        /// Not before this time from now, on the store's clock.
        after: Duration,
    },
    /// It failed for good, and goes to the archive.
    Dead {
        /// Why; stored with the job.
        error: String,
    },
    /// It was given up, and goes to the archive.
    Cancel {
        /// Why, if there is something to say.
        reason: Option<String>,
    },
    /// It goes back into its place in the line as if it had not been taken.
    GiveBack,
}

/// A verdict on a taken job.
#[derive(Clone, Debug)]
pub struct Settlement<'a> {
    /// The job, as the take returned it.
    pub job: &'a RawJob,
    /// What is to become of it.
    pub outcome: Outcome,
}

/// How a job in the archive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndedAs {
    /// It was completed, and its history was to be kept.
    Done,
    /// It failed for good.
    Dead,
    /// It was cancelled.
    Cancelled,
}

impl EndedAs {
    /// The word for it: `done`, `dead` or `cancelled`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    /// The end that this word names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Done, Self::Dead, Self::Cancelled].into_iter().find(|ended| ended.as_str() == word)
    }
}

/// A job in the archive.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The job's number.
    pub id: JobId,
    /// The line it stood in.
    pub queue: QueueName,
    /// What it carried at the end, byte for byte.
    pub payload: Payload,
    /// When it was put.
    pub enqueued_at: DateTime<Utc>,
    /// When it was due.
    pub schedule_at: Option<DateTime<Utc>>,
    /// When it was wanted.
    pub expected_at: Option<DateTime<Utc>>,
    /// Higher went first.
    pub priority: i32,
    /// How often it was taken.
    pub attempt: i32,
    /// Its serialization key.
    pub serialization_key: Option<Key>,
    /// Its unique key.
    pub unique_key: Option<Key>,
    /// How it ended.
    pub ended_as: EndedAs,
    /// Why, where it did not end well.
    pub error: Option<String>,
    /// What its handler returned to be kept.
    pub result: Option<Payload>,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
}

impl From<EndedAs> for JobState {
    fn from(ended: EndedAs) -> Self {
        match ended {
            EndedAs::Done => Self::Done,
            EndedAs::Dead => Self::Dead,
            EndedAs::Cancelled => Self::Cancelled,
        }
    }
}

/// Where a job is.
#[derive(Clone, Debug)]
pub enum JobStatus {
    /// In the line, or not due yet, or behind its serialization key; or held by a transaction that
    /// has not ended.
    Waiting {
        /// How often it has been taken.
        attempt: i32,
        /// Not before this time.
        schedule_at: Option<DateTime<Utc>>,
        /// Why its last attempt failed.
        error: Option<String>,
    },
    /// Held under a lease.
    Leased {
        /// Which: the token of the holder's claims.
        lease: i64,
        /// How often it has been taken, this time included.
        attempt: i32,
    },
    /// In the archive.
    Ended(Box<Ended>),
}

/// What became of the wish to cancel a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It was waiting, and is in the archive now: no handler will start.
    Done,
    /// It runs under a lease. Its handler will be told through its context; whatever comes of this
    /// attempt but completion, there will be no other.
    Asked,
    /// A transaction holds it. Nothing was done: it completes with the transaction, or can be
    /// cancelled after it.
    Held,
    /// No job of this id waits or runs in the queue.
    NotFound,
}

/// A lease that was extended.
#[derive(Clone, Debug)]
pub struct Extended {
    /// The token of its claims.
    pub lease: i64,
    /// Which of its jobs somebody wants cancelled.
    pub cancelled: Vec<JobId>,
}

/// How long the archive keeps what ended, counted from its end. Each bound is `None` for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Jobs that are done; seven days unless said.
    pub done: Option<Duration>,
    /// Dead jobs; ninety days unless said.
    pub dead: Option<Duration>,
    /// Cancelled jobs; seven days unless said.
    pub cancelled: Option<Duration>,
}

impl Retention {
    /// The bound for this end.
    #[must_use]
    pub fn of(&self, ended: EndedAs) -> Option<Duration> {
        match ended {
            EndedAs::Done => self.done,
            EndedAs::Dead => self.dead,
            EndedAs::Cancelled => self.cancelled,
        }
    }

    /// Keeps jobs that are done for so many days.
    #[must_use]
    pub fn done_days(mut self, days: u16) -> Self {
        self.done = Some(days_long(days));
        self
    }

    /// Keeps dead jobs for so many days.
    #[must_use]
    pub fn dead_days(mut self, days: u16) -> Self {
        self.dead = Some(days_long(days));
        self
    }

    /// Keeps cancelled jobs for so many days.
    #[must_use]
    pub fn cancelled_days(mut self, days: u16) -> Self {
        self.cancelled = Some(days_long(days));
        self
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { done: Some(days_long(7)), dead: Some(days_long(90)), cancelled: Some(days_long(7)) }
    }
}

fn days_long(days: u16) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaintenanceReport {
    /// Jobs whose lease was over and that are in the line again, or cancelled as was asked.
    pub returned: u64,
    /// Jobs that were removed from the archive.
    pub pruned: u64,
    /// Whether it returned as many leases as one sweep does, so that there may be more that are over.
    pub more: bool,
}
