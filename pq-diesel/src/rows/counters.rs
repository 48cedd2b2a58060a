//! Rows of counters.

use diesel::sql_types::Text;
use pq_core::{QueueName, TaskCounters};

row! {
    /// Counters of one task.
    CountersRow, CountersSql {
        queue: String => Text,
        task: String => Text,
        counts: String => Text,
    }
}

impl CountersRow {
    /// Returns the counters, or `None` if another program stored a queue whose name pq does not allow.
    pub(crate) fn into_counters(self) -> Option<TaskCounters> {
        let queue = QueueName::new(self.queue).ok()?;
        let counters = serde_json::from_str(&self.counts).unwrap_or_default();
        Some(TaskCounters { queue, task: self.task, counters })
    }
}
