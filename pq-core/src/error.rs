//! The errors that are independent of any store.

use crate::{CodecError, JobId, TimeError};

/// A call that was refused, with the value and the rule that it violates.
///
/// Errors can be logged as they are: none contains a payload or a password. A store has an error type of its own, which
/// includes this one. See [`crate::StoreError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text cannot be the name of a queue.
    #[error("invalid queue name {name:?}: {reason}")]
    #[non_exhaustive]
    InvalidQueueName {
        /// The first characters of the name.
        name: String,
        /// The rule that the name violates.
        reason: String,
    },
    /// The time cannot be used as `schedule_at` or `expected_at`.
    #[error(transparent)]
    InvalidTime(#[from] TimeError),
    /// The encoded payload is larger than the limit.
    #[error(
        "invalid payload of {bytes} bytes: it must have at most {limit} bytes; \
         store large data elsewhere and put a reference to it, or raise the limit"
    )]
    #[non_exhaustive]
    PayloadTooLarge {
        /// The size of the encoded payload, in bytes.
        bytes: usize,
        /// The limit of the handle, in bytes.
        limit: usize,
    },
    /// The payload nests arrays and objects more deeply than the limit.
    #[error("invalid payload: it must nest at most {limit} arrays and objects")]
    #[non_exhaustive]
    PayloadTooDeep {
        /// The limit of the handle, in levels.
        limit: usize,
    },
    /// The payload is not one JSON document.
    #[error("invalid JSON payload: {reason}")]
    #[non_exhaustive]
    NotJson {
        /// The parser's message, with its position.
        reason: String,
    },
    /// The value could not be encoded as a payload.
    #[error("cannot encode the payload: {0}")]
    Encode(#[source] CodecError),
    /// No codec has this name.
    #[error("unknown codec {name:?}; expected {known}")]
    #[non_exhaustive]
    UnknownCodec {
        /// The requested name.
        name: String,
        /// The names of the codecs that exist.
        known: String,
    },
    /// The text cannot be a serialization key or a unique key.
    #[error("invalid key {key:?}: {reason}")]
    #[non_exhaustive]
    InvalidKey {
        /// The first characters of the key.
        key: String,
        /// The rule that the key violates.
        reason: String,
    },
    /// The tags or the metadata of a job violate a rule of [`crate::Annotations`].
    #[error("{0}")]
    InvalidAnnotation(String),
    /// A job with a unique key was put by a call that does not return an outcome for each job.
    #[error(
        "cannot put a job with a unique key by `put_all`: it returns no outcome for each job; use `put_many_with`"
    )]
    UniqueKey,
    /// A job was added to a batch whose follow-up waits no more, or does not exist. Nothing was put.
    #[error(
        "cannot add a job to batch {id}: job {id} does not wait for a batch, or all of its jobs have ended"
    )]
    #[non_exhaustive]
    BatchEnded {
        /// The id of the follow-up.
        id: JobId,
    },
    /// Jobs would wait for each other, directly or through others, so that none of them would ever be due.
    #[error(
        "cannot let job {waits} wait for job {job}: job {job} waits for job {waits}, maybe through others"
    )]
    Circle {
        /// The job that was to wait.
        waits: JobId,
        /// The job for which it was to wait. It waits for the other one.
        job: JobId,
    },
    /// A job that is connected with others was put by a call that returns no ids.
    #[error("cannot put a job by `put_all` that waits for others or belongs to a batch; use `put_many_with`")]
    Linked,
    /// The job's lease expired, or the job was settled already.
    ///
    /// Nothing was changed. If the call was part of a transaction, roll the transaction back.
    #[error("cannot change job {id}: its lease expired, or it was settled already")]
    #[non_exhaustive]
    LeaseLost {
        /// The job's id.
        id: JobId,
    },
    /// The lease was not extended, because an open transaction has locked it.
    ///
    /// That transaction settles jobs of the lease or requeues them, and its end decides whether the lease is lost.
    #[error("cannot extend the lease of job {id}: an open transaction settles or requeues its jobs")]
    #[non_exhaustive]
    LeaseLocked {
        /// The job's id.
        id: JobId,
    },
    /// The attempt has ended by a sleep or a wait for a signal, and the job goes on later. Return it from the handler.
    #[error("the attempt of job {id} ended, and the job goes on later; the handler must return this error")]
    #[non_exhaustive]
    Suspended {
        /// The job's id.
        id: JobId,
    },
    /// A step cannot be run, kept or read.
    #[error("cannot run step {name:?} of job {id}: {reason}")]
    #[non_exhaustive]
    StepRefused {
        /// The job's id.
        id: JobId,
        /// The name of the step.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The handler asks for another step than the one that an earlier attempt has kept at the same position.
    #[error(
        "cannot go on with job {id}: its step {number} was {kept}, and the handler now asks for {asked}; \
         the program that began the job can run it, or `pq retry {id} --from-step {label}` forgets that step and all later \
         ones: they run again, and so does what they do outside of the database, such as a charge"
    )]
    #[non_exhaustive]
    StepChanged {
        /// The job's id.
        id: JobId,
        /// The number of the step, from 1.
        number: u32,
        /// What was kept.
        kept: String,
        /// What the handler asks for.
        asked: String,
        /// The label of the kept step, see [`crate::StepRecord::label`].
        label: String,
    },
    /// No job with this id waits or runs.
    #[error("cannot signal job {id}: no job with this id waits or runs; it may have ended")]
    #[non_exhaustive]
    NotLive {
        /// The job's id.
        id: JobId,
    },
    /// A setting of a task, a worker or a periodic job is invalid.
    #[error("{0}")]
    InvalidSetting(String),
    /// The transaction does not hold the job. Nothing was changed.
    ///
    /// The job was taken outside of the transaction, or has been requeued.
    #[error("cannot change job {id}: this transaction does not hold it")]
    #[non_exhaustive]
    NotYours {
        /// The job's id.
        id: JobId,
    },
    /// The call needs a connection of the handle, and the handle has none.
    #[error(
        "cannot get a connection: the handle has none of its own; set a URL or a pool, or use `on(conn)`"
    )]
    NoConnection,
    /// The call would wait for the end of a job in an open transaction.
    #[error(
        "cannot wait for the end of job {id} in an open transaction: the wait would keep the transaction open; \
         commit it first, or ask for the result without waiting"
    )]
    #[non_exhaustive]
    WaitInTransaction {
        /// The job's id.
        id: JobId,
    },
    /// A result cannot be read as the type that was asked for.
    #[error("cannot read the result of job {id}: {reason}")]
    #[non_exhaustive]
    InvalidResult {
        /// The job's id.
        id: JobId,
        /// The expected type, and what the result is, without its values.
        reason: String,
    },
    /// A [`crate::CancellationToken`] ended the wait.
    #[error("the wait was cancelled")]
    Stopped,
}

