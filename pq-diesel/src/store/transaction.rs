//! Connections, transactions and savepoints.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::pg::PgConnection;
use diesel::prelude::*;

use super::PgStore;
use super::transaction_tracker::Open;
use crate::Error;
use crate::isolation::begin;
pub(super) use crate::isolation::depth;
use crate::pool;
use chrono::{DateTime, Utc};
use diesel::sql_types::Timestamptz;
use pq_core::Isolation;
use pq_core::store::Connect;

impl Connect for PgStore {
    type Conn = PgConnection;
    type Error = Error;
    /// The number of nested transactions that were open.
    type Savepoint = u32;

    fn with_connection<R, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        match &self.pool {
            Some(pool) => pool.with(work),
            None => Err(Error::from(pq_core::Error::NoConnection).into()),
        }
    }

    /// Begins and ends transactions through diesel. A transaction that plain SQL began (`BEGIN` by `batch_execute`) is
    /// not recognised, so this does not nest in it.
    fn transaction_at<R, E: From<Error>>(
        &self,
        conn: &mut PgConnection,
        isolation: Isolation,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        let around = depth(conn).map_err(Error::from)?;
        begin(conn, around, isolation).map_err(|e| self.error(e))?;
        let open = (around == 0).then(|| Open::new(self, conn));
        // A panic may leave changes half done. They are rolled back before it resumes.
        match catch_unwind(AssertUnwindSafe(|| work(conn))) {
            Ok(Ok(done)) => match commit(conn, around) {
                Ok(()) => {
                    open.iter().flat_map(Open::queues).for_each(|queue| self.has_put(&queue));
                    Ok(done)
                }
                Err(error) => {
                    let _ = roll_back_to(conn, around);
                    let error = self.error(error);
                    Err(if around == 0 { error.unless_committed() } else { error }.into())
                }
            },
            Ok(Err(error)) => {
                // A rollback fails only if the connection is lost, and then the server rolls back. So its error is
                // ignored in favour of the one of `work`.
                let _ = roll_back_to(conn, around);
                Err(error)
            }
            Err(panic) => {
                let _ = roll_back_to(conn, around);
                resume_unwind(panic)
            }
        }
    }

    /// Sets a savepoint by plain SQL, without diesel. The earlier one is released in the same round trip.
    fn savepoint(&self, conn: &mut PgConnection, earlier: Option<u32>) -> Result<u32, Error> {
        self.save(conn, earlier, "")
    }

    fn savepoint_and_timeout(
        &self,
        conn: &mut PgConnection,
        earlier: Option<u32>,
        timeout: Option<Duration>,
    ) -> Result<u32, Error> {
        self.save(conn, earlier, &format!("{}; ", set_timeout(timeout)))
    }

    fn rollback_to(&self, conn: &mut PgConnection, savepoint: u32) -> Result<(), Error> {
        roll_back_to(conn, savepoint)?;
        conn.batch_execute("ROLLBACK TO SAVEPOINT pq_savepoint").map_err(|e| self.error(e))
    }

    /// Sets `statement_timeout` for the rest of the transaction.
    fn set_statement_timeout(&self, conn: &mut PgConnection, timeout: Option<Duration>) -> Result<(), Error> {
        conn.batch_execute(&set_timeout(timeout)).map_err(|e| self.error(e))
    }

    fn with_call_timeout<R>(
        &self,
        conn: &mut PgConnection,
        timeout: Option<Duration>,
        work: impl FnOnce(&mut PgConnection) -> R,
    ) -> R {
        pool::with_call_timeout(conn, timeout, work)
    }

    fn activity(&self, conn: &mut PgConnection) -> Option<u64> {
        pool::counts(conn).map(|counts| counts.sent)
    }

    fn conflicts(&self, conn: &mut PgConnection) -> Option<u64> {
        pool::counts(conn).map(|counts| counts.conflicts)
    }

    fn now(&self, conn: &mut PgConnection) -> Result<DateTime<Utc>, Error> {
        self.statements.now.with::<Timestamptz>(&[]).get_result(conn).map_err(|e| self.error(e))
    }
}

impl PgStore {
    /// Runs one statement that is a transaction of its own, unless the connection is in one.
    ///
    /// If it is and its connection is lost, it may have been committed.
    pub(super) fn autocommit<R>(
        &self,
        conn: &mut PgConnection,
        work: impl FnOnce(&mut PgConnection) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let commits = depth(conn)? == 0;
        work(conn).map_err(|error| if commits { error.unless_committed() } else { error })
    }

    /// Sets the savepoint, or moves it to the current position, with these settings after it.
    pub(super) fn save(
        &self,
        conn: &mut PgConnection,
        earlier: Option<u32>,
        settings: &str,
    ) -> Result<u32, Error> {
        let Some(around) = earlier else {
            conn.batch_execute(&format!("{settings}SAVEPOINT pq_savepoint")).map_err(|e| self.error(e))?;
            return Ok(depth(conn)?);
        };
        while depth(conn)? > around {
            commit(conn, around).map_err(|e| self.error(e))?;
        }
        let moved = format!("RELEASE SAVEPOINT pq_savepoint; {settings}SAVEPOINT pq_savepoint");
        conn.batch_execute(&moved).map_err(|e| self.error(e))?;
        Ok(around)
    }
}

/// Returns the statement that sets the timeout, limited to the longest that PostgreSQL knows.
pub(super) fn set_timeout(timeout: Option<Duration>) -> String {
    let most = Duration::from_millis(i32::MAX.unsigned_abs().into());
    let value = timeout.map_or("DEFAULT".to_owned(), |timeout| {
        timeout.clamp(Duration::from_millis(1), most).as_millis().to_string()
    });
    format!("SET LOCAL statement_timeout TO {value}")
}

/// Commits the innermost transaction, which is nested in `around` others.
///
/// PostgreSQL rolls back a transaction in which a statement had failed, and yet reports COMMIT as a success, which
/// diesel does not detect. A handler that ignored the failed statement would then see its job reported as done. The
/// empty SELECT in the same round trip fails in such a transaction. diesel learns from the connection's state that it
/// has ended.
fn commit(conn: &mut PgConnection, around: u32) -> QueryResult<()> {
    if around == 0 {
        conn.batch_execute("SELECT; COMMIT")
    } else {
        AnsiTransactionManager::commit_transaction(conn)
    }
}

/// Rolls back until `around` transactions are open, because a panic may have left nested ones open.
fn roll_back_to(conn: &mut PgConnection, around: u32) -> QueryResult<()> {
    while depth(conn)? > around {
        AnsiTransactionManager::rollback_transaction(conn)?;
    }
    Ok(())
}
