//! Counting, listing, cancelling, pausing and moving jobs.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::state::{Lease, Paused, Row, State, Tx};
use super::transaction::MemoryConn;
use super::{MemoryStore, archive, counting, follow_ups};
use crate::store::{Admin, Wake};
use crate::{
    CancelOutcome, Error, Filter, JobId, JobRecord, JobState, PausedQueue, QueueCounts, QueueName, WORKFLOWS,
};

impl Admin for MemoryStore {
    fn counts(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<QueueCounts, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let all = count(state, open.tx, now);
            Ok(all.into_iter().find(|counts| counts.queue == *queue))
        })
        .map(|counts| counts.unwrap_or_else(|| QueueCounts::new(queue.clone())))
    }

    fn overview(&self, conn: &mut MemoryConn) -> Result<Vec<QueueCounts>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(count(state, open.tx, now)))
    }

    fn list(&self, conn: &mut MemoryConn, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let mut jobs = list(state, open.tx, now);
            jobs.retain(|job| filter.matches(job));
            jobs.sort_by_key(|job| job.id);
            jobs.truncate(count);
            Ok(jobs)
        })
    }

    fn find(&self, conn: &mut MemoryConn, queue: &QueueName, id: JobId) -> Result<Option<JobRecord>, Error> {
        let filter = Filter { id: Some(id), ..Filter::queue(queue) };
        Ok(self.list(conn, &filter, 1)?.pop())
    }

    fn cancel(&self, conn: &mut MemoryConn, queue: &QueueName, id: JobId) -> Result<CancelOutcome, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let seen = state.rows.get(&id).filter(|row| row.job.queue == *queue && row.seen_by(open.tx));
            let Some(row) = seen.cloned() else { return Ok(CancelOutcome::NotFound) };
            if let Some(lease) = row.lease.filter(|_| row.held_by.is_none() && row.returned_by.is_none()) {
                open.set(state, Row { lease: Some(Lease { cancel_requested: true, ..lease }), ..row });
                return Ok(CancelOutcome::Requested);
            }
            if !row.free_for(open.tx) {
                return Ok(CancelOutcome::Held);
            }
            if queue.as_str() == WORKFLOWS {
                follow_ups::wake(state, open, id, Some(Wake::Cancel), None);
                return Ok(CancelOutcome::Requested);
            }
            counting::count(open, &row.job, |counters| counters.cancelled += 1);
            archive::archive(state, open, row, JobState::Cancelled, now);
            Ok(CancelOutcome::Cancelled)
        })
    }

    fn clear(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<u64, Error> {
        conn.operate(|state, open| {
            let is_free = |row: &&Row| row.job.queue == *queue && row.free_for(open.tx);
            let rows: Vec<Row> = state.rows.values().filter(is_free).cloned().collect();
            let cleared = rows.len() as u64;
            for row in rows {
                open.set(state, Row { held_by: Some(open.tx), ended: true, ..row });
            }
            Ok(cleared)
        })
    }

    fn pause(
        &self,
        conn: &mut MemoryConn,
        queue: &QueueName,
        paused: bool,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        let at = Utc::now();
        conn.operate(|state, open| {
            if state.paused.contains_key(queue) == paused {
                return Ok(false);
            }
            open.set_paused(state, queue, paused.then(|| Paused { at, by: by.map(str::to_owned) }));
            Ok(true)
        })
    }

    fn paused(&self, conn: &mut MemoryConn) -> Result<Vec<PausedQueue>, Error> {
        conn.operate(|state, _| {
            let paused = state.paused.iter().map(|(queue, paused)| PausedQueue {
                queue: queue.clone(),
                paused_at: paused.at,
                paused_by: paused.by.clone(),
            });
            Ok(paused.collect())
        })
    }

    fn move_jobs(
        &self,
        conn: &mut MemoryConn,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        conn.operate(|state, open| {
            let is_movable = |row: &&Row| {
                let unique_key = row.job.unique_key.as_ref();
                row.job.queue == *from
                    && row.free_for(open.tx)
                    && ids.is_none_or(|ids| ids.contains(&row.job.id))
                    && unique_key.is_none_or(|key| state.unique_job(to, key, open.tx).is_none())
            };
            let rows: Vec<Row> = state.rows.values().filter(is_movable).cloned().collect();
            let moved = rows.len() as u64;
            for mut row in rows {
                row.job.queue = to.clone();
                // Like a returned job: others do not take it from the new queue before the commit.
                open.set(state, Row { returned_by: Some(open.tx), ..row });
            }
            Ok(moved)
        })
    }
}

