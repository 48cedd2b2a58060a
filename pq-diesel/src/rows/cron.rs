//! Rows of periodic jobs.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{Bool, Integer, Nullable, Text, Timestamptz};
use pq_core::{Cron, CronEntry, Payload, QueueName};

use super::nearest;

row! {
    /// A periodic job.
    CronRow, CronSql {
        name: String => Text,
        expression: String => Text,
        time_zone: String => Text,
        queue: String => Text,
        payload: String => Text,
        priority: i32 => Integer,
        catch_up: bool => Bool,
        paused: bool => Bool,
        next_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        last_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        failures: i32 => Integer,
        error: Option<String> => Nullable<Text>,
        paused_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        paused_by: Option<String> => Nullable<Text>,
    }
}

impl CronRow {
    /// Returns the periodic job, or `None` if another program stored it for a queue whose name pq does not allow.
    pub(crate) fn into_entry(self) -> Option<CronEntry> {
        let cron = Cron {
            name: self.name,
            expression: self.expression,
            time_zone: self.time_zone,
            queue: QueueName::new(self.queue).ok()?,
            payload: Payload::from_stored(self.payload),
            priority: self.priority,
            catch_up: self.catch_up,
        };
        Some(CronEntry {
            cron,
            paused: self.paused,
            paused_at: self.paused_at.map(nearest),
            paused_by: self.paused_by,
            next_at: self.next_at.map(nearest),
            last_at: self.last_at.map(nearest),
            failures: self.failures.max(0).unsigned_abs(),
            error: self.error,
        })
    }
}
