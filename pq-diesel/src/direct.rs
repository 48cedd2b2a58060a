//! Functions for single calls on the caller's connection and the table `pq.queue`, without a handle.
//!
//! Each call runs in the caller's transaction, if the connection is in one, and never commits it.
//!
//! ```no_run
//! use diesel::{Connection, PgConnection};
//! use pq_diesel::direct;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut conn = PgConnection::establish("postgres://localhost/shop")?;
//! direct::create(&mut conn)?;
//! direct::put(&mut conn, "apples", "Granny Smith")?;
//! let apple: Option<String> = direct::get(&mut conn, "apples")?;
//! # Ok(())
//! # }
//! ```

use diesel::PgConnection;
use pq_core::Put;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Pq};

/// Creates or migrates the table `pq.queue`.
///
/// # Errors
///
/// The errors of [`Pq::migrate`].
pub fn create(conn: &mut PgConnection) -> Result<(), Error> {
    Pq::detached().migrate_on(conn).map(drop)
}

/// Enqueues a job.
///
/// # Errors
///
/// The errors of [`pq_core::Queue::put`].
pub fn put<T: Serialize + ?Sized>(conn: &mut PgConnection, queue: &str, data: &T) -> Result<Put, Error> {
    let queue = Pq::detached().queue::<&T>(queue)?;
    queue.on(conn).put(data)
}

/// Takes the next ready job and returns its payload, or `None` if no job is ready.
///
/// The job is completed when the caller's transaction commits, and back in the queue when it rolls back.
///
/// # Errors
///
/// The errors of [`pq_core::BoundQueue::get`].
pub fn get<T: DeserializeOwned>(conn: &mut PgConnection, queue: &str) -> Result<Option<T>, Error> {
    let queue = Pq::detached().queue::<T>(queue)?;
    Ok(queue.on(conn).get()?.map(|job| job.data))
}

/// Counts the due jobs, as Python's `len(queue)` does. Takes no lock.
///
/// # Errors
///
/// The database's own.
pub fn len(conn: &mut PgConnection, queue: &str) -> Result<u64, Error> {
    let queue = Pq::detached().queue::<()>(queue)?;
    Ok(queue.on(conn).counts()?.due())
}

/// Deletes all jobs that are not held, and returns their number.
///
/// # Errors
///
/// The database's own.
pub fn clear(conn: &mut PgConnection, queue: &str) -> Result<u64, Error> {
    let queue = Pq::detached().queue::<()>(queue)?;
    queue.on(conn).clear()
}
