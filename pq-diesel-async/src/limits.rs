//! Limits of a queue.

use pq_core::{Action, Limits};
use pq_diesel::Error;

use crate::queue::Queue;
use crate::shared::{change_on_connection, on_connection, recorded};

impl<T> Queue<T> {
    /// Returns the queue's limits, which are empty if it has none.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn limits(&self) -> Result<Limits, Error> {
        on_connection!(self.shared, |conn| self.shared.store().limits_on(conn, self.name()))
    }

    /// Replaces the queue's limits. Empty limits remove them. See [`pq_core::Queue::set_limits`].
    ///
    /// # Errors
    ///
    /// An error of [`pq_core`] for invalid limits, or the database's own.
    pub async fn set_limits(&self, limits: &Limits) -> Result<(), Error> {
        let details = limits.to_json()?.unwrap_or_else(|| "none".to_owned());
        let (store, by) = (self.shared.store(), self.actor());
        let record =
            by.map(|by| Action::new("limit").queue(self.name().as_str()).details(details).record(by, 1));
        change_on_connection!(self.shared, |conn| recorded!(
            store,
            conn,
            by,
            store.set_limits_on(conn, self.name(), limits),
            |_set| record
        ))
    }
}
