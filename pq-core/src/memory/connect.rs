//! Connections and transactions of the store in memory.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use chrono::{DateTime, Utc};

use super::MemoryStore;
use super::transaction::{Mark, MemoryConn};
use crate::store::{Connect, StoreError};
use crate::{Error, Isolation};

impl Connect for MemoryStore {
    type Conn = MemoryConn;
    type Error = Error;
    /// The number of changes that the transaction had made.
    type Savepoint = usize;

    fn with_connection<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut MemoryConn) -> Result<R, E>,
    ) -> Result<R, E> {
        work(&mut self.connect())
    }

    /// Ignores the isolation level: each operation sees what was committed before it.
    fn transaction_at<R, E: From<Error>>(
        &self,
        conn: &mut MemoryConn,
        _: Isolation,
        work: impl FnOnce(&mut MemoryConn) -> Result<R, E>,
    ) -> Result<R, E> {
        let mark = conn.begin();
        // The rollback comes before the panic resumes, so no caller sees half of the changes.
        let done = catch_unwind(AssertUnwindSafe(|| work(conn)));
        match &done {
            Ok(Ok(_)) => conn.commit(mark),
            Ok(Err(_)) | Err(_) => conn.roll_back(mark),
        }
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn savepoint(&self, conn: &mut MemoryConn, _: Option<usize>) -> Result<usize, Error> {
        Ok(conn.changes())
    }

    fn rollback_to(&self, conn: &mut MemoryConn, savepoint: usize) -> Result<(), Error> {
        conn.roll_back(Mark::Nested(savepoint));
        Ok(())
    }

    fn activity(&self, conn: &mut MemoryConn) -> Option<u64> {
        Some(conn.operations())
    }

    /// Returns zero, because nothing waits for another transaction here.
    fn conflicts(&self, _: &mut MemoryConn) -> Option<u64> {
        Some(0)
    }

    fn now(&self, _conn: &mut MemoryConn) -> Result<DateTime<Utc>, Error> {
        Ok(Utc::now())
    }
}

impl StoreError for Error {
    fn is_unavailable(&self) -> bool {
        false
    }
}
