//! The log of a job's attempts that failed or were lost.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// An attempt of a job that failed or was lost.
///
/// The store logs it with the statement that requeues or archives the job, so a job that succeeds at once has no log
/// and costs nothing. An attempt that succeeded, was cancelled, snoozed or given back is not logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptEntry {
    /// The number of the attempt. Several entries have the same one if attempts did not count, and the numbers begin
    /// again when a dead job is requeued.
    pub attempt: i32,
    /// When the attempt ended, on the store's clock. For a lost lease it is the time at which maintenance found it.
    pub at: DateTime<Utc>,
    /// How it ended.
    pub end: AttemptEnd,
    /// Its error, at most [`AttemptEntry::MAX_ERROR_CHARS`] characters of it.
    pub error: String,
}

impl AttemptEntry {
    /// The maximum number of entries that a job keeps: the newest ones.
    pub const MAX_KEPT: usize = 20;

    /// The maximum length of an entry's error, in characters.
    pub const MAX_ERROR_CHARS: usize = 500;

    /// Adds an entry to a log, and removes the oldest one of a full log.
    pub(crate) fn add(log: &mut Vec<Self>, attempt: i32, at: DateTime<Utc>, end: AttemptEnd, error: &str) {
        log.drain(..(log.len() + 1).saturating_sub(Self::MAX_KEPT));
        log.push(Self { attempt, at, end, error: error.chars().take(Self::MAX_ERROR_CHARS).collect() });
    }
}

/// How an attempt ended that failed or was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttemptEnd {
    /// It failed, and the job was requeued.
    Failed,
    /// It failed, or could not begin, and the job is dead.
    Dead,
    /// Its worker died or lost the lease, and the job was alone in that.
    Crashed,
    /// Its worker died or lost the lease, which had several jobs. It is unknown whether the attempt began.
    Lost,
}

impl fmt::Display for AttemptEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Crashed => "crashed",
            Self::Lost => "lost",
        })
    }
}
