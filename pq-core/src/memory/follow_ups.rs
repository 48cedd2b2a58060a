//! Jobs that wait until other jobs have ended.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike, Utc};

use super::MemoryStore;
use super::state::{Row, State, Wait};
use super::transaction::{MemoryConn, Open};
use super::{archive, counting};
use crate::store::FollowUps;
use crate::{EndedCounts, Error, JobId, JobState, NewJob, Predecessor, Put, PutOutcome};

impl FollowUps for MemoryStore {
    fn predecessors(
        &self,
        conn: &mut MemoryConn,
        follow_up: JobId,
        count: usize,
    ) -> Result<Vec<Predecessor>, Error> {
        conn.operate(|state, open| {
            let of_job = state.waits.range((follow_up, JobId(i64::MIN))..=(follow_up, JobId(i64::MAX)));
            let seen = of_job.filter(|(_, wait)| wait.added_by.is_none_or(|by| by == open.tx));
            let predecessor = |((_, job), wait): (&(JobId, JobId), &Wait)| Predecessor {
                job: *job,
                only_done: wait.only_done,
                outcome: wait.outcome,
            };
            Ok(seen.map(predecessor).take(count).collect())
        })
    }

    fn release(&self, conn: &mut MemoryConn, follow_up: JobId) -> Result<(), Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            end_wait(state, open, follow_up, now);
            Ok(())
        })
    }
}

/// Refuses jobs of batches that have ended.
pub(super) fn check_batches(state: &State, open: &Open, jobs: &[NewJob]) -> Result<(), Error> {
    let ended = jobs.iter().filter_map(|job| job.links.batch).find(|id| waiting(state, open, *id).is_none());
    ended.map_or(Ok(()), |id| Err(Error::BatchEnded { id }))
}

/// Stores what the jobs of a put wait for, and which batches they belong to.
pub(super) fn link(state: &mut State, open: &mut Open, jobs: &[NewJob], puts: &[Put]) {
    let mut waits = Vec::new();
    for (job, put) in jobs.iter().zip(puts) {
        waits.extend(job.links.batch.map(|batch| (batch, put.id, false)));
        if put.outcome == PutOutcome::Added {
            waits.extend(job.links.after.iter().map(|after| (put.id, after.job, after.only_done)));
        }
    }
    for (follow_up, job, only_done) in waits {
        match state.waits.get(&(follow_up, job)) {
            // Of one put, that of several which asks for more is kept.
            Some(known) if known.only_done >= only_done && known.outcome.is_none() => continue,
            _ => {}
        }
        let wait = Wait { only_done, outcome: None, added_by: Some(open.tx) };
        open.set_wait(state, follow_up, job, Some(wait));
    }
}

/// Notes which jobs have ended, and ends the waiting of their follow-ups. Returns whether a follow-up waits.
pub(super) fn maintain(state: &mut State, open: &mut Open, now: DateTime<Utc>) -> bool {
    // Other follow-ups may wait for those that are cancelled.
    while end_waits(state, open, now) {}
    let forgotten: Vec<(JobId, JobId)> = state
        .waits
        .iter()
        .filter(|((follow_up, _), wait)| {
            wait.added_by.is_none()
                && !state.rows.contains_key(follow_up)
                && !state.archive.contains_key(follow_up)
        })
        .map(|(key, _)| *key)
        .collect();
    forgotten.into_iter().for_each(|(follow_up, job)| open.set_wait(state, follow_up, job, None));
    state.waits.values().any(|wait| wait.outcome.is_none())
}

/// Returns whether a follow-up was cancelled.
fn end_waits(state: &mut State, open: &mut Open, now: DateTime<Utc>) -> bool {
    let is_gone = |state: &State, job: JobId| match state.rows.get(&job) {
        Some(row) => row.ended && row.held_by == Some(open.tx),
        None => true,
    };
    let ended: Vec<(JobId, JobId, Wait)> = state
        .waits
        .iter()
        .filter(|(_, wait)| wait.outcome.is_none() && wait.added_by.is_none_or(|by| by == open.tx))
        .filter(|((_, job), _)| is_gone(state, *job))
        .map(|((follow_up, job), wait)| (*follow_up, *job, wait.clone()))
        .collect();
    let mut follow_ups = BTreeSet::new();
    for (follow_up, job, wait) in ended {
        let is_held = state.rows.get(&follow_up).is_some_and(is_held);
        if is_held && waiting(state, open, follow_up).is_none() {
            // Another transaction holds it. The next run finds the wait again.
            continue;
        }
        let archived = state.archive.get(&job).filter(|archived| archived.seen_by(open.tx));
        let outcome = archived.map_or(JobState::Done, |archived| archived.job.state);
        open.set_wait(state, follow_up, job, Some(Wait { outcome: Some(outcome), ..wait }));
        follow_ups.insert(follow_up);
    }
    let mut is_cancelled = false;
    for follow_up in follow_ups {
        is_cancelled |= end_wait(state, open, follow_up, now);
    }
    is_cancelled
}

/// Returns whether the job is due in a year after 9000, as a follow-up is. A job that waits for its retry or for a time is not.
fn is_held(row: &Row) -> bool {
    row.job.schedule_at.is_some_and(|at| at.year() >= 9_000)
}

/// Returns the row of a follow-up that waits for others.
fn waiting(state: &State, open: &Open, follow_up: JobId) -> Option<Row> {
    state.rows.get(&follow_up).filter(|row| row.free_for(open.tx) && is_held(row)).cloned()
}

/// Makes a follow-up due if all jobs have ended that it waits for, or cancels it if one of them was not done that must be.
/// Returns whether it was cancelled.
fn end_wait(state: &mut State, open: &mut Open, follow_up: JobId, now: DateTime<Utc>) -> bool {
    let Some(mut row) = waiting(state, open, follow_up) else { return false };
    let mut ended = EndedCounts::default();
    let mut refused = None;
    let mut is_open = false;
    for ((_, job), wait) in state.waits.range((follow_up, JobId(i64::MIN))..=(follow_up, JobId(i64::MAX))) {
        match wait.outcome {
            None => is_open = true,
            Some(JobState::Dead) => ended.dead += 1,
            Some(JobState::Cancelled) => ended.cancelled += 1,
            Some(_) => ended.done += 1,
        }
        if wait.only_done && wait.outcome.is_some_and(|outcome| outcome != JobState::Done) {
            refused = refused.or(wait.outcome.map(|outcome| (*job, outcome)));
        }
    }
    let is_cancelled = refused.is_some();
    if let Some((job, outcome)) = refused {
        row.job.error = Some(format!("job {job}, for which it waited, is {}", outcome.as_str()));
        counting::count(open, &row.job, |counters| counters.cancelled += 1);
        archive::archive(state, open, row, JobState::Cancelled, now);
    } else if !is_open {
        row.job.schedule_at = None;
        row.job.annotations = row.job.annotations.with_ended(ended);
        open.set(state, Row { returned_by: Some(open.tx), ..row });
    }
    is_cancelled
}
