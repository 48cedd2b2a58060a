//! Settling claims, and the leases of held jobs.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::state::{Lease, Row, State, Tx};
use super::transaction::Open;
use super::{archive, counting, take};
use crate::store::Extension;
use crate::{AttemptEnd, AttemptEntry, Claim, Error, Extended, Held, JobState, Outcome, Payload, Settlement};

/// Returns the row of a claim that is still valid.
pub(super) fn held(state: &State, claim: &Claim, tx: Tx) -> Option<Row> {
    let is_valid = |row: &&Row| match claim.held {
        Held::Transaction => row.held_by == Some(tx) && row.token == claim.token && !row.ended,
        Held::Lease { .. } => {
            row.lease.is_some_and(|lease| lease.token == claim.token)
                && row.held_by.is_none()
                && row.returned_by.is_none()
        }
    };
    state.rows.get(&claim.id).filter(is_valid).cloned()
}

/// Returns the error for a claim that is no longer valid.
pub(super) fn refusal(claim: &Claim) -> Error {
    match claim.held {
        Held::Transaction => Error::not_yours(claim.id),
        Held::Lease { .. } => Error::lease_lost(claim.id),
    }
}

/// Settles a claim and returns whether its outcome was accepted.
pub(super) fn settle(
    state: &mut State,
    open: &mut Open,
    settlement: &Settlement<'_>,
    now: DateTime<Utc>,
) -> bool {
    let claim = settlement.job;
    let Some(mut row) = held(state, claim, open.tx) else { return false };
    row.job.attempt = claim.attempt;
    if let Some((end, error)) = logged(&settlement.outcome) {
        AttemptEntry::add(&mut row.job.attempt_log, claim.attempt, now, end, error);
    }
    let cancel_requested = row.lease.is_some_and(|lease| lease.cancel_requested);
    let mut end = |mut row: Row, end: JobState, error: Option<String>, result: Option<Payload>| {
        (row.job.error, row.job.result) = (error, result);
        archive::archive(state, open, row, end, now);
    };
    match settlement.outcome.clone() {
        Outcome::Complete if row.job.annotations.is_awaited() => end(row, JobState::Done, None, None),
        Outcome::Complete => {
            // A job of this transaction is deleted by its commit, a leased one is deleted here.
            if row.lease.is_some() {
                open.set(state, Row { held_by: Some(open.tx), ended: true, ..row });
            }
        }
        Outcome::Keep { result } => end(row, JobState::Done, None, result),
        Outcome::Dead { error } => end(row, JobState::Dead, Some(error), None),
        Outcome::Cancel { reason } => end(row, JobState::Cancelled, reason, None),
        Outcome::Retry { error, .. } if cancel_requested => end(row, JobState::Cancelled, Some(error), None),
        Outcome::Snooze { .. } | Outcome::GiveBack if cancel_requested => {
            end(row, JobState::Cancelled, None, None);
        }
        Outcome::Retry { after, error, payload } => {
            row.job.schedule_at = (!after.is_zero()).then(|| take::after(now, after));
            row.job.error = Some(error);
            row.job.payload = payload.unwrap_or(row.job.payload);
            requeue(state, open, Row { lease_limit: None, ..row });
        }
        Outcome::Snooze { after, reason, payload } => {
            row.job.attempt -= 1;
            row.job.schedule_at = (!after.is_zero()).then(|| take::after(now, after));
            row.job.error = reason;
            row.job.payload = payload.unwrap_or(row.job.payload);
            requeue(state, open, Row { lease_limit: None, ..row });
        }
        Outcome::GiveBack => {
            row.job.attempt -= 1;
            requeue(state, open, row);
        }
        Outcome::RolledBack(outcome) => {
            return settle(state, open, &Settlement { job: claim, outcome: *outcome }, now);
        }
    }
    true
}

/// Returns how the attempt ended and its error, if it is logged.
fn logged(outcome: &Outcome) -> Option<(AttemptEnd, &str)> {
    match outcome {
        Outcome::Retry { error, .. } => Some((AttemptEnd::Failed, error)),
        Outcome::Dead { error } => Some((AttemptEnd::Dead, error)),
        _ => None,
    }
}

