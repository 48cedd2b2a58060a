//! Periodic jobs.

use std::time::Duration;

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

    /// Pauses a periodic job, or resumes it with the tick `next_at`. `by` is the operator who pauses it, if known.
    ///
    /// One that is paused already keeps the time and the operator of its pause.
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
        by: Option<&str>,
    ) -> Result<bool, Self::Error>;

    /// Returns the first periodic job by name that is due, and locks it for the transaction of `conn`, which fires it.
    ///
    /// With `after`, considers only names after that one. Until the transaction ends, no other caller gets the
    /// periodic job, and no other caller waits. One that has failed is not due before its pause has ended.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn due_cron(&self, conn: &mut Self::Conn, after: Option<&str>) -> Result<Option<CronEntry>, Self::Error>;

    /// Stores the last tick of a periodic job that was fired, and the next. Its failures are forgotten.
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

    /// Stores that the job of a tick could not be put, and that it is tried again after `pause`.
    ///
    /// Does nothing if `tick` is no longer the next tick.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn fail_cron(
        &self,
        conn: &mut Self::Conn,
        name: &str,
        tick: DateTime<Utc>,
        error: &str,
        pause: Duration,
    ) -> Result<(), Self::Error>;

    /// Replaces the next tick of a periodic job by an earlier one.
    ///
    /// Returns `false` and does nothing if `tick` is no longer the next tick.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn bring_cron_forward(
        &self,
        conn: &mut Self::Conn,
        name: &str,
        tick: DateTime<Utc>,
        earlier: DateTime<Utc>,
    ) -> Result<bool, Self::Error>;
}
