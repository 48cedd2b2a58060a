//! The audit log: which operator did what, and when.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{Error, JobId, StopMode, WorkerId};

/// The longest name of an actor, in bytes.
const MAX_ACTOR_BYTES: usize = 200;

/// An operation that somebody did, for the audit log.
///
/// A handle with an actor ([`crate::Pq::acting_as`]) records its operations itself, in their transactions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditRecord {
    /// The name of the operator.
    pub actor: String,
    /// The operation: `pause`, `cancel`, `run now` and so on.
    pub action: String,
    /// The queue, if the operation was on one.
    pub queue: Option<String>,
    /// The job, if the operation was on a single one.
    pub job: Option<JobId>,
    /// What else the operation was given, such as a filter, a time, a worker or a periodic job. It contains no payload.
    pub details: Option<String>,
    /// The number of jobs, queues, workers or periodic jobs that it changed.
    pub count: u64,
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// The id of the entry. Later entries have higher ids.
    pub id: i64,
    /// When the operation began, on the store's clock.
    pub at: DateTime<Utc>,
    /// The operation. As JSON, its fields are those of the entry.
    #[serde(flatten)]
    pub record: AuditRecord,
}

/// What an operation is called in the audit log, and what it is on: for a crate that runs the operations of a store
/// itself.
#[derive(Clone, Debug)]
pub struct Action<'a> {
    name: &'a str,
    queue: Option<&'a str>,
    job: Option<JobId>,
    details: Option<String>,
}

impl<'a> Action<'a> {
    /// Creates an operation of this name: `pause`, `cancel` and so on.
    #[must_use]
    pub fn new(name: &'a str) -> Self {
        Self { name, queue: None, job: None, details: None }
    }

    /// Returns the request that a worker stops.
    #[must_use]
    pub fn stop_worker(worker: WorkerId, mode: StopMode) -> Self {
        Self::new("stop worker").details(format!("worker {worker}, mode {mode}"))
    }

    /// Sets the queue that the operation is on.
    #[must_use]
    pub fn queue(mut self, queue: &'a str) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Sets the job that the operation is on.
    #[must_use]
    pub fn job(mut self, job: JobId) -> Self {
        self.job = Some(job);
        self
    }

    /// Sets what else the operation was given, without payloads. An empty text is none.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into()).filter(|details| !details.is_empty());
        self
    }

    /// Returns the record of the operation of this actor, which changed so many jobs, queues, workers or periodic jobs.
    #[must_use]
    pub fn record(&self, actor: &str, count: u64) -> AuditRecord {
        AuditRecord {
            actor: actor.to_owned(),
            action: self.name.to_owned(),
            queue: self.queue.map(str::to_owned),
            job: self.job,
            details: self.details.clone(),
            count,
        }
    }
}

/// Checks the name of an actor.
pub(crate) fn check_actor(actor: &str) -> Result<(), Error> {
    let rule = if actor.is_empty() {
        "it must not be empty".to_owned()
    } else if actor.len() > MAX_ACTOR_BYTES {
        format!("it must have at most {MAX_ACTOR_BYTES} bytes, and has {}", actor.len())
    } else if actor.contains('\0') {
        "it must not contain a NUL character".to_owned()
    } else {
        return Ok(());
    };
    let shown: String = actor.chars().take(40).collect();
    Err(Error::InvalidSetting(format!("invalid actor name {shown:?}: {rule}")))
}
