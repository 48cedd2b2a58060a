//! The audit log: which operator did what, and when.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{Error, JobId};

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
