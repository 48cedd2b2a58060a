//! Letting time pass for a test's queue.

use std::time::Duration;

use pq_core::{Pq, Store};

/// Lets time pass for the queues of a handle, as if no process had run meanwhile.
///
/// The stored times of the handle's table are moved back by `duration`, and nothing of other tables, databases or
/// stores. So scheduled jobs and retries fall due, leases expire, and archived jobs grow old. A periodic job whose
/// next tick would have passed is due now, and puts one job. Callers that wait for a job look again.
///
/// The clock does not move: what the database, the handlers and the test read from it is the real time, and what is
/// stored from now on is dated by it. A worker that runs meanwhile loses its leases, unless it extends them before
/// maintenance finds that they have expired.
///
/// Waits for open transactions that hold jobs. In a test whose own transaction holds some, use [`advance_on`].
///
/// ```
/// use std::time::Duration;
/// use pq_core::{Pq, PutOptions, Wait, memory::MemoryStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let apples = pq.queue::<String>("apples")?;
/// apples.put_with("Granny Smith", &PutOptions::new().schedule_at("2h"))?;
///
/// assert!(apples.get(Wait::No)?.is_none());
/// pq_testing::advance(&pq, Duration::from_secs(2 * 60 * 60))?;
/// assert!(apples.get(Wait::No)?.is_some());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// The store's errors; nothing was moved then.
pub fn advance<S: Store>(pq: impl AsRef<Pq<S>>, duration: Duration) -> Result<(), S::Error> {
    let store = pq.as_ref().store();
    store.with_connection(|conn| store.advance(conn, duration))
}

/// Lets time pass on the caller's connection, as [`advance`] does, in the transaction that the connection is in.
///
/// If the transaction is rolled back, the time has not passed.
///
/// # Errors
///
/// The store's errors; nothing was moved then.
pub fn advance_on<S: Store>(
    pq: impl AsRef<Pq<S>>,
    conn: &mut S::Conn,
    duration: Duration,
) -> Result<(), S::Error> {
    pq.as_ref().store().advance(conn, duration)
}
