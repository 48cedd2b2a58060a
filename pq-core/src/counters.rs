//! What became of jobs, counted by queue and task.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::QueueName;

/// A histogram of durations, with fixed buckets.
///
/// As JSON an array: the sum of all durations in microseconds, then the number of durations in each bucket, without the
/// empty buckets at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Histogram {
    sum_micros: u64,
    counts: [u64; Self::BUCKETS],
}

impl Histogram {
    /// The upper bounds of the buckets in milliseconds. One more bucket holds what exceeds the last bound.
    pub const BOUNDS_MS: [u64; 17] = [
        1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000,
        7_200_000,
    ];
    const BUCKETS: usize = Self::BOUNDS_MS.len() + 1;

    /// Adds a duration.
    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros = self.sum_micros.saturating_add(micros);
        // A bound is reached by whole milliseconds, rounded up.
        let millis = micros.div_ceil(1_000);
        self.counts[Self::BOUNDS_MS.partition_point(|bound| *bound < millis)] += 1;
    }

    /// Returns the sum of all durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_micros)
    }

    /// Returns how many durations were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns how many durations are in each bucket: one more than [`Histogram::BOUNDS_MS`].
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    fn add(&mut self, other: &Self) {
        self.sum_micros = self.sum_micros.saturating_add(other.sum_micros);
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Vec<u64>> for Histogram {
    /// Another version may have more buckets. What they hold goes to the last one.
    fn from(stored: Vec<u64>) -> Self {
        let mut histogram = Self::default();
        let mut stored = stored.into_iter();
        histogram.sum_micros = stored.next().unwrap_or_default();
        for (position, count) in stored.enumerate() {
            histogram.counts[position.min(Self::BUCKETS - 1)] += count;
        }
        histogram
    }
}

impl From<Histogram> for Vec<u64> {
    fn from(histogram: Histogram) -> Self {
        let used = histogram.counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        std::iter::once(histogram.sum_micros).chain(histogram.counts[..used].iter().copied()).collect()
    }
}

/// The counters of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// Jobs that were put. A handle counts those that it puts, see [`crate::Pq::store_put_counts`].
    #[serde(skip_serializing_if = "is_zero")]
    pub put: u64,
    /// Jobs whose first attempt has ended. In the long run, as many as were put and not cancelled before.
    #[serde(skip_serializing_if = "is_zero")]
    pub tried: u64,
    /// Jobs that were completed.
    #[serde(skip_serializing_if = "is_zero")]
    pub done: u64,
    /// Attempts that failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub failed: u64,
    /// Failed attempts that another one follows.
    #[serde(skip_serializing_if = "is_zero")]
    pub retried: u64,
    /// Jobs that were archived as dead.
    #[serde(skip_serializing_if = "is_zero")]
    pub dead: u64,
    /// Jobs that were archived as cancelled.
    #[serde(skip_serializing_if = "is_zero")]
    pub cancelled: u64,
    /// Jobs whose lease expired before they were settled.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// The time from when a job was due to the start of its attempt.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub wait: Histogram,
    /// The time that an attempt took.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub run: Histogram,
    /// The time from `expected_at` to the start of the attempt, of jobs that have one. Zero if it was not late.
    #[serde(skip_serializing_if = "Histogram::is_empty")]
    pub late: Histogram,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Counters {
    /// Returns how many jobs are counted at least.
    fn jobs(&self) -> u64 {
        self.tried.max(self.put)
    }

    /// Adds other counters to these.
    pub fn add(&mut self, other: &Self) {
        let Self { put, tried, done, failed, retried, dead, cancelled, lost, wait, run, late } = other;
        self.put += put;
        self.tried += tried;
        self.done += done;
        self.failed += failed;
        self.retried += retried;
        self.dead += dead;
        self.cancelled += cancelled;
        self.lost += lost;
        self.wait.add(wait);
        self.run.add(run);
        self.late.add(late);
    }
}

/// The counters of a task, with its name and its queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskCounters {
    /// The queue.
    pub queue: QueueName,
    /// The name of the task. Empty for jobs that are no calls of a task, and for those that a worker had no handler
    /// for.
    pub task: String,
    /// The counters.
    pub counters: Counters,
}

impl TaskCounters {
    /// The name under which queues and tasks beyond a limit are counted: `other`.
    pub const OTHER: &'static str = "other";

