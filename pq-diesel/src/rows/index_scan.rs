//! Rows of the fast take, which scans the index of the queue.

use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::QueryResult;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Record, Text, Timestamptz};
use pq_core::{Annotations, Claim, Held, JobId, JobRecord, JobState, Key, Payload, QueueName, Taken};
use std::sync::Arc;

use super::{attempt_log, expected, limit, nearest, sort};

/// The attributes that few jobs have: attempt, priority, `expected_at`, unique key, crashes, the limit of the next
/// lease, annotations, the log of its attempts, and whether a job of the take was taken before by a transaction that
/// did not commit.
type Rare =
    (i32, i32, Option<PgTimestamp>, Option<String>, i32, Option<i32>, Option<String>, Option<String>, bool);

type RareSql = (
    Integer,
    Integer,
    Nullable<Timestamptz>,
    Nullable<Text>,
    Integer,
    Nullable<Integer>,
    Nullable<Text>,
    Nullable<Text>,
    Bool,
);

row! {
    /// A job that was taken in a transaction.
    ScannedRow, ScannedSql {
        id: i64 => BigInt,
        payload: String => Text,
        enqueued_at: PgTimestamp => Timestamptz,
        // Null if all have their defaults, as for most jobs.
        rare: Option<Rare> => Nullable<Record<RareSql>>,
    }
}

impl ScannedRow {
    /// Returns the jobs of the rows, in the order of the queue.
    pub(crate) fn taken(
        queue: &QueueName,
        token: i64,
        rows: impl ExactSizeIterator<Item = QueryResult<Self>>,
    ) -> QueryResult<Taken> {
        let (mut jobs, mut rolled_back) = (Vec::with_capacity(rows.len()), false);
        for row in rows {
            let row = row?;
            let (
                attempt,
                priority,
                expected_at,
                unique_key,
                crashes,
                lease_limit,
                annotations,
                log,
                was_taken,
            ) = row.rare.unwrap_or_default();
            rolled_back |= was_taken;
            let mut record =
                record(queue, JobId(row.id), row.payload, row.enqueued_at, expected_at, unique_key);
            (record.priority, record.attempt, record.crashes) =
                (priority, attempt.saturating_add(1), crashes);
            record.annotations = Annotations::from_stored(annotations);
            record.attempt_log = attempt_log(log);
            let lease_limit = lease_limit.map(limit);
            jobs.push(Arc::new(Claim {
                record,
                token,
                held: Held::Transaction,
                lease_limit,
                limited: false,
            }));
        }
        sort(&mut jobs);
        Ok(Taken { jobs, next_due: None, rolled_back })
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
        crashes: Option<Vec<i32>> => Nullable<Array<Integer>>,
        lease_limit: Option<Vec<Option<i32>>> => Nullable<Array<Nullable<Integer>>>,
        annotations: Option<Vec<Option<String>>> => Nullable<Array<Nullable<Text>>>,
        attempt_log: Option<Vec<Option<String>>> => Nullable<Array<Nullable<Text>>>,
    }
}

impl LeaseRow {
    /// Returns the claims of the lease, in the order of the queue.
    pub(crate) fn claims(self, queue: &QueueName) -> Vec<Arc<Claim>> {
        let held = Held::Lease { jobs: u32::try_from(self.ids.len()).unwrap_or(u32::MAX) };
        let mut expected_at = self.expected_at.unwrap_or_default().into_iter();
        let mut unique_key = self.unique_key.unwrap_or_default().into_iter();
        let mut crashes = self.crashes.unwrap_or_default().into_iter();
        let mut lease_limit = self.lease_limit.unwrap_or_default().into_iter();
        let mut annotations = self.annotations.unwrap_or_default().into_iter();
        let mut logs = self.attempt_log.unwrap_or_default().into_iter();
        let numbers =
            self.ids.into_iter().zip(self.enqueued_at).zip(self.priority.into_iter().zip(self.attempt));
        let mut jobs: Vec<Arc<Claim>> = numbers
            .zip(self.payloads)
            .map(|(((id, enqueued_at), (priority, attempt)), payload)| {
                let (expected_at, unique_key) = (expected_at.next().flatten(), unique_key.next().flatten());
                let mut record = record(queue, JobId(id), payload, enqueued_at, expected_at, unique_key);
                record.crashes = crashes.next().unwrap_or_default();
                (record.priority, record.attempt) = (priority, attempt);
                record.annotations = Annotations::from_stored(annotations.next().flatten());
                record.attempt_log = attempt_log(logs.next().flatten());
                let lease_limit = lease_limit.next().flatten().map(limit);
                Arc::new(Claim { record, token: self.token, held, lease_limit, limited: false })
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
        crashes: 0,
        serialization_key: None,
        unique_key: unique_key.map(Key::from_stored),
        error: None,
        result: None,
        lease_until: None,
        ended_at: None,
        annotations: Annotations::default(),
        attempt_log: Vec::new(),
    }
}
