//! Counts of the jobs that a handle has put.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::lock::lock;
use crate::store::{MAX_COUNTED_QUEUES, MAX_COUNTED_TASKS};
use crate::{Counters, Put, PutOutcome, QueueName, TaskCounters};

/// Jobs of one queue by the task that they call. `None` counts those that call no task.
#[derive(Debug, Default)]
pub(crate) struct ByTask(BTreeMap<Option<Arc<str>>, u64>);

impl ByTask {
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

/// The jobs that a handle has put, by queue and task.
///
/// Names beyond the limits of a store's counters are counted as [`TaskCounters::OTHER`].
#[derive(Debug, Default)]
pub(crate) struct PutCounts(Mutex<BTreeMap<QueueName, ByTask>>);

impl PutCounts {
    pub(crate) fn add(&self, queue: &QueueName, put: ByTask) {
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

    /// Returns the counts, sorted by queue and task.
    pub(crate) fn all(&self) -> Vec<TaskCounters> {
        let mut all = Vec::new();
        for (queue, ByTask(tasks)) in &*lock(&self.0) {
            all.extend(tasks.iter().map(|(task, put)| TaskCounters {
                queue: queue.clone(),
                task: task.as_deref().unwrap_or_default().to_owned(),
                counters: Counters { put: *put, ..Counters::default() },
            }));
        }
        all
    }
}
