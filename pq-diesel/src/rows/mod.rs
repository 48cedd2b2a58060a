//! From rows to jobs.

pub(crate) mod desk;
pub(crate) mod walk;

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz};
use pq_core::{Claim, Ended, EndedAs, Held, JobId, Key, Payload, QueueName, RawJob};

/// The columns that a take returns.
pub(crate) type TakenSql = (
    Nullable<BigInt>,
    Nullable<Text>,
    Nullable<Timestamptz>,
    Nullable<Timestamptz>,
    Nullable<Timestamptz>,
    Nullable<Integer>,
    Nullable<Integer>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<BigInt>,
    Nullable<BigInt>,
    Bool,
    Bool,
);

/// A row of a take: a job, or what there is to know where none was taken. Timestamps are read as
/// PostgreSQL's own numbers, because other writers can store what chrono cannot hold.
pub(crate) type TakenRow = (
    Option<i64>,
    Option<String>,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
    Option<i32>,
    Option<i32>,
    Option<String>,
    Option<String>,
    Option<i64>,
    Option<i64>,
    bool,
    bool,
);

/// What one statement took.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) jobs: Vec<RawJob>,
    pub(crate) next_due: Option<Duration>,
    /// Whether something was locked in vain: a row that the statement could not see, or a key whose job was gone.
    pub(crate) raced: bool,
    /// Whether the plain statement was not for this line.
    pub(crate) other: bool,
}

pub(crate) fn found(queue: &QueueName, rows: Vec<TakenRow>, leased: bool) -> Found {
    let mut found = Found::default();
    let held = match leased {
        true => Held::Lease { jobs: u32::try_from(rows.len()).unwrap_or(u32::MAX) },
        false => Held::Transaction,
    };
    for row in rows {
        let (
            id,
            data,
            enqueued_at,
            schedule_at,
            expected_at,
            priority,
            attempt,
            serial,
            unique,
            token,
            due,
            raced,
            other,
        ) = row;
        found.raced = raced;
        let (Some(id), Some(data), Some(token)) = (id, data, token) else {
            found.next_due = due.map(span);
            found.other = other;
            continue;
        };
        let id = JobId(id);
        found.jobs.push(RawJob {
            id,
            queue: queue.clone(),
            payload: Payload::from_stored(data),
            enqueued_at: enqueued_at.map(nearest).unwrap_or_default(),
            schedule_at: schedule_at.map(nearest),
            expected_at: expected_at.filter(|at| at.0 != i64::MAX).map(nearest),
            priority: priority.unwrap_or_default(),
            attempt: attempt.unwrap_or_default().saturating_add(1),
            serialization_key: serial.map(Key::from_stored),
            unique_key: unique.map(Key::from_stored),
            claim: Claim { id, token, held },
        });
    }
    in_line(&mut found.jobs);
    found
}

/// A span of time that the database has counted in microseconds; none where it is over.
pub(crate) fn span(micros: i64) -> Duration {
    Duration::from_micros(micros.max(0).unsigned_abs())
}

/// Puts jobs into the order of their line: DELETE returns rows in no order that it promises.
fn in_line(jobs: &mut [RawJob]) {
    jobs.sort_by_key(|job| {
        (std::cmp::Reverse(job.priority), job.expected_at.is_none(), job.expected_at, job.id)
    });
}

/// The columns of a job in the archive.
pub(crate) type EndedSql = (
    BigInt,
    Text,
    Timestamptz,
    Nullable<Timestamptz>,
    Nullable<Timestamptz>,
    Integer,
    Integer,
    Nullable<Text>,
    Nullable<Text>,
    Text,
    Nullable<Text>,
    Nullable<Text>,
    Timestamptz,
);

/// A row of the archive.
pub(crate) type EndedRow = (
    i64,
    String,
    PgTimestamp,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
    i32,
    i32,
    Option<String>,
    Option<String>,
    String,
    Option<String>,
    Option<String>,
    PgTimestamp,
);

pub(crate) fn ended(queue: &QueueName, row: EndedRow) -> Ended {
    let (
        id,
        data,
        enqueued_at,
        schedule_at,
        expected_at,
        priority,
        attempt,
        serial,
        unique,
        outcome,
        error,
        result,
        end,
    ) = row;
    Ended {
        id: JobId(id),
        queue: queue.clone(),
        payload: Payload::from_stored(data),
        enqueued_at: nearest(enqueued_at),
        schedule_at: schedule_at.map(nearest),
        expected_at: expected_at.filter(|at| at.0 != i64::MAX).map(nearest),
        priority,
        attempt,
        serialization_key: serial.map(Key::from_stored),
        unique_key: unique.map(Key::from_stored),
        // The table's check allows no other word.
        ended_as: EndedAs::from_word(&outcome).unwrap_or(EndedAs::Dead),
        error,
        result: result.map(Payload::from_stored),
        ended_at: nearest(end),
    }
}

/// The instant from which PostgreSQL counts its microseconds, 2000-01-01, as Unix counts them.
pub(crate) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// PostgreSQL's first day, 24 November 4714 BC, as it counts.
const FIRST_MICROS: i64 = -211_813_488_000_000_000;

/// An instant as PostgreSQL's microseconds.
pub(crate) fn since_epoch(instant: DateTime<Utc>) -> i64 {
    instant.timestamp_micros() - EPOCH_MICROS
}

/// The instant, or the nearest that chrono and PostgreSQL can both hold: other writers can store
/// infinity, and years up to 294276.
pub(crate) fn nearest(at: PgTimestamp) -> DateTime<Utc> {
    let micros = at.0.max(FIRST_MICROS).saturating_add(EPOCH_MICROS);
    DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_that_chrono_cannot_hold_become_the_nearest() {
        assert_eq!(nearest(PgTimestamp(0)).to_rfc3339(), "2000-01-01T00:00:00+00:00");
        assert_eq!(nearest(PgTimestamp(i64::MAX)), DateTime::<Utc>::MAX_UTC);
        assert_eq!(nearest(PgTimestamp(i64::MIN)).format("%Y-%m-%d").to_string(), "-4713-11-24");
    }
}
