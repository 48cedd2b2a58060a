//! What can go wrong, and the exit status of each.

use std::io;
use std::process::ExitCode;

use pq_diesel::Error;

/// What every command's help ends with.
pub(crate) const EXIT_CODES: &str = "\
Exit status:
  0    done; for get, with a job
  1    get: there was no job in time; elsewhere: what was named was not there, or stays as it was
  2    usage: a word, a name, a time or a payload that cannot be used
  3    the database cannot be reached
  4    the table is not there: run `pq migrate`
  5    the database refused
  6    reading or writing failed; a job whose line could not be written is back in the queue
  7    doctor: a finding is a failure, or with --strict a warning
  8    get --exec: the command failed, and the job is back with a failed attempt
  130  interrupted; jobs that were not written out are back in the queue";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Queue(#[from] Error),
    #[error("{0}")]
    Io(String),
    #[error("{0}")]
    Demo(String),
    #[error("{0}")]
    Bench(String),
}

impl Failure {
    pub(crate) fn writing(error: &io::Error) -> Self {
        Self::Io(format!("the output cannot be written: {error}; what was not written is back in the queue"))
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Queue(Error::InvalidIdentifier { .. } | Error::UnknownMigration { .. }) => 2,
            Self::Queue(error) if error.is_stopped() => 130,
            Self::Queue(Error::Refused(_)) => 2,
            Self::Queue(error) if error.is_unavailable() && !error.is_outcome_unknown() => 3,
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
    fn every_code_stands_in_the_table() {
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
            let stands = |line: &str| line.trim_start().starts_with(&format!("{code} "));
            assert!(EXIT_CODES.lines().any(stands), "{failure:?} is {code}");
        }
    }
}
