//! A connection and the transaction that it is in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::state::{Kept, Periodic, Row, Shared, State, Tx};
use crate::{JobId, QueueName};

/// A connection to a [`super::MemoryStore`]. One that is dropped inside a transaction rolls it back.
#[derive(Debug)]
pub struct MemoryConn {
    shared: Arc<Shared>,
    open: Option<Open>,
}

/// A transaction under way.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) tx: Tx,
    /// How to undo each change, oldest first. A nested transaction is a mark in this list.
    undo: Vec<Undo>,
}

/// What was there before a change; none where there was nothing.
#[derive(Debug)]
enum Undo {
    Row(JobId, Option<Row>),
    Kept(JobId, Option<Kept>),
    Paused(QueueName, Option<DateTime<Utc>>),
    Cron(String, Option<Periodic>),
}

impl Open {
    fn new(tx: Tx) -> Self {
        Self { tx, undo: Vec::new() }
    }

    /// Changes a row so that it can be undone.
    pub(super) fn set(&mut self, state: &mut State, id: JobId, row: Row) {
        let before = state.rows.insert(id, row);
        self.undo.push(Undo::Row(id, before));
    }

    /// Changes what the archive keeps so that it can be undone.
    pub(super) fn keep(&mut self, state: &mut State, id: JobId, kept: Kept) {
        let before = state.archive.insert(id, kept);
        self.undo.push(Undo::Kept(id, before));
    }

    /// Pauses a queue since then, or has it go on, so that it can be undone.
    pub(super) fn pause(&mut self, state: &mut State, queue: &QueueName, since: Option<DateTime<Utc>>) {
        let before = set(&mut state.paused, queue.clone(), since);
        self.undo.push(Undo::Paused(queue.clone(), before));
    }

    /// Changes a periodic job so that it can be undone.
    pub(super) fn set_cron(&mut self, state: &mut State, name: &str, periodic: Option<Periodic>) {
        let before = set(&mut state.crons, name.to_owned(), periodic);
        self.undo.push(Undo::Cron(name.to_owned(), before));
    }

    fn roll_back_to(&mut self, state: &mut State, mark: usize) {
        for undo in self.undo.drain(mark..).rev() {
            match undo {
                Undo::Row(id, row) => drop(set(&mut state.rows, id, row)),
                Undo::Kept(id, kept) => drop(set(&mut state.archive, id, kept)),
                Undo::Paused(queue, since) => drop(set(&mut state.paused, queue, since)),
                Undo::Cron(name, periodic) => drop(set(&mut state.crons, name, periodic)),
            }
        }
    }

    fn commit(self, state: &mut State) {
        let mut rung = BTreeSet::<QueueName>::new();
        for undo in self.undo {
            match undo {
                Undo::Row(id, before) => rung.extend(settle_row(state, id, before.as_ref(), self.tx)),
                Undo::Kept(id, _) => {
                    let Some(kept) = state.archive.get_mut(&id) else { continue };
                    if kept.removed_by == Some(self.tx) {
                        state.archive.remove(&id);
                    } else if kept.added_by == Some(self.tx) {
                        kept.added_by = None;
                    }
                }
                Undo::Paused(queue, _) => rung.extend((!state.paused.contains_key(&queue)).then_some(queue)),
                Undo::Cron(name, _) => {
                    if let Some(periodic) = state.crons.get_mut(&name) {
                        periodic.held_by = None;
                    }
                }
            }
        }
        for queue in &rung {
            state.ring(queue);
        }
    }
}

/// Puts a value in its place, or takes it away, and gives what was there.
fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

/// Makes a row what its committed transaction left, and gives the queue whose waiters should look:
/// where a job came, or where one of a serialization key went.
fn settle_row(state: &mut State, id: JobId, before: Option<&Row>, tx: Tx) -> Option<QueueName> {
    let row = state.rows.get_mut(&id)?;
    let frees = row.serialization_key.is_some().then(|| row.queue.clone());
    if row.held_by == Some(tx) {
        state.rows.remove(&id);
        return frees;
    }
    let was_leased = before.is_some_and(|before| before.lease.is_some());
    if row.added_by == Some(tx) || row.returned_by == Some(tx) || (was_leased && row.lease.is_none()) {
        (row.added_by, row.returned_by) = (None, None);
        return Some(row.queue.clone());
    }
    None
}

impl MemoryConn {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: None }
    }

    /// Runs one operation in the transaction under way, or in one of its own.
    pub(super) fn operate<R, E>(
        &mut self,
        operation: impl FnOnce(&mut State, &mut Open) -> Result<R, E>,
    ) -> Result<R, E> {
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

    /// Begins a transaction, or a nested one, and returns the mark to go back to.
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

    /// How many changes the transaction has made that can be undone.
    pub(super) fn changes(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.undo.len())
    }

    pub(super) fn commit(&mut self, mark: Mark) {
        // A nested one is committed by what is around it.
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

/// Where a transaction began.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    Outermost,
    Nested(usize),
}
