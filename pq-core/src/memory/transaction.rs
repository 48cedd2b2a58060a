//! A connection and the transaction that it is in.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::state::{Row, Shared, State, Tx};
use crate::{Dead, JobId, QueueName};

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
    /// The dead jobs that the commit will add.
    buried: Vec<Dead>,
}

#[derive(Debug)]
enum Undo {
    /// The row as it was before; none where there was none.
    Row(JobId, Option<Row>),
    Buried,
}

impl Open {
    /// Changes a row so that it can be undone.
    pub(super) fn set(&mut self, state: &mut State, id: JobId, row: Row) {
        let before = state.rows.insert(id, row);
        self.undo.push(Undo::Row(id, before));
    }

    pub(super) fn bury(&mut self, dead: Dead) {
        self.buried.push(dead);
        self.undo.push(Undo::Buried);
    }

    pub(super) fn buried(&self) -> &[Dead] {
        &self.buried
    }

    fn roll_back_to(&mut self, state: &mut State, mark: usize) {
        for undo in self.undo.drain(mark..).rev() {
            match undo {
                Undo::Row(id, Some(row)) => drop(state.rows.insert(id, row)),
                Undo::Row(id, None) => drop(state.rows.remove(&id)),
                Undo::Buried => drop(self.buried.pop()),
            }
        }
    }

    fn commit(self, state: &mut State) {
        let touched: BTreeSet<JobId> = self
            .undo
            .iter()
            .filter_map(|undo| match undo {
                Undo::Row(id, _) => Some(*id),
                Undo::Buried => None,
            })
            .collect();
        let mut added_to = BTreeSet::<QueueName>::new();
        for id in touched {
            let Some(row) = state.rows.get_mut(&id) else { continue };
            if row.held_by == Some(self.tx) {
                state.rows.remove(&id);
            } else if row.added_by == Some(self.tx) || row.returned_by == Some(self.tx) {
                (row.added_by, row.returned_by) = (None, None);
                added_to.insert(row.queue.clone());
            }
        }
        state.dead.extend(self.buried);
        for queue in &added_to {
            state.ring(queue);
        }
    }
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
        let mut open = Open { tx: state.next_tx(), undo: Vec::new(), buried: Vec::new() };
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
            Some(open) => Mark::Nested(open.undo.len()),
            None => {
                let tx = self.shared.lock().next_tx();
                self.open = Some(Open { tx, undo: Vec::new(), buried: Vec::new() });
                Mark::Outermost
            }
        }
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
