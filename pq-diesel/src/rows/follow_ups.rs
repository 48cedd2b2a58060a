//! Rows of what jobs wait for.

use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use pq_core::{JobId, JobState, Predecessor};

row! {
    /// A job for which a follow-up waits or has waited.
    PredecessorRow, PredecessorSql {
        job: i64 => BigInt,
        only_done: bool => Bool,
        outcome: Option<String> => Nullable<Text>,
    }
}

impl PredecessorRow {
    pub(crate) fn into_predecessor(self) -> Predecessor {
        let outcome = self.outcome.as_deref();
        Predecessor {
            job: JobId(self.job),
            only_done: self.only_done,
            outcome: JobState::ENDED.into_iter().find(|state| Some(state.as_str()) == outcome),
        }
    }
}

row! {
    /// A job that has ended, for which a follow-up waits; or without an outcome the last row that was read.
    WaitRow, WaitSql {
        follow_up: i64 => BigInt,
        job: i64 => BigInt,
        outcome: Option<String> => Nullable<Text>,
        read: Option<i64> => Nullable<BigInt>,
    }
}

impl WaitRow {
    /// Returns the follow-up and the job.
    pub(crate) fn key(&self) -> (i64, i64) {
        (self.follow_up, self.job)
    }

    pub(crate) fn outcome(&self) -> Option<&str> {
        self.outcome.as_deref()
    }

    /// Returns how many rows were read, if this is the last of them.
    pub(crate) fn read(&self) -> Option<i64> {
        self.read
    }
}
