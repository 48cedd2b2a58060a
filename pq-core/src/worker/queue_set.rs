//! The queues that a worker serves, and the order in which it polls them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::sharing::SharingLimit;
use super::take_limiter::TakeLimiter;
use crate::handler::{InTransaction, MapResult};
use crate::lock::lock;
use crate::{Error, Handler, Isolation, Queue, QueueName, Store};

/// A queue with the handlers of its jobs.
pub(super) struct ServedQueue<S: Store> {
    pub(super) queue: Queue<S, ()>,
    /// The handler of the whole queue. A queue has either this or handlers of tasks.
    pub(super) whole_queue: Option<Handler<S>>,
    /// The handlers of tasks, by the tasks' names.
    pub(super) tasks: HashMap<String, Handler<S>>,
    weight: u32,
    /// How many asynchronous handlers of the queue run at the same time.
    pub(super) concurrency: usize,
    pub(super) limiter: TakeLimiter,
    pub(super) sharing_limit: SharingLimit,
    /// Whether the queue was limited at the last take of jobs, which are taken under a lease then.
    pub(super) limited: AtomicBool,
    /// Whether the worker has left a job of the queue to others.
    pub(super) leaves_jobs: AtomicBool,
}

/// How long a worker that leaves jobs to others waits when a job of the queue falls due. Another worker that waits
/// takes it meanwhile.
const LET_OTHERS_FIRST: Duration = Duration::from_millis(500);

impl<S: Store> ServedQueue<S> {
    /// Returns when the queue is to be polled for a job that falls due after this time.
    ///
    /// A job that the worker has left to others would else be taken and left again, each time for longer, if this
    /// worker is a bit quicker than those.
    pub(super) fn poll_due(&self, next_due: Option<Duration>) -> Option<Duration> {
        let pause = if self.leaves_jobs.load(Ordering::Relaxed) { LET_OTHERS_FIRST } else { Duration::ZERO };
        next_due.map(|due| due.saturating_add(pause))
    }

    /// Returns whether all handlers run in the transaction that takes their jobs.
    ///
    /// If some handlers are leased, the queue is leased, and the transactional ones get a transaction each.
    pub(super) fn is_transactional(&self) -> bool {
        self.handlers().all(Handler::is_transactional)
    }

    fn has_both_kinds(&self) -> bool {
        self.is_asynchronous() && !self.handlers().all(Handler::is_asynchronous)
    }

    /// Returns whether a transactional handler needs another isolation level than a lease is settled at.
    ///
    /// Its transaction would conflict with the extension of its lease.
    fn has_leased_isolation(&self) -> bool {
        let has_level = |handler: &Handler<S>| handler.policy.isolation != Isolation::ReadCommitted;
        let is_transactional = |one: &Handler<S>| one.is_transactional() || one.in_transaction.is_some();
        !self.handlers().all(is_transactional)
            && self.handlers().any(|one| is_transactional(one) && has_level(one))
    }

    /// Returns whether the handlers are asynchronous. Then all are.
    pub(super) fn is_asynchronous(&self) -> bool {
        self.handlers().any(Handler::is_asynchronous)
    }

    /// Returns how many attempts may run at the same time that take their jobs in their transactions. `None` if a
    /// handler of the queue runs under a lease.
    ///
    /// An attempt learns the task of its job when it has taken it. So the smallest limit of the tasks is that of the
    /// queue.
    pub(super) fn attempts(&self) -> Option<usize> {
        let limit =
            |handler: &Handler<S>| handler.in_transaction.is_some().then_some(handler.policy.concurrency);
        let limits: Option<Vec<usize>> = self.handlers().map(limit).collect();
        limits?.into_iter().min()
    }

    /// Returns how handlers run in the transactions that take their jobs. All of a queue are of one crate.
    pub(super) fn in_transaction(&self) -> Option<&InTransaction<S>> {
        self.handlers().find_map(|handler| handler.in_transaction.as_ref())
    }

    fn handlers(&self) -> impl Iterator<Item = &Handler<S>> {
        self.whole_queue.iter().chain(self.tasks.values())
    }
}

/// The queues of a worker, in the order in which their first handlers were added.
pub(super) struct QueueSet<S: Store> {
    pub(super) all: Vec<ServedQueue<S>>,
    weights: HashMap<String, u32>,
    concurrency: HashMap<String, usize>,
    /// The reason why a handler could not be added. Reported when the worker runs.
    conflict: Option<String>,
    /// By how many turns each queue is behind its share, times the sum of all weights.
    deficits: Mutex<Vec<i64>>,
}

impl<S: Store> Default for QueueSet<S> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            weights: HashMap::new(),
            concurrency: HashMap::new(),
            conflict: None,
            deficits: Mutex::default(),
        }
    }
}

impl<S: Store> QueueSet<S> {
    pub(super) fn add(&mut self, handler: Handler<S>) {
        let position = match self.all.iter().position(|served| served.queue.name() == handler.queue()) {
            Some(position) => position,
            None => {
                self.all.push(ServedQueue {
                    queue: handler.queue.clone(),
                    whole_queue: None,
                    tasks: HashMap::new(),
                    weight: 1,
                    concurrency: usize::MAX,
                    limiter: TakeLimiter::default(),
                    sharing_limit: SharingLimit::default(),
                    limited: AtomicBool::new(false),
                    leaves_jobs: AtomicBool::new(false),
                });
                self.all.len() - 1
            }
        };
        let served = &mut self.all[position];
        let replaced = match handler.task.clone() {
            Some(task) => served.tasks.insert(task.clone(), handler).map(|_| format!("task {task:?} of ")),
            None => served.whole_queue.replace(handler).map(|_| String::new()),
        };
        if let Some(task) = replaced {
            self.conflict = Some(format!("{task}queue {:?} has two handlers", served.queue.name()));
        }
    }

