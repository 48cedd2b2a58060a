//! Rows of the fast take, which scans the index of the queue.

use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::QueryResult;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Record, Text, Timestamptz};
use pq_core::{Claim, Held, JobId, JobRecord, JobState, Key, Payload, QueueName};

use super::{expected, nearest, sort};

row! {
    /// A job that was taken in a transaction.
    ScannedRow, ScannedSql {
        id: i64 => BigInt,
        payload: String => Text,
        enqueued_at: PgTimestamp => Timestamptz,
        // Attempt, priority, `expected_at` and unique key, or null if all have their defaults, as for most jobs.
        rare: Option<(i32, i32, Option<PgTimestamp>, Option<String>)>
            => Nullable<Record<(Integer, Integer, Nullable<Timestamptz>, Nullable<Text>)>>,
    }
}

impl ScannedRow {
    /// Returns the claims of the rows, in the order of the queue.
    pub(crate) fn claims(
        queue: &QueueName,
        token: i64,
        rows: impl ExactSizeIterator<Item = QueryResult<Self>>,
    ) -> QueryResult<Vec<Claim>> {
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            let row = row?;
            let (attempt, priority, expected_at, unique_key) = row.rare.unwrap_or_default();
            let record = record(queue, JobId(row.id), row.payload, row.enqueued_at, expected_at, unique_key);
            let record = JobRecord { priority, attempt: attempt.saturating_add(1), ..record };
            jobs.push(Claim { record, token, held: Held::Transaction });
        }
        sort(&mut jobs);
        Ok(jobs)
    }
}

row! {
    /// A lease, with each attribute of its jobs as an array.
    LeaseRow, LeaseSql {
        token: i64 => BigInt,
        ids: Vec<i64> => Array<BigInt>,
        payloads: Vec<String> => Array<Text>,
        enqueued_at: Vec<PgTimestamp> => Array<Timestamptz>,
        expected_at: Option<Vec<Option<PgTimestamp>>> => Nullable<Array<Nullable<Timestamptz>>>,
        priority: Vec<i32> => Array<Integer>,
        attempt: Vec<i32> => Array<Integer>,
        unique_key: Option<Vec<Option<String>>> => Nullable<Array<Nullable<Text>>>,
    }
}

impl LeaseRow {
    /// Returns the claims of the lease, in the order of the queue.
    pub(crate) fn claims(self, queue: &QueueName) -> Vec<Claim> {
        let held = Held::Lease { jobs: u32::try_from(self.ids.len()).unwrap_or(u32::MAX) };
        let mut expected_at = self.expected_at.unwrap_or_default().into_iter();
        let mut unique_key = self.unique_key.unwrap_or_default().into_iter();
        let numbers =
            self.ids.into_iter().zip(self.enqueued_at).zip(self.priority.into_iter().zip(self.attempt));
        let mut jobs: Vec<Claim> = numbers
            .zip(self.payloads)
            .map(|(((id, enqueued_at), (priority, attempt)), payload)| {
                let (expected_at, unique_key) = (expected_at.next().flatten(), unique_key.next().flatten());
                let record = record(queue, JobId(id), payload, enqueued_at, expected_at, unique_key);
                Claim { record: JobRecord { priority, attempt, ..record }, token: self.token, held }
            })
            .collect();
        sort(&mut jobs);
        jobs
    }
}

/// Returns a job that is neither scheduled nor keyed: only such jobs are in the index.
fn record(
    queue: &QueueName,
    id: JobId,
    payload: String,
    enqueued_at: PgTimestamp,
    expected_at: Option<PgTimestamp>,
    unique_key: Option<String>,
) -> JobRecord {
    JobRecord {
        id,
        queue: queue.clone(),
        state: JobState::Running,
        payload: Payload::from_stored(payload),
        enqueued_at: nearest(enqueued_at),
        schedule_at: None,
        expected_at: expected(expected_at),
        priority: 0,
        attempt: 1,
        serialization_key: None,
        unique_key: unique_key.map(Key::from_stored),
        error: None,
        result: None,
        lease_until: None,
        ended_at: None,
    }
}
