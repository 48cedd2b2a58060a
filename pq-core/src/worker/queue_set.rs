//! The queues that a worker serves, and which of them is next.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::take_limiter::TakeLimiter;
use crate::{Error, Handler, Queue, QueueName, Store};

/// A queue with the handlers of its jobs.
pub(crate) struct ServedQueue<S: Store> {
    pub(crate) queue: Queue<S, ()>,
    /// The handler of whatever the queue carries, or those of tasks by name.
    pub(crate) raw: Option<Handler<S>>,
    pub(crate) tasks: HashMap<String, Handler<S>>,
    weight: u32,
    pub(super) limiter: TakeLimiter,
}

impl<S: Store> ServedQueue<S> {
    /// Whether the jobs are taken in the transaction of their handlers.
    pub(crate) fn is_transactional(&self) -> bool {
        self.raw.iter().chain(self.tasks.values()).all(Handler::is_transactional)
    }
}

/// The queues, in the order in which they were given.
pub(crate) struct QueueSet<S: Store> {
    pub(crate) all: Vec<ServedQueue<S>>,
    weights: HashMap<String, u32>,
    twice: Option<String>,
    /// By how much each queue is behind its turn.
    owed: Mutex<Vec<i64>>,
}

impl<S: Store> Default for QueueSet<S> {
    fn default() -> Self {
        Self { all: Vec::new(), weights: HashMap::new(), twice: None, owed: Mutex::default() }
    }
}

impl<S: Store> QueueSet<S> {
    pub(crate) fn add(&mut self, handler: Handler<S>) {
        let position = match self.all.iter().position(|served| served.queue.name() == handler.queue()) {
            Some(position) => position,
            None => {
                let queue = handler.queue.clone();
                let limiter = TakeLimiter::default();
                self.all.push(ServedQueue { queue, raw: None, tasks: HashMap::new(), weight: 1, limiter });
                self.all.len() - 1
            }
        };
        let served = &mut self.all[position];
        let before = match handler.task.clone() {
            Some(task) => served.tasks.insert(task.clone(), handler).map(|_| format!("task {task:?}")),
            None => served.raw.replace(handler).map(|_| "the queue's jobs".to_owned()),
        };
        if let Some(what) = before {
            self.twice = Some(format!("{what} in queue {:?} has two handlers", served.queue.name()));
        }
    }

    pub(crate) fn weigh(&mut self, queue: &str, weight: u32) {
        self.weights.insert(queue.to_owned(), weight);
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let name = |served: &ServedQueue<S>| served.queue.name().clone();
        let served = |queue: &String| self.all.iter().any(|served| served.queue.name().as_str() == queue);
        let wrong = if let Some(twice) = &self.twice {
            twice.clone()
        } else if self.all.is_empty() {
            "a worker needs a handler to serve".to_owned()
        } else if let Some(served) =
            self.all.iter().find(|served| served.raw.is_some() && !served.tasks.is_empty())
        {
            format!(
                "queue {:?} has tasks and a handler of whatever it carries; it can have either",
                name(served)
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
        for served in &mut self.all {
            served.weight = self.weights.get(served.queue.name().as_str()).copied().unwrap_or(1);
        }
        self.owed = Mutex::new(vec![0; self.all.len()]);
        self
    }

    pub(crate) fn names(&self) -> Vec<QueueName> {
        self.all.iter().map(|served| served.queue.name().clone()).collect()
    }

    /// The queues in the order in which they are to be looked at now: as they were given, or by weight, where
    /// each look owes every queue its weight and whoever is owed most comes first.
    pub(crate) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        if !self.weights.is_empty() && order.len() > 1 {
            let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
            for (owed, served) in owed.iter_mut().zip(&self.all) {
                *owed += i64::from(served.weight);
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
        let all: i64 = self.all.iter().map(|served| i64::from(served.weight)).sum();
        owed[position] -= all;
        for passed in passed {
            owed[*passed] = owed[*passed].min(0);
        }
    }
}
