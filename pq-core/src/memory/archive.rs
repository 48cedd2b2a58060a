//! Jobs that have ended, and where a job is.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::state::{Kept, Row, State, Tx};
use super::transaction::{MemoryConn, Open};
use super::{MemoryStore, settle, take, workers};
use crate::store::{Archive, Counts, Undecodable};
use crate::{Ended, EndedAs, Error, JobId, JobStatus, MaintenanceReport, Payload, QueueName, Retention};

impl Archive for MemoryStore {
    fn archived(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        ended: EndedAs,
        before: Option<&Ended>,
        count: usize,
    ) -> Result<Vec<Ended>, Error> {
        conn.operate(|state, open| Ok(list(state, open.tx, queue, ended, before, count)))
    }

    fn requeue(&self, conn: &mut MemoryConn, queue: &QueueName, ids: Option<&[JobId]>) -> Result<u64, Error> {
        conn.operate(|state, open| Ok(requeue(state, open, queue, ids)))
    }

    fn prune(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        ended: EndedAs,
        age: Duration,
    ) -> Result<u64, Error> {
        let end = take::before(Utc::now(), age);
        conn.operate(|state, open| Ok(prune(state, open, Some(queue), ended, end)))
    }

    fn maintain(
        &self,
        conn: &mut MemoryConn,
        retention: &Retention,
    ) -> Result<Option<MaintenanceReport>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            workers::forget_silent(state, now);
            let returned = settle::expire(state, open, now);
            let mut pruned = 0;
            for ended in [EndedAs::Done, EndedAs::Dead, EndedAs::Cancelled] {
                if let Some(age) = retention.of(ended) {
                    pruned += prune(state, open, None, ended, take::before(now, age));
                }
            }
            Ok(Some(MaintenanceReport { returned, pruned, more: false }))
        })
    }
}

/// Ends a job and keeps it.
#[allow(clippy::too_many_arguments)]
pub(super) fn keep(
    state: &mut State,
    open: &mut Open,
    id: JobId,
    row: Row,
    ended_as: EndedAs,
    error: Option<String>,
    result: Option<Payload>,
    now: DateTime<Utc>,
) {
    let job = Ended {
        id,
        queue: row.queue.clone(),
        payload: row.payload.clone(),
        enqueued_at: row.enqueued_at,
        schedule_at: row.schedule_at,
        expected_at: row.expected_at,
        priority: row.priority,
        attempt: row.attempt,
        serialization_key: row.serialization_key.clone(),
        unique_key: row.unique_key.clone(),
        ended_as,
        error,
        result,
        ended_at: now,
    };
    open.keep(state, id, Kept { job, added_by: Some(open.tx), removed_by: None });
    open.set(state, id, Row { held_by: Some(open.tx), ended: true, ..row });
}

/// Keeps a job whose row is gone, or goes with this transaction.
pub(super) fn move_to_dead(state: &mut State, open: &mut Open, dead: &Undecodable, now: DateTime<Utc>) {
    if state.archive.contains_key(&dead.job.id) {
        return;
    }
    let job = Ended {
        id: dead.job.id,
        queue: dead.job.queue.clone(),
        payload: dead.job.payload.clone(),
        enqueued_at: dead.job.enqueued_at,
        schedule_at: dead.job.schedule_at,
        expected_at: dead.job.expected_at,
        priority: dead.job.priority,
        attempt: dead.job.attempt,
        serialization_key: dead.job.serialization_key.clone(),
        unique_key: dead.job.unique_key.clone(),
        ended_as: EndedAs::Dead,
        error: Some(dead.reason.clone()),
        result: None,
        ended_at: now,
    };
    open.keep(state, dead.job.id, Kept { job, added_by: Some(open.tx), removed_by: None });
}

