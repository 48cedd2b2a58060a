//! How a taken job ends, and what is kept of it.

use std::time::Duration;

use serde::Serialize;

use crate::{Claim, CodecError, Error, JobState, Payload, PayloadLimits};

/// What becomes of a taken job.
///
/// A handler returns it, or `()` for [`Outcome::Complete`], and [`crate::Queue::settle`] takes it. An attempt that ends
/// without one, because the process crashed or the lease expired, counts, and the job is requeued.
///
/// ```
/// use std::time::Duration;
/// use pq_core::{Outcome, Pq, Worker, memory::MemoryStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let invoices = pq.queue::<i64>("invoices")?;
/// invoices.put(&-5)?;
/// let handler = invoices.leased(|_context, job| match job.data {
///     ..0 => Ok(Outcome::cancel("a negative amount")),
///     0 => Ok(Outcome::snooze(Duration::from_secs(60))),
///     amount => Outcome::result(&(amount * 2)),
/// });
/// assert_eq!(Worker::new(&pq).serve(handler).run_until_empty()?.cancelled, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The job is done, and its row is removed.
    ///
    /// A handler of which [`crate::Handler::keep_history`] is set keeps it in the archive, as [`Outcome::Keep`] without
    /// a result does.
    Complete,
    /// The job is done, and is kept in the archive.
    Keep {
        /// The handler's result, as JSON.
        result: Option<Payload>,
    },
    /// The attempt failed, and the job waits for the next one with the same id, priority and `expected_at`.
    ///
    /// A worker archives the job as dead instead if no retries are left. It keeps what a transactional handler wrote
    /// before it returned this; an error rolls the writes back.
    Retry {
        /// The delay before the next attempt, on the store's clock.
        after: Duration,
        /// Why the attempt failed; stored with the job.
        error: String,
        /// The payload of the next attempt; unchanged if `None`.
        payload: Option<Payload>,
    },
    /// The job waits, and this attempt is not counted.
    Snooze {
        /// The delay before the next attempt, on the store's clock.
        after: Duration,
    },
    /// The job failed for good, and is archived as dead, whatever retries are left.
    Dead {
        /// Why the job failed; stored with the job.
        error: String,
    },
    /// The job is archived as cancelled.
    Cancel {
        /// Why the job was cancelled; stored with the job.
        reason: Option<String>,
    },
    /// The job is requeued at its former position, as if it had not been taken.
    ///
    /// It is ready at once, so a handler that always returns this runs again and again. Prefer [`Outcome::Snooze`].
    GiveBack,
}

impl Outcome {
    /// Returns [`Outcome::Keep`] with this result, encoded as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] if the result cannot be encoded; [`Error::PayloadTooLarge`] over 1 MiB;
    /// [`Error::PayloadTooDeep`] over 127 levels.
    pub fn result<T: Serialize + ?Sized>(result: &T) -> Result<Self, Error> {
        let json = serde_json::to_string(result)
            .map_err(|found| Error::Encode(CodecError::new(found.to_string())))?;
        Ok(Self::Keep { result: Some(Payload::new(json, PayloadLimits::default())?) })
    }

    /// Returns [`Outcome::Retry`] with the payload unchanged.
    #[must_use]
    pub fn retry(after: Duration, error: impl Into<String>) -> Self {
        Self::Retry { after, error: error.into(), payload: None }
    }

    /// Returns [`Outcome::Snooze`].
    #[must_use]
    pub fn snooze(after: Duration) -> Self {
        Self::Snooze { after }
    }

    /// Returns [`Outcome::Dead`].
    #[must_use]
    pub fn dead(error: impl Into<String>) -> Self {
        Self::Dead { error: error.into() }
    }

    /// Returns [`Outcome::Cancel`] with a reason.
    #[must_use]
    pub fn cancel(reason: impl Into<String>) -> Self {
        Self::Cancel { reason: Some(reason.into()) }
    }
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Complete
    }
}

/// A taken job and its outcome.
#[derive(Clone, Debug)]
pub struct Settlement<'a> {
    /// The job, as the store returned it when it was taken.
    pub job: &'a Claim,
    /// What becomes of the job.
    pub outcome: Outcome,
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
    pub fn of(&self, state: JobState) -> Option<Duration> {
        match state {
            JobState::Done => self.done,
            JobState::Dead => self.dead,
            JobState::Cancelled => self.cancelled,
            _ => None,
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