impl Error {
    /// Returns [`Error::BatchEnded`], for stores.
    #[must_use]
    pub fn batch_ended(id: JobId) -> Self {
        Self::BatchEnded { id }
    }

    /// Returns [`Error::Circle`], for stores.
    #[must_use]
    pub fn circle(waits: JobId, job: JobId) -> Self {
        Self::Circle { waits, job }
    }

    /// Returns [`Error::NotYours`], for stores.
    #[must_use]
    pub fn not_yours(id: JobId) -> Self {
        Self::NotYours { id }
    }

    /// Returns [`Error::LeaseLost`], for stores.
    #[must_use]
    pub fn lease_lost(id: JobId) -> Self {
        Self::LeaseLost { id }
    }

    /// Returns [`Error::WaitInTransaction`].
    #[must_use]
    pub fn wait_in_transaction(id: JobId) -> Self {
        Self::WaitInTransaction { id }
    }

    /// Returns [`Error::LeaseLocked`].
    #[must_use]
    pub fn lease_locked(id: JobId) -> Self {
        Self::LeaseLocked { id }
    }

    /// Returns [`Error::NotLive`].
    #[must_use]
    pub fn not_live(id: JobId) -> Self {
        Self::NotLive { id }
    }

    /// Returns `true` for [`Error::LeaseLost`].
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        matches!(self, Self::LeaseLost { .. })
    }

    /// Returns `true` for [`Error::Stopped`].
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped)
    }
}
