//! Stopping a worker, and seeing what it does.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::queue_set::QueueSet;
use super::shared::{Signals, lock};
use crate::{Error, JobId, Pq, QueueName, Store};

/// How a worker stops. Modes are ordered by urgency, and a later request never makes the mode less urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopMode {
    /// Ends when no job is ready.
    Drain = 1,
    /// Finishes the running jobs. Jobs that were taken and not begun are given back.
    Finish = 2,
    /// Gives back jobs that were taken and not begun, and tells running handlers to end through their contexts. A job
    /// that is still running keeps its lease or its transaction until its handler returns, so nothing runs twice.
    Abort = 3,
}

impl StopMode {
    /// The mode as a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Finish => "finish",
            Self::Abort => "abort",
        }
    }
}

impl fmt::Display for StopMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StopMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "drain" | "all" => Ok(Self::Drain),
            "finish" | "current" => Ok(Self::Finish),
            "abort" | "now" => Ok(Self::Abort),
            _ => Err(Error::InvalidSetting(format!(
                "unknown stop mode {text:?}; expected `drain`, `finish` or `abort`"
            ))),
        }
    }
}

/// What stops a worker and says what it does. Clones are for the same worker.
pub struct Control<S> {
    signals: Arc<Signals>,
    /// What the worker serves while it runs. After that a control must not keep the handle alive: a process that
    /// ends while connections are being made may crash in the driver.
    served: Served<S>,
}

type Served<S> = Arc<Mutex<Option<(Vec<QueueName>, Pq<S>)>>>;

impl<S> Clone for Control<S> {
    fn clone(&self) -> Self {
        Self { signals: Arc::clone(&self.signals), served: Arc::clone(&self.served) }
    }
}

impl<S: Store> Control<S> {
    pub(super) fn new(signals: &Arc<Signals>) -> Self {
        Self { signals: Arc::clone(signals), served: Arc::default() }
    }

    /// The worker runs from now on.
    pub(super) fn attach(&self, queues: &QueueSet<S>, pq: &Pq<S>) {
        *lock(&self.served) = Some((queues.names(), pq.clone()));
    }

    /// The worker has ended.
    pub(super) fn detach(&self) {
        *lock(&self.served) = None;
    }

    /// Stops the worker. It may be called before the worker runs, and again with a sterner mode.
    pub fn stop(&self, mode: StopMode) {
        self.signals.stop(mode);
    }

    /// What the worker does at this moment. Asks the store how many jobs wait.
    #[must_use]
    pub fn status(&self) -> Status {
        let served = lock(&self.served).clone();
        let waiting = served.and_then(|(queues, pq)| {
            let store = pq.store();
            let count = |queue: &QueueName| {
                let counts: Result<_, S::Error> = store.with_connection(|conn| store.counts(conn, queue));
                counts.ok().map(|counts| counts.ready + counts.scheduled)
            };
            queues.iter().map(count).sum()
        });
        Status { waiting, ..self.signals.status() }
    }
}

/// A job whose handler runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Running {
    /// The job's number.
    pub id: JobId,
    /// The queue that it stood in.
    pub queue: String,
    /// The task, where it is one's.
    pub task: Option<String>,
    /// How often it was taken.
    pub attempt: i32,
    /// How long its handler has been running.
    #[serde(with = "seconds")]
    pub age: Duration,
}

/// What a worker does at a moment. As JSON, durations are seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Status {
    /// How it was told to stop, if it was.
    pub stopping: Option<StopMode>,
    /// Jobs of its queues that wait, whether due or not; `None` where the store could not be asked, or the worker does not
    /// run.
    pub waiting: Option<u64>,
    /// Jobs that it has taken and not begun.
    pub buffered: u64,
    /// Jobs whose handlers run.
    pub running: Vec<Running>,
    /// What it has done so far.
    pub report: Report,
    /// Jobs a second that ended, over the last ten seconds or since it began.
    pub per_second: f64,
    /// The same by queue.
    pub rates: BTreeMap<String, f64>,
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

/// What a worker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Report {
    /// Jobs that were completed.
    pub done: u64,
    /// Failures of jobs, the last ones of dead jobs included.
    pub failed: u64,
    /// Jobs that went dead.
    pub dead: u64,
    /// Jobs that their handlers cancelled.
    pub cancelled: u64,
    /// Jobs that their handlers put off.
    pub snoozed: u64,
    /// Jobs that were taken and given back without being begun.
    pub given_back: u64,
    /// Verdicts that came too late: the lease was over, and another attempt's verdict counts.
    pub lost: u64,
}