pub(super) fn find(state: &State, tx: Tx, queue: &QueueName, id: JobId) -> Option<JobStatus> {
    if let Some(row) = state.rows.get(&id).filter(|row| row.queue == *queue && row.seen_by(tx)) {
        return Some(match row.lease {
            Some(lease) => JobStatus::Leased { lease: lease.token, attempt: row.attempt },
            None => JobStatus::Waiting {
                attempt: row.attempt,
                schedule_at: row.schedule_at,
                error: row.error.clone(),
            },
        });
    }
    let kept = state.archive.get(&id).filter(|kept| kept.job.queue == *queue && kept.seen_by(tx))?;
    Some(JobStatus::Ended(Box::new(kept.job.clone())))
}

pub(super) fn list(
    state: &State,
    tx: Tx,
    queue: &QueueName,
    ended: EndedAs,
    before: Option<&Ended>,
    count: usize,
) -> Vec<Ended> {
    let place = |job: &Ended| (job.ended_at, job.id);
    let mut jobs: Vec<Ended> = state
        .archive
        .values()
        .filter(|kept| kept.is(queue, ended) && kept.seen_by(tx))
        .map(|kept| kept.job.clone())
        .filter(|job| before.is_none_or(|before| place(job) < place(before)))
        .collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(place(job)));
    jobs.truncate(count);
    jobs
}

pub(super) fn requeue(state: &mut State, open: &mut Open, queue: &QueueName, ids: Option<&[JobId]>) -> u64 {
    let wanted = |kept: &&Kept| match ids {
        Some(ids) => ids.contains(&kept.job.id) && kept.job.ended_as != EndedAs::Done,
        None => kept.job.ended_as == EndedAs::Dead,
    };
    let kept: Vec<Kept> = state
        .archive
        .values()
        .filter(|kept| kept.job.queue == *queue && kept.seen_by(open.tx) && kept.removed_by.is_none())
        .filter(wanted)
        .cloned()
        .collect();
    let mut revived = 0;
    for kept in kept {
        let job = &kept.job;
        let in_use = |key| state.holder(queue, key, open.tx).is_some();
        if job.unique_key.as_ref().is_some_and(in_use) {
            continue;
        }
        let row = Row {
            queue: queue.clone(),
            payload: job.payload.clone(),
            enqueued_at: job.enqueued_at,
            schedule_at: None,
            expected_at: job.expected_at,
            priority: job.priority,
            attempt: 0,
            serialization_key: job.serialization_key.clone(),
            unique_key: job.unique_key.clone(),
            error: job.error.clone(),
            lease: None,
            added_by: Some(open.tx),
            returned_by: None,
            held_by: None,
            take: 0,
            ended: false,
        };
        open.set(state, job.id, row);
        open.keep(state, kept.job.id, Kept { removed_by: Some(open.tx), ..kept });
        revived += 1;
    }
    revived
}

pub(super) fn prune(
    state: &mut State,
    open: &mut Open,
    queue: Option<&QueueName>,
    ended: EndedAs,
    end: DateTime<Utc>,
) -> u64 {
    let old: Vec<Kept> = state
        .archive
        .values()
        .filter(|kept| queue.is_none_or(|queue| kept.job.queue == *queue) && kept.job.ended_as == ended)
        .filter(|kept| kept.job.ended_at <= end && kept.seen_by(open.tx) && kept.removed_by.is_none())
        .cloned()
        .collect();
    let pruned = old.len() as u64;
    for kept in old {
        open.keep(state, kept.job.id, Kept { removed_by: Some(open.tx), ..kept });
    }
    pruned
}

pub(super) fn counts(state: &State, tx: Tx, queue: &QueueName, now: DateTime<Utc>) -> Counts {
    let mut counts = Counts::default();
    for row in state.rows.values().filter(|row| row.queue == *queue && row.seen_by(tx)) {
        match row.lease {
            Some(_) => counts.leased += 1,
            None if row.due(now) => counts.ready += 1,
            None => counts.scheduled += 1,
        }
    }
    let kept =
        |ended| state.archive.values().filter(|kept| kept.is(queue, ended) && kept.seen_by(tx)).count();
    counts.done = kept(EndedAs::Done) as u64;
    counts.dead = kept(EndedAs::Dead) as u64;
    counts.cancelled = kept(EndedAs::Cancelled) as u64;
    counts
}
