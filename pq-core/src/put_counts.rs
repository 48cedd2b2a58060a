//! Counts of the jobs that a handle puts, on their way to the store.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crate::lock::lock;
use crate::store::{MAX_COUNTED_QUEUES, MAX_COUNTED_TASKS};
use crate::{Counters, Put, PutOutcome, QueueName, Store, StoreError, TaskCounters};

/// The interval at which a handle adds the counts of its puts to the store's counters.
pub const PUT_COUNTS_INTERVAL: Duration = Duration::from_secs(10);

/// How long the statement that adds them may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the end of a handle waits for its last counts to be stored.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Jobs of one queue by the task that they call. `None` counts those that call no task.
#[derive(Debug, Default)]
pub(crate) struct ByTask(BTreeMap<Option<Arc<str>>, u64>);

impl ByTask {
    /// Counts jobs that call the same task, or none.
    pub(crate) fn of(task: Option<Arc<str>>, jobs: u64) -> Self {
        Self(BTreeMap::from([(task, jobs)]))
    }

    pub(crate) fn add(&mut self, task: &Option<Arc<str>>) {
        match self.0.get_mut(task) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(task.clone(), 1)),
        }
    }

    /// Counts the jobs that were added, without those that met a job with their unique key.
    pub(crate) fn added<'a>(tasks: impl IntoIterator<Item = &'a Option<Arc<str>>>, puts: &[Put]) -> Self {
        let mut by_task = Self::default();
        let added = tasks.into_iter().zip(puts).filter(|(_, put)| put.outcome == PutOutcome::Added);
        added.for_each(|(task, _)| by_task.add(task));
        by_task
    }
}

/// Counts of puts by queue and task that the store does not have yet.
///
/// Names beyond the limits of a store's counters are counted as [`TaskCounters::OTHER`].
#[derive(Debug, Default)]
struct Uncounted(Mutex<BTreeMap<QueueName, ByTask>>);

impl Uncounted {
    fn add(&self, queue: &QueueName, put: ByTask) {
        let mut queues = lock(&self.0);
        let queue = match QueueName::new(TaskCounters::OTHER) {
            Ok(other) if queues.len() >= MAX_COUNTED_QUEUES && !queues.contains_key(queue) => other,
            _ => queue.clone(),
        };
        let ByTask(tasks) = queues.entry(queue).or_default();
        for (task, count) in put.0 {
            let is_known = tasks.len() < MAX_COUNTED_TASKS || tasks.contains_key(&task);
            let task = if is_known { task } else { Some(Arc::from(TaskCounters::OTHER)) };
            *tasks.entry(task).or_default() += count;
        }
    }

    /// Takes the counts, sorted by queue and task.
    fn take(&self) -> Vec<TaskCounters> {
        let queues = std::mem::take(&mut *lock(&self.0));
        let of_queue = |(queue, ByTask(tasks)): (QueueName, ByTask)| {
            tasks.into_iter().map(move |(task, put)| TaskCounters {
                queue: queue.clone(),
                task: task.as_deref().unwrap_or_default().to_owned(),
                counters: Counters { put, ..Counters::default() },
            })
        };
        queues.into_iter().flat_map(of_queue).collect()
    }

    fn put_back(&self, counted: Vec<TaskCounters>) {
        for TaskCounters { queue, task, counters } in counted {
            let task = Some(task).filter(|task| !task.is_empty()).map(Arc::from);
            self.add(&queue, ByTask::of(task, counters.put));
        }
    }

    /// Adds the counts to the store's counters.
    fn store<S: Store>(&self, store: &S) -> Result<(), S::Error> {
        let counted = self.take();
        if counted.is_empty() {
            return Ok(());
        }
        let mut was_sent = false;
        let stored: Result<(), S::Error> = store.with_connection(|conn| {
            store.with_call_timeout(conn, Some(STATEMENT_TIMEOUT), |conn| {
                was_sent = true;
                store.count(conn, &counted)
            })
        });
        if stored.as_ref().is_err_and(|error| !was_sent || !may_have_counted(error)) {
            self.put_back(counted);
        }
        stored
    }
}

/// Counts the jobs that a handle and its clones put, and adds the counts to the store's counters.
#[derive(Debug, Default)]
pub(crate) struct PutCounts {
    uncounted: Arc<Uncounted>,
    storing: OnceLock<Storing>,
}

impl PutCounts {
    /// Counts jobs that were put.
    pub(crate) fn add(&self, queue: &QueueName, put: ByTask) {
        self.uncounted.add(queue, put);
    }

