//! A job before it is put, and a taken job as a user sees it.

use std::fmt;
use std::num::ParseIntError;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::{Annotations, Claim, Key, Links, OnConflict, Payload, When};

/// A job's id. It is unique within its table and never reused. A job that is requeued keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub i64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<i64> for JobId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

impl FromStr for JobId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

/// A job that is to be put. Its parts have been validated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewJob {
    /// The payload.
    pub payload: Payload,
    /// When the job falls due. Default: at once.
    pub schedule_at: Option<When>,
    /// When the job should be done. Of two jobs of the same priority, the one with the earlier time is taken first.
    pub expected_at: Option<When>,
    /// The priority. Higher ones are taken first. Default: 0.
    pub priority: i32,
    /// The serialization key: jobs of a queue that share one are taken one at a time.
    pub serialization_key: Option<Key>,
    /// The unique key, and what a put does if a job with that key waits or runs.
    pub unique: Option<(Key, OnConflict)>,
    /// What is noted with the job. Default: nothing.
    pub annotations: Annotations,
    /// What connects the job with others. Default: nothing.
    pub links: Links,
    /// The name of the task that the job calls, under which the handle counts it. Default: none.
    pub task: Option<Arc<str>>,
}

impl NewJob {
    /// Creates a job that is due at once, with priority 0, without keys and without annotations.
    #[must_use]
    pub fn new(payload: Payload) -> Self {
        Self {
            payload,
            schedule_at: None,
            expected_at: None,
            priority: 0,
            serialization_key: None,
            unique: None,
            annotations: Annotations::default(),
            links: Links::default(),
            task: None,
        }
    }
}

/// A taken job with its payload decoded.
///
/// It dereferences to its [`Claim`], and through that to the [`crate::JobRecord`]: `job.id`, `job.enqueued_at`,
/// `job.priority` and so on.
///
/// Its `Debug` and `Display` show the job and its times, but not its payload.
#[derive(Clone)]
pub struct Job<T> {
    /// The decoded payload.
    pub data: T,
    /// Shared with the worker, which keeps it until the job is settled.
    pub(crate) claim: Arc<Claim>,
}

impl<T> Job<T> {
    /// Replaces the data and the encoded payload, after the store has accepted them.
    pub fn replace(&mut self, data: T, payload: Payload) {
        self.data = data;
        Arc::make_mut(&mut self.claim).record.payload = payload;
    }

    /// Returns the job without its decoded payload.
    #[must_use]
    pub fn into_claim(self) -> Claim {
        Arc::unwrap_or_clone(self.claim)
    }
}

impl<T> Deref for Job<T> {
    type Target = Claim;

    fn deref(&self) -> &Claim {
        &self.claim
    }
}

impl<T> fmt::Display for Job<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |at: &DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Micros, true);
        write!(
            f,
            "job {} of {:?}, {} bytes, put {}",
            self.id,
            self.queue,
            self.size(),
            time(&self.enqueued_at)
        )?;
        if let Some(at) = &self.schedule_at {
            write!(f, ", scheduled for {}", time(at))?;
        }
        if let Some(at) = &self.expected_at {
            write!(f, ", expected by {}", time(at))?;
        }
        if self.priority != 0 {
            write!(f, ", priority {}", self.priority)?;
        }
        Ok(())
    }
}

impl<T> fmt::Debug for Job<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id.0)
            .field("queue", &self.queue)
            .field("size", &self.size())
            .field("enqueued_at", &self.enqueued_at)
            .field("schedule_at", &self.schedule_at)
            .field("expected_at", &self.expected_at)
            .field("priority", &self.priority)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
