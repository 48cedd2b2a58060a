//! The queues that a worker serves, and which of them is next.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::turns::Turns;
use crate::{Error, Handler, Queue, QueueName, Store};

/// A queue with the handlers of its jobs.
pub(crate) struct Line<S: Store> {
    pub(crate) queue: Queue<S, ()>,
    /// The handler of whatever the queue carries, or those of tasks by name.
    pub(crate) raw: Option<Handler<S>>,
    pub(crate) tasks: HashMap<String, Handler<S>>,
    weight: u32,
    pub(super) turns: Turns,
}

impl<S: Store> Line<S> {
    /// Whether the jobs are taken in the transaction of their handlers.
    pub(crate) fn is_transactional(&self) -> bool {
        self.raw.iter().chain(self.tasks.values()).all(Handler::is_transactional)
    }
}

/// The queues, in the order in which they were given.
pub(crate) struct Lines<S: Store> {
    pub(crate) all: Vec<Line<S>>,
    weights: HashMap<String, u32>,
    twice: Option<String>,
    /// By how much each queue is behind its turn.
    owed: Mutex<Vec<i64>>,
}

impl<S: Store> Default for Lines<S> {
    fn default() -> Self {
        Self { all: Vec::new(), weights: HashMap::new(), twice: None, owed: Mutex::default() }
    }
}

impl<S: Store> Lines<S> {
    pub(crate) fn add(&mut self, handler: Handler<S>) {
        let position = match self.all.iter().position(|line| line.queue.name() == handler.queue()) {
            Some(position) => position,
            None => {
                let queue = handler.queue.clone();
                let turns = Turns::default();
                self.all.push(Line { queue, raw: None, tasks: HashMap::new(), weight: 1, turns });
                self.all.len() - 1
            }
        };
        let line = &mut self.all[position];
        let before = match handler.task.clone() {
            Some(task) => line.tasks.insert(task.clone(), handler).map(|_| format!("task {task:?}")),
            None => line.raw.replace(handler).map(|_| "the queue's jobs".to_owned()),
        };
        if let Some(what) = before {
            self.twice = Some(format!("{what} in queue {:?} has two handlers", line.queue.name()));
        }
    }

    pub(crate) fn weigh(&mut self, queue: &str, weight: u32) {
        self.weights.insert(queue.to_owned(), weight);
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let name = |line: &Line<S>| line.queue.name().clone();
        let served = |queue: &String| self.all.iter().any(|line| line.queue.name().as_str() == queue);
        let wrong = if let Some(twice) = &self.twice {
            twice.clone()
        } else if self.all.is_empty() {
            "a worker needs a handler to serve".to_owned()
        } else if let Some(line) = self.all.iter().find(|line| line.raw.is_some() && !line.tasks.is_empty()) {
            format!(
                "queue {:?} has tasks and a handler of whatever it carries; it can have either",
                name(line)
            )
        } else if let Some(queue) = self.weights.keys().find(|queue| !served(queue)) {
            format!("queue {queue:?} has a weight and no handler")
        } else if let Some((queue, _)) = self.weights.iter().find(|(_, weight)| **weight == 0) {
            format!("queue {queue:?} has weight 0 and would never be served; 1 is the least")
        } else {
            return Ok(());
        };
        Err(Error::InvalidSetting(wrong))
    }

    /// Ready to be served.
    pub(crate) fn ready(mut self) -> Self {
        for line in &mut self.all {
            line.weight = self.weights.get(line.queue.name().as_str()).copied().unwrap_or(1);
        }
        self.owed = Mutex::new(vec![0; self.all.len()]);
        self
    }

    pub(crate) fn names(&self) -> Vec<QueueName> {
        self.all.iter().map(|line| line.queue.name().clone()).collect()
    }

    /// The queues in the order in which they are to be looked at now: as they were given, or by weight, where
    /// each look owes every queue its weight and whoever is owed most comes first.
    pub(crate) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        if !self.weights.is_empty() && order.len() > 1 {
            let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
            for (owed, line) in owed.iter_mut().zip(&self.all) {
                *owed += i64::from(line.weight);
            }
            order.sort_by_key(|position| std::cmp::Reverse(owed[*position]));
        }
        order
    }

    /// This queue had its turn. Those that had nothing to do are owed nothing for it.
    pub(crate) fn served(&self, position: usize, passed: &[usize]) {
        if self.weights.is_empty() {
            return;
        }
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let all: i64 = self.all.iter().map(|line| i64::from(line.weight)).sum();
        owed[position] -= all;
        for passed in passed {
            owed[*passed] = owed[*passed].min(0);
        }
    }
}
