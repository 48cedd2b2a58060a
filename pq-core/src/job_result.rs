//! What became of a job, for a caller that asks for its result.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::payload::mismatch;
use crate::{AttemptEntry, Error, JobId, JobRecord, JobState, QueueName};

/// What became of a job. Returned by [`crate::Pq::result`] and [`crate::Pq::wait_for`].
///
/// ```
/// use pq_core::{JobResult, Outcome, Pq, Wait, Worker, memory::MemoryStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let double = pq.queue::<()>("sums")?.task::<i64>("double");
/// let id = double.call(&21)?.id;
/// Worker::new(&pq).serve(double.leased(|_, job| Outcome::result(&(job.data * 2)))).run_until_empty()?;
/// assert_eq!(pq.result::<i64>(id)?, JobResult::Done(42));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "result", rename_all = "lowercase")]
pub enum JobResult<R> {
    /// The job waits for a worker, or for its time.
    Waiting,
    /// A worker runs the job under a lease.
    Running,
    /// The job is done. The result of a handler that returned none is read as the JSON null.
    Done(R),
    /// The job failed for good.
    Dead(FailedJob),
    /// The job was cancelled.
    Cancelled(FailedJob),
    /// No job has this id. There was none, or it ended and was not kept.
    Unknown,
}

impl<R> JobResult<R> {
    /// Returns whether the job can still end, so that it is worth to wait.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Waiting | Self::Running)
    }

    /// Returns the value if the job is done.
    #[must_use]
    pub fn done(self) -> Option<R> {
        match self {
            Self::Done(value) => Some(value),
            _ => None,
        }
    }
}

impl<R: DeserializeOwned> JobResult<R> {
    /// Returns the result of a job as a store has it, or of an unknown one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidResult`] if the result is not an `R`.
    pub fn of(job: Option<&JobRecord>) -> Result<Self, Error> {
        let Some(job) = job else { return Ok(Self::Unknown) };
        Ok(match job.state {
            JobState::Ready | JobState::Blocked | JobState::Scheduled => Self::Waiting,
            JobState::Running | JobState::Dequeued => Self::Running,
            JobState::Dead => Self::Dead(FailedJob::of(job)),
            JobState::Cancelled => Self::Cancelled(FailedJob::of(job)),
            JobState::Done => {
                let result = job.result.as_ref().map_or("null", |result| result.as_str());
                // The parser's message may quote the result.
                let read = serde_json::from_str(result);
                Self::Done(
                    read.map_err(|_| Error::InvalidResult { id: job.id, reason: mismatch::<R>(result) })?,
                )
            }
        })
    }
}

/// A job that is dead or cancelled, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FailedJob {
    /// The job's id.
    pub id: JobId,
    /// The queue that it was in.
    pub queue: QueueName,
    /// The task that it called, if it was a call.
    pub task: Option<String>,
    /// The error of the last attempt, or the reason of the cancellation.
    pub error: Option<String>,
    /// The number of attempts that were begun.
    pub attempt: i32,
    /// The newest attempts that failed or were lost, the oldest of them first.
    pub attempt_log: Vec<AttemptEntry>,
}

impl FailedJob {
    fn of(job: &JobRecord) -> Self {
        Self {
            id: job.id,
            queue: job.queue.clone(),
            task: Envelope::read(job.payload.as_str()).ok().and_then(|call| call.function()),
            error: job.error.clone(),
            attempt: job.attempt,
            attempt_log: job.attempt_log.clone(),
        }
    }
}

/// Writes the job, its task and its error on one line.
impl fmt::Display for FailedJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, queue, task, error, attempt, .. } = self;
        write!(f, "job {id} of queue {:?}", queue.as_str())?;
        if let Some(task) = task {
            write!(f, ", a call of {task:?},")?;
        }
        write!(f, " ended after {attempt} {}", if *attempt == 1 { "attempt" } else { "attempts" })?;
        error.as_ref().map_or(Ok(()), |error| write!(f, ": {error}"))
    }
}

/// The answer to a call that was awaited: its job and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<R> {
    /// The id of the job, for another wait if the time was too short.
    pub id: JobId,
    /// What became of the job, or its state when the time had passed.
    pub result: JobResult<R>,
}
