//! What the store holds, and who sees which of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use chrono::{DateTime, Utc};

use crate::{
    Claim, CronEntry, Ended, EndedAs, Heartbeat, Held, JobId, Key, Payload, QueueName, RawJob, StopMode,
    WakeSignal, WorkerId,
};

/// A transaction's number.
pub(super) type Tx = i64;

/// A job's row, as the newest transaction that touched it left it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) queue: QueueName,
    pub(super) payload: Payload,
    pub(super) enqueued_at: DateTime<Utc>,
    pub(super) schedule_at: Option<DateTime<Utc>>,
    pub(super) expected_at: Option<DateTime<Utc>>,
    pub(super) priority: i32,
    pub(super) attempt: i32,
    pub(super) serialization_key: Option<Key>,
    pub(super) unique_key: Option<Key>,
    /// Why the last attempt failed.
    pub(super) error: Option<String>,
    /// The lease that the job is held under.
    pub(super) lease: Option<Lease>,
    /// The transaction that put the row, until it commits: nobody else sees it.
    pub(super) added_by: Option<Tx>,
    /// The transaction that took the row and gave it back, until it commits: others still see the row
    /// as it was, but pass it over.
    pub(super) returned_by: Option<Tx>,
    /// The transaction that has deleted the row, until it commits: others see it, but pass it over.
    pub(super) held_by: Option<Tx>,
    /// The token of the take by which it did, if it took the row.
    pub(super) take: i64,
    /// Whether that has cleared the row or passed a last verdict on it, and not only taken it.
    pub(super) ended: bool,
}

/// A lease, as each of its jobs knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) token: i64,
    pub(super) until: DateTime<Utc>,
    /// Whether somebody wants the job cancelled.
    pub(super) cancel: bool,
}

impl Row {
    pub(super) fn seen_by(&self, tx: Tx) -> bool {
        self.added_by.is_none_or(|adder| adder == tx) && self.held_by != Some(tx)
    }

    /// Whether the transaction may take the row, as far as locks go.
    pub(super) fn free_for(&self, tx: Tx) -> bool {
        self.seen_by(tx)
            && self.lease.is_none()
            && self.held_by.is_none()
            && self.returned_by.is_none_or(|by| by == tx)
    }

    /// Whether the row keeps others of its serialization key from being taken by the transaction.
    pub(super) fn occupies_key_for(&self, tx: Tx) -> bool {
        self.lease.is_some()
            || self.held_by.is_some_and(|by| by != tx || !self.ended)
            || self.returned_by.is_some_and(|by| by != tx)
    }

    /// The row's place in the line.
    pub(super) fn place(&self, id: JobId) -> (Reverse<i32>, bool, Option<DateTime<Utc>>, JobId) {
        (Reverse(self.priority), self.expected_at.is_none(), self.expected_at, id)
    }

    pub(super) fn due(&self, now: DateTime<Utc>) -> bool {
        self.schedule_at.is_none_or(|at| at <= now)
    }

    pub(super) fn taken(&self, id: JobId, token: i64, held: Held) -> RawJob {
        RawJob {
            id,
            queue: self.queue.clone(),
            payload: self.payload.clone(),
            enqueued_at: self.enqueued_at,
            schedule_at: self.schedule_at,
            expected_at: self.expected_at,
            priority: self.priority,
            attempt: self.attempt + 1,
            serialization_key: self.serialization_key.clone(),
            unique_key: self.unique_key.clone(),
            claim: Claim { id, token, held },
        }
    }
}

/// A job in the archive.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) job: Ended,
    /// The transaction that added it, until it commits.
    pub(super) added_by: Option<Tx>,
    /// The transaction that removed it, until it commits.
    pub(super) removed_by: Option<Tx>,
}

impl Kept {
    pub(super) fn seen_by(&self, tx: Tx) -> bool {
        self.added_by.is_none_or(|adder| adder == tx) && self.removed_by != Some(tx)
    }

    pub(super) fn is(&self, queue: &QueueName, ended: EndedAs) -> bool {
        self.job.queue == *queue && self.job.ended_as == ended
    }
}

/// A worker that has told of itself.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) beat: Heartbeat,
    pub(super) started_at: DateTime<Utc>,
    pub(super) beat_at: DateTime<Utc>,
    pub(super) stop: Option<StopMode>,
}

/// A periodic job.
#[derive(Clone, Debug)]
pub(super) struct Periodic {
    pub(super) entry: CronEntry,
    /// The transaction that fires it, until that ends.
    pub(super) held_by: Option<Tx>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) rows: BTreeMap<JobId, Row>,
    pub(super) archive: BTreeMap<JobId, Kept>,
    pub(super) paused: BTreeMap<QueueName, DateTime<Utc>>,
    pub(super) crons: BTreeMap<String, Periodic>,
    pub(super) workers: BTreeMap<WorkerId, Known>,
    pub(super) signals: HashMap<QueueName, Vec<Weak<WakeSignal>>>,
    last_id: i64,
    last_tx: Tx,
}

impl State {
    pub(super) fn next_id(&mut self) -> JobId {
        self.last_id += 1;
        JobId(self.last_id)
    }

    /// The next number of a transaction or a lease.
    pub(super) fn next_tx(&mut self) -> Tx {
        self.last_tx += 1;
        self.last_tx
    }

    /// The keys of the queue whose jobs the transaction cannot take now.
    pub(super) fn busy_keys(&self, queue: &QueueName, tx: Tx) -> BTreeSet<Key> {
        self.rows
            .values()
            .filter(|row| row.queue == *queue && row.occupies_key_for(tx))
            .filter_map(|row| row.serialization_key.clone())
            .collect()
    }

    /// The job that has the unique key, if one waits or runs.
    pub(super) fn holder(&self, queue: &QueueName, key: &Key, tx: Tx) -> Option<JobId> {
        let of_key = |row: &Row| row.queue == *queue && row.unique_key.as_ref() == Some(key);
        self.rows.iter().find(|(_, row)| of_key(row) && row.held_by != Some(tx)).map(|(id, _)| *id)
    }

    pub(super) fn ring(&mut self, queue: &QueueName) {
        let Some(signals) = self.signals.get_mut(queue) else { return };
        signals.retain(|signal| signal.upgrade().inspect(|signal| signal.notify()).is_some());
        if signals.is_empty() {
            self.signals.remove(queue);
        }
    }
}

/// The state that all connections of a store share.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<State>);

impl Shared {
    /// No invariant spans a panic under the lock, so a poisoned one is as good as new.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a signal off its queue again.
#[derive(Debug)]
pub struct Subscription {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: QueueName,
    pub(super) signal: Weak<WakeSignal>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(signals) = state.signals.get_mut(&self.queue) {
            signals.retain(|signal| !signal.ptr_eq(&self.signal));
        }
    }
}
