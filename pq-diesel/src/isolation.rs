//! Isolation levels: the library's statements run at READ COMMITTED whatever a session's default is.
//!
//! A transaction states its level when it begins. A session setting would not do: behind a pooler it may reach other
//! sessions, and an application's connection keeps the application's settings.

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::r2d2::R2D2Connection;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::Text;
use pq_core::Isolation;

use crate::pool;

/// Returns the number of nested transactions that are open on the connection.
pub(crate) fn depth(conn: &mut PgConnection) -> QueryResult<u32> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    Ok(status.transaction_depth()?.map_or(0, |depth| depth.get()))
}

/// Returns whether the open transaction is a test's (diesel's `begin_test_transaction`), which is never committed.
pub(crate) fn is_in_test_transaction(conn: &mut PgConnection) -> bool {
    // Of the open transactions, a pool takes only a test's back.
    depth(conn).is_ok_and(|depth| depth > 0) && !conn.is_broken()
}

/// Begins a transaction that is nested in `around` others. A nested one has the level of the outermost.
pub(crate) fn begin(conn: &mut PgConnection, around: u32, isolation: Isolation) -> QueryResult<()> {
    if around > 0 {
        return AnsiTransactionManager::begin_transaction(conn);
    }
    let begin = match isolation {
        Isolation::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
        Isolation::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
        Isolation::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
    };
    AnsiTransactionManager::begin_transaction_sql(conn, begin)
}

/// Runs `work` in a transaction at READ COMMITTED, or in one that is nested in the open transaction.
pub(crate) fn transaction<R, E: From<DieselError>>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<R, E>,
) -> Result<R, E> {
    match depth(conn)? {
        0 => conn.build_transaction().read_committed().run(work),
        _ => conn.transaction(work),
    }
}

/// Returns whether a single statement of this session is at READ COMMITTED.
pub(crate) fn is_read_committed(conn: &mut PgConnection) -> QueryResult<bool> {
    let level: String = diesel::dsl::sql::<Text>("SHOW transaction_isolation").get_result(conn)?;
    Ok(level == "read committed")
}

/// Returns whether single statements need a transaction: outside of one, on a connection of the handle's own pool whose
/// default is another level, or which does not prepare statements because of a pooler.
pub(crate) fn needs_transaction(conn: &mut PgConnection) -> QueryResult<bool> {
    Ok(pool::runs_singles(conn) == Some(false) && depth(conn)? == 0)
}

/// Runs a single statement, in the open transaction if there is one.
///
/// Otherwise it is a transaction of its own at READ COMMITTED. On a connection of the handle's own pool whose default
/// is another level, or behind a pooler, that takes two more round trips. On a connection of the application's the
/// default level is tried first, because it is not known, and a serialization failure shows that it is another one.
pub(crate) fn run_single<T>(
    conn: &mut PgConnection,
    run: impl Fn(&mut PgConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    let mut conflict = None;
    if !needs_transaction(conn)? {
        match run(conn) {
            Err(error @ DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _))
                if depth(conn)? == 0 =>
            {
                conflict = Some(error);
            }
            done => return done,
        }
    }
    if let Err(error) = begin(conn, 0, Isolation::ReadCommitted) {
        // It cannot begin in a transaction that the caller began by plain SQL and that the conflict has aborted.
        return Err(conflict.unwrap_or(error));
    }
    let done = run(conn);
    match &done {
        Ok(_) | Err(DieselError::NotFound) => AnsiTransactionManager::commit_transaction(conn)?,
        // If the rollback fails, the connection is lost, and the server rolls back.
        Err(_) => drop(AnsiTransactionManager::rollback_transaction(conn)),
    }
    done
}
