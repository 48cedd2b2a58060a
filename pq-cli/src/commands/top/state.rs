//! What the view shows: a struct that learns and is drawn, and knows neither a terminal nor a server.

use std::time::Duration;

use pq_diesel::{JobId, QueueName, WorkerId};

use super::chart::{self, Pane};
use super::deed::Deed;
use super::source::{Seen, Told};
use crate::output;

/// Everything that the view is drawn from.
pub(super) struct State {
    pub(super) seen: Seen,
    pub(super) pane: Pane,
    pub(super) queue: Cursor<QueueName>,
    pub(super) worker: Cursor<WorkerId>,
    pub(super) running: Cursor<JobId>,
    pub(super) dead: Cursor<JobId>,
    pub(super) question: Option<Question>,
    pub(super) help: bool,
    pub(super) note: Option<Note>,
    pub(super) lost: Option<Lost>,
    pub(super) colours: bool,
}

/// Which of several is chosen. It stays with what it was on, wherever that goes; where that is gone, in its place.
#[derive(Clone, Debug)]
pub(super) struct Cursor<K> {
    key: Option<K>,
    place: usize,
}

impl<K: Clone + PartialEq> Cursor<K> {
    fn on(key: Option<K>) -> Self {
        Self { key, place: 0 }
    }

    /// Finds its place among these.
    fn settle(&mut self, keys: &[K]) {
        let found = keys.iter().position(|key| Some(key) == self.key.as_ref());
        self.place = found.unwrap_or(self.place.min(keys.len().saturating_sub(1)));
        self.key = keys.get(self.place).cloned();
    }

    fn go(&mut self, keys: &[K], by: isize) {
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
    pub(super) deed: Deed,
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
    pub(super) fn new(seen: Seen, chosen: Option<QueueName>, colours: bool) -> Self {
        let mut state = Self {
            seen,
            pane: Pane::Queues,
            queue: Cursor::on(chosen),
            worker: Cursor::on(None),
            running: Cursor::on(None),
            dead: Cursor::on(None),
            question: None,
            help: false,
            note: None,
            lost: None,
            colours,
        };
        state.settle();
        state
    }

    /// Takes in what the source has told.
    pub(super) fn learn(&mut self, told: Told) {
        match told {
            Told::Seen(seen) => {
                self.seen = seen;
                self.lost = None;
            }
            Told::Dead(dead) => self.seen.dead = dead,
            Told::Lost(why, again) => self.lost = Some(Lost { why: output::visible(&why), again }),
            Told::Did(Ok(what)) => self.say(&what),
            Told::Did(Err(why)) => {
                self.note = Some(Note { text: output::visible(&why), is_bad: true });
            }
        }
        self.settle();
    }

    /// The queue whose dead jobs are shown, and that is paused and goes on.
    pub(super) fn chosen_queue(&self) -> Option<QueueName> {
        self.queue.key.clone()
    }

    /// The place of what is chosen in a pane.
    pub(super) fn place_in(&self, pane: Pane) -> Option<usize> {
        match pane {
            Pane::Queues => self.queue.place(),
            Pane::Workers => self.worker.place(),
            Pane::Running => self.running.place(),
            Pane::Dead => self.dead.place(),
        }
    }

    /// Goes up or down in the pane.
    pub(super) fn go(&mut self, by: isize) {
        match self.pane {
            Pane::Queues => self.queue.go(&queues(&self.seen), by),
            Pane::Workers => self.worker.go(&workers(&self.seen), by),
            Pane::Running => self.running.go(&running(&self.seen), by),
            Pane::Dead => self.dead.go(&dead(&self.seen), by),
        }
    }

    pub(super) fn say(&mut self, text: &str) {
        self.note = Some(Note { text: output::visible(text), is_bad: false });
    }

    fn settle(&mut self) {
        self.queue.settle(&queues(&self.seen));
        self.worker.settle(&workers(&self.seen));
        self.running.settle(&running(&self.seen));
        self.dead.settle(&dead(&self.seen));
    }
}

fn queues(seen: &Seen) -> Vec<QueueName> {
    seen.queues.iter().map(|queue| queue.queue.clone()).collect()
}

fn workers(seen: &Seen) -> Vec<WorkerId> {
    seen.workers.iter().map(|worker| worker.id).collect()
}

fn running(seen: &Seen) -> Vec<JobId> {
    chart::running(seen).iter().map(|(_, job)| job.id).collect()
}

fn dead(seen: &Seen) -> Vec<JobId> {
    seen.dead.jobs.iter().map(|job| job.id).collect()
}
