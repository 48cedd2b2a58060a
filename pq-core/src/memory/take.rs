//! The line: who is first in it, and when the next one falls due.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::state::{Row, State, Tx};
use crate::{JobId, QueueName, RawJob, Taken};

/// The first jobs that the transaction can take, in order: of those that share a serialization key
/// the first alone, and none while the key is taken.
pub(super) fn first(
    state: &State,
    queue: &QueueName,
    count: usize,
    tx: Tx,
    now: DateTime<Utc>,
) -> Vec<(JobId, Row)> {
    if state.paused.contains_key(queue) {
        return Vec::new();
    }
    let mut busy = state.busy_keys(queue, tx);
    let mut line: Vec<(&JobId, &Row)> =
        state.rows.iter().filter(|(_, row)| row.queue == *queue && row.seen_by(tx) && row.due(now)).collect();
    line.sort_by_key(|(id, row)| row.place(**id));
    let ready = line.into_iter().filter(|(_, row)| row.free_for(tx)).filter(|(_, row)| {
        let key = row.serialization_key.clone();
        key.is_none_or(|key| busy.insert(key))
    });
    ready.take(count).map(|(id, row)| (*id, row.clone())).collect()
}

/// What a take answers that found these jobs.
pub(super) fn taken(
    state: &State,
    queue: &QueueName,
    jobs: Vec<RawJob>,
    tx: Tx,
    now: DateTime<Utc>,
) -> Taken {
    // What others hold may come back, so it counts for when to look again.
    let next_due = state
        .rows
        .values()
        .filter(|row| row.queue == *queue && row.seen_by(tx) && row.lease.is_none())
        .filter_map(|row| row.schedule_at)
        .filter(|at| *at > now)
        .min();
    let next_due = next_due.filter(|_| jobs.is_empty());
    Taken { jobs, next_due: next_due.map(|at| (at - now).to_std().unwrap_or(Duration::ZERO)) }
}

/// The instant this long after another, or the last that there is.
pub(super) fn after(now: DateTime<Utc>, span: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(span)
        .ok()
        .and_then(|span| now.checked_add_signed(span))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The instant this long before another, or the first that there is.
pub(super) fn before(now: DateTime<Utc>, span: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(span)
        .ok()
        .and_then(|span| now.checked_sub_signed(span))
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}
