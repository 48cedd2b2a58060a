//! What an operator sees and does: queues, workers, periodic jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::state::{Known, Periodic, Row, State, Tx};
use super::transaction::Open;
use crate::{
    Cron, CronEntry, EndedAs, Filter, Heartbeat, HeartbeatReply, JobId, JobState, Listed, Overview,
    QueueName, StopMode, WorkerId, WorkerInfo,
};

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

pub(super) fn heartbeat(state: &mut State, beat: &Heartbeat, now: DateTime<Utc>) -> HeartbeatReply {
    let worker = beat.worker.unwrap_or_else(|| WorkerId(state.next_tx()));
    let known = state.workers.entry(worker).or_insert_with(|| Known {
        beat: beat.clone(),
        started_at: now,
        beat_at: now,
        stop: None,
    });
    (known.beat, known.beat_at) = (beat.clone(), now);
    HeartbeatReply { worker, stop: known.stop }
}

pub(super) fn forget_silent(state: &mut State, now: DateTime<Utc>) {
    state.workers.retain(|_, known| heard(known, now) < WorkerInfo::FORGOTTEN_AFTER);
}

fn heard(known: &Known, now: DateTime<Utc>) -> Duration {
    (now - known.beat_at).to_std().unwrap_or_default()
}

pub(super) fn workers(state: &State, now: DateTime<Utc>) -> Vec<WorkerInfo> {
    let info = |(id, known): (&WorkerId, &Known)| WorkerInfo {
        id: *id,
        host: known.beat.host.clone(),
        pid: known.beat.pid,
        supervisor: known.beat.supervisor,
        queues: known.beat.queues.iter().map(ToString::to_string).collect(),
        threads: known.beat.threads,
        started_at: known.started_at,
        heard: heard(known, now),
        stop: known.stop,
        status: known.beat.status.clone(),
    };
    state.workers.iter().map(info).collect()
}

pub(super) fn stop_worker(state: &mut State, worker: WorkerId, mode: StopMode) -> bool {
    let Some(known) = state.workers.get_mut(&worker) else { return false };
    known.stop = known.stop.max(Some(mode));
    true
}

pub(super) fn set_cron(
    state: &mut State,
    open: &mut Open,
    cron: &Cron,
    next_at: Option<DateTime<Utc>>,
) -> bool {
    let last_at = state.crons.get(&cron.name).and_then(|old| old.entry.last_at);
    let entry = CronEntry { cron: cron.clone(), paused: false, next_at, last_at };
    let is_new = !state.crons.contains_key(&cron.name);
    open.set_cron(state, &cron.name, Some(Periodic { entry, held_by: None }));
    is_new
}

pub(super) fn change_cron(
    state: &mut State,
    open: &mut Open,
    name: &str,
    change: impl FnOnce(&mut CronEntry),
) -> bool {
    let Some(mut periodic) = state.crons.get(name).cloned() else { return false };
    change(&mut periodic.entry);
    open.set_cron(state, name, Some(periodic));
    true
}

pub(super) fn due_crons(state: &mut State, open: &mut Open, now: DateTime<Utc>) -> Vec<CronEntry> {
    let due = |periodic: &&Periodic| {
        periodic.held_by.is_none() && periodic.entry.next_at.is_some_and(|next| next <= now)
    };
    let due: Vec<Periodic> = state.crons.values().filter(due).cloned().collect();
    for periodic in &due {
        let held = Periodic { held_by: Some(open.tx), ..periodic.clone() };
        open.set_cron(state, &periodic.entry.cron.name, Some(held));
    }
    due.into_iter().map(|periodic| periodic.entry).collect()
}
