//! Why an attempt failed.

use std::fmt;
use std::time::Duration;

/// The reason why an attempt failed.
///
/// Its text is stored with the job. The job is retried if retries are left, and is archived as dead otherwise.
/// [`Failure::Undecodable`] and [`Failure::Exhausted`] are never retried. A transactional handler's writes are rolled
/// back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The handler returned this error. The text has the causes, for errors that print them with `{:#}`.
    Error(String),
    /// The handler panicked with this text.
    Panic(String),
    /// The handler ran for longer than this timeout, whatever it returned.
    Timeout(Duration),
    /// The worker has no handler for the task of this name. Another worker may have one, so the job goes back uncounted,
    /// see [`crate::Worker::leave_unknown_tasks_for`].
    UnknownTask(String),
    /// The payload cannot be decoded to the type that the handler takes.
    Undecodable(String),
    /// All attempts began, and none was settled: workers crashed, or leases expired.
    Exhausted {
        /// The number of attempts.
        attempts: u32,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(text) => f.write_str(text),
            Self::Panic(text) => write!(f, "the handler panicked: {text}"),
            Self::Timeout(limit) => write!(f, "the handler took longer than {limit:?}"),
            Self::UnknownTask(name) => write!(f, "unknown task {name:?}: this worker has no handler for it"),
            Self::Undecodable(reason) => f.write_str(reason),
            Self::Exhausted { attempts } => {
                write!(f, "the worker crashed or the lease expired in each of {attempts} attempts")
            }
        }
    }
}

impl std::error::Error for Failure {}
