//! A job: before it is put, as a store hands it over, and as a user sees it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::{Key, OnConflict, Payload, QueueName, When};

/// A job's number. It is unique within its table and never used again; a job that goes back into
/// the line keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub i64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A job on its way into a store, checked already.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewJob {
    /// What it carries.
    pub payload: Payload,
    /// Not before this time; at once where there is none.
    pub schedule_at: Option<When>,
    /// Wanted by this time.
    pub expected_at: Option<When>,
    /// Higher goes first.
    pub priority: i32,
    /// Of the jobs that share one, one is taken at a time.
    pub serialization_key: Option<Key>,
    /// One job with it waits or runs at a time, and what a put does where there is one.
    pub unique: Option<(Key, OnConflict)>,
}

impl NewJob {
    /// A job that is due at once, of priority 0, with no key.
    #[must_use]
    pub fn new(payload: Payload) -> Self {
        Self {
            payload,
            schedule_at: None,
            expected_at: None,
            priority: 0,
            serialization_key: None,
            unique: None,
        }
    }
}

/// What proves that a job is yours: a store compares it before it changes the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The job.
    pub id: JobId,
    /// The store's fencing token: what took the job. It tells a take from every other one of the same job.
    pub token: i64,
    /// What it is held by.
    pub held: Held,
}

/// What holds a taken job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// The transaction that took it.
    Transaction,
    /// A lease, whose token is the claim's.
    Lease {
        /// How many jobs were taken under it.
        jobs: u32,
    },
}

impl Claim {
    /// The lease that the job is held under, if it is one.
    #[must_use]
    pub fn lease(&self) -> Option<i64> {
        matches!(self.held, Held::Lease { .. }).then_some(self.token)
    }
}

/// A taken job as a store hands it over, its payload not decoded.
#[derive(Clone, Debug)]
pub struct RawJob {
    /// The job's number.
    pub id: JobId,
    /// The line it stood in.
    pub queue: QueueName,
    /// What it carries, byte for byte as it was written.
    pub payload: Payload,
    /// When it was put, on the store's clock. Instants that chrono cannot hold (other writers can
    /// store `infinity`) are shown as the nearest that it can.
    pub enqueued_at: DateTime<Utc>,
    /// When it was due.
    pub schedule_at: Option<DateTime<Utc>>,
    /// When it was wanted.
    pub expected_at: Option<DateTime<Utc>>,
    /// Higher goes first.
    pub priority: i32,
    /// How often the job has been taken, this time included.
    pub attempt: i32,
    /// Of the jobs that share one, one is taken at a time.
    pub serialization_key: Option<Key>,
    /// One job with it waits or runs at a time.
    pub unique_key: Option<Key>,
    /// What proves that it is yours.
    pub claim: Claim,
}

impl RawJob {
    /// Bytes of the payload as it is stored.
    #[must_use]
    pub fn size(&self) -> usize {
        self.payload.as_str().len()
    }
}

/// A taken job with its payload decoded. The fields of [`RawJob`] are reached through it: `job.id`,
/// `job.enqueued_at`, `job.priority` and so on.
///
/// Its `Debug` and `Display` name the job and its times, never what it carries.
#[derive(Clone)]
pub struct Job<T> {
    /// What the job carries.
    pub data: T,
    /// A worker has it too, until the handler's verdict is passed.
    pub(crate) raw: Arc<RawJob>,
}

impl<T> Job<T> {
    /// The job without its decoded payload.
    #[must_use]
    pub fn into_raw(self) -> RawJob {
        Arc::unwrap_or_clone(self.raw)
    }
}

impl<T> Deref for Job<T> {
    type Target = RawJob;

    fn deref(&self) -> &RawJob {
        &self.raw
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
