//! What can be wrong with a call, apart from any store.

use crate::{CodecError, JobId, TimeError};

/// A call that was refused, with the thing that was wrong and the rule that it broke.
///
/// No variant carries a payload or a password, so that errors can be logged as they are. A store
/// has errors of its own, which contain these: see [`crate::StoreError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text cannot name a queue.
    #[error("{name:?} cannot name a queue: {reason}")]
    #[non_exhaustive]
    InvalidQueueName {
        /// The beginning of the name.
        name: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The time cannot be used as `schedule_at` or `expected_at`.
    #[error(transparent)]
    InvalidTime(#[from] TimeError),
    /// The payload, as it would be stored, has more bytes than the handle allows.
    #[error(
        "the payload has {bytes} bytes as JSON, and {limit} are the most that this handle takes; \
         keep large data elsewhere and put a reference to it, or raise the limit"
    )]
    #[non_exhaustive]
    PayloadTooLarge {
        /// Bytes of the encoded payload.
        bytes: usize,
        /// The limit in force, in bytes.
        limit: usize,
    },
    /// The payload nests arrays and objects more deeply than the handle allows.
    #[error("the payload nests more than {limit} arrays and objects in one another")]
    #[non_exhaustive]
    PayloadTooDeep {
        /// The limit in force.
        limit: usize,
    },
    /// The text is not one JSON document.
    #[error("the payload is not JSON: {reason}")]
    #[non_exhaustive]
    NotJson {
        /// What the parser found, and where.
        reason: String,
    },
    /// The value could not be turned into a payload.
    #[error("the payload cannot be encoded: {0}")]
    Encode(#[source] CodecError),
    /// No codec has this name.
    #[error("there is no codec called {name:?}; there are {known}")]
    #[non_exhaustive]
    UnknownCodec {
        /// The name that was asked for.
        name: String,
        /// The names that would be right.
        known: String,
    },
    /// The text cannot be a serialization key or a unique key.
    #[error("{key:?} cannot be a key: {reason}")]
    #[non_exhaustive]
    InvalidKey {
        /// The beginning of the key.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A job with a unique key among many that are put without an answer for each.
    #[error(
        "a job with a unique key may be there already, and this put does not say so; use `put_many_with`"
    )]
    UniqueKey,
    /// The job's lease is over and it is somebody else's by now, or it has its verdict already.
    /// Nothing was changed; where this was to be part of a transaction, that must roll back.
    #[error("job {id} is not held under this lease any more: the lease ended, or the job has its verdict")]
    #[non_exhaustive]
    LeaseLost {
        /// The job's id.
        id: JobId,
    },
    /// The settings of a task or a worker that cannot be.
    #[error("{0}")]
    InvalidSetting(String),
    /// The job is not held by this transaction: it was got outside of one, its transaction has
    /// ended, or it has been given back. Nothing was changed.
    #[error("job {id} is not held by this transaction, so it cannot be changed or given back in it")]
    #[non_exhaustive]
    NotYours {
        /// The job's id.
        id: JobId,
    },
    /// The call needs a connection of the handle's own, and the handle was made without one.
    #[error("this handle has no connection of its own; make it with a URL or a pool, or use `on(conn)`")]
    NoConnection,
    /// The wait was ended by its [`crate::CancellationToken`].
    #[error("the wait was stopped")]
    Stopped,
}

impl Error {
    /// The refusal of a job that the transaction does not hold; for stores.
    #[must_use]
    pub fn not_yours(id: JobId) -> Self {
        Self::NotYours { id }
    }

    /// The refusal of a verdict that came too late; for stores.
    #[must_use]
    pub fn lease_lost(id: JobId) -> Self {
        Self::LeaseLost { id }
    }

    /// Whether a verdict was refused because the lease was over.
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        matches!(self, Self::LeaseLost { .. })
    }

    /// Whether a wait ended because it was told to stop.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped)
    }
}
