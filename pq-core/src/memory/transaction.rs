//! A connection and the transaction that it is in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::limits::{Bucket, BucketKey};
use super::notes::Kept;
use super::state::{Archived, Paused, Periodic, Row, Shared, Signal, State, Step, Subscribed, Tx, Wait};
use super::steps;
use super::turns::{Turn, TurnKey};
use crate::{AuditEntry, JobId, Limits, QueueName, TaskCounters};

/// A connection to a [`super::MemoryStore`]. One that is dropped inside a transaction rolls it back.
#[derive(Debug)]
pub struct MemoryConn {
    shared: Arc<Shared>,
    open: Option<Open>,
    /// The number of operations on this connection.
    operations: u64,
}

/// An open transaction.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) tx: Tx,
    /// How to undo each change, the oldest first. A nested transaction is a position in this list.
    undo: Vec<Undo>,
}

/// The value before a change, or `None` if there was none.
#[derive(Debug)]
enum Undo {
    Row(JobId, Option<Row>),
    Archived(JobId, Option<Archived>),
    Paused(QueueName, Option<Paused>),
    Limits(QueueName, Option<Limits>),
    Bucket(BucketKey, Option<Bucket>),
    Turn(TurnKey, Option<Turn>),
    Cron(String, Option<Periodic>),
    /// What the commit adds to the counters.
    Counted(TaskCounters),
    Audit(i64, Option<AuditEntry>),
    Notes(JobId, Option<Kept>),
    Wait((JobId, JobId), Option<Wait>),
    Step((JobId, u32), Option<Step>),
    Sent((JobId, Tx), Option<Signal>),
}

impl Open {
    fn new(tx: Tx) -> Self {
        Self { tx, undo: Vec::new() }
    }

    /// Adds or replaces a row.
    pub(super) fn set(&mut self, state: &mut State, row: Row) {
        let id = row.job.id;
        let before = state.rows.insert(id, row);
        self.undo.push(Undo::Row(id, before));
    }

    /// Adds or replaces an archived job.
    pub(super) fn set_archived(&mut self, state: &mut State, archived: Archived) {
        let id = archived.job.id;
        let before = state.archive.insert(id, archived);
        self.undo.push(Undo::Archived(id, before));
    }

    /// Pauses or resumes a queue.
    pub(super) fn set_paused(&mut self, state: &mut State, queue: &QueueName, paused: Option<Paused>) {
        let before = set(&mut state.paused, queue.clone(), paused);
        self.undo.push(Undo::Paused(queue.clone(), before));
    }

    /// Replaces or removes the limits of a queue.
    pub(super) fn set_limits(&mut self, state: &mut State, queue: &QueueName, limits: Option<Limits>) {
        let before = set(&mut state.limits, queue.clone(), limits);
        self.undo.push(Undo::Limits(queue.clone(), before));
    }

    /// Replaces the tokens of a queue or of a group.
    pub(super) fn set_bucket(&mut self, state: &mut State, key: BucketKey, bucket: Bucket) {
        let before = state.buckets.insert(key.clone(), bucket);
        self.undo.push(Undo::Bucket(key, before));
    }

    /// Replaces whose turn it was last.
    pub(super) fn set_turn(&mut self, state: &mut State, key: TurnKey, turn: Turn) {
        let before = state.turns.insert(key.clone(), turn);
        self.undo.push(Undo::Turn(key, before));
    }

    /// Adds, replaces or removes a periodic job.
    pub(super) fn set_cron(&mut self, state: &mut State, name: &str, periodic: Option<Periodic>) {
        let before = set(&mut state.crons, name.to_owned(), periodic);
        self.undo.push(Undo::Cron(name.to_owned(), before));
    }

    /// Adds to the counters when the transaction commits.
    pub(super) fn count(&mut self, counted: TaskCounters) {
        self.undo.push(Undo::Counted(counted));
    }

    /// Adds, changes or removes an entry of the audit log.
    pub(super) fn set_audit(&mut self, state: &mut State, id: i64, entry: Option<AuditEntry>) {
        let before = set(&mut state.audit, id, entry);
        self.undo.push(Undo::Audit(id, before));
    }

