//! The steps of jobs, and signals for them.
//!
//! An operation locks the whole state, but a transaction consists of several. So a commit decides whether a signal
//! wakes a job: that of the signal, or that of the job's wait, whichever is later. Neither can miss the other.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::state::{Archived, Signal, State, Step, Tx};
use super::transaction::{MemoryConn, Open};
use super::{MemoryStore, settle, take};
use crate::store::{Keeping, NewStep, Steps};
use crate::{Claim, Error, JobId, JobRecord, JobState, Payload, QueueName, SentSignal, StepKind, StepRecord};

impl Steps for MemoryStore {
    fn steps(&self, conn: &mut MemoryConn, job: &JobRecord) -> Result<Vec<StepRecord>, Error> {
        conn.operate(|state, open| {
            let mut records: Vec<StepRecord> = Vec::new();
            for step in of_job(state, job.id).filter(|step| step.added_by.is_none_or(|by| by == open.tx)) {
                let earlier = records.iter().filter(|earlier| earlier.name == step.record.name).count();
                let index = u32::try_from(earlier + 1).unwrap_or(u32::MAX);
                records.push(StepRecord { index, ..step.record.clone() });
            }
            Ok(records)
        })
    }

    fn keep_step(&self, conn: &mut MemoryConn, job: &Claim, step: &NewStep<'_>) -> Result<Keeping, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            if let Some(refused) = refusal(state, job, step, open.tx) {
                return Ok(refused);
            }
            keep(state, open, job.id, record(step, now));
            Ok(Keeping::Kept(None))
        })
    }

    fn await_signal(&self, conn: &mut MemoryConn, job: &Claim, step: &NewStep<'_>) -> Result<Keeping, Error> {
        let now = Utc::now();
        conn.operate(|state, open| {
            let before = state.steps.get(&(job.id, step.position)).map(|step| step.record.clone());
            match refusal(state, job, step, open.tx) {
                Some(Keeping::OutOfOrder)
                    if before.as_ref().is_some_and(|before| before.kind == StepKind::Waiting) => {}
                Some(refused) => return Ok(refused),
                None => {}
            }
            let until = before.and_then(|before| before.until);
            let waiting = StepRecord { until: until.or(record(step, now).until), ..record(step, now) };
            let arrived = state.sent.iter().find(|((id, _), signal)| {
                *id == job.id && signal.name == step.name && signal.added_by.is_none_or(|by| by == open.tx)
            });
            if let Some((key, signal)) = arrived.map(|(key, signal)| (*key, signal.clone())) {
                let result = Some(signal.value);
                open.set_sent(state, key, None);
                keep(
                    state,
                    open,
                    job.id,
                    StepRecord { kind: StepKind::Signal, result: result.clone(), ..waiting },
                );
                return Ok(Keeping::Kept(result));
            }
            let remaining =
                waiting.until.map_or(Duration::ZERO, |until| (until - now).to_std().unwrap_or_default());
            let kind = if remaining.is_zero() { StepKind::Timeout } else { StepKind::Waiting };
            keep(state, open, job.id, StepRecord { kind, ..waiting });
            Ok(if remaining.is_zero() { Keeping::Kept(None) } else { Keeping::Waits(remaining) })
        })
    }

    fn forget_steps(&self, conn: &mut MemoryConn, job: &JobRecord, position: u32) -> Result<u64, Error> {
        conn.operate(|state, open| Ok(forget_from(state, open, job.id, position)))
    }

    fn signal(&self, conn: &mut MemoryConn, job: JobId, name: &str, value: &Payload) -> Result<bool, Error> {
        conn.operate(|state, open| {
            if !state.rows.get(&job).is_some_and(|row| row.seen_by(open.tx) && !row.ended) {
                return Ok(false);
            }
            let key = (job, state.next_tx());
            let signal = Signal { name: name.to_owned(), value: value.clone(), added_by: Some(open.tx) };
            open.set_sent(state, key, Some(signal));
            Ok(true)
        })
    }

    fn signals(
        &self,
        conn: &mut MemoryConn,
        job: &JobRecord,
        count: usize,
    ) -> Result<Vec<SentSignal>, Error> {
        conn.operate(|state, open| {
            let of_job = state.sent.iter().filter(|((id, _), _)| *id == job.id);
            let seen = of_job.filter(|(_, signal)| signal.added_by.is_none_or(|by| by == open.tx));
            let signals =
                seen.map(|(_, signal)| SentSignal { name: signal.name.clone(), value: signal.value.clone() });
            Ok(signals.take(count).collect())
        })
    }
}

