//! Adding one job, or meeting the job that has its unique key.

use chrono::{DateTime, Utc};

use super::state::{Row, State};
use super::steps;
use super::transaction::Open;
use crate::{JobId, JobRecord, JobState, NewJob, OnConflict, Put, PutOutcome, QueueName, When};

/// Adds a job to a queue.
pub(super) fn put(
    state: &mut State,
    open: &mut Open,
    queue: &QueueName,
    job: &NewJob,
    now: DateTime<Utc>,
) -> Put {
    if let Some((key, on_conflict)) = &job.unique
        && let Some(id) = state.unique_job(queue, key, open.tx)
        && !(*on_conflict == OnConflict::KeepWaiting && state.rows[&id].is_running())
    {
        return Put { id, outcome: resolve_conflict(state, open, id, job, *on_conflict, now) };
    }
    let id = state.next_id();
    let record = JobRecord {
        id,
        queue: queue.clone(),
        state: JobState::Ready,
        payload: job.payload.clone(),
        enqueued_at: now,
        schedule_at: job.schedule_at.map(|when| instant(when, now)),
        expected_at: job.expected_at.map(|when| instant(when, now)),
        priority: job.priority,
        attempt: 0,
        crashes: 0,
        serialization_key: job.serialization_key.clone(),
        unique_key: job.unique.as_ref().map(|(key, _)| key.clone()),
        error: None,
        result: None,
        lease_until: None,
        ended_at: None,
        annotations: job.annotations.clone(),
        attempt_log: Vec::new(),
    };
    open.set(state, Row::added(record, open.tx));
    Put::added(id)
}

/// Decides what becomes of the job `id`, which has the unique key of the new one.
fn resolve_conflict(
    state: &mut State,
    open: &mut Open,
    id: JobId,
    new: &NewJob,
    on_conflict: OnConflict,
    now: DateTime<Utc>,
) -> PutOutcome {
    let Some(mut row) = state.rows.get(&id).filter(|row| row.free_for(open.tx)).cloned() else {
        return PutOutcome::Kept;
    };
    let outcome = match on_conflict {
        OnConflict::Keep => return PutOutcome::Kept,
        OnConflict::Replace => {
            row.job.payload = new.payload.clone();
            row.job.expected_at = new.expected_at.map(|when| instant(when, now));
            row.job.priority = new.priority;
            row.job.serialization_key = new.serialization_key.clone();
            row.job.annotations = new.annotations.clone();
            (row.job.attempt, row.job.crashes, row.job.error, row.lease_limit) = (0, 0, None, None);
            row.job.attempt_log.clear();
            steps::forget(state, open, id);
            PutOutcome::Replaced
        }
        OnConflict::Reschedule => PutOutcome::Rescheduled,
        OnConflict::KeepWaiting => PutOutcome::Kept,
    };
    if on_conflict != OnConflict::KeepWaiting {
        row.job.schedule_at = new.schedule_at.map(|when| instant(when, now));
    }
    // Others skip the row until this transaction commits, and then waiters are notified of it.
    open.set(state, Row { returned_by: Some(open.tx), ..row });
    outcome
}

/// Returns the instant of a time. One outside of chrono's range becomes the first or the last in it.
pub(super) fn instant(when: When, now: DateTime<Utc>) -> DateTime<Utc> {
    match when {
        When::At(at) => at,
        When::In(delay) => now.checked_add_signed(delay).unwrap_or(match delay < chrono::TimeDelta::zero() {
            true => DateTime::<Utc>::MIN_UTC,
            false => DateTime::<Utc>::MAX_UTC,
        }),
    }
}
