//! What the threads of a worker have done, and how fast.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::status::Report;
use super::tally::Tally;
use crate::lock::lock;
use crate::{Counters, QueueName, TaskCounters};

/// The span over which rates are averaged.
const WINDOW: Duration = Duration::from_secs(10);

/// Jobs whose handlers ended, by queue.
pub(super) type EndedByQueue = BTreeMap<QueueName, u64>;

/// The counts of one thread.
///
/// Each thread has its own, so that threads do not contend for a lock or a cache line.
#[derive(Debug, Default)]
pub(super) struct ThreadStatistics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    report: Report,
    ended: EndedByQueue,
    /// What the store's counters do not contain yet.
    by_task: BTreeMap<(QueueName, String), Counters>,
}

impl ThreadStatistics {
    /// Adds what became of jobs of one queue.
    pub(super) fn add(&self, queue: &QueueName, report: &Report) {
        let mut counts = lock(&self.0);
        counts.report.add(report);
        match counts.ended.get_mut(queue) {
            Some(ended) => *ended += report.ended(),
            None => drop(counts.ended.insert(queue.clone(), report.ended())),
        }
    }

    /// Adds what became of a batch of one queue.
    pub(super) fn add_tally(&self, queue: &QueueName, tally: Tally) {
        self.add(queue, &tally.report);
        let mut counts = lock(&self.0);
        for (task, counters) in tally.into_counters() {
            counts.by_task.entry((queue.clone(), task)).or_default().add(&counters);
        }
    }

    /// Removes and returns the counters that the store does not contain yet.
    pub(super) fn take_counters(&self) -> impl Iterator<Item = TaskCounters> {
        let by_task = std::mem::take(&mut lock(&self.0).by_task);
        by_task.into_iter().map(|((queue, task), counters)| TaskCounters { queue, task, counters })
    }

    pub(super) fn add_to(&self, report: &mut Report) {
        report.add(&lock(&self.0).report);
    }

    pub(super) fn add_ended_to(&self, all: &mut EndedByQueue) {
        for (queue, ended) in &lock(&self.0).ended {
            *all.entry(queue.clone()).or_default() += ended;
        }
    }
}

/// Samples of the number of ended jobs, from which rates are calculated.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    samples: Mutex<VecDeque<(Instant, EndedByQueue)>>,
}

impl Throughput {
    /// Records how many jobs have ended, and drops the samples that have left the window.
    pub(super) fn sample(&self, ended: EndedByQueue) {
        let mut samples = lock(&self.samples);
        samples.push_back((Instant::now(), ended));
        while samples.len() > 1 && samples[0].0.elapsed() > WINDOW {
            samples.pop_front();
        }
    }

    /// Returns the jobs per second that ended in the window, by queue.
    pub(super) fn rates(&self, ended: &EndedByQueue) -> BTreeMap<String, f64> {
        let samples = lock(&self.samples);
        let Some((since, before)) = samples.front() else { return BTreeMap::new() };
        let seconds = since.elapsed().as_secs_f64().max(0.001);
        let rate = |(queue, ended): (&QueueName, &u64)| {
            let ended = ended.saturating_sub(before.get(queue).copied().unwrap_or_default());
            (queue.to_string(), ended as f64 / seconds)
        };
        ended.iter().map(rate).collect()
    }
}
