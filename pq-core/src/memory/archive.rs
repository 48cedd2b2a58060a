//! Jobs that have ended, and maintenance.

use std::cmp::Reverse;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::state::{Archived, Row, State};
use super::transaction::{MemoryConn, Open};
use super::{MemoryStore, audit, counting, follow_ups, notes, settle, steps, take, workers};
use crate::store::{Archive, Undecodable, Wake};
use crate::{
    AttemptEnd, AttemptEntry, Error, JobId, JobRecord, JobState, MaintenanceReport, QueueName, Retention,
    WORKFLOWS,
};

impl Archive for MemoryStore {
    fn archived(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        state: JobState,
        before: Option<&JobRecord>,
        count: usize,
    ) -> Result<Vec<JobRecord>, Error> {
        let sort_key = |job: &JobRecord| (job.ended_at, job.id);
        conn.operate(|all, open| {
            let mut jobs: Vec<JobRecord> = all
                .archive
                .values()
                .filter(|archived| archived.job.queue == *queue && archived.job.state == state)
                .filter(|archived| archived.seen_by(open.tx))
                .filter(|archived| before.is_none_or(|before| sort_key(&archived.job) < sort_key(before)))
                .map(|archived| archived.job.clone())
                .collect();
            jobs.sort_by_key(|job| Reverse(sort_key(job)));
            jobs.truncate(count);
            Ok(jobs)
        })
    }

    fn requeue(&self, conn: &mut MemoryConn, queue: &QueueName, ids: Option<&[JobId]>) -> Result<u64, Error> {
        let is_wanted = |job: &JobRecord| match ids {
            Some(ids) => ids.contains(&job.id) && job.state != JobState::Done,
            None => job.state == JobState::Dead,
        };
        conn.operate(|state, open| {
            let wanted: Vec<Archived> = state
                .archive
                .values()
                .filter(|archived| archived.job.queue == *queue && is_wanted(&archived.job))
                .filter(|archived| archived.seen_by(open.tx) && archived.removed_by.is_none())
                .cloned()
                .collect();
            Ok(wanted.into_iter().filter(|archived| return_archived(state, open, archived.clone())).count()
                as u64)
        })
    }

    fn prune(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        state: JobState,
        age: Duration,
    ) -> Result<u64, Error> {
        let end = take::before(Utc::now(), age);
        conn.operate(|all, open| Ok(prune(all, open, Some(queue), state, end)))
    }

    fn needs_maintenance(&self, conn: &mut MemoryConn, queues: &[QueueName]) -> Result<bool, Error> {
        let now = Utc::now();
        // A transaction that settles the job may be rolled back.
        let is_expired = |row: &Row| row.lease.or(row.returned_from).is_some_and(|lease| lease.until <= now);
        conn.operate(|state, open| {
            // Another session may be about to put the next jobs of a workflow.
            let is_due = |row: &Row| {
                row.job.queue.as_str() == WORKFLOWS
                    && row.is_due(now)
                    && !state.paused.contains_key(&row.job.queue)
            };
            let mut rows = state.rows.values();
            Ok(rows.any(|row| queues.contains(&row.job.queue) && is_expired(row) || is_due(row))
                || !follow_ups::ended(state, open).is_empty())
        })
    }

