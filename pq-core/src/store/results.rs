//! Waiting for the end of a job.

use std::sync::Arc;
use std::time::Duration;

use super::Jobs;
use crate::{JobId, JobRecord, WakeSignal};

/// Shows one job to a caller that waits for its end, and notifies that caller.
///
/// A job whose end is awaited has that noted in its [`crate::Annotations`]. So a settle learns of it without a look,
/// and other jobs cost nothing. A put notes it, or [`Results::mark_awaited`].
pub trait Results: Jobs {
    /// Returns a job of any queue: the one with this id that waits or runs, or else the one that ended last.
    ///
    /// For a caller that may call it often. A store may leave out the payload, except of a dead or cancelled job, and
    /// need not say whether a waiting job is ready, blocked or scheduled.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn look(&self, conn: &mut Self::Conn, id: JobId) -> Result<Option<JobRecord>, Self::Error>;

    /// Notes that the end of a job that waits or is leased is awaited.
    ///
    /// From the commit on it is kept when it is done, and the commit of its end notifies. Returns `false` if there is
    /// no such job, or if a transaction holds it or its lease. It waits for none.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn mark_awaited(&self, conn: &mut Self::Conn, id: JobId) -> Result<bool, Self::Error>;

    /// Returns whether the connection is in a transaction that the caller has begun.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn is_in_transaction(&self, conn: &mut Self::Conn) -> Result<bool, Self::Error>;

    /// Notifies `signal` when an awaited job with this id has been archived, until the subscription is dropped.
    ///
    /// A notification is a hint, as in [`Jobs::subscribe`].
    fn subscribe_to_end(&self, id: JobId, signal: &Arc<WakeSignal>) -> Self::Subscription;
}

/// Returns when a wait looks again at a job that has not ended, if no notification comes before.
///
/// `is_marked` is what [`Results::mark_awaited`] returned, if the wait has called it.
///
/// A job that has just been marked may have ended before, so the wait looks at once. A job that could not be marked
/// will end without a notification, so the next look is after `retry_in`, which doubles.
#[must_use]
pub fn next_look(is_marked: Option<bool>, retry_in: &mut Duration) -> Option<Duration> {
    match is_marked {
        None => None,
        Some(true) => Some(Duration::ZERO),
        Some(false) => {
            let pause = *retry_in;
            *retry_in = retry_in.saturating_mul(2);
            Some(pause)
        }
    }
}
