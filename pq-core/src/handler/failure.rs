//! Why an attempt failed.

use std::fmt;
use std::time::Duration;

/// The reason why an attempt failed.
///
/// Its text is stored with the job. The job is retried if retries are left, and is archived as dead otherwise.
/// [`Failure::Undecodable`] and [`Failure::Crashed`] are never retried. A transactional handler's writes are rolled
/// back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The handler returned this error. The text has the causes, for errors that print them with `{:#}`.
    Error(String),
    /// The handler panicked with this text.
    Panic(String),
    /// The handler ran for longer than its timeout, whatever it returned.
    Timeout {
        /// The timeout.
        limit: Duration,
        /// The error that the handler returned after it. `None` if it returned none, or was ended.
        error: Option<String>,
    },
    /// The worker has no handler for the task of this name. Another worker may have one, so the job goes back
    /// uncounted, see [`crate::Worker::leave_unknown_tasks_for`].
    UnknownTask(String),
    /// The handler asks for other steps than earlier attempts have kept. Another worker may have the program that
    /// began the job, so a call of a task goes back uncounted, as for [`Failure::UnknownTask`].
    ChangedSteps(String),
    /// The payload cannot be decoded to the type that the handler takes.
    Undecodable(String),
    /// The worker died, or lost its lease. A job is dead after as many such attempts as [`crate::Handler::max_crashes`]
    /// allows.
    Crashed {
        /// The number of these attempts.
        times: u32,
    },
}

impl Failure {
    /// Returns the failure of a handler that ignored the error of one of its statements, or whose commit failed.
    #[must_use]
    pub fn not_kept(error: &impl std::error::Error) -> Self {
        Self::Error(format!("cannot keep the handler's writes: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(text) => f.write_str(text),
            Self::Panic(text) => write!(f, "the handler panicked: {text}"),
            Self::Timeout { limit, error: None } => write!(f, "the handler took longer than {limit:?}"),
            Self::Timeout { limit, error: Some(error) } => {
                write!(f, "the handler took longer than {limit:?}: {error}")
            }
            Self::UnknownTask(name) => write!(f, "unknown task {name:?}: this worker has no handler for it"),
            Self::ChangedSteps(reason) | Self::Undecodable(reason) => f.write_str(reason),
            Self::Crashed { times } => {
                let times = if *times == 1 { "once".to_owned() } else { format!("{times} times") };
                write!(f, "the job's worker died {times} while it ran, or lost its lease")
            }
        }
    }
}

impl std::error::Error for Failure {}
