//! Connections, transactions and savepoints.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use diesel::pg::PgConnection;

use super::transaction_tracker::Open;
use super::{PgStore, SqlConnection};
use crate::Error;
use crate::connection::blocking;
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

    fn has_connections(&self) -> bool {
        self.pool.is_some()
    }

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
        let around = conn.depth().map_err(Error::from)?;
        blocking(self.forget_keys_in_test(conn))?;
        blocking(conn.begin(around, isolation)).map_err(|e| self.error(e))?;
        let open = (around == 0).then(|| Open::new(self, conn));
        // A panic may leave changes half done. They are rolled back before it resumes.
        match catch_unwind(AssertUnwindSafe(|| work(conn))) {
            Ok(Ok(done)) => match blocking(conn.commit(around)) {
                Ok(()) => {
                    open.iter().flat_map(Open::queues).for_each(|queue| self.has_put(&queue));
                    Ok(done)
                }
                Err(error) => {
                    let _ = blocking(conn.roll_back_to(around));
                    let error = self.error(error);
                    Err(if around == 0 { error.unless_committed() } else { error }.into())
                }
            },
            Ok(Err(error)) => {
                // A rollback fails only if the connection is lost, and then the server rolls back. So its error is
                // ignored in favour of the one of `work`.
                let _ = blocking(conn.roll_back_to(around));
                Err(error)
            }
            Err(panic) => {
                let _ = blocking(conn.roll_back_to(around));
                resume_unwind(panic)
            }
        }
    }

    /// Sets a savepoint by plain SQL, without diesel. The earlier one is released in the same round trip.
    fn savepoint(&self, conn: &mut PgConnection, earlier: Option<u32>) -> Result<u32, Error> {
        blocking(self.save_on(conn, earlier, ""))
    }

    fn savepoint_and_timeout(
        &self,
        conn: &mut PgConnection,
        earlier: Option<u32>,
        timeout: Option<Duration>,
    ) -> Result<u32, Error> {
        blocking(self.save_on(conn, earlier, &format!("{}; ", set_timeout(timeout))))
    }

    fn rollback_to(&self, conn: &mut PgConnection, savepoint: u32) -> Result<(), Error> {
        blocking(self.roll_back_to_savepoint(conn, savepoint))
    }

    /// Sets `statement_timeout` for the rest of the transaction.
    fn set_statement_timeout(&self, conn: &mut PgConnection, timeout: Option<Duration>) -> Result<(), Error> {
        blocking(conn.run(&set_timeout(timeout))).map_err(|e| self.error(e))
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
        blocking(self.now_on(conn))
    }
}

impl PgStore {
    /// Forgets which serialization keys earlier takes have locked, directly in a test's transaction.
    ///
    /// There each nested transaction stands for one of its own, and so does each single statement. The locks remain,
    /// but this session passes them.
    #[allow(clippy::missing_errors_doc)]
    pub async fn forget_keys_in_test(&self, conn: &mut impl SqlConnection) -> Result<(), Error> {
        if conn.depth()? == 1 && conn.is_in_test_transaction() {
            conn.run("SET LOCAL pq.locked_keys TO ''; SET LOCAL pq.places TO ''")
                .await
                .map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    /// Sets the savepoint, or moves it to the current position, with these settings after it.
    #[allow(clippy::missing_errors_doc)]
    pub async fn save_on(
        &self,
        conn: &mut impl SqlConnection,
        earlier: Option<u32>,
        settings: &str,
    ) -> Result<u32, Error> {
        let Some(around) = earlier else {
            conn.run(&format!("{settings}SAVEPOINT pq_savepoint")).await.map_err(|e| self.error(e))?;
            return Ok(conn.depth()?);
        };
        while conn.depth()? > around {
            conn.commit(around).await.map_err(|e| self.error(e))?;
        }
        let moved = format!("RELEASE SAVEPOINT pq_savepoint; {settings}SAVEPOINT pq_savepoint");
        conn.run(&moved).await.map_err(|e| self.error(e))?;
        Ok(around)
    }

    /// Rolls back to the savepoint. See [`Connect::rollback_to`].
    #[allow(clippy::missing_errors_doc)]
    pub async fn roll_back_to_savepoint(
        &self,
        conn: &mut impl SqlConnection,
        savepoint: u32,
    ) -> Result<(), Error> {
        conn.roll_back_to(savepoint).await?;
        conn.run("ROLLBACK TO SAVEPOINT pq_savepoint").await.map_err(|e| self.error(e))
    }

    /// Returns the time of the database's clock. See [`Connect::now`].
    #[allow(clippy::missing_errors_doc)]
    pub async fn now_on(&self, conn: &mut impl SqlConnection) -> Result<DateTime<Utc>, Error> {
        self.only::<Timestamptz, _>(conn, &self.statements.now, &[]).await
    }
}

/// Returns how to convert the errors of single statements on the connection.
///
/// Outside of a transaction each is one of its own. If its connection is lost, it may have been committed.
pub(super) fn single_statement<C: SqlConnection>(
    conn: &mut C,
) -> Result<impl Fn(Error) -> Error + Send + use<C>, Error> {
    let commits = conn.depth()? == 0;
    Ok(move |error: Error| if commits { error.unless_committed() } else { error })
}

/// Returns the statement that sets the timeout, limited to the longest that PostgreSQL knows.
pub(super) fn set_timeout(timeout: Option<Duration>) -> String {
    let most = Duration::from_millis(i32::MAX.unsigned_abs().into());
    let value = timeout.map_or("DEFAULT".to_owned(), |timeout| {
        timeout.clamp(Duration::from_millis(1), most).as_millis().to_string()
    });
    format!("SET LOCAL statement_timeout TO {value}")
}
