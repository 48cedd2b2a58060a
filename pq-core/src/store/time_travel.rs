//! Letting time pass, for tests.

use std::time::Duration;

use super::Connect;

/// Lets time pass for what a store keeps.
///
/// For tests. It is not meant for a queue that an application uses, but does no harm there: it makes what is stored
/// older.
pub trait TimeTravel: Connect {
    /// Moves the stored times back, as if `duration` had passed and nothing had run meanwhile.
    ///
    /// Moves all times of jobs, leased and archived ones included, of leases, periodic jobs, pauses and workers, in
    /// the transaction of `conn`. So scheduled jobs fall due, leases expire, and what is old enough is pruned.
    /// Signals are notified as by a put. A periodic job whose next tick would have passed is due now, so that the
    /// tick is not missed: it fires once. The store's clock does not move.
    ///
    /// Waits for transactions that hold jobs or leases.
    ///
    /// # Errors
    ///
    /// The store's error. Nothing was moved.
    fn advance(&self, conn: &mut Self::Conn, duration: Duration) -> Result<(), Self::Error>;
}
