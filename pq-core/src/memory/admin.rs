//! Counting, listing, cancelling, pausing and moving jobs.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::state::{Row, State, Tx};
use super::transaction::{MemoryConn, Open};
use super::{MemoryStore, archive, settle, state};
use crate::store::{Admin, Counts};
use crate::{Cancelled, EndedAs, Error, Filter, JobId, JobState, JobStatus, Listed, Overview, QueueName};

impl Admin for MemoryStore {
    fn counts(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<Counts, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(archive::counts(state, open.tx, queue, now)))
    }

    fn overview(&self, conn: &mut MemoryConn) -> Result<Vec<Overview>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(overview(state, open.tx, now)))
    }

    fn list(&self, conn: &mut MemoryConn, filter: &Filter, count: usize) -> Result<Vec<Listed>, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(list(state, open.tx, filter, count, now)))
    }

    fn find(&self, conn: &mut MemoryConn, queue: &QueueName, id: JobId) -> Result<Option<JobStatus>, Error> {
        conn.operate(|state, open| Ok(archive::find(state, open.tx, queue, id)))
    }

    fn cancel(&self, conn: &mut MemoryConn, queue: &QueueName, id: JobId) -> Result<Cancelled, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(settle::cancel(state, open, queue, id, now)))
    }

    fn clear(&self, conn: &mut MemoryConn, queue: &QueueName) -> Result<u64, Error> {
        conn.operate(|state, open| {
            let rows: Vec<_> = state
                .rows
                .iter()
                .filter(|(_, row)| row.queue == *queue && row.free_for(open.tx))
                .map(|(id, row)| (*id, row.clone()))
                .collect();
            let cleared = rows.len() as u64;
            for (id, row) in rows {
                open.set(state, id, state::Row { held_by: Some(open.tx), ended: true, ..row });
            }
            Ok(cleared)
        })
    }

    fn pause(&self, conn: &mut MemoryConn, queue: &QueueName, paused: bool) -> Result<bool, Error> {
        let now = Utc::now();
        conn.operate(|state, open| Ok(pause(state, open, queue, paused, now)))
    }

    fn move_jobs(
        &self,
        conn: &mut MemoryConn,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        conn.operate(|state, open| Ok(move_jobs(state, open, from, to, ids)))
    }
}

fn state_of(state: &State, id: JobId, row: &Row, tx: Tx, now: DateTime<Utc>) -> JobState {
    if row.lease.is_some() {
        return JobState::Running;
    }
    if !row.due(now) {
        return JobState::Scheduled;
    }
    let Some(key) = &row.serialization_key else { return JobState::Ready };
    let of_key = |other: &Row| other.queue == row.queue && other.serialization_key.as_ref() == Some(key);
    let before = |(other_id, other): (&JobId, &Row)| {
        of_key(other)
            && (other.lease.is_some()
                || (other.seen_by(tx) && other.due(now) && other.place(*other_id) < row.place(id)))
    };
    if state.rows.iter().any(before) { JobState::Blocked } else { JobState::Ready }
}

pub(super) fn overview(state: &State, tx: Tx, now: DateTime<Utc>) -> Vec<Overview> {
    let mut all = BTreeMap::<QueueName, Overview>::new();
    fn of<'a>(all: &'a mut BTreeMap<QueueName, Overview>, queue: &QueueName) -> &'a mut Overview {
        all.entry(queue.clone()).or_insert_with(|| Overview::of(queue.clone()))
    }
    for (id, row) in state.rows.iter().filter(|(_, row)| row.seen_by(tx)) {
        let numbers = of(&mut all, &row.queue);
        match state_of(state, *id, row, tx, now) {
            JobState::Running => numbers.running += 1,
            JobState::Scheduled => numbers.scheduled += 1,
            due => {
                *(if due == JobState::Blocked { &mut numbers.blocked } else { &mut numbers.ready }) += 1;
                let since = row.schedule_at.map_or(row.enqueued_at, |at| at.max(row.enqueued_at));
                let age = (now - since).to_std().unwrap_or_default();
                numbers.oldest = numbers.oldest.max(Some(age));
            }
        }
    }
    for kept in state.archive.values().filter(|kept| kept.seen_by(tx)) {
        let numbers = of(&mut all, &kept.job.queue);
        *match kept.job.ended_as {
            EndedAs::Done => &mut numbers.done,
            EndedAs::Dead => &mut numbers.dead,
            EndedAs::Cancelled => &mut numbers.cancelled,
        } += 1;
    }
    for (queue, since) in &state.paused {
        of(&mut all, queue).paused_at = Some(*since);
    }
    for known in state.workers.values() {
        for (queue, rate) in &known.beat.status.rates {
            if let Some(numbers) = all.iter_mut().find(|(name, _)| name.as_str() == queue) {
                numbers.1.per_second += rate;
            }
        }
    }
    all.into_values().collect()
}

