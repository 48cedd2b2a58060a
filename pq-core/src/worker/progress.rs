//! The progress of a worker: what its threads do and have done.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::statistics::{EndedByQueue, Throughput};
use super::status::{Report, Status};
use super::thread_slots::{ThreadSlot, ThreadSlots};
use crate::TaskCounters;
use crate::lock::lock;
use crate::stop::StopMode;

/// The threads' slots, and samples of their statistics. A [`super::Control`] shares it with the worker.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) threads: ThreadSlots,
    throughput: Throughput,
    /// When the thread that sends heartbeats last looked whether one is due.
    looked_at: Mutex<Option<Instant>>,
}

impl Progress {
    /// Takes a sample for the rates of [`Progress::status`].
    pub(super) fn sample(&self) {
        *lock(&self.looked_at) = Some(Instant::now());
        self.throughput.sample(self.ended());
    }

    /// Records that no more samples are taken.
    pub(super) fn end(&self) {
        *lock(&self.looked_at) = None;
    }

    /// Returns the time since the last sample. `None` before the first one and after the end.
    pub(super) fn silent_for(&self) -> Option<Duration> {
        lock(&self.looked_at).map(|at| at.elapsed())
    }

    /// Returns the totals of all threads.
    pub(super) fn report(&self) -> Report {
        let mut report = Report::default();
        self.threads.all().iter().for_each(|slot| slot.statistics.add_to(&mut report));
        report
    }

    /// Removes and returns the counters of all threads that the store does not contain yet.
    pub(super) fn take_counters(&self) -> Vec<TaskCounters> {
        self.threads.all().iter().flat_map(|slot| slot.statistics.take_counters()).collect()
    }

    /// Returns the status without the number of waiting jobs, which only the store knows.
    pub(super) fn status(&self, stopping: Option<StopMode>) -> Status {
        let rates = self.throughput.rates(&self.ended());
        Status {
            stopping,
            waiting: None,
            buffered: self.threads.all().iter().map(ThreadSlot::buffered).sum(),
            running: self.threads.running(),
            report: self.report(),
            refused: None,
            // An empty sum of floats is -0.0, which would be printed with its sign.
            per_second: rates.values().sum::<f64>() + 0.0,
            rates,
            tasks: Default::default(),
        }
    }

    fn ended(&self) -> EndedByQueue {
        let mut ended = EndedByQueue::new();
        self.threads.all().iter().for_each(|slot| slot.statistics.add_ended_to(&mut ended));
        ended
    }
}
