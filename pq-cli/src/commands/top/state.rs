//! What the view shows: a struct that learns and is drawn, and knows neither a terminal nor a server.

use std::time::Duration;

use pq_diesel::{JobId, QueueName, WorkerId};

use super::action::Action;
use super::poller::{Snapshot, Update};
use super::table::{self, Pane};
use crate::output;

/// Everything that the view is drawn from.
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

/// Which of several is chosen. It stays with what it was on, wherever that goes; where that is gone, in its place.
#[derive(Clone, Debug)]
pub(super) struct Selection<K> {
    key: Option<K>,
    place: usize,
}

impl<K: Clone + PartialEq> Selection<K> {
    fn on(key: Option<K>) -> Self {
        Self { key, place: 0 }
    }

    /// Finds its place among these.
    fn settle(&mut self, keys: &[K]) {
        let found = keys.iter().position(|key| Some(key) == self.key.as_ref());
        self.place = found.unwrap_or(self.place.min(keys.len().saturating_sub(1)));
        self.key = keys.get(self.place).cloned();
    }

    fn move_selection(&mut self, keys: &[K], by: isize) {
        let last = keys.len().saturating_sub(1);
        self.place = self.place.saturating_add_signed(by).min(last);
        self.key = keys.get(self.place).cloned();
    }

    /// The place of what is chosen.
    fn place(&self) -> Option<usize> {
        self.key.as_ref().map(|_| self.place)
    }
}

/// What is asked before something is done.
pub(super) struct Question {
    pub(super) text: String,
    pub(super) action: Action,
}

/// What came of the last key.
pub(super) struct Note {
    pub(super) text: String,
    pub(super) is_bad: bool,
}

/// Why nothing new is seen.
pub(super) struct Lost {
    pub(super) why: String,
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
        state.settle();
        state
    }

    /// Takes in what the poller has told.
    pub(super) fn apply(&mut self, update: Update) {
        match update {
            Update::Snapshot(snapshot) => {
                self.snapshot = snapshot;
                self.lost = None;
            }
            Update::Dead(dead) => self.snapshot.dead = dead,
            Update::Lost(why, again) => self.lost = Some(Lost { why: output::escape(&why), again }),
            Update::ActionDone(Ok(what)) => self.note(&what),
            Update::ActionDone(Err(why)) => {
                self.note = Some(Note { text: output::escape(&why), is_bad: true });
            }
        }
        self.settle();
    }

    /// The queue whose dead jobs are shown, and that is paused and goes on.
    pub(super) fn selected_queue(&self) -> Option<QueueName> {
        self.queue.key.clone()
    }

    /// The place of what is chosen in a pane.
    pub(super) fn selected_index(&self, pane: Pane) -> Option<usize> {
        match pane {
            Pane::Queues => self.queue.place(),
            Pane::Workers => self.worker.place(),
            Pane::Running => self.running.place(),
            Pane::Dead => self.dead.place(),
        }
    }

    /// Goes up or down in the pane.
    pub(super) fn move_selection(&mut self, by: isize) {
        match self.pane {
            Pane::Queues => self.queue.move_selection(&queues(&self.snapshot), by),
            Pane::Workers => self.worker.move_selection(&workers(&self.snapshot), by),
            Pane::Running => self.running.move_selection(&running(&self.snapshot), by),
            Pane::Dead => self.dead.move_selection(&dead(&self.snapshot), by),
        }
    }

    pub(super) fn note(&mut self, text: &str) {
        self.note = Some(Note { text: output::escape(text), is_bad: false });
    }

    fn settle(&mut self) {
        self.queue.settle(&queues(&self.snapshot));
        self.worker.settle(&workers(&self.snapshot));
        self.running.settle(&running(&self.snapshot));
        self.dead.settle(&dead(&self.snapshot));
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
