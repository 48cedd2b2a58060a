//! What becomes of taken jobs.

use chrono::{DateTime, Utc};

use super::state::{Lease, Row, State, Tx};
use super::transaction::Open;
use super::{archive, take};
use crate::{Cancelled, Claim, EndedAs, Error, Extended, Held, JobId, Outcome, QueueName, Settlement};

/// The row of a claim that is still good.
pub(super) fn held(state: &State, claim: &Claim, tx: Tx) -> Option<Row> {
    let good = |row: &&Row| match claim.held {
        Held::Transaction => row.held_by == Some(tx) && row.take == claim.token && !row.ended,
        Held::Lease { .. } => {
            row.lease.is_some_and(|lease| lease.token == claim.token)
                && row.held_by.is_none()
                && row.returned_by.is_none()
        }
    };
    state.rows.get(&claim.id).filter(good).cloned()
}

/// The error for a claim that is not good any more.
pub(super) fn refusal(claim: &Claim) -> Error {
    match claim.held {
        Held::Transaction => Error::not_yours(claim.id),
        Held::Lease { .. } => Error::lease_lost(claim.id),
    }
}

pub(super) fn settle(
    state: &mut State,
    open: &mut Open,
    verdict: &Settlement<'_>,
    now: DateTime<Utc>,
) -> bool {
    let job = verdict.job;
    let Some(mut row) = held(state, &job.claim, open.tx) else { return false };
    row.attempt = job.attempt;
    let unwanted = row.lease.is_some_and(|lease| lease.cancel);
    match &verdict.outcome {
        Outcome::Complete => {
            // One that this transaction took completes with it.
            if row.lease.is_some() {
                open.set(state, job.id, Row { held_by: Some(open.tx), ended: true, ..row });
            }
        }
        Outcome::Keep { result } => {
            archive::keep(state, open, job.id, row, EndedAs::Done, None, result.clone(), now);
        }
        Outcome::Dead { error } => {
            archive::keep(state, open, job.id, row, EndedAs::Dead, Some(error.clone()), None, now);
        }
        Outcome::Cancel { reason } => {
            archive::keep(state, open, job.id, row, EndedAs::Cancelled, reason.clone(), None, now);
        }
        Outcome::Retry { error, .. } if unwanted => {
            archive::keep(state, open, job.id, row, EndedAs::Cancelled, Some(error.clone()), None, now);
        }
        Outcome::Snooze { .. } | Outcome::GiveBack if unwanted => {
            archive::keep(state, open, job.id, row, EndedAs::Cancelled, None, None, now);
        }
        Outcome::Retry { after, error, payload } => {
            row.schedule_at = (!after.is_zero()).then(|| take::after(now, *after));
            row.error = Some(error.clone());
            row.payload = payload.clone().unwrap_or(row.payload);
            put_back(state, open, job.id, row);
        }
        Outcome::Snooze { after } => {
            row.attempt = job.attempt - 1;
            row.schedule_at = (!after.is_zero()).then(|| take::after(now, *after));
            put_back(state, open, job.id, row);
        }
        Outcome::GiveBack => {
            row.attempt = job.attempt - 1;
            put_back(state, open, job.id, row);
        }
    }
    true
}

pub(super) fn put_back(state: &mut State, open: &mut Open, id: JobId, row: Row) {
    open.set(state, id, Row { held_by: None, lease: None, returned_by: Some(open.tx), ..row });
}

pub(super) fn extend(
    state: &mut State,
    open: &mut Open,
    token: i64,
    until: DateTime<Utc>,
) -> Option<Extended> {
    let rows: Vec<(JobId, Row, Lease)> = state
        .rows
        .iter()
        .filter_map(|(id, row)| Some((*id, row.clone(), row.lease.filter(|lease| lease.token == token)?)))
        .collect();
    let cancelled = rows.iter().filter(|(.., lease)| lease.cancel).map(|(id, ..)| *id).collect();
    let extended = (!rows.is_empty()).then_some(Extended { lease: token, cancelled });
    for (id, row, lease) in rows {
        open.set(state, id, Row { lease: Some(Lease { until, ..lease }), ..row });
    }
    extended
}

pub(super) fn cancel(
    state: &mut State,
    open: &mut Open,
    queue: &QueueName,
    id: JobId,
    now: DateTime<Utc>,
) -> Cancelled {
    let seen = state.rows.get(&id).filter(|row| row.queue == *queue && row.seen_by(open.tx)).cloned();
    let Some(row) = seen else { return Cancelled::NotFound };
    if let Some(lease) = row.lease {
        open.set(state, id, Row { lease: Some(Lease { cancel: true, ..lease }), ..row });
        return Cancelled::Asked;
    }
    if !row.free_for(open.tx) {
        return Cancelled::Held;
    }
    archive::keep(state, open, id, row, EndedAs::Cancelled, None, None, now);
    Cancelled::Done
}

/// Ends the leases that are over, and says how many jobs they held.
pub(super) fn expire(state: &mut State, open: &mut Open, now: DateTime<Utc>) -> u64 {
    let over: Vec<(JobId, Row)> = state
        .rows
        .iter()
        .filter(|(_, row)| row.held_by.is_none() && row.returned_by.is_none())
        .filter(|(_, row)| row.lease.is_some_and(|lease| lease.until <= now))
        .map(|(id, row)| (*id, row.clone()))
        .collect();
    let returned = over.len() as u64;
    for (id, row) in over {
        match row.lease.is_some_and(|lease| lease.cancel) {
            true => archive::keep(state, open, id, row, EndedAs::Cancelled, None, None, now),
            false => put_back(state, open, id, row),
        }
    }
    returned
}
