//! Workers as they are known in the store, to those on other hosts.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::{QueueName, Status, StopMode};

/// A worker's number in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub i64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a worker tells of itself.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// The number that it was given at its first beat.
    pub worker: Option<WorkerId>,
    /// The host that it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// The process that looks after it; itself where there is none.
    pub supervisor: u32,
    /// The queues that it serves.
    pub queues: Vec<QueueName>,
    /// How many threads run its handlers.
    pub threads: usize,
    /// What it does.
    pub status: Status,
}

/// What a worker is told at its beat.
#[derive(Clone, Copy, Debug)]
pub struct HeartbeatReply {
    /// Its number.
    pub worker: WorkerId,
    /// How somebody wants it to stop, if anybody does.
    pub stop: Option<StopMode>,
}

/// A worker that is known in the store. One that has not been heard of for [`WorkerInfo::FORGOTTEN_AFTER`] is
/// forgotten by the next sweep.
#[derive(Clone, Debug)]
pub struct WorkerInfo {
    /// Its number.
    pub id: WorkerId,
    /// The host that it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// The process that looks after it; itself where there is none.
    pub supervisor: u32,
    /// The queues that it serves.
    pub queues: Vec<String>,
    /// How many threads run its handlers.
    pub threads: usize,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long ago it was last heard of, on the store's clock.
    pub heard: Duration,
    /// How somebody wants it to stop, if anybody does.
    pub stop: Option<StopMode>,
    /// What it did when it was last heard of.
    pub status: Status,
}

impl WorkerInfo {
    /// After so long without a beat a worker is taken for dead: sixty seconds.
    pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
}
