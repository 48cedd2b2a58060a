//! Rows of a queue's counts.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Double, Nullable, Text, Timestamptz};
use pq_core::{Limits, PausedQueue, QueueCounts, QueueName};

use super::{nearest, span};

row! {
    /// The counts of one queue.
    CountsRow, CountsSql {
        queue: String => Text,
        ready: i64 => BigInt,
        blocked: i64 => BigInt,
        scheduled: i64 => BigInt,
        running: i64 => BigInt,
        dequeued: i64 => BigInt,
        dead: i64 => BigInt,
        cancelled: i64 => BigInt,
        done: i64 => BigInt,
        oldest: Option<i64> => Nullable<BigInt>,
        error: Option<String> => Nullable<Text>,
        paused_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        paused_by: Option<String> => Nullable<Text>,
        per_second: f64 => Double,
        limits: Option<String> => Nullable<Text>,
    }
}

row! {
    /// A paused queue.
    PausedRow, PausedSql {
        queue: String => Text,
        paused_at: PgTimestamp => Timestamptz,
        paused_by: Option<String> => Nullable<Text>,
    }
}

impl PausedRow {
    /// Returns the queue, or `None` if another program paused one whose name pq does not allow.
    pub(crate) fn into_paused(self) -> Option<PausedQueue> {
        let queue = QueueName::new(self.queue).ok()?;
        Some(PausedQueue { queue, paused_at: nearest(self.paused_at), paused_by: self.paused_by })
    }
}

impl CountsRow {
    /// Returns the counts, or `None` if another program put jobs into a queue whose name pq does not allow.
    pub(crate) fn into_counts(self) -> Option<QueueCounts> {
        let number = |count: i64| count.max(0).unsigned_abs();
        let mut counts = QueueCounts::new(QueueName::new(self.queue).ok()?);
        counts.ready = number(self.ready);
        counts.blocked = number(self.blocked);
        counts.scheduled = number(self.scheduled);
        counts.running = number(self.running);
        counts.dequeued = number(self.dequeued);
        counts.dead = number(self.dead);
        counts.cancelled = number(self.cancelled);
        counts.done = number(self.done);
        counts.oldest = self.oldest.map(span);
        counts.error = self.error;
        counts.paused_at = self.paused_at.map(nearest);
        counts.paused_by = self.paused_by;
        counts.per_second = self.per_second;
        counts.limits = self.limits.map(|json| Limits::from_stored(Some(&json)));
        Some(counts)
    }
}
