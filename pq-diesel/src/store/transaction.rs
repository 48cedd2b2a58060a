//! How a transaction on a connection is begun, marked, undone and committed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::pg::PgConnection;
use diesel::prelude::*;

use super::PgStore;
use super::transaction_tracker::Open;
use crate::Error;
use crate::pool;
use chrono::{DateTime, Utc};
use diesel::sql_types::Timestamptz;
use pq_core::store::Connect;

impl Connect for PgStore {
    type Conn = PgConnection;
    type Error = Error;
    /// How many transactions were open in one another.
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

    /// A transaction is begun and ended through diesel, so one that was begun with plain SQL
    /// (`BEGIN` by `batch_execute`) is not recognised as one to nest in.
    fn transaction<R, E: From<Error>>(
        &self,
        conn: &mut PgConnection,
        work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<R, E> {
        let around = depth(conn).map_err(Error::from)?;
        AnsiTransactionManager::begin_transaction(conn).map_err(Error::from)?;
        let open = (around == 0).then(|| Open::new(self, conn));
        // What the panic may have left half done on the connection is rolled back before it goes on.
        match catch_unwind(AssertUnwindSafe(|| work(conn))) {
            Ok(Ok(done)) => match commit(conn, around) {
                Ok(()) => {
                    open.iter().flat_map(Open::queues).for_each(|queue| self.has_put(&queue));
                    Ok(done)
                }
                Err(error) => {
                    let _ = roll_back_to(conn, around);
                    let error = Error::from(error);
                    Err(if around == 0 { error.unless_committed() } else { error }.into())
                }
            },
            Ok(Err(error)) => {
                // The error that `work` returned says more than one of the rollback, which fails only
                // where the connection is lost, and then the server rolls back.
                let _ = roll_back_to(conn, around);
                Err(error)
            }
            Err(panic) => {
                let _ = roll_back_to(conn, around);
                resume_unwind(panic)
            }
        }
    }

    /// A savepoint that diesel knows nothing of. One that takes the place of another goes with its release.
    fn savepoint(&self, conn: &mut PgConnection, earlier: Option<u32>) -> Result<u32, Error> {
        self.save(conn, earlier, "")
    }

    fn savepoint_and_timeout(
        &self,
        conn: &mut PgConnection,
        earlier: Option<u32>,
        limit: Option<Duration>,
    ) -> Result<u32, Error> {
        self.save(conn, earlier, &format!("{}; ", set_limit(limit)))
    }

    fn rollback_to(&self, conn: &mut PgConnection, mark: u32) -> Result<(), Error> {
        roll_back_to(conn, mark)?;
        conn.batch_execute("ROLLBACK TO SAVEPOINT pq_mark").map_err(|e| self.error(e))
    }

    /// By `statement_timeout`, for the rest of the transaction.
    fn set_statement_timeout(&self, conn: &mut PgConnection, limit: Option<Duration>) -> Result<(), Error> {
        conn.batch_execute(&set_limit(limit)).map_err(|e| self.error(e))
    }

    fn activity(&self, conn: &mut PgConnection) -> Option<u64> {
        pool::statements_sent(conn)
    }

    fn now(&self, conn: &mut PgConnection) -> Result<DateTime<Utc>, Error> {
        self.statements.now.with::<Timestamptz>(&[]).get_result(conn).map_err(|e| self.error(e))
    }
}

impl PgStore {
    /// Moves the savepoint behind what was done, or makes it, with these settings in what follows it.
    pub(super) fn save(
        &self,
        conn: &mut PgConnection,
        earlier: Option<u32>,
        settings: &str,
    ) -> Result<u32, Error> {
        let Some(around) = earlier else {
            conn.batch_execute(&format!("{settings}SAVEPOINT pq_mark")).map_err(|e| self.error(e))?;
            return Ok(depth(conn)?);
        };
        while depth(conn)? > around {
            commit(conn, around).map_err(|e| self.error(e))?;
        }
        let moved = format!("RELEASE SAVEPOINT pq_mark; {settings}SAVEPOINT pq_mark");
        conn.batch_execute(&moved).map_err(|e| self.error(e))?;
        Ok(around)
    }
}

/// A limit of more milliseconds than PostgreSQL knows is the longest that it knows.
pub(super) fn set_limit(limit: Option<Duration>) -> String {
    let most = Duration::from_millis(i32::MAX.unsigned_abs().into());
    let value = limit.map_or("DEFAULT".to_owned(), |limit| {
        limit.clamp(Duration::from_millis(1), most).as_millis().to_string()
    });
    format!("SET LOCAL statement_timeout TO {value}")
}

/// How many transactions are open on the connection, in one another.
pub(super) fn depth(conn: &mut PgConnection) -> QueryResult<u32> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    Ok(status.transaction_depth()?.map_or(0, |depth| depth.get()))
}

/// Commits the innermost transaction, within which `around` others are open.
///
/// PostgreSQL answers COMMIT with success where the transaction had failed before, and rolls back; diesel
/// does not see the difference. A handler that overlooked a failed statement would be told that its job is
/// done. The empty SELECT goes with the COMMIT, fails where the transaction has, and costs no round trip.
/// diesel learns from the connection's state that the transaction is over.
fn commit(conn: &mut PgConnection, around: u32) -> QueryResult<()> {
    if around == 0 {
        conn.batch_execute("SELECT; COMMIT")
    } else {
        AnsiTransactionManager::commit_transaction(conn)
    }
}

/// Rolls back until `around` transactions are open: a panic may have left nested ones behind.
fn roll_back_to(conn: &mut PgConnection, around: u32) -> QueryResult<()> {
    while depth(conn)? > around {
        AnsiTransactionManager::rollback_transaction(conn)?;
    }
    Ok(())
}
