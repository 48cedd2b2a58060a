//! Limits of a queue.

use super::{Pq, Queue};
use crate::{LimitedQueue, Limits, Store};

impl<S: Store> Pq<S> {
    /// Returns the queues that have limits, with how much of these is used and how many due jobs wait because of them.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn limited(&self) -> Result<Vec<LimitedQueue>, S::Error> {
        self.store.with_connection(|conn| self.store.limited(conn, None))
    }
}

impl<S: Store, T> Queue<S, T> {
    /// Returns the queue's limits, which are empty if it has none.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn limits(&self) -> Result<Limits, S::Error> {
        self.store().with_connection(|conn| self.store().limits(conn, &self.name))
    }

    /// Replaces the queue's limits. Empty limits remove them.
    ///
    /// They are stored, and apply at once to every worker and every get, on all hosts. Jobs that are under a lease count. If a
    /// limit is lowered, running jobs continue, and none is taken until fewer run than it allows. Limits are kept while
    /// the queue is paused. Python's `pq` ignores them.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidSetting`] or [`crate::Error::InvalidAnnotation`] if a number, a period or a group is invalid;
    /// the store's errors.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), S::Error> {
        let details = limits.to_json()?.unwrap_or_else(|| "none".to_owned());
        let action = self.action("limit").details(details);
        self.pq.recorded(&action, |()| 1, |conn| self.store().set_limits(conn, &self.name, limits))
    }
}
