//! The errors of the command and their exit statuses.

use std::io;
use std::process::ExitCode;

use pq_diesel::Error;

/// The table of exit statuses at the end of every help text.
pub(crate) const EXIT_CODES: &str = "\
Exit status:
  0    success; get: at least one job
  1    get: no job before the timeout; other commands: not found, or declined
  2    invalid usage: an argument, a name, a time or a payload
  3    cannot connect to the database
  4    the table does not exist: run `pq migrate`
  5    the database returned an error
  6    input or output failed; get: jobs that were not printed are requeued
  7    doctor: a check failed, or with --strict a check warned
  8    get --exec: the command failed, and the job is requeued with a failed attempt, or is dead
  9    the connection was lost during a commit: the change was made, or it was not
  10   wait: the job is dead
  11   wait: the job was cancelled
  12   wait: the job has not ended before the timeout
  130  interrupted; get: jobs that were not printed are requeued";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Queue(#[from] Error),
    #[error("{0}")]
    Io(String),
    /// The reader of standard output has enough. Nothing is printed, and the exit status is 0.
    #[error("the reader of standard output has ended")]
    OutputClosed,
    #[error("{0}")]
    Demo(String),
    #[error("{0}")]
    Bench(String),
}

impl Failure {
    pub(crate) fn writing(error: &io::Error) -> Self {
        Self::Io(format!("cannot write the output: {error}; jobs that were not printed are requeued"))
    }

    /// An error of writing to standard output that loses nothing. `what` is what was written.
    pub(crate) fn output(what: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Io(format!("cannot write {what}: {error}")),
        }
    }

    /// Advises how to avoid the error, if the command knows.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        match self {
            // A prepared statement exists already, or does not exist.
            Self::Queue(error) if matches!(error.sqlstate(), Some("42P05" | "26000")) => {
                Some("behind a pooler in transaction mode, pass --pooler or set PQ_POOLER=1")
            }
            _ => None,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Usage(_) => 2,
            Self::Queue(Error::InvalidIdentifier { .. } | Error::UnknownMigration { .. }) => 2,
            Self::Queue(error) if error.is_stopped() => 130,
            Self::Queue(Error::Refused(_)) => 2,
            Self::Queue(error) if error.is_outcome_unknown() => 9,
            Self::Queue(error) if error.is_unavailable() => 3,
            Self::Queue(error) if error.is_not_migrated() => 4,
            Self::Queue(_) | Self::Demo(_) | Self::Bench(_) => 5,
            Self::Io(_) => 6,
        }
    }
}

impl From<pq_core::Error> for Failure {
    fn from(error: pq_core::Error) -> Self {
        Self::Queue(error.into())
    }
}

impl From<diesel::result::Error> for Failure {
    fn from(error: diesel::result::Error) -> Self {
        Self::Queue(error.into())
    }
}

impl From<pq_testing::Error> for Failure {
    fn from(error: pq_testing::Error) -> Self {
        Self::Demo(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_table() {
        let failures = [
            Failure::Usage(String::new()),
            Failure::Queue(Error::Unavailable(String::new())),
            Failure::Queue(Error::OutcomeUnknown(String::new())),
            Failure::Queue(Error::Migration(String::new())),
            Failure::Io(String::new()),
            Failure::Demo(String::new()),
            Failure::Bench(String::new()),
        ];
        for failure in failures {
            let code = failure.code();
            let is_listed = |line: &str| line.trim_start().starts_with(&format!("{code} "));
            assert!(EXIT_CODES.lines().any(is_listed), "{failure:?} is {code}");
        }
    }
}
