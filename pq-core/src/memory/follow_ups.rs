//! Jobs that wait until other jobs have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::MemoryStore;
use super::state::{Archived, Row, State, Wait};
use super::transaction::{MemoryConn, Open};
use super::{archive, counting, take};
use crate::store::{Admin as _, FollowUps, Wake};
use crate::workflow::Plan;
use crate::{
    After, EndedCounts, Error, Filter, JobId, JobRecord, JobState, NewJob, Payload, Predecessor, Put,
    PutOutcome, WORKFLOWS,
};

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

    fn followers(&self, conn: &mut MemoryConn, job: JobId, count: usize) -> Result<Vec<JobId>, Error> {
        conn.operate(|state, open| {
            let waits = state.waits.iter().filter(|((_, of), wait)| {
                *of == job && wait.outcome.is_none() && wait.added_by.is_none_or(|by| by == open.tx)
            });
            Ok(waits.map(|((follow_up, _), _)| *follow_up).take(count).collect())
        })
    }

    fn waits(&self, conn: &mut MemoryConn, follow_up: JobId) -> Result<bool, Error> {
        let waits = self.predecessors(conn, follow_up, usize::MAX)?;
        Ok(waits.iter().any(|wait| wait.outcome.is_none()))
    }

    fn members(
        &self,
        conn: &mut MemoryConn,
        workflow: JobId,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        let jobs = self.list(conn, &Filter { after, ..Filter::default().workflow(workflow) }, count)?;
        let lean = |job| JobRecord {
            payload: Payload::from_stored("null".to_owned()),
            result: None,
            attempt_log: Vec::new(),
            ..job
        };
        Ok(jobs.into_iter().map(lean).collect())
    }

    fn release(&self, conn: &mut MemoryConn, follow_up: JobId) -> Result<(), Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            end_wait(state, open, follow_up, false, now);
            Ok(())
        })
    }

    fn wait_for_job(&self, conn: &mut MemoryConn, follow_up: JobId, job: JobId) -> Result<(), Error> {
        conn.operate(|state, open| {
            if reaches(state, &[job], follow_up) {
                return Err(Error::circle(follow_up, job));
            }
            let wait = Wait { only_done: false, outcome: None, added_by: Some(open.tx) };
            open.set_wait(state, follow_up, job, Some(wait));
            Ok(())
        })
    }

    fn cancel_waiting(
        &self,
        conn: &mut MemoryConn,
        jobs: &[JobId],
        reason: &str,
    ) -> Result<Vec<JobId>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let mut cancelled = Vec::new();
            for id in jobs {
                let free = state.rows.get(id).filter(|row| row.free_for(open.tx));
                let Some(mut row) = free.cloned() else { continue };
                row.job.error = Some(reason.to_owned());
                counting::count(open, &row.job, |counters| counters.cancelled += 1);
                archive::archive(state, open, row, JobState::Cancelled, now);
                cancelled.push(*id);
            }
            Ok(cancelled)
        })
    }

    fn wait_again(
        &self,
        conn: &mut MemoryConn,
        workflow: JobId,
        jobs: &[JobId],
        held: bool,
    ) -> Result<(), Error> {
        conn.operate(|state, open| {
            for id in jobs {
                if let Some(archived) = archive::free_archived(state, open, *id) {
                    let job = JobRecord {
                        schedule_at: held.then_some(After::HELD_UNTIL),
                        error: None,
                        annotations: archived.job.annotations.with_ended(None),
                        ..archived.job.clone()
                    };
                    archive::put_back(state, open, Archived { job, ..archived });
                }
                let of_job = |(follow_up, job): &(JobId, JobId)| {
                    held && follow_up == id || (*follow_up, *job) == (workflow, *id)
                };
                forget_outcomes(state, open, of_job);
            }
            Ok(())
        })
    }

    fn wake(
        &self,
        conn: &mut MemoryConn,
        workflow: JobId,
        why: Option<Wake>,
        after: Duration,
    ) -> Result<bool, Error> {
        let at = (!after.is_zero()).then(|| take::after(Utc::now(), after));
        conn.operate(|state, open| Ok(wake(state, open, workflow, why, at)))
    }
}

/// Makes the job of a workflow due at this time. See [`FollowUps::wake`].
pub(super) fn wake(
    state: &mut State,
    open: &mut Open,
    workflow: JobId,
    why: Option<Wake>,
    at: Option<DateTime<Utc>>,
) -> bool {
    let woken = |job: &JobRecord| JobRecord {
        schedule_at: at,
        annotations: job.annotations.with_wake(why),
        ..job.clone()
    };
    if let Some(row) = state.rows.get(&workflow).filter(|row| row.free_for(open.tx)).cloned() {
        open.set(state, Row { job: woken(&row.job), returned_by: Some(open.tx), ..row });
        return true;
    }
    let Some(archived) = archive::free_archived(state, open, workflow) else { return false };
    archive::put_back(state, open, Archived { job: woken(&archived.job), ..archived });
    true
}

