//! Rows of measurements.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz};

use super::{nearest, span};

row! {
    /// The jobs of one queue, counted up to a bound.
    GaugesRow, GaugesSql {
        queue: String => Text,
        plain: i64 => BigInt,
        keyed: i64 => BigInt,
        after_delay: i64 => BigInt,
        first_per_key: i64 => BigInt,
        scheduled: i64 => BigInt,
        follow_ups: i64 => BigInt,
        running: i64 => BigInt,
        dead: i64 => BigInt,
        cancelled: i64 => BigInt,
        done: i64 => BigInt,
        oldest: Option<i64> => Nullable<BigInt>,
        paused_at: Option<PgTimestamp> => Nullable<Timestamptz>,
    }
}

/// The jobs of one queue, counted up to a bound.
pub(crate) struct BoundedCounts {
    pub(crate) queue: String,
    /// The parts, in the order of the statements that estimate them.
    pub(crate) parts: [u64; 7],
    /// Due jobs that do not wait for a key.
    pub(crate) ready: u64,
    pub(crate) follow_ups: u64,
    pub(crate) running: u64,
    pub(crate) oldest: Option<Duration>,
    pub(crate) is_paused: bool,
}

impl GaugesRow {
    pub(crate) fn into_counts(self) -> BoundedCounts {
        let number = |count: i64| count.max(0).unsigned_abs();
        let parts =
            [self.plain, self.keyed, self.after_delay, self.scheduled, self.dead, self.cancelled, self.done];
        BoundedCounts {
            queue: self.queue,
            parts: parts.map(number),
            ready: number(self.first_per_key),
            follow_ups: number(self.follow_ups),
            running: number(self.running),
            oldest: self.oldest.map(span),
            is_paused: self.paused_at.is_some(),
        }
    }
}

row! {
    /// Measurements of the database.
    DatabaseRow, DatabaseSql {
        at: PgTimestamp => Timestamptz,
        ids: Option<i64> => Nullable<BigInt>,
        dead_tuples: Option<i64> => Nullable<BigInt>,
        oldest_snapshot: Option<i64> => Nullable<BigInt>,
        live: i64 => BigInt,
        gone: i64 => BigInt,
        steps: i64 => BigInt,
        asleep: i64 => BigInt,
        waiting: i64 => BigInt,
    }
}

/// Measurements of the database.
pub(crate) struct Measured {
    pub(crate) at: DateTime<Utc>,
    pub(crate) ids: Option<u64>,
    pub(crate) dead_tuples: u64,
    pub(crate) oldest_snapshot: Option<Duration>,
    pub(crate) workers_live: u64,
    pub(crate) workers_gone: u64,
    pub(crate) steps: u64,
    pub(crate) asleep: u64,
    pub(crate) awaiting_signals: u64,
}

impl DatabaseRow {
    pub(crate) fn into_measured(self) -> Measured {
        let number = |count: i64| count.max(0).unsigned_abs();
        Measured {
            at: nearest(self.at),
            ids: self.ids.map(number),
            dead_tuples: self.dead_tuples.map(number).unwrap_or_default(),
            oldest_snapshot: self.oldest_snapshot.map(span),
            workers_live: number(self.live),
            workers_gone: number(self.gone),
            steps: number(self.steps),
            asleep: number(self.asleep),
            awaiting_signals: number(self.waiting),
        }
    }
}