    /// Begins to store the counts at this interval and when this is dropped, unless it has begun already.
    pub(crate) fn store_every<S: Store>(&self, interval: Duration, store: &Arc<S>) {
        self.storing.get_or_init(|| Storing::start(Arc::clone(&self.uncounted), Arc::clone(store), interval));
    }

    /// Stores the counts now. If the store fails, they are kept, unless it may have added them.
    pub(crate) fn store<S: Store>(&self, store: &S) -> Result<(), S::Error> {
        self.uncounted.store(store)
    }

    /// Takes the counts, sorted by queue and task, to store them.
    pub(crate) fn take(&self) -> Vec<TaskCounters> {
        self.uncounted.take()
    }

    /// Puts back counts that were taken and not stored.
    pub(crate) fn put_back(&self, counted: Vec<TaskCounters>) {
        self.uncounted.put_back(counted);
    }
}

/// The thread that stores the counts of a handle. Its end stores the last ones, and is waited for [`MAX_WAIT`] at most.
#[derive(Debug)]
struct Storing {
    stop: Option<Sender<()>>,
    /// Disconnected when the thread ends.
    ended: Mutex<Receiver<()>>,
}

impl Storing {
    fn start<S: Store>(uncounted: Arc<Uncounted>, store: Arc<S>, interval: Duration) -> Self {
        let (stop, stopped) = channel();
        let (running, ended) = channel();
        let run = move || {
            store_regularly(&*store, &uncounted, &stopped, interval);
            // The handle waits for this end, so that it is the last to drop the store.
            drop(store);
            drop(running);
        };
        if let Err(error) = thread::Builder::new().name("pq-put-counts".to_owned()).spawn(run) {
            tracing::warn!(%error, "the counts of puts are not stored: no thread could be started");
        }
        Self { stop: Some(stop), ended: Mutex::new(ended) }
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = lock(&self.ended).recv_timeout(MAX_WAIT);
    }
}

fn store_regularly<S: Store>(store: &S, uncounted: &Uncounted, stopped: &Receiver<()>, interval: Duration) {
    let mut log = NotStored::default();
    loop {
        let is_last = stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
        if let Err(error) = uncounted.store(store) {
            log.report(&error);
        }
        if is_last {
            return;
        }
    }
}

/// Returns whether a store that failed to add counters may have added them. They must not be sent again, because what
/// is counted twice is worse than what is not counted.
pub fn may_have_counted(error: &impl StoreError) -> bool {
    error.is_unavailable() && !error.is_read_only()
}

/// Reports that counts could not be stored: a permanent error, such as a missing privilege, once as a warning.
#[derive(Debug, Default)]
pub struct NotStored {
    warned: bool,
}

impl NotStored {
    /// Reports an error.
    pub fn report(&mut self, error: &impl StoreError) {
        if error.is_passing() || self.warned {
            tracing::debug!(%error, "counters not stored");
        } else {
            self.warned = true;
            tracing::warn!(%error, "counters not stored; they are kept and tried again");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use crate::store::{Connect, Counting};
    use crate::{Error, Pq};

    fn put_counters(store: &MemoryStore) -> Vec<(String, String, u64)> {
        let counted: Result<_, Error> = store.with_connection(|conn| store.counted(conn));
        let counted: Vec<TaskCounters> = counted.unwrap();
        counted.into_iter().map(|one| (one.queue.to_string(), one.task, one.counters.put)).collect()
    }

    #[test]
    fn they_are_stored_regularly_and_once() {
        let store = Arc::new(MemoryStore::new());
        let counts = PutCounts::default();
        counts.store_every(Duration::from_millis(1), &store);
        let queue = QueueName::new("apples").unwrap();
        for round in 1..=3 {
            let mut put = ByTask::default();
            put.add(&Some(Arc::from("eat")));
            counts.add(&queue, put);
            let expected = [("apples".to_owned(), "eat".to_owned(), round)];
            while put_counters(&store) != expected {
                assert!(put_counters(&store).iter().all(|one| one.2 <= round));
                thread::yield_now();
            }
        }
        assert!(counts.take().is_empty());
    }

    #[test]
    fn the_end_of_the_last_clone_of_a_handle_stores_the_rest() {
        let store = MemoryStore::new();
        let pq = Pq::new(store.clone());
        let clone = pq.clone();
        pq.queue::<u32>("apples").unwrap().put(&1).unwrap();
        drop(pq);
        assert_eq!(put_counters(&store), []);
        drop(clone);
        assert_eq!(put_counters(&store), [("apples".to_owned(), String::new(), 1)]);
    }
}
