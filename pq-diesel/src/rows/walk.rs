//! What a walk along the line returns.

use diesel::pg::data_types::PgTimestamp;
use diesel::prelude::QueryResult;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Record, Text, Timestamptz};
use pq_core::{Claim, Held, JobId, Key, Payload, QueueName, RawJob};

use super::{in_line, nearest};

/// A job that was taken in a transaction; what few jobs have stands together, and is null for the others.
pub(crate) type TakenSql =
    (BigInt, Text, Timestamptz, Nullable<Record<(Integer, Integer, Nullable<Timestamptz>, Nullable<Text>)>>);

type Taken = (i64, String, PgTimestamp, Option<(i32, i32, Option<PgTimestamp>, Option<String>)>);

/// The jobs of a take, in line.
pub(crate) fn taken(
    queue: &QueueName,
    token: i64,
    rows: impl ExactSizeIterator<Item = QueryResult<Taken>>,
) -> QueryResult<Vec<RawJob>> {
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        let (id, data, enqueued_at, rest) = row?;
        let (attempt, priority, expected_at, unique_key) = rest.unwrap_or_default();
        let claim = Claim { id: JobId(id), token, held: Held::Transaction };
        let counts = (priority, attempt.saturating_add(1));
        jobs.push(job(queue, claim, data, enqueued_at, expected_at, counts, unique_key));
    }
    in_line(&mut jobs);
    Ok(jobs)
}

/// The row of a lease.
pub(crate) type LeasedSql = (
    BigInt,
    Array<BigInt>,
    Array<Text>,
    Array<Timestamptz>,
    Nullable<Array<Nullable<Timestamptz>>>,
    Array<Integer>,
    Array<Integer>,
    Nullable<Array<Nullable<Text>>>,
);

pub(crate) type Leased = (
    i64,
    Vec<i64>,
    Vec<String>,
    Vec<PgTimestamp>,
    Option<Vec<Option<PgTimestamp>>>,
    Vec<i32>,
    Vec<i32>,
    Option<Vec<Option<String>>>,
);

/// The jobs of a lease, in line.
pub(crate) fn leased(queue: &QueueName, row: Leased) -> Vec<RawJob> {
    let (token, ids, data, enqueued_at, expected_at, priority, attempt, unique_key) = row;
    let held = Held::Lease { jobs: u32::try_from(ids.len()).unwrap_or(u32::MAX) };
    let mut expected_at = expected_at.unwrap_or_default().into_iter();
    let mut unique_key = unique_key.unwrap_or_default().into_iter();
    let numbers = ids.into_iter().zip(enqueued_at).zip(priority.into_iter().zip(attempt));
    let mut jobs: Vec<RawJob> = numbers
        .zip(data)
        .map(|(((id, enqueued_at), counts), data)| {
            let claim = Claim { id: JobId(id), token, held };
            let (expected_at, unique_key) = (expected_at.next().flatten(), unique_key.next().flatten());
            job(queue, claim, data, enqueued_at, expected_at, counts, unique_key)
        })
        .collect();
    in_line(&mut jobs);
    jobs
}

fn job(
    queue: &QueueName,
    claim: Claim,
    data: String,
    enqueued_at: PgTimestamp,
    expected_at: Option<PgTimestamp>,
    (priority, attempt): (i32, i32),
    unique_key: Option<String>,
) -> RawJob {
    RawJob {
        id: claim.id,
        queue: queue.clone(),
        payload: Payload::from_stored(data),
        enqueued_at: nearest(enqueued_at),
        schedule_at: None,
        expected_at: expected_at.filter(|at| at.0 != i64::MAX).map(nearest),
        priority,
        attempt,
        serialization_key: None,
        unique_key: unique_key.map(Key::from_stored),
        claim,
    }
}