pub(super) fn list(state: &State, tx: Tx, filter: &Filter, count: usize, now: DateTime<Utc>) -> Vec<Listed> {
    let live = state.rows.iter().filter(|(_, row)| row.seen_by(tx)).map(|(id, row)| Listed {
        id: *id,
        queue: row.queue.clone(),
        state: state_of(state, *id, row, tx, now),
        payload: row.payload.clone(),
        enqueued_at: row.enqueued_at,
        schedule_at: row.schedule_at,
        expected_at: row.expected_at,
        priority: row.priority,
        attempt: row.attempt,
        serialization_key: row.serialization_key.clone(),
        unique_key: row.unique_key.clone(),
        error: row.error.clone(),
        result: None,
        lease_until: row.lease.map(|lease| lease.until),
        ended_at: None,
    });
    let ended = state.archive.values().filter(|kept| kept.seen_by(tx)).map(|kept| Listed {
        id: kept.job.id,
        queue: kept.job.queue.clone(),
        state: kept.job.ended_as.into(),
        payload: kept.job.payload.clone(),
        enqueued_at: kept.job.enqueued_at,
        schedule_at: kept.job.schedule_at,
        expected_at: kept.job.expected_at,
        priority: kept.job.priority,
        attempt: kept.job.attempt,
        serialization_key: kept.job.serialization_key.clone(),
        unique_key: kept.job.unique_key.clone(),
        error: kept.job.error.clone(),
        result: kept.job.result.clone(),
        lease_until: None,
        ended_at: Some(kept.job.ended_at),
    });
    let wanted = |job: &Listed| {
        filter.queue.as_ref().is_none_or(|queue| job.queue == *queue)
            && filter.id.is_none_or(|id| job.id == id)
            && filter.after.is_none_or(|after| job.id > after)
            && (filter.serialization_key.is_none() || job.serialization_key == filter.serialization_key)
            && (filter.states.is_empty() || filter.states.contains(&job.state))
    };
    let mut jobs: Vec<Listed> = live.chain(ended).filter(wanted).collect();
    jobs.sort_by_key(|job| job.id);
    jobs.truncate(count);
    jobs
}

pub(super) fn move_jobs(
    state: &mut State,
    open: &mut Open,
    from: &QueueName,
    to: &QueueName,
    ids: Option<&[JobId]>,
) -> u64 {
    let wanted = |(id, row): &(&JobId, &Row)| {
        row.queue == *from
            && row.free_for(open.tx)
            && ids.is_none_or(|ids| ids.contains(id))
            && row.unique_key.as_ref().is_none_or(|key| state.holder(to, key, open.tx).is_none())
    };
    let rows: Vec<(JobId, Row)> =
        state.rows.iter().filter(wanted).map(|(id, row)| (*id, row.clone())).collect();
    let moved = rows.len() as u64;
    for (id, row) in rows {
        // As if it came back: others do not see it in its new queue before the commit.
        open.set(state, id, Row { queue: to.clone(), returned_by: Some(open.tx), ..row });
    }
    moved
}

pub(super) fn pause(
    state: &mut State,
    open: &mut Open,
    queue: &QueueName,
    paused: bool,
    now: DateTime<Utc>,
) -> bool {
    if state.paused.contains_key(queue) == paused {
        return false;
    }
    open.pause(state, queue, paused.then_some(now));
    true
}
