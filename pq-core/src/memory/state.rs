//! The rows of the store, and which transaction sees which of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use chrono::{DateTime, Utc};

use super::limits::{Bucket, BucketKey};
use super::notes::Kept;
use super::turns::{Turn, TurnKey};
use crate::{
    AuditEntry, Claim, CronEntry, Heartbeat, Held, JobId, JobRecord, JobState, Key, Limits, Payload,
    QueueName, StepRecord, StopMode, TaskCounters, WakeSignal, WorkerId,
};

/// The id of a transaction.
pub(super) type Tx = i64;

/// A row of a live job, as the newest transaction that changed it left it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The job. Its `state` and `lease_until` are computed when it is listed.
    pub(super) job: JobRecord,
    /// The lease that the job is held under.
    pub(super) lease: Option<Lease>,
    /// The maximum number of jobs of the next lease with this one.
    pub(super) lease_limit: Option<u32>,
    /// Whether a transaction that had changed the row was rolled back.
    pub(super) rolled_back: bool,
    /// The transaction that put the row, until it commits. No other transaction sees the row.
    pub(super) added_by: Option<Tx>,
    /// The transaction that took or changed the row and returned it, until it commits. Other transactions still see
    /// the row, but skip it.
    pub(super) returned_by: Option<Tx>,
    /// The lease from which `returned_by` has returned the job.
    pub(super) returned_from: Option<Lease>,
    /// The transaction that deleted the row, until it commits. Other transactions still see the row, but skip it.
    pub(super) held_by: Option<Tx>,
    /// The token of the take by which `held_by` holds the row.
    pub(super) token: i64,
    /// Whether `held_by` has deleted the row for good, and does not merely hold it.
    pub(super) ended: bool,
}

/// The lease of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) token: i64,
    pub(super) until: DateTime<Utc>,
    /// The number of jobs that were taken under it.
    pub(super) size: u32,
    /// Whether the cancellation of the job was requested.
    pub(super) cancel_requested: bool,
}

impl Row {
    /// Creates the row of a job that this transaction puts.
    pub(super) fn added(job: JobRecord, tx: Tx) -> Self {
        Self {
            job,
            lease: None,
            lease_limit: None,
            rolled_back: false,
            added_by: Some(tx),
            returned_by: None,
            returned_from: None,
            held_by: None,
            token: 0,
            ended: false,
        }
    }

    /// Returns whether the transaction sees the row.
    pub(super) fn seen_by(&self, tx: Tx) -> bool {
        self.added_by.is_none_or(|adder| adder == tx) && self.held_by != Some(tx)
    }

    /// Returns whether nothing holds the row that would keep the transaction from taking it.
    pub(super) fn free_for(&self, tx: Tx) -> bool {
        self.seen_by(tx)
            && self.lease.is_none()
            && self.held_by.is_none()
            && self.returned_by.is_none_or(|by| by == tx)
    }

    /// Returns whether another transaction or a lease holds the row.
    pub(super) fn is_running(&self) -> bool {
        self.lease.is_some() || self.held_by.is_some()
    }

    /// Returns whether the row keeps the transaction from taking others of the same serialization key.
    pub(super) fn occupies_key_for(&self, tx: Tx) -> bool {
        self.lease.is_some()
            || self.held_by.is_some_and(|by| by != tx || !self.ended)
            || self.returned_by.is_some_and(|by| by != tx)
    }

    /// Returns whether the job waits for a retry and keeps its serialization key meanwhile.
    fn keeps_key(&self, tx: Tx) -> bool {
        let waits = self.seen_by(tx) && self.lease.is_none() && self.job.schedule_at.is_some();
        waits && self.job.attempt > 0 && self.job.annotations.is_strict()
    }

    /// Returns the key by which a queue is ordered.
    pub(super) fn sort_key(&self) -> (Reverse<i32>, bool, Option<DateTime<Utc>>, JobId) {
        let job = &self.job;
        (Reverse(job.priority), job.expected_at.is_none(), job.expected_at, job.id)
    }

    /// Returns whether the job is due.
    pub(super) fn is_due(&self, now: DateTime<Utc>) -> bool {
        self.job.schedule_at.is_none_or(|at| at <= now)
    }

    /// Returns the claim of a take of this row.
    pub(super) fn claim(&self, token: i64, held: Held, limited: bool) -> Claim {
        let record = JobRecord {
            state: JobState::Running,
            attempt: self.job.attempt + 1,
            error: None,
            result: None,
            ..self.job.clone()
        };
        Claim { record, token, held, lease_limit: self.lease_limit, limited }
    }
}

/// An archived job.
#[derive(Clone, Debug)]
pub(super) struct Archived {
    pub(super) job: JobRecord,
    /// The transaction that added it, until it commits.
    pub(super) added_by: Option<Tx>,
    /// The transaction that removed it, until it commits.
    pub(super) removed_by: Option<Tx>,
}

impl Archived {
    pub(super) fn seen_by(&self, tx: Tx) -> bool {
        self.added_by.is_none_or(|adder| adder == tx) && self.removed_by != Some(tx)
    }
}

/// A job for which a follow-up waits.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    pub(super) only_done: bool,
    pub(super) outcome: Option<JobState>,
    /// The transaction that added it, until it commits.
    pub(super) added_by: Option<Tx>,
}

/// The pause of a queue.
#[derive(Clone, Debug)]
pub(super) struct Paused {
    pub(super) at: DateTime<Utc>,
    pub(super) by: Option<String>,
}

