//! Finding the ready jobs of a queue.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::state::{Row, State, Tx};
use crate::QueueName;
use crate::store::MAX_TAKE_BYTES;

/// Returns the first `count` jobs that the transaction can take, in the order of the queue, up to the one with which
/// their payloads reach [`MAX_TAKE_BYTES`].
///
/// Of the jobs that share a serialization key only the first is ready, and none while the key is busy.
pub(super) fn ready(state: &State, queue: &QueueName, count: usize, tx: Tx, now: DateTime<Utc>) -> Vec<Row> {
    if state.paused.contains_key(queue) {
        return Vec::new();
    }
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
    let bounded = ready.take(count).take_while(|row| {
        let is_below = bytes < MAX_TAKE_BYTES;
        bytes += row.job.payload.as_str().len();
        is_below
    });
    bounded.cloned().collect()
}

/// Returns how long it takes until the next scheduled job of the queue is due.
///
/// Jobs that others hold count as well, because they may be returned.
pub(super) fn next_due(state: &State, queue: &QueueName, tx: Tx, now: DateTime<Utc>) -> Option<Duration> {
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