    /// Returns the names of the tasks by queue, without the queues that one handler serves.
    pub(super) fn tasks(&self) -> BTreeMap<String, Vec<String>> {
        let of_tasks = self.all.iter().filter(|served| served.whole_queue.is_none());
        let names = |served: &ServedQueue<S>| {
            let mut names: Vec<String> = served.tasks.keys().cloned().collect();
            names.sort_unstable();
            (served.queue.name().to_string(), names)
        };
        of_tasks.map(names).collect()
    }

    /// Passes the results of all handlers through `map`.
    pub(super) fn map_results(&mut self, map: &Arc<MapResult>) {
        for served in &mut self.all {
            let tasks = mem::take(&mut served.tasks).into_iter();
            served.tasks = tasks.map(|(name, handler)| (name, handler.map_results(map))).collect();
            served.whole_queue = served.whole_queue.take().map(|handler| handler.map_results(map));
        }
    }

    pub(super) fn set_weight(&mut self, queue: &str, weight: u32) {
        self.weights.insert(queue.to_owned(), weight);
    }

    pub(super) fn set_concurrency(&mut self, queue: &str, handlers: usize) {
        self.concurrency.insert(queue.to_owned(), handlers);
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let is_served = |queue: &String| self.all.iter().any(|served| served.queue.name().as_str() == queue);
        let is_mixed = |served: &&ServedQueue<S>| served.whole_queue.is_some() && !served.tasks.is_empty();
        let wrong = if let Some(conflict) = &self.conflict {
            format!("invalid handlers: {conflict}")
        } else if self.all.is_empty() {
            "invalid handlers: a worker needs a handler to serve".to_owned()
        } else if let Some(served) = self.all.iter().find(is_mixed) {
            let queue = served.queue.name();
            format!("invalid handlers: queue {queue:?} must have either one handler or handlers of tasks")
        } else if let Some(served) = self.all.iter().find(|served| served.has_leased_isolation()) {
            let queue = served.queue.name();
            format!("invalid isolation level: queue {queue:?} has leased handlers, too; use another queue")
        } else if let Some(served) = self.all.iter().find(|served| served.has_both_kinds()) {
            let queue = served.queue.name();
            format!(
                "invalid handlers: queue {queue:?} has asynchronous and blocking handlers; use a queue for each kind"
            )
        } else if let Some(queue) = self.weights.keys().find(|queue| !is_served(queue)) {
            format!("invalid weight of queue {queue:?}: the queue has no handler")
        } else if let Some(queue) = self.concurrency.keys().find(|queue| !self.is_asynchronous(queue)) {
            format!("invalid concurrency of queue {queue:?}: the queue has no asynchronous handler")
        } else if let Some((queue, _)) = self.concurrency.iter().find(|(_, handlers)| **handlers == 0) {
            format!("invalid concurrency 0 of queue {queue:?}: it must be at least 1")
        } else if let Some((queue, _)) = self.weights.iter().find(|(_, weight)| **weight == 0) {
            format!("invalid weight 0 of queue {queue:?}: it must be at least 1")
        } else {
            return Ok(());
        };
        Err(Error::InvalidSetting(wrong))
    }

    /// Applies the weights and limits, before the worker runs.
    pub(super) fn ready(mut self) -> Self {
        for served in &mut self.all {
            let queue = served.queue.name().as_str();
            served.weight = self.weights.get(queue).copied().unwrap_or(1);
            served.concurrency = self.concurrency.get(queue).copied().unwrap_or(usize::MAX);
        }
        self.deficits = Mutex::new(vec![0; self.all.len()]);
        self
    }

    fn is_asynchronous(&self, queue: &str) -> bool {
        self.all.iter().any(|served| served.queue.name().as_str() == queue && served.is_asynchronous())
    }

    pub(super) fn has_asynchronous(&self) -> bool {
        self.all.iter().any(ServedQueue::is_asynchronous)
    }

    /// Returns the names of the queues that threads with blocking handlers serve.
    pub(super) fn blocking_names(&self) -> Vec<QueueName> {
        let blocking = self.all.iter().filter(|served| !served.is_asynchronous());
        blocking.map(|served| served.queue.name().clone()).collect()
    }

    pub(super) fn names(&self) -> Vec<QueueName> {
        self.all.iter().map(|served| served.queue.name().clone()).collect()
    }

    /// Returns the positions of the queues in the order in which to poll them now.
    ///
    /// Without weights that is the order in which they were added. With weights it is a weighted round robin: each poll
    /// adds a queue's weight to its deficit, and the queue with the largest deficit is first.
    pub(super) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        if !self.weights.is_empty() && order.len() > 1 {
            let mut deficits = lock(&self.deficits);
            for (deficit, served) in deficits.iter_mut().zip(&self.all) {
                *deficit += i64::from(served.weight);
            }
            order.sort_by_key(|position| Reverse(deficits[*position]));
        }
        order
    }

    /// Records that a batch of one queue was run, and that the `empty` ones before it had no job.
    pub(super) fn record_turn(&self, position: usize, empty: &[usize]) {
        if self.weights.is_empty() {
            return;
        }
        let mut deficits = lock(&self.deficits);
        let all: i64 = self.all.iter().map(|served| i64::from(served.weight)).sum();
        deficits[position] -= all;
        // A queue does not save up turns for which it had no job.
        for empty in empty {
            deficits[*empty] = deficits[*empty].min(0);
        }
    }
}
