//! The row of the circumstances of a waiting job.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz};
use pq_core::store::{Circumstances, KeyHolder};
use pq_core::{JobId, Session};

use super::{nearest, span};

row! {
    /// The circumstances of a waiting job.
    CircumstancesRow, CircumstancesSql {
        now: PgTimestamp => Timestamptz,
        is_hidden: bool => Bool,
        paused_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        paused_by: Option<String> => Nullable<Text>,
        is_held: bool => Bool,
        pid: Option<i32> => Nullable<Integer>,
        application: Option<String> => Nullable<Text>,
        age: Option<i64> => Nullable<BigInt>,
        key_job: Option<i64> => Nullable<BigInt>,
        is_key_held: bool => Bool,
        key_pid: Option<i32> => Nullable<Integer>,
        key_application: Option<String> => Nullable<Text>,
        key_age: Option<i64> => Nullable<BigInt>,
        first_of_key: Option<i64> => Nullable<BigInt>,
        ahead: Option<i64> => Nullable<BigInt>,
    }
}

impl CircumstancesRow {
    pub(crate) fn into_circumstances(self) -> Circumstances {
        let session = |pid, application, age: Option<i64>| Session { pid, application, age: age.map(span) };
        let mut found = Circumstances::new(nearest(self.now));
        found.is_hidden = self.is_hidden;
        found.paused = self.paused_at.map(|at| (nearest(at), self.paused_by));
        found.held_by = self.is_held.then(|| session(self.pid, self.application, self.age));
        let key_session = self.is_key_held.then(|| session(self.key_pid, self.key_application, self.key_age));
        found.key_holder = (self.key_job.is_some() || key_session.is_some())
            .then(|| KeyHolder { job: self.key_job.map(JobId), session: key_session });
        found.first_of_key = self.first_of_key.map(JobId);
        found.ahead = self.ahead.unwrap_or_default().max(0).unsigned_abs();
        found
    }
}
