//! What a worker reports about itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::stop::StopMode;
use crate::{JobId, Outcome};

/// A job whose handler is running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Running {
    /// The id of the job.
    pub id: JobId,
    /// The queue of the job.
    pub queue: String,
    /// The name of the task; `None` if the handler serves a whole queue.
    pub task: Option<String>,
    /// The number of this attempt; 1 for the first.
    pub attempt: i32,
    /// The time for which the handler has been running. As JSON, in seconds.
    #[serde(with = "seconds")]
    pub age: Duration,
}

/// The state of a worker at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Status {
    /// The most urgent stop mode that was requested; `None` if the worker was not asked to stop.
    pub stopping: Option<StopMode>,
    /// Jobs that wait in the worker's queues, due or scheduled. `None` if the store could not be reached, or if the
    /// worker is not running.
    pub waiting: Option<u64>,
    /// Jobs that this worker has taken and not begun.
    pub buffered: u64,
    /// Jobs whose handlers are running, in the order of their ids.
    pub running: Vec<Running>,
    /// Totals since the worker started.
    pub report: Report,
    /// In a heartbeat, the last error of the worker's polls, while the store refuses them.
    pub refused: Option<String>,
    /// In a heartbeat, the tasks that the worker knows, by queue. A queue that one handler serves is left out.
    pub tasks: BTreeMap<String, Vec<String>>,
    /// Jobs per second whose handlers ended, over the last ten seconds or since the worker started.
    pub per_second: f64,
    /// The same by queue.
    pub rates: BTreeMap<String, f64>,
}

/// The outcomes of a worker's jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Report {
    /// Jobs that were completed.
    pub done: u64,
    /// Attempts that failed, the last attempts of dead jobs included.
    pub failed: u64,
    /// Jobs that were archived as dead.
    pub dead: u64,
    /// Jobs that their handlers cancelled.
    pub cancelled: u64,
    /// Jobs that their handlers snoozed, or that were left to other workers because their task is unknown.
    pub snoozed: u64,
    /// Jobs that were given back, most of them before their handler began.
    pub given_back: u64,
    /// Outcomes that the store refused: the lease had expired, another thread had taken the job after a rollback, or
    /// the handler had settled the job itself.
    pub lost: u64,
}

impl Report {
    /// Counts an outcome that the store has accepted.
    pub(super) fn record(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Complete | Outcome::Keep { .. } => self.done += 1,
            Outcome::Retry { .. } => self.failed += 1,
            Outcome::Dead { .. } => {
                self.failed += 1;
                self.dead += 1;
            }
            Outcome::Snooze { .. } => self.snoozed += 1,
            Outcome::Cancel { .. } => self.cancelled += 1,
            Outcome::GiveBack => self.given_back += 1,
            Outcome::RolledBack(outcome) => self.record(outcome),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Self { done, failed, dead, cancelled, snoozed, given_back, lost } = other;
        self.done += done;
        self.failed += failed;
        self.dead += dead;
        self.cancelled += cancelled;
        self.snoozed += snoozed;
        self.given_back += given_back;
        self.lost += lost;
    }

    /// Returns how many handlers ended with an outcome of their own.
    pub(super) fn ended(&self) -> u64 {
        self.done + self.failed + self.cancelled + self.snoozed
    }
}

/// A duration as a number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(span.as_secs_f64())
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}