    /// Merges counters of the same queue and task, sorted by queue and task.
    ///
    /// At most `max_queues` queues and `max_tasks` tasks of each are kept, those with the most tried or put jobs. The
    /// rest is counted as [`TaskCounters::OTHER`].
    #[must_use]
    pub fn merge(all: impl IntoIterator<Item = Self>, max_queues: usize, max_tasks: usize) -> Vec<Self> {
        let mut by_queue = BTreeMap::<QueueName, BTreeMap<String, Counters>>::new();
        for Self { queue, task, counters } in all {
            by_queue.entry(queue).or_default().entry(task).or_default().add(&counters);
        }
        let jobs = |tasks: &BTreeMap<String, Counters>| tasks.values().map(Counters::jobs).sum::<u64>();
        for (name, tasks) in beyond(&mut by_queue, max_queues, jobs) {
            let other = QueueName::new(Self::OTHER).unwrap_or(name);
            let rest = by_queue.entry(other).or_default();
            tasks.into_iter().for_each(|(task, counters)| rest.entry(task).or_default().add(&counters));
        }
        for tasks in by_queue.values_mut() {
            for (_, counters) in beyond(tasks, max_tasks, Counters::jobs) {
                tasks.entry(Self::OTHER.to_owned()).or_default().add(&counters);
            }
        }
        let of_queue = |(queue, tasks): (QueueName, BTreeMap<String, Counters>)| {
            tasks.into_iter().map(move |(task, counters)| Self { queue: queue.clone(), task, counters })
        };
        by_queue.into_iter().flat_map(of_queue).collect()
    }
}

/// Removes the entries with the lowest ranks, so that at most `max` are left. Does nothing if there are no more.
fn beyond<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, max: usize, rank: impl Fn(&V) -> u64) -> Vec<(K, V)> {
    if map.len() <= max {
        return Vec::new();
    }
    let mut ranked: Vec<(Reverse<u64>, K)> =
        map.iter().map(|(key, value)| (Reverse(rank(value)), key.clone())).collect();
    ranked.sort();
    ranked.split_off(max).into_iter().filter_map(|(_, key)| map.remove_entry(&key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(queue: &str, task: &str, tried: u64) -> Result<TaskCounters, crate::Error> {
        let counters = Counters { tried, ..Counters::default() };
        Ok(TaskCounters { queue: QueueName::new(queue)?, task: task.to_owned(), counters })
    }

    #[test]
    fn a_duration_is_in_the_first_bucket_that_it_does_not_exceed() {
        let mut histogram = Histogram::default();
        for millis in [0, 1, 2, 5, 7_200_000, 7_200_001] {
            histogram.record(Duration::from_millis(millis));
        }
        assert_eq!(histogram.counts()[..3], [2, 2, 0]);
        assert_eq!(histogram.counts()[16..], [1, 1]);
        assert_eq!((histogram.count(), histogram.sum()), (6, Duration::from_millis(14_400_009)));
    }

    #[test]
    fn counters_survive_their_json() -> Result<(), serde_json::Error> {
        let mut counters = Counters { done: 3, ..Counters::default() };
        counters.wait.record(Duration::from_millis(7));
        let json = serde_json::to_string(&counters)?;
        assert_eq!(json, r#"{"done":3,"wait":[7000,0,0,1]}"#);
        assert_eq!(serde_json::from_str::<Counters>(&json)?, counters);
        let newer = format!(r#"{{"later":1,"run":[5{}]}}"#, ",1".repeat(20));
        assert_eq!(serde_json::from_str::<Counters>(&newer)?.run.counts()[17], 3);
        Ok(())
    }

    #[test]
    fn what_is_beyond_the_limits_is_merged() -> Result<(), crate::Error> {
        let all =
            [one("a", "x", 1)?, one("b", "x", 9)?, one("b", "y", 5)?, one("b", "z", 7)?, one("b", "z", 1)?];
        let names = |queues, tasks| {
            let merged = TaskCounters::merge(all.clone(), queues, tasks).into_iter();
            merged.map(|one| format!("{} {} {}", one.queue, one.task, one.counters.tried)).collect::<Vec<_>>()
        };
        assert_eq!(names(9, 9), ["a x 1", "b x 9", "b y 5", "b z 8"]);
        assert_eq!(names(1, 2), ["b other 5", "b x 9", "b z 8", "other x 1"]);
        Ok(())
    }
}
