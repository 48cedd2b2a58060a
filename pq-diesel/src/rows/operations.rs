//! The row of a statement that changes a batch of jobs.

use diesel::sql_types::{Array, BigInt, Nullable, Text};
use pq_core::QueueName;
use pq_core::store::Batch;

row! {
    /// What a statement selected and changed.
    BatchRow, BatchSql {
        selected: i64 => BigInt,
        last: Option<i64> => Nullable<BigInt>,
        changed: i64 => BigInt,
        queues: Vec<String> => Array<Text>,
    }
}

impl BatchRow {
    pub(crate) fn batch(&self) -> Batch {
        let number = |count: i64| count.max(0).unsigned_abs();
        Batch { selected: number(self.selected), changed: number(self.changed), last: self.last }
    }

    /// Returns the queues into which jobs came.
    pub(crate) fn queues(&self) -> impl Iterator<Item = QueueName> {
        self.queues.iter().filter_map(|queue| QueueName::new(queue).ok())
    }
}