/// Returns a held row to the queue. It loses its unique key if a put of one more job has it now.
pub(super) fn requeue(state: &mut State, open: &mut Open, mut row: Row) {
    let key = row.job.unique_key.as_ref();
    if key
        .is_some_and(|key| state.unique_job(&row.job.queue, key, open.tx).is_some_and(|id| id != row.job.id))
    {
        row.job.unique_key = None;
    }
    let (returned_by, returned_from) = (Some(open.tx), row.lease);
    let row = Row { held_by: None, lease: None, returned_by, returned_from, rolled_back: false, ..row };
    open.set(state, row);
}

/// Extends a lease, unless transactions settle or requeue all of its jobs. Returns `None` if it has no job.
pub(super) fn extend(
    state: &mut State,
    open: &mut Open,
    token: i64,
    until: DateTime<Utc>,
) -> Option<Extension> {
    let under_lease = |row: &Row| row.lease.filter(|lease| lease.token == token);
    let is_locked = state.rows.values().any(|row| {
        let by = row.held_by.or(row.returned_by);
        by.is_some_and(|by| by != open.tx)
            && row.lease.or(row.returned_from).is_some_and(|lease| lease.token == token)
    });
    let rows: Vec<(Row, Lease)> = state
        .rows
        .values()
        .filter(|row| row.held_by.is_none() && row.returned_by.is_none())
        .filter_map(|row| Some((row.clone(), under_lease(row)?)))
        .collect();
    if rows.is_empty() {
        return is_locked.then_some(Extension::Locked(token));
    }
    let cancelled =
        rows.iter().filter(|(_, lease)| lease.cancel_requested).map(|(row, _)| row.job.id).collect();
    for (row, lease) in rows {
        open.set(state, Row { lease: Some(Lease { until, ..lease }), ..row });
    }
    Some(Extension::Extended(Extended { lease: token, cancelled }))
}

/// Counts the attempt of a job of an expired lease as a crash, if the job was alone in it or had to be run alone.
///
/// Of several jobs it is not known which were begun. Their attempts do not count, and an eighth of them may be begun
/// under the next lease, so that a job that kills its worker is alone at last.
fn charge(row: &mut Row, lease: Lease, lost: u32, now: DateTime<Utc>) {
    let attempt = row.job.attempt;
    let (end, error) = if lost == 1 && (lease.size == 1 || row.lease_limit == Some(1)) {
        row.job.crashes += 1;
        (AttemptEnd::Crashed, format!("the worker died or lost its lease in attempt {attempt}"))
    } else {
        row.job.attempt -= 1;
        (AttemptEnd::Lost, format!("the worker died or lost its lease of {lost} unsettled jobs"))
    };
    AttemptEntry::add(&mut row.job.attempt_log, attempt, now, end, &error);
    row.job.error = Some(error);
    let limit = (lost / 8).max(1);
    row.lease_limit = Some(row.lease_limit.map_or(limit, |before| before.min(limit)));
}

/// Returns the jobs whose lease has expired to the queue, or cancels them if that was requested, and returns their
/// number.
pub(super) fn expire_leases(state: &mut State, open: &mut Open, now: DateTime<Utc>) -> u64 {
    let expired: Vec<(Row, Lease)> = state
        .rows
        .values()
        .filter(|row| row.held_by.is_none() && row.returned_by.is_none())
        .filter_map(|row| Some((row.clone(), row.lease.filter(|lease| lease.until <= now)?)))
        .collect();
    let mut lost = BTreeMap::<Tx, u32>::new();
    for (_, lease) in &expired {
        *lost.entry(lease.token).or_default() += 1;
    }
    let count = expired.len() as u64;
    for (mut row, lease) in expired {
        charge(&mut row, lease, lost[&lease.token], now);
        counting::count(open, &row.job, |counters| {
            counters.lost += 1;
            counters.cancelled += u64::from(lease.cancel_requested);
        });
        if lease.cancel_requested {
            row.job.error = None;
            archive::archive(state, open, row, JobState::Cancelled, now);
        } else {
            requeue(state, open, row);
        }
    }
    count
}