/// Lets the follow-ups wait again that wait for a job that was dead or cancelled and is requeued, and wakes workflows.
///
/// A call that undoes another job does not wake its workflow: it is only repeated. Neither does a job that was added
/// to it. What a workflow is due for already, such as its cancellation, stays.
pub(super) fn reopen(state: &mut State, open: &mut Open, job: &JobRecord) {
    let (id, place) = (job.id, job.annotations.workflow().filter(|place| !place.undoes));
    let is_failed = |wait: &Wait| wait.outcome != Some(JobState::Done);
    let waits = state.waits.iter().filter(|((_, job), wait)| *job == id && is_failed(wait));
    let follow_ups: Vec<JobId> = waits.map(|((follow_up, _), _)| *follow_up).collect();
    forget_outcomes(state, open, |(follow_up, job)| *job == id && follow_ups.contains(follow_up));
    for follow_up in follow_ups {
        let live = state.rows.get(&follow_up).map(|row| &row.job);
        let known = live.or_else(|| state.archive.get(&follow_up).map(|archived| &archived.job));
        let is_own = place.as_ref().is_some_and(|place| place.id == follow_up);
        if is_own && known.is_some_and(|job| job.queue.as_str() == WORKFLOWS) {
            wake_to_reopen(state, open, follow_up);
        }
    }
}

/// Makes the job of a workflow due because one of its jobs was requeued, unless it is due for another reason.
pub(super) fn wake_to_reopen(state: &mut State, open: &mut Open, workflow: JobId) -> bool {
    let why = state.rows.get(&workflow).and_then(|row| row.job.annotations.wake());
    wake(state, open, workflow, why.or(Some(Wake::Reopen)), None)
}

/// Returns whether another transaction holds the workflow of the job, so that it would not learn that the job is
/// requeued.
pub(super) fn is_workflow_held(state: &State, open: &Open, job: &JobRecord) -> bool {
    let Some(place) = job.annotations.workflow() else { return false };
    match state.rows.get(&place.id).filter(|row| !row.ended || row.held_by != Some(open.tx)) {
        Some(row) => !row.free_for(open.tx),
        None => state.archive.get(&place.id).is_some_and(|archived| !archived.seen_by(open.tx)),
    }
}

/// Returns the workflow of a job if its jobs are being undone or have been, so that all of them run again.
pub(super) fn undone_workflow(state: &State, open: &Open, job: &JobRecord) -> Option<JobId> {
    let id = job.annotations.workflow().filter(|place| !place.undoes)?.id;
    let live = state.rows.get(&id).filter(|row| !row.ended || row.held_by != Some(open.tx));
    let known = live.map(|row| &row.job).or_else(|| state.archive.get(&id).map(|archived| &archived.job));
    let plan = Plan::read(&known.filter(|job| job.queue.as_str() == WORKFLOWS)?.payload)?;
    plan.is_undone.then_some(id)
}

fn forget_outcomes(state: &mut State, open: &mut Open, selects: impl Fn(&(JobId, JobId)) -> bool) {
    let known = state.waits.iter().filter(|(key, wait)| wait.outcome.is_some() && selects(key));
    let known: Vec<_> = known.map(|(key, wait)| (*key, wait.clone())).collect();
    for ((follow_up, job), wait) in known {
        open.set_wait(state, follow_up, job, Some(Wait { outcome: None, ..wait }));
    }
}

/// Refuses jobs of batches that have ended, and those that wait for their own batch.
pub(super) fn check_batches(state: &State, open: &Open, jobs: &[NewJob]) -> Result<(), Error> {
    for job in jobs {
        let Some(batch) = job.links.batch else { continue };
        if state.rows.get(&batch).is_none_or(|row| !row.free_for(open.tx) || !takes_part(row)) {
            return Err(Error::batch_ended(batch));
        }
        let circle = job.links.after.iter().find(|after| reaches(state, &[after.job], batch));
        if let Some(After { job, .. }) = circle {
            return Err(Error::circle(batch, *job));
        }
    }
    Ok(())
}

