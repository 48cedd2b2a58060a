//! The state of the view. It depends neither on a terminal nor on a server.

use std::time::Duration;

use pq_diesel::admin::WorkerId;
use pq_diesel::{JobId, QueueName};

use super::action::Action;
use super::poller::{Snapshot, Update};
use super::table::{self, Pane};
use crate::output;

/// Everything that the view draws.
pub(super) struct State {
    pub(super) snapshot: Snapshot,
    pub(super) pane: Pane,
    pub(super) queue: Selection<QueueName>,
    pub(super) worker: Selection<WorkerId>,
    pub(super) running: Selection<JobId>,
    pub(super) dead: Selection<JobId>,
    pub(super) question: Option<Question>,
    pub(super) help: bool,
    pub(super) note: Option<Note>,
    pub(super) lost: Option<Lost>,
    pub(super) colours: bool,
}

/// The selected row of a pane.
///
/// The selection follows its row when rows move. When the row disappears, the row at the same index is selected.
#[derive(Clone, Debug)]
pub(super) struct Selection<K> {
    key: Option<K>,
    index: usize,
}

impl<K: Clone + PartialEq> Selection<K> {
    fn on(key: Option<K>) -> Self {
        Self { key, index: 0 }
    }

    /// Finds the selected row among new rows.
    fn restore(&mut self, keys: &[K]) {
        let found = keys.iter().position(|key| Some(key) == self.key.as_ref());
        self.index = found.unwrap_or(self.index.min(keys.len().saturating_sub(1)));
        self.key = keys.get(self.index).cloned();
    }

    fn move_selection(&mut self, keys: &[K], by: isize) {
        let last = keys.len().saturating_sub(1);
        self.index = self.index.saturating_add_signed(by).min(last);
        self.key = keys.get(self.index).cloned();
    }

    /// Returns the index of the selected row.
    fn index(&self) -> Option<usize> {
        self.key.as_ref().map(|_| self.index)
    }
}

/// A question to confirm an action.
pub(super) struct Question {
    pub(super) text: String,
    pub(super) action: Action,
}

/// The result of the last key.
pub(super) struct Note {
    pub(super) text: String,
    pub(super) is_error: bool,
}

/// The error of the last poll, and the time until the next one.
pub(super) struct Lost {
    pub(super) reason: String,
    pub(super) again: Duration,
}

impl State {
    pub(super) fn new(snapshot: Snapshot, chosen: Option<QueueName>, colours: bool) -> Self {
        let mut state = Self {
            snapshot,
            pane: Pane::Queues,
            queue: Selection::on(chosen),
            worker: Selection::on(None),
            running: Selection::on(None),
            dead: Selection::on(None),
            question: None,
            help: false,
            note: None,
            lost: None,
            colours,
        };
        state.restore();
        state
    }

    /// Applies an update of the poller.
    pub(super) fn apply(&mut self, update: Update) {
        match update {
            Update::Snapshot(snapshot) => {
                self.snapshot = snapshot;
                self.lost = None;
            }
            Update::Dead(dead) => self.snapshot.dead = dead,
            Update::Lost(reason, again) => self.lost = Some(Lost { reason: output::escape(&reason), again }),
            Update::ActionDone(Ok(what)) => self.note(&what),
            Update::ActionDone(Err(reason)) => {
                self.note = Some(Note { text: output::escape(&reason), is_error: true });
            }
        }
        self.restore();
    }

    /// Returns the queue whose dead jobs are shown and that `p` pauses.
    pub(super) fn selected_queue(&self) -> Option<QueueName> {
        self.queue.key.clone()
    }

    /// Returns the index of the selected row in a pane.
    pub(super) fn selected_index(&self, pane: Pane) -> Option<usize> {
        match pane {
            Pane::Queues => self.queue.index(),
            Pane::Workers => self.worker.index(),
            Pane::Running => self.running.index(),
            Pane::Dead => self.dead.index(),
        }
    }

    /// Moves the selection up or down in the current pane.
    pub(super) fn move_selection(&mut self, by: isize) {
        match self.pane {
            Pane::Queues => self.queue.move_selection(&queues(&self.snapshot), by),
            Pane::Workers => self.worker.move_selection(&workers(&self.snapshot), by),
            Pane::Running => self.running.move_selection(&running(&self.snapshot), by),
            Pane::Dead => self.dead.move_selection(&dead(&self.snapshot), by),
        }
    }

    pub(super) fn note(&mut self, text: &str) {
        self.note = Some(Note { text: output::escape(text), is_error: false });
    }

    fn restore(&mut self) {
        self.queue.restore(&queues(&self.snapshot));
        self.worker.restore(&workers(&self.snapshot));
        self.running.restore(&running(&self.snapshot));
        self.dead.restore(&dead(&self.snapshot));
    }
}

fn queues(snapshot: &Snapshot) -> Vec<QueueName> {
    snapshot.queues.iter().map(|queue| queue.queue.clone()).collect()
}

fn workers(snapshot: &Snapshot) -> Vec<WorkerId> {
    snapshot.workers.iter().map(|worker| worker.id).collect()
}

fn running(snapshot: &Snapshot) -> Vec<JobId> {
    table::running(snapshot).iter().map(|(_, job)| job.id).collect()
}

fn dead(snapshot: &Snapshot) -> Vec<JobId> {
    snapshot.dead.jobs.iter().map(|job| job.id).collect()
}
