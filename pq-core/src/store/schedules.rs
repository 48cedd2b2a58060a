//! Periodic jobs.

use chrono::{DateTime, Utc};

use super::Connect;
use crate::{Cron, CronEntry};

/// Stores periodic jobs.
pub trait Schedules: Connect {
    /// Creates or replaces a periodic job, and returns whether it is new.
    ///
    /// A replaced one stays paused if it was, and keeps its next tick if its expression and its time zone are
    /// unchanged. Otherwise its next tick is `next_at`.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn set_cron(
        &self,
        conn: &mut Self::Conn,
        cron: &Cron,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Self::Error>;

    /// Returns the periodic jobs, sorted by name.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn crons(&self, conn: &mut Self::Conn) -> Result<Vec<CronEntry>, Self::Error>;

    /// Removes a periodic job, and returns `false` if there is none of that name. Jobs that it has put stay.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn remove_cron(&self, conn: &mut Self::Conn, name: &str) -> Result<bool, Self::Error>;

    /// Pauses a periodic job, or resumes it with the tick `next_at`.
    ///
    /// Returns `false` if there is none of that name.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn pause_cron(
        &self,
        conn: &mut Self::Conn,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<bool, Self::Error>;

    /// Returns the periodic jobs that are due, locked for the transaction of `conn`, which fires them.
    ///
    /// Until that ends, no other caller gets them, and no other caller waits.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn due_crons(&self, conn: &mut Self::Conn) -> Result<Vec<CronEntry>, Self::Error>;

    /// Stores the last tick of a periodic job that was fired, and the next.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn advance_cron(
        &self,
        conn: &mut Self::Conn,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Self::Error>;
}