    fn maintain(
        &self,
        conn: &mut MemoryConn,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Error> {
        let now = Utc::now();
        conn.operate(|all, open| {
            workers::forget_silent(all, now);
            let returned = settle::expire_leases(all, open, now);
            let waits = follow_ups::maintain(all, open, now);
            let mut pruned = 0;
            for state in JobState::ENDED {
                if let Some(age) = retention.of(state) {
                    pruned += prune(all, open, None, state, take::before(now, age));
                }
            }
            if let Some(age) = retention.audit {
                audit::prune(all, open, take::before(now, age));
            }
            notes::forget(all, open);
            steps::forget_ended(all, open);
            let is_due =
                |row: &Row| row.job.queue.as_str() == WORKFLOWS && row.free_for(open.tx) && row.is_due(now);
            let workflows = all.rows.values().any(is_due);
            Ok(Some(MaintenanceReport { returned, pruned, more: false, waits, waits_left: false, workflows }))
        })
    }
}

/// Requeues an archived job, or lets its workflow do it. Returns `false` if its unique key is in use, or if another
/// transaction holds that workflow.
pub(super) fn return_archived(state: &mut State, open: &mut Open, archived: Archived) -> bool {
    if follow_ups::is_workflow_held(state, open, &archived.job) {
        return false;
    }
    if let Some(workflow) = follow_ups::undone_workflow(state, open, &archived.job) {
        return follow_ups::wake_to_reopen(state, open, workflow);
    }
    let unique_key = archived.job.unique_key.as_ref();
    if unique_key.is_some_and(|key| state.unique_job(&archived.job.queue, key, open.tx).is_some()) {
        return false;
    }
    let mut job = JobRecord { schedule_at: None, ..archived.job.clone() };
    if job.queue.as_str() == WORKFLOWS {
        job.annotations = job.annotations.with_wake(Some(Wake::Retry));
    }
    put_back(state, open, Archived { job: job.clone(), ..archived });
    follow_ups::reopen(state, open, &job);
    true
}

/// Returns an archived job that this transaction can requeue.
pub(super) fn free_archived(state: &State, open: &Open, id: JobId) -> Option<Archived> {
    let is_live = state.rows.get(&id).is_some_and(|row| !row.ended || row.held_by != Some(open.tx));
    let archived = state.archive.get(&id).filter(|_| !is_live);
    archived.filter(|archived| archived.seen_by(open.tx) && archived.removed_by.is_none()).cloned()
}

/// Moves a job from the archive back to its queue, with its attempts counted from 0.
pub(super) fn put_back(state: &mut State, open: &mut Open, archived: Archived) {
    let job = JobRecord {
        state: JobState::Ready,
        attempt: 0,
        crashes: 0,
        result: None,
        ended_at: None,
        ..archived.job.clone()
    };
    open.set(state, Row::added(job, open.tx));
    open.set_archived(state, Archived { removed_by: Some(open.tx), ..archived });
}

/// Moves a row to the archive. Its error and its result go with it.
pub(super) fn archive(state: &mut State, open: &mut Open, row: Row, end: JobState, now: DateTime<Utc>) {
    let job = JobRecord { state: end, ended_at: Some(now), ..row.job.clone() };
    open.set_archived(state, Archived { job, added_by: Some(open.tx), removed_by: None });
    open.set(state, Row { held_by: Some(open.tx), ended: true, ..row });
}

/// Archives a job as dead whose row is deleted, or is deleted by the commit of this transaction.
pub(super) fn move_to_dead(
    state: &mut State,
    open: &mut Open,
    undecodable: &Undecodable,
    now: DateTime<Utc>,
) {
    let Undecodable { job, reason } = undecodable;
    if state.archive.contains_key(&job.id) {
        return;
    }
    let mut job = JobRecord {
        state: JobState::Dead,
        error: Some(reason.clone()),
        ended_at: Some(now),
        ..job.record.clone()
    };
    AttemptEntry::add(&mut job.attempt_log, job.attempt, now, AttemptEnd::Dead, reason);
    counting::count(open, &job, |counters| counters.dead += 1);
    open.set_archived(state, Archived { job, added_by: Some(open.tx), removed_by: None });
}

/// Deletes archived jobs in this state that ended by `end`, and returns their number.
fn prune(
    all: &mut State,
    open: &mut Open,
    queue: Option<&QueueName>,
    state: JobState,
    end: DateTime<Utc>,
) -> u64 {
    let old: Vec<Archived> = all
        .archive
        .values()
        .filter(|archived| queue.is_none_or(|queue| archived.job.queue == *queue))
        .filter(|archived| archived.job.state == state && archived.job.ended_at.is_some_and(|at| at <= end))
        .filter(|archived| archived.seen_by(open.tx) && archived.removed_by.is_none())
        .filter(|archived| !follow_ups::is_needed(all, &archived.job))
        .cloned()
        .collect();
    let pruned = old.len() as u64;
    for archived in old {
        open.set_archived(all, Archived { removed_by: Some(open.tx), ..archived });
    }
    pruned
}
