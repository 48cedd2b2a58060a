//! Rows of a take by the general statements.

use std::sync::Arc;
use std::time::Duration;

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Record, Text, Timestamptz};
use pq_core::{Annotations, Claim, Held, JobId, JobRecord, JobState, Key, Payload, QueueName};

use super::{attempt_log, expected, limit, nearest, sort, span};

/// Crashes, the limit of the next lease, annotations, and the log of attempts. diesel has rows of at most 16 columns.
type Rare = (i32, Option<i32>, Option<String>, Option<String>);

type RareSql = (Integer, Nullable<Integer>, Nullable<Text>, Nullable<Text>);

row! {
    /// A taken job. If nothing was taken, the only row has no job, and says why.
    TakeRow, TakeSql {
        id: Option<i64> => Nullable<BigInt>,
        payload: Option<String> => Nullable<Text>,
        enqueued_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        schedule_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        expected_at: Option<PgTimestamp> => Nullable<Timestamptz>,
        priority: Option<i32> => Nullable<Integer>,
        attempt: Option<i32> => Nullable<Integer>,
        serialization_key: Option<String> => Nullable<Text>,
        unique_key: Option<String> => Nullable<Text>,
        rare: Option<Rare> => Nullable<Record<RareSql>>,
        rolled_back: Option<bool> => Nullable<Bool>,
        token: Option<i64> => Nullable<BigInt>,
        next_due: Option<i64> => Nullable<BigInt>,
        raced: bool => Bool,
        falls_back: bool => Bool,
        is_limited: bool => Bool,
    }
}

/// The result of one statement.
#[derive(Default)]
pub(crate) struct TakeResult {
    /// The jobs, in the order of the queue.
    pub(crate) jobs: Vec<Arc<Claim>>,
    /// Whether one of the jobs was taken before by a transaction that did not commit.
    pub(crate) rolled_back: bool,
    /// Without jobs: how long it takes until the next one is due.
    pub(crate) next_due: Option<Duration>,
    /// Whether the statement locked something without taking a job: a row that it could not see, or a key whose job had
    /// ended.
    pub(crate) raced: bool,
    /// Whether the queue needs the statement of the next fallback level.
    pub(crate) falls_back: bool,
    /// Without jobs: whether the queue is limited, so that its jobs are taken by another statement.
    pub(crate) is_limited: bool,
}

impl TakeResult {
    pub(crate) fn new(queue: &QueueName, rows: Vec<TakeRow>, leased: bool, limited: bool) -> Self {
        let mut result = Self::default();
        let held = match leased {
            true => Held::Lease { jobs: u32::try_from(rows.len()).unwrap_or(u32::MAX) },
            false => Held::Transaction,
        };
        for row in rows {
            result.raced = row.raced;
            let (Some(id), Some(payload), Some(token)) = (row.id, row.payload, row.token) else {
                result.next_due = row.next_due.map(span);
                (result.falls_back, result.is_limited) = (row.falls_back, row.is_limited);
                continue;
            };
            result.rolled_back |= row.rolled_back.unwrap_or_default();
            let (crashes, lease_limit, annotations, log) = row.rare.unwrap_or_default();
            let lease_limit = lease_limit.map(limit);
            let record = JobRecord {
                id: JobId(id),
                queue: queue.clone(),
                state: JobState::Running,
                payload: Payload::from_stored(payload),
                enqueued_at: row.enqueued_at.map(nearest).unwrap_or_default(),
                schedule_at: row.schedule_at.map(nearest),
                expected_at: expected(row.expected_at),
                priority: row.priority.unwrap_or_default(),
                attempt: row.attempt.unwrap_or_default().saturating_add(1),
                crashes,
                serialization_key: row.serialization_key.map(Key::from_stored),
                unique_key: row.unique_key.map(Key::from_stored),
                error: None,
                result: None,
                lease_until: None,
                ended_at: None,
                annotations: Annotations::from_stored(annotations),
                attempt_log: attempt_log(log),
            };
            result.jobs.push(Arc::new(Claim { record, token, held, lease_limit, limited }));
        }
        if !limited {
            // The statement for limited queues returns the jobs in their order, or in that of the turns.
            sort(&mut result.jobs);
        }
        result
    }
}
