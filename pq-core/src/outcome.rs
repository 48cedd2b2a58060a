//! The outcomes of jobs, and of requests to cancel them.

use std::time::Duration;

use serde::Serialize;

use crate::{Claim, CodecError, Error, Payload, PayloadLimits};

/// The outcome of a taken job.
///
/// A handler returns it, or `()` for [`Outcome::Complete`], and [`crate::Queue::settle`] takes it. Any outcome that a
/// transactional handler returns commits what the handler wrote, except [`Outcome::RolledBack`]. If an attempt ends
/// without one, because the process crashed or the lease expired, the job is requeued. A crash is counted if it is
/// known that the handler had begun.
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
    /// A handler with [`crate::Handler::keep_history`] keeps it in the archive, as [`Outcome::Keep`] without
    /// a result does.
    Complete,
    /// The job is done, and is kept in the archive.
    Keep {
        /// The handler's result, as JSON.
        result: Option<Payload>,
    },
    /// The attempt failed, and the job waits for the next one with the same id, priority and `expected_at`.
    ///
    /// A worker archives the job as dead instead if no retries are left.
    Retry {
        /// The delay before the next attempt, on the store's clock.
        after: Duration,
        /// The error of the attempt, which is stored with the job.
        error: String,
        /// The payload of the next attempt; unchanged if `None`.
        payload: Option<Payload>,
    },
    /// The job waits, and this attempt is not counted.
    Snooze {
        /// The delay before the next attempt, on the store's clock.
        after: Duration,
        /// The reason, which is stored as the error of the job.
        reason: Option<String>,
        /// The payload of the next attempt; unchanged if `None`.
        payload: Option<Payload>,
    },
    /// The job failed for good, and is archived as dead, whatever retries are left.
    Dead {
        /// The error of the job, which is stored with it.
        error: String,
    },
    /// The job is archived as cancelled.
    Cancel {
        /// The reason of the cancellation, which is stored with the job.
        reason: Option<String>,
    },
    /// The job is requeued at its former position, as if it had not been taken.
    ///
    /// It is ready at once, so a handler that always returns this runs again and again. Return it if the worker is
    /// stopping ([`crate::Context::is_aborting`]), and otherwise prefer [`Outcome::Snooze`].
    GiveBack,
    /// The job has this outcome, and what a transactional handler wrote is rolled back before. See
    /// [`Outcome::rolled_back`].
    RolledBack(Box<Outcome>),
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

    /// Returns [`Outcome::Snooze`] without a reason, with the payload unchanged.
    #[must_use]
    pub fn snooze(after: Duration) -> Self {
        Self::Snooze { after, reason: None, payload: None }
    }

    /// Returns [`Outcome::Dead`].
    #[must_use]
    pub fn dead(error: impl Into<String>) -> Self {
        Self::Dead { error: error.into() }
    }

    /// Returns this outcome without the writes of the transactional handler that returns it.
    ///
    /// The job is settled in a transaction after theirs. If the process crashes in between, the job is ready again,
    /// as if the handler had not run. Everywhere else than in a transactional handler this is the outcome itself.
    ///
    /// ```
    /// # use pq_core::{Outcome, Pq, Worker, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// # let orders = pq.queue::<u32>("orders")?;
    /// # let audit = pq.queue::<u32>("audit")?;
    /// # orders.put(&0)?;
    /// let handler = orders.transactional(move |conn, job| {
    ///     audit.on(conn).put(&job.data)?;
    ///     match job.data {
    ///         0 => Ok::<_, pq_core::Error>(Outcome::cancel("an empty order").rolled_back()),
    ///         _ => Ok(Outcome::Complete),
    ///     }
    /// });
    /// assert_eq!(Worker::new(&pq).serve(handler).run_until_empty()?.cancelled, 1);
    /// assert_eq!(pq.queue::<u32>("audit")?.counts()?.ready, 0);
    /// # Ok::<_, pq_core::Error>(())
    /// ```
    #[must_use]
    pub fn rolled_back(self) -> Self {
        match self {
            Self::RolledBack(_) => self,
            outcome => Self::RolledBack(Box::new(outcome)),
        }
    }

    /// Returns the outcome of the job, and whether a transactional handler's writes are kept.
    pub(crate) fn into_parts(self) -> (Self, bool) {
        match self {
            Self::RolledBack(outcome) => (outcome.into_parts().0, false),
            outcome => (outcome, true),
        }
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
    /// Its outcome.
    pub outcome: Outcome,
}

impl Settlement<'_> {
    /// Returns the job and its outcome.
    #[must_use]
    pub fn parts(&self) -> (&Claim, &Outcome) {
        (self.job, &self.outcome)
    }
}

/// The result of a request to cancel a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CancelOutcome {
    /// The job waited, and was archived as cancelled. No handler will begin.
    Cancelled,
    /// The job runs under a lease. Its handler learns of the request by [`crate::Context::is_cancelled`].
    ///
    /// If this attempt does not complete the job, it is archived as cancelled and not retried. A workflow is
    /// cancelled by the next run of maintenance, and ends when its running jobs have ended.
    Requested,
    /// A transaction holds the job, so nothing was done. Ask again when that transaction has ended.
    Held,
    /// The queue has no live job with this id.
    NotFound,
}

impl CancelOutcome {
    /// Returns whether the job is cancelled, or will be unless it completes.
    #[must_use]
    pub fn is_accepted(self) -> bool {
        matches!(self, Self::Cancelled | Self::Requested)
    }
}