fn of_job(state: &State, job: JobId) -> impl Iterator<Item = &Step> {
    state.steps.range((job, 0)..=(job, u32::MAX)).map(|(_, step)| step)
}

/// Returns why a step of this claim cannot be kept.
fn refusal(state: &State, job: &Claim, step: &NewStep<'_>, tx: Tx) -> Option<Keeping> {
    let is_kept = |position| {
        state.steps.get(&(job.id, position)).is_some_and(|step| step.added_by.is_none_or(|by| by == tx))
    };
    if job.lease().is_none() || settle::held(state, job, tx).is_none() {
        return Some(Keeping::LeaseLost);
    }
    let follows = step.position == 0 || is_kept(step.position - 1);
    (!follows || state.steps.contains_key(&(job.id, step.position))).then_some(Keeping::OutOfOrder)
}

fn record(step: &NewStep<'_>, now: DateTime<Utc>) -> StepRecord {
    StepRecord {
        position: step.position,
        kind: step.kind,
        name: step.name.to_owned(),
        index: 0,
        at: now,
        until: step.after.map(|after| take::after(now, after)),
        result: step.result.clone(),
    }
}

fn keep(state: &mut State, open: &mut Open, job: JobId, record: StepRecord) {
    let key = (job, record.position);
    open.set_step(state, key, Some(Step { record, added_by: Some(open.tx) }));
}

fn forget_from(state: &mut State, open: &mut Open, job: JobId, position: u32) -> u64 {
    let forgotten: Vec<u32> =
        of_job(state, job).map(|step| step.record.position).filter(|kept| *kept >= position).collect();
    for position in &forgotten {
        open.set_step(state, (job, *position), None);
    }
    forgotten.len() as u64
}

/// Deletes the steps of a job and its signals.
pub(super) fn forget(state: &mut State, open: &mut Open, job: JobId) {
    forget_from(state, open, job, 0);
    for key in state.sent.keys().filter(|key| key.0 == job).copied().collect::<Vec<_>>() {
        open.set_sent(state, key, None);
    }
}

/// Deletes the steps and the signals of jobs that neither wait nor run nor can be requeued.
pub(super) fn forget_ended(state: &mut State, open: &mut Open) {
    let jobs: BTreeSet<JobId> =
        state.steps.keys().map(|key| key.0).chain(state.sent.keys().map(|key| key.0)).collect();
    let can_return = |archived: &Archived| archived.job.state != JobState::Done;
    for job in jobs {
        if !state.rows.contains_key(&job) && !state.archive.get(&job).is_some_and(can_return) {
            forget(state, open, job);
        }
    }
}

/// Makes a job due that waits for a signal which was sent, and returns its queue to notify.
pub(super) fn wake(state: &mut State, job: JobId) -> Option<QueueName> {
    let awaited: BTreeSet<&str> = of_job(state, job)
        .filter(|step| step.record.kind == StepKind::Waiting && step.added_by.is_none())
        .map(|step| step.record.name.as_str())
        .collect();
    let has_come = state.sent.iter().any(|((id, _), signal)| {
        *id == job && signal.added_by.is_none() && awaited.contains(signal.name.as_str())
    });
    let row = state.rows.get_mut(&job)?;
    if !has_come || row.is_running() || row.job.schedule_at.is_none() {
        return None;
    }
    row.job.schedule_at = None;
    Some(row.job.queue.clone())
}
