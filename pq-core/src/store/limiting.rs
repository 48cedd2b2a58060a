//! Limits of queues.

use super::Connect;
use crate::{LimitedQueue, Limits, QueueName};

/// Stores the limits of queues, which its takes observe.
///
/// A job that a limited queue has taken is marked by [`crate::Claim::limited`]. Settling it notifies signals of the queue
/// as a put does, because another job may have its place, and so does the commit of a transaction that took it.
pub trait Limiting: Connect {
    /// Returns the limits of a queue, which are empty if it has none.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn limits(&self, conn: &mut Self::Conn, queue: &QueueName) -> Result<Limits, Self::Error>;

    /// Replaces the limits of a queue. Empty ones remove them.
    ///
    /// They apply to every take that begins after the commit, which notifies signals of the queue. Jobs that are under a
    /// lease by then count. A take that runs meanwhile counts as one before.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidSetting`] or [`crate::Error::InvalidAnnotation`] for invalid limits, or the store's error.
    fn set_limits(
        &self,
        conn: &mut Self::Conn,
        queue: &QueueName,
        limits: &Limits,
    ) -> Result<(), Self::Error>;

    /// Returns the queues with limits, or this one if it has any, with how much of the limits is used. Sorted by name. Takes no lock.
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
