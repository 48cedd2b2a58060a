//! Registered workers, as the store and other hosts see them.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{QueueName, Status, StopMode};

/// The id of a registered worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId(pub i64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<i64> for WorkerId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

impl FromStr for WorkerId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

/// The report that a worker sends regularly.
#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    /// The id from the reply to its first heartbeat.
    pub worker: Option<WorkerId>,
    /// The name of its host.
    pub host: String,
    /// The id of its process.
    pub pid: u32,
    /// The id of the process that supervises it, or of its own process if none does.
    pub supervisor: u32,
    /// The queues that it serves.
    pub queues: Vec<QueueName>,
    /// The number of threads that run its handlers.
    pub threads: usize,
    /// Its current status.
    pub status: Status,
}

/// The store's reply to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// The id of the worker.
    pub worker: WorkerId,
    /// How the worker should stop, if it was asked to.
    pub stop: Option<StopMode>,
}

/// A registered worker.
///
/// Maintenance deletes a worker that has sent no heartbeat for [`WorkerInfo::FORGOTTEN_AFTER`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerInfo {
    /// Its id.
    pub id: WorkerId,
    /// The name of its host.
    pub host: String,
    /// The id of its process.
    pub pid: u32,
    /// The id of the process that supervises it, or of its own process if none does.
    pub supervisor: u32,
    /// The queues that it serves.
    pub queues: Vec<String>,
    /// The number of threads that run its handlers.
    pub threads: usize,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// The time since its last heartbeat, on the store's clock.
    pub heartbeat_age: Duration,
    /// How it should stop, if it was asked to.
    pub stop: Option<StopMode>,
    /// Its status at its last heartbeat.
    pub status: Status,
}

impl WorkerInfo {
    /// The time without a heartbeat after which a worker is considered dead: 60 s.
    pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

    /// Returns whether the worker is considered dead. Maintenance has not removed it yet.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.heartbeat_age >= Self::FORGOTTEN_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parsed_and_converted() {
        assert_eq!("7".parse(), Ok(WorkerId(7)));
        assert_eq!("7".parse(), Ok(crate::JobId(7)));
        assert_eq!(crate::JobId::from(7).to_string(), "7");
        assert!("seven".parse::<WorkerId>().is_err());
    }
}
