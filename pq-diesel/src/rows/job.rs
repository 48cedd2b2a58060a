//! Rows of listed and archived jobs.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Integer, Nullable, Record, Text, Timestamptz};
use pq_core::{Annotations, JobId, JobRecord, Key, Payload, QueueName};

use super::{attempt_log, expected, nearest};

row! {
    /// A job with all its attributes.
    JobRow, JobSql {
        id: i64 => BigInt,
        queue: String => Text,
        state: String => Text,
        payload: String => Text,
        enqueued_at: PgTimestamp => Timestamptz,
        schedule_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        expected_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        // Priority, attempt and crashes. diesel has rows of at most 16 columns.
        numbers: (i32, i32, i32) => Record<(Integer, Integer, Integer)>,
        serialization_key: Option<String> => Nullable<Text>,
        unique_key: Option<String> => Nullable<Text>,
        error: Option<String> => Nullable<Text>,
        result: Option<String> => Nullable<Text>,
        lease_until: Option<PgTimestamp> => Nullable<Timestamptz>,
        ended_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        // Annotations and the log of attempts.
        rare: (Option<String>, Option<String>) => Record<(Nullable<Text>, Nullable<Text>)>,
    }
}

impl JobRow {
    /// Returns the job, or `None` if another program stored it in a queue whose name pq does not allow.
    pub(crate) fn into_record(self) -> Option<JobRecord> {
        let ((priority, attempt, crashes), (annotations, log)) = (self.numbers, self.rare);
        Some(JobRecord {
            id: JobId(self.id),
            queue: QueueName::new(self.queue).ok()?,
            state: self.state.parse().ok()?,
            payload: Payload::from_stored(self.payload),
            enqueued_at: nearest(self.enqueued_at),
            schedule_at: self.schedule_at.map(nearest),
            expected_at: expected(self.expected_at),
            priority,
            attempt,
            crashes,
            serialization_key: self.serialization_key.map(Key::from_stored),
            unique_key: self.unique_key.map(Key::from_stored),
            error: self.error,
            result: self.result.map(Payload::from_stored),
            lease_until: self.lease_until.map(nearest),
            ended_at: self.ended_at.map(nearest),
            annotations: Annotations::from_stored(annotations),
            attempt_log: attempt_log(log),
        })
    }
}