/// Returns the state of a live job.
fn job_state(state: &State, row: &Row, tx: Tx, now: DateTime<Utc>) -> JobState {
    if row.lease.is_some() {
        return JobState::Running;
    }
    if !row.is_due(now) {
        return JobState::Scheduled;
    }
    let Some(key) = &row.job.serialization_key else { return JobState::Ready };
    if let Some(keeper) = state.keeping_keys(&row.job.queue, tx).get(key) {
        let is_busy = state.busy_keys(&row.job.queue, tx).contains(key);
        return if *keeper == row.job.id && !is_busy { JobState::Ready } else { JobState::Blocked };
    }
    let precedes = |other: &Row| {
        other.job.queue == row.job.queue
            && other.job.serialization_key.as_ref() == Some(key)
            && (other.lease.is_some()
                || (other.seen_by(tx) && other.is_due(now) && other.sort_key() < row.sort_key()))
    };
    if state.rows.values().any(precedes) { JobState::Blocked } else { JobState::Ready }
}

/// Returns all jobs that the transaction sees, live and archived.
pub(super) fn list(state: &State, tx: Tx, now: DateTime<Utc>) -> Vec<JobRecord> {
    let live = state.rows.values().filter(|row| row.seen_by(tx)).map(|row| JobRecord {
        state: job_state(state, row, tx, now),
        lease_until: row.lease.map(|lease| lease.until),
        ..row.job.clone()
    });
    let archived = state.archive.values().filter(|archived| archived.seen_by(tx));
    live.chain(archived.map(|archived| archived.job.clone())).collect()
}

/// Counts the jobs that the transaction sees, by queue and state.
fn count(state: &State, tx: Tx, now: DateTime<Utc>) -> Vec<QueueCounts> {
    let mut all = BTreeMap::<QueueName, QueueCounts>::new();
    fn of<'a>(all: &'a mut BTreeMap<QueueName, QueueCounts>, queue: &QueueName) -> &'a mut QueueCounts {
        all.entry(queue.clone()).or_insert_with(|| QueueCounts::new(queue.clone()))
    }
    for job in list(state, tx, now) {
        let counts = of(&mut all, &job.queue);
        if matches!(job.state, JobState::Ready | JobState::Blocked | JobState::Scheduled) {
            counts.error = counts.error.take().max(job.error);
        }
        if matches!(job.state, JobState::Ready | JobState::Blocked) {
            let due_since = job.schedule_at.map_or(job.enqueued_at, |at| at.max(job.enqueued_at));
            counts.oldest = counts.oldest.max(Some((now - due_since).to_std().unwrap_or_default()));
        }
        *match job.state {
            JobState::Ready => &mut counts.ready,
            JobState::Blocked => &mut counts.blocked,
            JobState::Scheduled => &mut counts.scheduled,
            JobState::Running => &mut counts.running,
            JobState::Dequeued => &mut counts.dequeued,
            JobState::Dead => &mut counts.dead,
            JobState::Cancelled => &mut counts.cancelled,
            JobState::Done => &mut counts.done,
        } += 1;
    }
    for (queue, limits) in &state.limits {
        of(&mut all, queue).limits = Some(limits.clone());
    }
    for (queue, paused) in &state.paused {
        let counts = of(&mut all, queue);
        (counts.paused_at, counts.paused_by) = (Some(paused.at), paused.by.clone());
    }
    for worker in state.workers.values() {
        for (queue, rate) in &worker.heartbeat.status.rates {
            if let Some(counts) = all.values_mut().find(|counts| counts.queue.as_str() == queue) {
                counts.per_second += rate;
            }
        }
    }
    all.into_values().collect()
}
