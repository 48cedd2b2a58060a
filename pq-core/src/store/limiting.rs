//! Limits of queues.

use super::Connect;
use crate::{Claim, LimitedQueue, Limits, QueueName};

/// Stores the limits of queues, which its takes observe.
///
/// A job that a limited queue has taken is marked by [`crate::Claim::limited`]. Settling it notifies signals of the
/// queue as a put does, because another job may have its place, and so does the commit of a transaction that took it.
pub trait Limiting: Connect {
    /// Returns the limits of a queue, which are empty if it has none.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn limits(&self, conn: &mut Self::Conn, queue: &QueueName) -> Result<Limits, Self::Error>;

    /// Replaces the limits of a queue. Empty ones remove them.
    ///
    /// They apply to every take that begins after the commit, which notifies signals of the queue. Jobs that are
    /// under a lease by then count. A take that runs meanwhile counts as one before.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidSetting`] or [`crate::Error::InvalidAnnotation`] for invalid limits, or the store's
    /// error.
    fn set_limits(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        limits: &Limits,
    ) -> Result<(), Self::Error>;

    /// Corrects the cost of a leased job: the buckets of its queue and its group are debited or credited by the
    /// difference to what it was. A call that is repeated in the attempt changes nothing. Returns `false` if the
    /// claim is not valid.
    ///
    /// It is fenced as [`super::Steps::keep_step`] is, and waits for a transaction that has taken tokens of the same
    /// buckets. Signals of the queue are notified if tokens are given back.
    ///
    /// # Errors
    ///
    /// The store's error. Nothing was changed.
    fn correct_cost(&self, conn: &mut Self::Conn, job: &Claim, cost: u32) -> Result<bool, Self::Error>;

    /// Returns the queues with limits, or this one if it has any, with how much of the limits is used. Sorted by
    /// name. Takes no lock.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn limited(
        &self,
        conn: &mut Self::Conn,
        queue: Option<&QueueName>,
    ) -> Result<Vec<LimitedQueue>, Self::Error>;
}