    /// Changes or removes the notes of a job.
    pub(super) fn set_notes(&mut self, state: &mut State, job: JobId, kept: Option<Kept>) {
        let before = set(&mut state.notes, job, kept);
        self.undo.push(Undo::Notes(job, before));
    }

    /// Adds, changes or removes what a follow-up waits for.
    pub(super) fn set_wait(&mut self, state: &mut State, follow_up: JobId, job: JobId, wait: Option<Wait>) {
        let before = set(&mut state.waits, (follow_up, job), wait);
        self.undo.push(Undo::Wait((follow_up, job), before));
    }

    /// Adds, changes or removes a step of a job.
    pub(super) fn set_step(&mut self, state: &mut State, key: (JobId, u32), step: Option<Step>) {
        let before = set(&mut state.steps, key, step);
        self.undo.push(Undo::Step(key, before));
    }

    /// Adds or removes a signal for a job.
    pub(super) fn set_sent(&mut self, state: &mut State, key: (JobId, Tx), signal: Option<Signal>) {
        let before = set(&mut state.sent, key, signal);
        self.undo.push(Undo::Sent(key, before));
    }

    fn roll_back_to(&mut self, state: &mut State, mark: usize) {
        for undo in self.undo.drain(mark..).rev() {
            match undo {
                Undo::Row(id, row) => {
                    let row = row.map(|row| Row { rolled_back: true, ..row });
                    drop(set(&mut state.rows, id, row));
                }
                Undo::Archived(id, archived) => drop(set(&mut state.archive, id, archived)),
                Undo::Paused(queue, paused) => drop(set(&mut state.paused, queue, paused)),
                Undo::Limits(queue, limits) => drop(set(&mut state.limits, queue, limits)),
                Undo::Bucket(key, bucket) => drop(set(&mut state.buckets, key, bucket)),
                Undo::Turn(key, turn) => drop(set(&mut state.turns, key, turn)),
                Undo::Cron(name, periodic) => drop(set(&mut state.crons, name, periodic)),
                Undo::Counted(_) => {}
                Undo::Audit(id, entry) => drop(set(&mut state.audit, id, entry)),
                Undo::Notes(job, kept) => drop(set(&mut state.notes, job, kept)),
                Undo::Wait(key, wait) => drop(set(&mut state.waits, key, wait)),
                Undo::Step(key, step) => drop(set(&mut state.steps, key, step)),
                Undo::Sent(key, signal) => drop(set(&mut state.sent, key, signal)),
            }
        }
    }

    fn commit(self, state: &mut State) {
        let (mut notified, mut signalled) = (BTreeSet::<Subscribed>::new(), BTreeSet::<JobId>::new());
        for undo in self.undo {
            match undo {
                Undo::Row(id, before) => {
                    let queue = commit_row(state, id, before.as_ref(), self.tx);
                    notified.extend(queue.map(Subscribed::Queue));
                }
                Undo::Archived(id, _) => {
                    let Some(archived) = state.archive.get_mut(&id) else { continue };
                    if archived.removed_by == Some(self.tx) {
                        state.archive.remove(&id);
                    } else if archived.added_by == Some(self.tx) {
                        archived.added_by = None;
                        let is_awaited = archived.job.annotations.is_awaited();
                        notified.extend(is_awaited.then_some(Subscribed::End(id)));
                    }
                }
                Undo::Paused(queue, _) => {
                    let is_resumed = !state.paused.contains_key(&queue);
                    notified.extend(is_resumed.then_some(Subscribed::Queue(queue)));
                }
                Undo::Limits(queue, _) => drop(notified.insert(Subscribed::Queue(queue))),
                Undo::Bucket(key, _) => {
                    if let Some(bucket) = state.buckets.get_mut(&key) {
                        bucket.held_by = None;
                    }
                    notified.insert(Subscribed::Queue(key.0));
                }
                Undo::Counted(counted) => state.counters.push(counted),
                Undo::Cron(name, _) => {
                    if let Some(periodic) = state.crons.get_mut(&name) {
                        periodic.held_by = None;
                    }
                }
                Undo::Audit(..) | Undo::Notes(..) | Undo::Turn(..) => {}
                Undo::Wait(key, _) => {
                    if let Some(wait) = state.waits.get_mut(&key) {
                        wait.added_by = None;
                    }
                }
                Undo::Step(key, _) => {
                    if let Some(step) = state.steps.get_mut(&key) {
                        step.added_by = None;
                    }
                    signalled.insert(key.0);
                }
                Undo::Sent(key, _) => {
                    if let Some(signal) = state.sent.get_mut(&key) {
                        signal.added_by = None;
                    }
                    signalled.insert(key.0);
                }
            }
        }
        let woken = signalled.into_iter().filter_map(|job| steps::wake(state, job));
        notified.extend(woken.map(Subscribed::Queue));
        for subscribed in &notified {
            state.notify(subscribed);
        }
    }
}

