//! How a job comes into the line.

use chrono::{DateTime, Utc};

use super::state::{Row, State};
use super::transaction::Open;
use crate::{JobId, NewJob, OnConflict, Put, PutOutcome, QueueName, When};

pub(super) fn put(
    state: &mut State,
    open: &mut Open,
    queue: &QueueName,
    job: &NewJob,
    now: DateTime<Utc>,
) -> Put {
    if let Some((key, on_conflict)) = &job.unique
        && let Some(id) = state.holder(queue, key, open.tx)
    {
        return Put { id, outcome: meet(state, open, id, job, *on_conflict, now) };
    }
    let id = state.next_id();
    let row = Row {
        queue: queue.clone(),
        payload: job.payload.clone(),
        enqueued_at: now,
        schedule_at: job.schedule_at.map(|when| instant(when, now)),
        expected_at: job.expected_at.map(|when| instant(when, now)),
        priority: job.priority,
        attempt: 0,
        serialization_key: job.serialization_key.clone(),
        unique_key: job.unique.as_ref().map(|(key, _)| key.clone()),
        error: None,
        lease: None,
        added_by: Some(open.tx),
        returned_by: None,
        held_by: None,
        take: 0,
        ended: false,
    };
    open.set(state, id, row);
    Put::added(id)
}

/// What becomes of the job `id`, which has the new one's unique key.
fn meet(
    state: &mut State,
    open: &mut Open,
    id: JobId,
    job: &NewJob,
    on_conflict: OnConflict,
    now: DateTime<Utc>,
) -> PutOutcome {
    let free = state.rows.get(&id).filter(|row| row.free_for(open.tx)).cloned();
    let schedule_at = job.schedule_at.map(|when| instant(when, now));
    let (row, outcome) = match (free, on_conflict) {
        (None, _) | (_, OnConflict::Keep) => return PutOutcome::Kept,
        (Some(old), OnConflict::Replace) => {
            let row = Row {
                payload: job.payload.clone(),
                schedule_at,
                expected_at: job.expected_at.map(|when| instant(when, now)),
                priority: job.priority,
                serialization_key: job.serialization_key.clone(),
                ..old
            };
            (row, PutOutcome::Replaced)
        }
        (Some(old), OnConflict::Reschedule) => (Row { schedule_at, ..old }, PutOutcome::Rescheduled),
    };
    let added_by = row.added_by;
    // Others pass it over until this commits, and then they look anew.
    open.set(state, id, Row { returned_by: Some(open.tx), added_by, ..row });
    outcome
}

/// The instant of a time that was checked when it was given. What leaves chrono's range all the same
/// is held at its end.
fn instant(when: When, now: DateTime<Utc>) -> DateTime<Utc> {
    match when {
        When::At(at) => at,
        When::In(delay) => now.checked_add_signed(delay).unwrap_or(match delay < chrono::TimeDelta::zero() {
            true => DateTime::<Utc>::MIN_UTC,
            false => DateTime::<Utc>::MAX_UTC,
        }),
    }
}
