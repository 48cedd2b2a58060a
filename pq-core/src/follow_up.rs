//! Jobs that wait until other jobs have ended.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{CallOptions, JobId, JobState};

/// What connects a job that is put with others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Links {
    /// The jobs that must have ended before it is due.
    pub after: Vec<After>,
    /// The follow-up that waits for it, too.
    pub batch: Option<JobId>,
    /// Whether the follow-up of the batch needs this job to be done.
    pub fails_batch: bool,
    /// Whether it waits although it has no jobs to wait for yet.
    pub(crate) is_open: bool,
}

impl Links {
    /// Returns whether the job is connected with no other.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.after.is_empty() && self.batch.is_none()
    }

    /// Returns whether the job waits for others.
    pub(crate) fn waits(&self) -> bool {
        self.is_open || !self.after.is_empty()
    }
}

/// A job that must have ended before another one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// The job that must have ended.
    pub job: JobId,
    /// Whether the follow-up is cancelled if that job is dead or cancelled.
    pub only_done: bool,
}

impl After {
    /// The time at which a job that waits for others is due: the last day of the year 9999.
    pub const HELD_UNTIL: DateTime<Utc> = match DateTime::from_timestamp(253_402_214_400, 0) {
        Some(time) => time,
        None => DateTime::<Utc>::MAX_UTC,
    };
}

/// A job for which a follow-up waits or has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Predecessor {
    /// The job.
    pub job: JobId,
    /// Whether the follow-up is cancelled if the job is dead or cancelled.
    pub only_done: bool,
    /// How the job has ended. `None` while the follow-up waits for it.
    pub outcome: Option<JobState>,
}

/// How many of the jobs that a follow-up has waited for have ended in which way. See
/// [`crate::Annotations::ended`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EndedCounts {
    /// Jobs that were completed, deleted, or taken by a get.
    pub done: u64,
    /// Jobs that are dead.
    pub dead: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
}

/// A batch that is being put: jobs that end in any order, and a job that waits for all of them. See
/// [`crate::Task::batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Batch {
    pub(crate) follow_up: JobId,
}

impl Batch {
    /// Returns the batch for which this job waits. For a crate that puts jobs on connections of its own.
    pub fn new(follow_up: JobId) -> Self {
        Self { follow_up }
    }

    /// Returns the id of the job that waits for the others.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.follow_up
    }

    /// Returns the options of a call that belongs to the batch.
    pub fn call_options(&self) -> CallOptions {
        CallOptions::new().in_batch(self.follow_up)
    }
}