/// Sets or removes a value and returns the one before.
fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

/// Commits a row, and returns the queue to notify: if a job was added to it, or its serialization key or
/// its place was released.
fn commit_row(state: &mut State, id: JobId, before: Option<&Row>, tx: Tx) -> Option<QueueName> {
    let row = state.rows.get_mut(&id)?;
    let queue = &row.job.queue;
    let is_awaited = row.job.serialization_key.is_some() || state.limits.contains_key(queue);
    let frees = is_awaited.then(|| queue.clone());
    if row.held_by == Some(tx) {
        state.rows.remove(&id);
        return frees;
    }
    let was_leased = before.is_some_and(|before| before.lease.is_some());
    if row.added_by == Some(tx) || row.returned_by == Some(tx) || (was_leased && row.lease.is_none()) {
        (row.added_by, row.returned_by, row.returned_from) = (None, None, None);
        return Some(row.job.queue.clone());
    }
    None
}

impl MemoryConn {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: None, operations: 0 }
    }

    /// Runs one operation in the open transaction, or in one of its own.
    pub(super) fn operate<R, E>(
        &mut self,
        operation: impl FnOnce(&mut State, &mut Open) -> Result<R, E>,
    ) -> Result<R, E> {
        self.operations += 1;
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        if let Some(open) = &mut self.open {
            return operation(&mut state, open);
        }
        let mut open = Open::new(state.next_tx());
        let done = operation(&mut state, &mut open);
        match &done {
            Ok(_) => open.commit(&mut state),
            Err(_) => open.roll_back_to(&mut state, 0),
        }
        done
    }

    /// Begins a transaction, or a nested one.
    pub(super) fn begin(&mut self) -> Mark {
        match &self.open {
            Some(_) => Mark::Nested(self.changes()),
            None => {
                let tx = self.shared.lock().next_tx();
                self.open = Some(Open::new(tx));
                Mark::Outermost
            }
        }
    }

    pub(super) fn is_in_transaction(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations
    }

    /// Returns how many changes the transaction has made.
    pub(super) fn changes(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.undo.len())
    }

    pub(super) fn commit(&mut self, mark: Mark) {
        // A nested transaction is committed by the outermost one.
        if let Mark::Outermost = mark
            && let Some(open) = self.open.take()
        {
            open.commit(&mut self.shared.lock());
        }
    }

    pub(super) fn roll_back(&mut self, mark: Mark) {
        let mut state = self.shared.lock();
        match mark {
            Mark::Outermost => {
                if let Some(mut open) = self.open.take() {
                    open.roll_back_to(&mut state, 0);
                }
            }
            Mark::Nested(length) => {
                if let Some(open) = &mut self.open {
                    open.roll_back_to(&mut state, length);
                }
            }
        }
    }
}

impl Drop for MemoryConn {
    fn drop(&mut self) {
        self.roll_back(Mark::Outermost);
    }
}

/// The start of a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    Outermost,
    Nested(usize),
}
