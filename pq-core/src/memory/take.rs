//! Finding the ready jobs of a queue.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::limits::{Admission, Gate};
use super::state::{Row, State, Tx};
use super::transaction::Open;
use super::turns::{InTurn, Turn, TurnKey};
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
    let (rows, turns) = ready(state, queue, count, open.tx, now, gate.as_mut());
    let (limited, wait) = (gate.is_some(), gate.as_ref().and_then(|gate| gate.wait));
    let next_due = next_due(state, queue, open.tx, now).into_iter().chain(wait).min();
    if let Some(spent) = gate.map(Gate::spent).filter(|_| !rows.is_empty()) {
        open.spend(state, spent);
    }
    for (key, turn) in turns {
        open.set_turn(state, key, turn);
    }
    Ready { rows, limited, next_due }
}

/// Returns the first `count` jobs that the transaction can take, in the order of the queue or of the turns of its
/// groups, up to the one with which their payloads reach [`MAX_TAKE_BYTES`], and the turns that have changed.
///
/// Of the jobs that share a serialization key only the first is ready, and none while the key is busy. Of those of a
/// limited queue, each needs a place and tokens, which `gate` counts.
fn ready(
    state: &State,
    queue: &QueueName,
    count: usize,
    tx: Tx,
    now: DateTime<Utc>,
    mut gate: Option<&mut Gate<'_>>,
) -> (Vec<Row>, Vec<(TurnKey, Turn)>) {
    if state.paused.contains_key(queue) {
        return Default::default();
    }
    let mut admit = |row: &Row| match &mut gate {
        Some(gate) => gate.admit(row),
        None => Admission::Taken,
    };
    let (mut busy, keeping) = (state.busy_keys(queue, tx), state.keeping_keys(queue, tx));
    let mut due: Vec<&Row> = state
        .rows
        .values()
        .filter(|row| row.job.queue == *queue && row.free_for(tx) && row.is_due(now))
        .collect();
    due.sort_by_key(|row| row.sort_key());
    let ready = due.into_iter().filter(|row| {
        let key = row.job.serialization_key.clone();
        key.is_none_or(|key| keeping.get(&key).is_none_or(|keeper| *keeper == row.job.id) && busy.insert(key))
    });
    let mut bytes = 0;
    let mut rows = Vec::new();
    let mut in_turn = InTurn::new(state, queue, ready);
    while rows.len() < count
        && bytes < MAX_TAKE_BYTES
        && let Some((level, row)) = in_turn.next()
    {
        match admit(row) {
            Admission::Taken => in_turn.take(level),
            Admission::Passed => {
                in_turn.pass(level);
                continue;
            }
            Admission::Ended => break,
        }
        bytes += row.job.payload.as_str().len();
        rows.push(row.clone());
    }
    (rows, in_turn.changed(queue))
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