/// What a signal is notified of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Subscribed {
    /// Puts into this queue.
    Queue(QueueName),
    /// The end of this job.
    End(JobId),
}

/// A registered worker.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub(super) heartbeat: Heartbeat,
    pub(super) started_at: DateTime<Utc>,
    pub(super) heartbeat_at: DateTime<Utc>,
    pub(super) stop: Option<StopMode>,
}

/// A periodic job.
#[derive(Clone, Debug)]
pub(super) struct Periodic {
    pub(super) entry: CronEntry,
    /// When it is tried again after a failure.
    pub(super) retry_at: Option<DateTime<Utc>>,
    /// The transaction that fires it, until that ends.
    pub(super) held_by: Option<Tx>,
}

/// A kept step of a job, at its position.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) record: StepRecord,
    /// The transaction that added it, until it commits. No other transaction sees it.
    pub(super) added_by: Option<Tx>,
}

/// A signal that has not been delivered.
#[derive(Clone, Debug)]
pub(super) struct Signal {
    pub(super) name: String,
    pub(super) value: Payload,
    /// The transaction that sent it, until it commits. No other transaction sees it.
    pub(super) added_by: Option<Tx>,
}

/// Everything that the store holds.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) rows: BTreeMap<JobId, Row>,
    pub(super) archive: BTreeMap<JobId, Archived>,
    pub(super) paused: BTreeMap<QueueName, Paused>,
    pub(super) limits: BTreeMap<QueueName, Limits>,
    /// The tokens of limited queues and their groups. A bucket that is absent is full.
    pub(super) buckets: BTreeMap<BucketKey, Bucket>,
    /// Whose turn it was last in fair queues.
    pub(super) turns: BTreeMap<TurnKey, Turn>,
    pub(super) crons: BTreeMap<String, Periodic>,
    pub(super) workers: BTreeMap<WorkerId, Registered>,
    /// What was counted, in no order. See [`TaskCounters::merge`].
    pub(super) counters: Vec<TaskCounters>,
    pub(super) audit: BTreeMap<i64, AuditEntry>,
    /// What follow-ups wait for, by the follow-up and the job.
    pub(super) waits: BTreeMap<(JobId, JobId), Wait>,
    /// The notes of jobs, some of which may be gone.
    pub(super) notes: BTreeMap<JobId, Kept>,
    pub(super) signals: HashMap<Subscribed, Vec<Weak<WakeSignal>>>,
    pub(super) steps: BTreeMap<(JobId, u32), Step>,
    /// Signals for jobs, in the order in which they were sent.
    pub(super) sent: BTreeMap<(JobId, Tx), Signal>,
    last_id: i64,
    last_tx: Tx,
}

impl State {
    pub(super) fn next_id(&mut self) -> JobId {
        self.last_id += 1;
        JobId(self.last_id)
    }

    /// Returns the next id of a transaction, a lease, a worker or a signal.
    pub(super) fn next_tx(&mut self) -> Tx {
        self.last_tx += 1;
        self.last_tx
    }

    /// Returns the serialization keys of the queue whose jobs the transaction cannot take now.
    pub(super) fn busy_keys(&self, queue: &QueueName, tx: Tx) -> BTreeSet<Key> {
        self.rows
            .values()
            .filter(|row| row.job.queue == *queue && row.occupies_key_for(tx))
            .filter_map(|row| row.job.serialization_key.clone())
            .collect()
    }

    /// Returns the jobs of a queue that keep their serialization keys while they wait for a retry, by key: the first
    /// of each.
    pub(super) fn keeping_keys(&self, queue: &QueueName, tx: Tx) -> BTreeMap<Key, JobId> {
        let mut keeping = BTreeMap::new();
        for row in self.rows.values().filter(|row| row.job.queue == *queue && row.keeps_key(tx)) {
            row.job.serialization_key.clone().map(|key| keeping.entry(key).or_insert(row.job.id));
        }
        keeping
    }

    /// Returns the job that owns the unique key, if one waits or runs: the newest that has it.
    pub(super) fn unique_job(&self, queue: &QueueName, key: &Key, tx: Tx) -> Option<JobId> {
        let has_key = |row: &&Row| row.job.queue == *queue && row.job.unique_key.as_ref() == Some(key);
        self.rows.values().rfind(|row| has_key(row) && row.held_by != Some(tx)).map(|row| row.job.id)
    }

    /// Notifies the signals that are subscribed to this.
    pub(super) fn notify(&mut self, subscribed: &Subscribed) {
        let Some(signals) = self.signals.get_mut(subscribed) else { return };
        signals.retain(|signal| signal.upgrade().inspect(|signal| signal.notify()).is_some());
        if signals.is_empty() {
            self.signals.remove(subscribed);
        }
    }
}

/// The state, shared by all connections of a store.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<State>);

impl Shared {
    /// Locks the state. A poisoned lock is used all the same, because no invariant spans a panic under it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a signal subscribed until it is dropped.
#[derive(Debug)]
pub struct Subscription {
    pub(super) shared: Arc<Shared>,
    pub(super) subscribed: Subscribed,
    pub(super) signal: Weak<WakeSignal>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(signals) = state.signals.get_mut(&self.subscribed) {
            signals.retain(|signal| !signal.ptr_eq(&self.signal));
            if signals.is_empty() {
                state.signals.remove(&self.subscribed);
            }
        }
    }
}
