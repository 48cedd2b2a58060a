//! Finding the ready jobs of a queue.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::limits::{Admission, Gate};
use super::state::{Row, State, Tx};
use super::transaction::Open;
use crate::QueueName;
use crate::store::MAX_TAKE_BYTES;

/// The jobs that a take gets.
pub(super) struct Ready {
    pub(super) rows: Vec<Row>,
    /// Whether the queue is limited.
    pub(super) limited: bool,
    /// Without jobs: the time until the next job may be taken.
    pub(super) next_due: Option<Duration>,
}

/// Finds the jobs of a take as [`ready`] does, and takes their tokens.
pub(super) fn take(
    state: &mut State,
    open: &mut Open,
    queue: &QueueName,
    count: usize,
    now: DateTime<Utc>,
) -> Ready {
    let mut gate = Gate::new(state, queue, open.tx, now);
    let rows = ready(state, queue, count, open.tx, now, gate.as_mut());
    let (limited, wait) = (gate.is_some(), gate.as_ref().and_then(|gate| gate.wait));
    let next_due = next_due(state, queue, open.tx, now).into_iter().chain(wait).min();
    if let Some(spent) = gate.map(Gate::spent).filter(|_| !rows.is_empty()) {
        open.spend(state, spent);
    }
    Ready { rows, limited, next_due }
}

/// Returns the first `count` jobs that the transaction can take, in the order of the queue, up to the one with which
/// their payloads reach [`MAX_TAKE_BYTES`].
///
/// Of the jobs that share a serialization key only the first is ready, and none while the key is busy. Of those of a limited
/// queue, each needs a place and tokens, which `gate` counts.
fn ready(
    state: &State,
    queue: &QueueName,
    count: usize,
    tx: Tx,
    now: DateTime<Utc>,
    mut gate: Option<&mut Gate<'_>>,
) -> Vec<Row> {
    if state.paused.contains_key(queue) {
        return Vec::new();
    }
    let mut admit = |row: &Row| match &mut gate {
        Some(gate) => gate.admit(row),
        None => Admission::Taken,
    };
    let mut busy = state.busy_keys(queue, tx);
    let mut due: Vec<&Row> = state
        .rows
        .values()
        .filter(|row| row.job.queue == *queue && row.free_for(tx) && row.is_due(now))
        .collect();
    due.sort_by_key(|row| row.sort_key());
    let ready = due.into_iter().filter(|row| {
        let key = row.job.serialization_key.clone();
        key.is_none_or(|key| busy.insert(key))
    });
    let mut bytes = 0;
    let mut rows = Vec::new();
    for row in ready {
        if rows.len() == count || bytes >= MAX_TAKE_BYTES {
            break;
        }
        match admit(row) {
            Admission::Taken => {}
            Admission::Passed => continue,
            Admission::Ended => break,
        }
        bytes += row.job.payload.as_str().len();
        rows.push(row.clone());
    }
    rows
}

/// Returns how long it takes until the next scheduled job of the queue is due.
///
/// Jobs that others hold count as well, because they may be returned.
fn next_due(state: &State, queue: &QueueName, tx: Tx, now: DateTime<Utc>) -> Option<Duration> {
    state
        .rows
        .values()
        .filter(|row| row.job.queue == *queue && row.seen_by(tx) && row.lease.is_none())
        .filter_map(|row| row.job.schedule_at)
        .filter(|at| *at > now)
        .min()
        .map(|at| (at - now).to_std().unwrap_or(Duration::ZERO))
}

/// Returns the instant `span` after `now`, or the last that chrono can represent.
pub(super) fn after(now: DateTime<Utc>, span: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(span)
        .ok()
        .and_then(|span| now.checked_add_signed(span))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Returns the instant `span` before `now`, or the first that chrono can represent.
pub(super) fn before(now: DateTime<Utc>, span: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(span)
        .ok()
        .and_then(|span| now.checked_sub_signed(span))
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}
