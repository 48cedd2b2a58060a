//! Statements that put jobs.
//!
//! A put notifies waiters by the trigger of the table, which reads the setting `pq.notify` once all rows are in. There
//! are up to three texts of each statement: with the trigger, with the trigger off for the rest of the transaction, and
//! with the trigger off for the statement alone.

use super::{Names, statement};
use crate::prepared::Statement;

/// The state of the trigger that notifies waiters.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Trigger {
    Fires,
    /// It is off for the rest of the transaction, for statements that are a transaction of their own.
    Off,
    /// It is off for this statement only. Other puts of the transaction notify.
    OffForThis,
}

/// A statement that puts, with a text for each state of the trigger.
#[derive(Debug)]
pub(crate) struct ByTrigger {
    fires: Statement,
    off: Statement,
    off_for_this: Statement,
}

impl ByTrigger {
    pub(super) fn new([fires, off, off_for_this]: [&str; 3], names: &Names) -> Self {
        Self {
            fires: statement(fires, names),
            off: statement(off, names),
            off_for_this: statement(off_for_this, names),
        }
    }

    pub(crate) fn of(&self, trigger: Trigger) -> &Statement {
        match trigger {
            Trigger::Fires => &self.fires,
            Trigger::Off => &self.off,
            Trigger::OffForThis => &self.off_for_this,
        }
    }
}

/// Puts a job that is due at once, with priority 0 and without keys and annotations. $1 queue, $2 payload.
pub(super) const ONE: [&str; 3] = [
    "INSERT INTO {jobs} (q_name, data) SELECT $1, $2::json RETURNING id",
    "INSERT INTO {jobs} (q_name, data)
    SELECT $1, $2::json FROM (SELECT set_config('pq.notify', 'off', true)) AS quiet
    RETURNING id",
    // The setting is restored when all ids are aggregated, which is after the trigger has read it.
    "WITH before AS (
        SELECT value, set_config('pq.notify', 'off', true) FROM current_setting('pq.notify', true) AS value
    ), put AS (
        INSERT INTO {jobs} (q_name, data) SELECT $1, $2::json FROM before RETURNING id
    )
    SELECT unnest(ids) FROM (
        SELECT ids, set_config('pq.notify', coalesce(value, ''), true)
        FROM (SELECT array_agg(id) AS ids FROM put) AS done CROSS JOIN before
    ) AS restored",
];

/// Puts many jobs. $1 queue, and then arrays with a value for each job: $2 payloads, $3 and $4 `schedule_at` as
/// instant or delay, $5 and $6 `expected_at` likewise, $7 priorities, $8 serialization keys, $9 annotations. An array
/// of the last that would have only nulls is null.
///
/// Order: ids ascend in the order of the arrays, and are returned in this order. A delay begins at the start of the
/// statement, not of the transaction.
pub(super) const MANY: [&str; 3] = [
    include_str!("put/many.sql"),
    include_str!("put/many_quiet.sql"),
    include_str!("put/many_quiet_for_this.sql"),
];

/// Puts many jobs, some of which have a unique key. Like [`MANY`], with $10 unique keys and $11 what to do
/// if a key is in use.
pub(super) const UNIQUE: &str = include_str!("put/unique.sql");

/// Prepares a COPY: draws ascending ids, and reads the clock from which delays begin. $1 number of ids, $2 whether the
/// trigger is off for the rest of the transaction (0 or 1).
///
/// The ids are null if row security applies to this role, because PostgreSQL then refuses COPY. The sequence is looked
/// up in a subquery, so that it is not looked up for each id.
pub(super) const PREPARE_COPY: &str = "\
SELECT CASE WHEN NOT row_security_active({jobs_name}) THEN ARRAY(
        SELECT nextval((SELECT pg_get_serial_sequence({jobs_name}, 'id')::regclass)) FROM generate_series(1, $1)) END,
    statement_timestamp()
FROM (SELECT CASE WHEN $2 = 1 THEN set_config('pq.notify', 'off', true) END) AS quiet";

/// The target of a COPY of jobs whose ids the table gives.
pub(super) const COPY: &str =
    "{jobs} (q_name, data, schedule_at, expected_at, priority, serial_key, annotations)";

/// The target of a COPY of jobs whose ids have been drawn.
pub(super) const COPY_WITH_IDS: &str =
    "{jobs} (id, q_name, data, schedule_at, expected_at, priority, serial_key, annotations)";

/// Puts a workflow, and returns its id. $1 JSON. Locks: none.
pub(super) const WORKFLOW: &str = "SELECT {put_workflow}($1::json)";
