//! The store's statements on connections of diesel-async.

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::Text;
use diesel_async::methods::LoadQuery;
use diesel_async::{
    AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection, TransactionManager,
};
use pq_core::Isolation;
use pq_diesel::Error;
use pq_diesel::store::{Answer, Bound, Failed, Limited, Load, SqlConnection};

use crate::sqlstate::sqlstate;

/// A borrowed connection on which the store runs its statements.
#[allow(missing_debug_implementations, reason = "users do not see it")]
pub struct OnAsync<'c> {
    conn: &'c mut AsyncPgConnection,
    /// Whether the session's default isolation level is known to be another one than READ COMMITTED.
    has_other_isolation: bool,
}

impl<'c> OnAsync<'c> {
    /// Borrows a connection of the application, whose default isolation level is not known.
    pub fn new(conn: &'c mut AsyncPgConnection) -> Self {
        Self { conn, has_other_isolation: false }
    }

    /// Borrows a connection, and says whether its default isolation level is another one than READ COMMITTED.
    pub(crate) fn with_isolation(conn: &'c mut AsyncPgConnection, has_other_isolation: bool) -> Self {
        Self { conn, has_other_isolation }
    }

    /// Returns whether a single statement needs a transaction to be at READ COMMITTED.
    ///
    /// If the default level is not known it is tried first, and a serialization failure shows that it is another one.
    fn needs_transaction(&mut self) -> Result<bool, DieselError> {
        Ok(self.has_other_isolation && depth(self.conn)? == 0)
    }

    async fn begin_single(&mut self) -> Result<(), DieselError> {
        AnsiTransactionManager::begin_transaction_sql(self.conn, begin_sql(Isolation::ReadCommitted)).await
    }

    async fn end_single<R>(&mut self, done: Result<R, DieselError>) -> Result<R, DieselError> {
        match done {
            Ok(done) => {
                AnsiTransactionManager::commit_transaction(self.conn).await?;
                Ok(done)
            }
            Err(error) => {
                // If the rollback fails, the connection is lost, and the server rolls back.
                let _ = AnsiTransactionManager::rollback_transaction(self.conn).await;
                Err(error)
            }
        }
    }

    /// Returns whether a statement must run again, in a transaction at READ COMMITTED.
    fn is_conflict_of_default<R>(&mut self, done: &Result<R, DieselError>) -> Result<bool, DieselError> {
        let is_conflict =
            matches!(done, Err(DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)));
        Ok(is_conflict && depth(self.conn)? == 0)
    }
}

impl<Row: 'static, T: Send> Load<Row, T> for OnAsync<'_>
where
    for<'q> Bound<'q, Row>: LoadQuery<'q, AsyncPgConnection, T>,
{
    fn load<'a>(&'a mut self, statement: Bound<'a, Row>) -> Answer<'a, Vec<T>> {
        Answer::later(async move {
            if !self.needs_transaction().map_err(failed)? {
                let done = RunQueryDsl::load(statement, self.conn).await;
                if !self.is_conflict_of_default(&done).map_err(failed)? {
                    return done.map_err(failed);
                }
            }
            self.begin_single().await.map_err(failed)?;
            let done = RunQueryDsl::load(statement, self.conn).await;
            self.end_single(done).await.map_err(failed)
        })
    }
}

impl SqlConnection for OnAsync<'_> {
    fn execute<'a, Row: 'static>(&'a mut self, statement: Bound<'a, Row>) -> Answer<'a, usize> {
        Answer::later(async move {
            if !self.needs_transaction().map_err(failed)? {
                let done = RunQueryDsl::execute(statement, self.conn).await;
                if !self.is_conflict_of_default(&done).map_err(failed)? {
                    return done.map_err(failed);
                }
            }
            self.begin_single().await.map_err(failed)?;
            let done = RunQueryDsl::execute(statement, self.conn).await;
            self.end_single(done).await.map_err(failed)
        })
    }

    fn run<'a>(&'a mut self, sql: &'a str) -> Answer<'a, ()> {
        Answer::later(async move { self.conn.batch_execute(sql).await.map_err(failed) })
    }

    fn depth(&mut self) -> Result<u32, Failed> {
        depth(self.conn).map_err(failed)
    }

    fn is_in_test_transaction(&mut self) -> bool {
        // Of the open transactions, a pool takes only a test's back.
        depth(self.conn).is_ok_and(|depth| depth > 0)
            && !AnsiTransactionManager::is_broken_transaction_manager(self.conn)
    }

    fn begin(&mut self, around: u32, isolation: Isolation) -> Answer<'_, ()> {
        Answer::later(async move {
            let begun = match around {
                0 => AnsiTransactionManager::begin_transaction_sql(self.conn, begin_sql(isolation)).await,
                _ => AnsiTransactionManager::begin_transaction(self.conn).await,
            };
            begun.map_err(failed)
        })
    }

    /// The empty SELECT in the same round trip fails in a transaction in which a statement has failed.
    fn commit(&mut self, around: u32) -> Answer<'_, ()> {
        Answer::later(async move {
            if around > 0 {
                return AnsiTransactionManager::commit_transaction(self.conn).await.map_err(failed);
            }
            self.conn.batch_execute("SELECT; COMMIT").await.map_err(failed)?;
            *AnsiTransactionManager::transaction_manager_status_mut(self.conn) = Default::default();
            Ok(())
        })
    }

    fn roll_back_to(&mut self, around: u32) -> Answer<'_, ()> {
        Answer::later(async move {
            while depth(self.conn).map_err(failed)? > around {
                AnsiTransactionManager::rollback_transaction(self.conn).await.map_err(failed)?;
            }
            Ok(())
        })
    }

    /// The handle limits a call as a whole, and leaves out those that may take long.
    fn without_time_limit(&mut self) -> Option<Limited> {
        None
    }
}

/// Returns the number of nested transactions that are open on the connection.
pub(crate) fn depth(conn: &mut AsyncPgConnection) -> Result<u32, DieselError> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    Ok(status.transaction_depth()?.map_or(0, |depth| depth.get()))
}

fn begin_sql(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
        Isolation::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
        Isolation::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
    }
}

/// Returns the error of a statement on a connection of diesel-async, with its SQLSTATE.
pub(crate) fn failed(source: DieselError) -> Failed {
    Failed::new(source, sqlstate)
}

/// Returns whether the default isolation level of the session is another one than READ COMMITTED.
pub(crate) async fn has_other_isolation(conn: &mut AsyncPgConnection) -> Result<bool, Error> {
    let level = diesel::dsl::sql::<Text>("SHOW transaction_isolation");
    let level: String = level.get_result(conn).await.map_err(failed)?;
    Ok(level != "read committed")
}