/// Returns whether one of these jobs is another one or waits for it, directly or through others.
fn reaches(state: &State, from: &[JobId], to: JobId) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), from.to_vec());
    while let Some(job) = next.pop() {
        if job == to {
            return true;
        }
        if seen.insert(job) {
            let waits = state.waits.range((job, JobId(i64::MIN))..=(job, JobId(i64::MAX)));
            next.extend(waits.filter(|(_, wait)| wait.outcome.is_none()).map(|((_, before), _)| *before));
        }
    }
    false
}

/// Stores what the jobs of a put wait for, and which batches they belong to.
pub(super) fn link(state: &mut State, open: &mut Open, jobs: &[NewJob], puts: &[Put]) {
    let mut waits = Vec::new();
    for (job, put) in jobs.iter().zip(puts) {
        waits.extend(job.links.batch.map(|batch| (batch, put.id, job.links.fails_batch)));
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

/// Returns whether a follow-up does not know yet how this archived job has ended, or its workflow has not ended.
pub(super) fn is_needed(state: &State, job: &JobRecord) -> bool {
    let is_live = |workflow| state.rows.get(&workflow).is_some_and(|row| row.job.queue.as_str() == WORKFLOWS);
    state.waits.iter().any(|((_, of), wait)| *of == job.id && wait.outcome.is_none())
        || job.annotations.workflow().is_some_and(|place| is_live(place.id))
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

/// Returns what follow-ups wait for still although it has ended.
pub(super) fn ended(state: &State, open: &Open) -> Vec<(JobId, JobId, Wait)> {
    let is_gone = |job: JobId| match state.rows.get(&job) {
        Some(row) => row.ended && row.held_by == Some(open.tx),
        None => true,
    };
    state
        .waits
        .iter()
        .filter(|(_, wait)| wait.outcome.is_none() && wait.added_by.is_none_or(|by| by == open.tx))
        .filter(|((_, job), _)| is_gone(*job))
        .map(|((follow_up, job), wait)| (*follow_up, *job, wait.clone()))
        .collect()
}

/// Returns whether a follow-up was cancelled.
fn end_waits(state: &mut State, open: &mut Open, now: DateTime<Utc>) -> bool {
    // With whether a job of a workflow has failed it.
    let mut follow_ups = BTreeMap::<JobId, bool>::new();
    for (follow_up, job, wait) in ended(state, open) {
        let live = state.rows.get(&follow_up).filter(|row| !row.ended || row.held_by != Some(open.tx));
        if live.is_some_and(|row| takes_part(row) && !row.free_for(open.tx)) {
            // Another transaction holds it. The next run finds the wait again.
            continue;
        }
        let archived = state.archive.get(&job).filter(|archived| archived.seen_by(open.tx));
        let outcome = archived.map_or(JobState::Done, |archived| archived.job.state);
        *follow_ups.entry(follow_up).or_default() |= wait.only_done && outcome != JobState::Done;
        open.set_wait(state, follow_up, job, Some(Wait { outcome: Some(outcome), ..wait }));
    }
    let mut is_cancelled = false;
    for (follow_up, has_failed) in follow_ups {
        is_cancelled |= end_wait(state, open, follow_up, has_failed, now);
    }
    is_cancelled
}

/// Returns whether the job waits for others, or is a workflow, which decides about them when it is due.
fn takes_part(row: &Row) -> bool {
    row.job.is_held() || row.job.queue.as_str() == WORKFLOWS
}

/// Returns the row of a follow-up that waits for others.
fn waiting(state: &State, open: &Open, follow_up: JobId) -> Option<Row> {
    state.rows.get(&follow_up).filter(|row| row.free_for(open.tx) && row.job.is_held()).cloned()
}

/// Makes a follow-up due if all jobs have ended that it waits for, or cancels it if one of them was not done that
/// must be. Returns whether it was cancelled. A workflow is due if it has failed, too.
fn end_wait(
    state: &mut State,
    open: &mut Open,
    follow_up: JobId,
    has_failed: bool,
    now: DateTime<Utc>,
) -> bool {
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
    let is_workflow = row.job.queue.as_str() == WORKFLOWS;
    let is_cancelled = refused.is_some() && !is_workflow;
    if let Some((job, outcome)) = refused.filter(|_| !is_workflow) {
        row.job.error = Some(format!("job {job}, for which it waited, is {}", outcome.as_str()));
        counting::count(open, &row.job, |counters| counters.cancelled += 1);
        archive::archive(state, open, row, JobState::Cancelled, now);
    } else if !is_open || is_workflow && has_failed {
        row.job.schedule_at = None;
        row.job.annotations = row.job.annotations.with_ended(row.job.annotations.ended().or(Some(ended)));
        open.set(state, Row { returned_by: Some(open.tx), ..row });
    }
    is_cancelled
}
