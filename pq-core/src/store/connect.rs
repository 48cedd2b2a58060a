//! Connections and transactions.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::{Error, Isolation};

/// Provides connections and runs transactions.
pub trait Connect: Send + Sync + 'static {
    /// A connection, which is in a transaction or not.
    type Conn;
    /// The store's error, which includes the errors of this crate.
    type Error: StoreError;
    /// A position in a transaction that it can be rolled back to.
    type Savepoint: Copy;

    /// Returns whether the store has connections of its own.
    fn has_connections(&self) -> bool {
        true
    }

    /// Lends a connection of the store's own, outside of a transaction.
    ///
    /// # Errors
    ///
    /// The error of `work`; [`Error::NoConnection`] if the store has no connections of its own; the store's error if
    /// none could be obtained.
    fn with_connection<R, E: From<Self::Error>>(
        &self,
        work: impl FnOnce(&mut Self::Conn) -> Result<R, E>,
    ) -> Result<R, E>;

    /// Runs `work` in a transaction at [`Isolation::ReadCommitted`]. See [`Connect::transaction_at`].
    ///
    /// # Errors
    ///
    /// The errors of [`Connect::transaction_at`].
    fn transaction<R, E: From<Self::Error>>(
        &self,
        conn: &mut Self::Conn,
        work: impl FnOnce(&mut Self::Conn) -> Result<R, E>,
    ) -> Result<R, E> {
        self.transaction_at(conn, Isolation::ReadCommitted, work)
    }

    /// Runs `work` in a transaction at this level, or in a nested one if `conn` is in one already, whose level holds.
    ///
    /// `Ok` commits. An error or a panic rolls back, and the panic is resumed. The connection is usable after all
    /// three.
    ///
    /// # Errors
    ///
    /// The error of `work`, or the store's error if the transaction could not begin or commit.
    fn transaction_at<R, E: From<Self::Error>>(
        &self,
        conn: &mut Self::Conn,
        isolation: Isolation,
        work: impl FnOnce(&mut Self::Conn) -> Result<R, E>,
    ) -> Result<R, E>;

    /// Sets a savepoint in the transaction of `conn` and releases `earlier`.
    ///
    /// For a sequence of steps that can be undone one by one. It takes about half the round trips of a nested
    /// transaction for each step.
    ///
    /// # Errors
    ///
    /// The store's error. If a statement since `earlier` failed and made the transaction unusable, `earlier` is still
    /// valid for [`Connect::rollback_to`], and the transaction can continue after it.
    fn savepoint(
        &self,
        conn: &mut Self::Conn,
        earlier: Option<Self::Savepoint>,
    ) -> Result<Self::Savepoint, Self::Error>;

    /// Calls [`Connect::set_statement_timeout`] and [`Connect::savepoint`], in one round trip if the store can.
    ///
    /// The timeout also applies after a rollback to the new savepoint.
    ///
    /// # Errors
    ///
    /// The errors of [`Connect::savepoint`].
    fn savepoint_and_timeout(
        &self,
        conn: &mut Self::Conn,
        earlier: Option<Self::Savepoint>,
        timeout: Option<Duration>,
    ) -> Result<Self::Savepoint, Self::Error> {
        self.set_statement_timeout(conn, timeout)?;
        self.savepoint(conn, earlier)
    }

    /// Rolls back to a savepoint, including nested transactions that were left open. The savepoint stays valid.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn rollback_to(&self, conn: &mut Self::Conn, savepoint: Self::Savepoint) -> Result<(), Self::Error>;

    /// Sets how long each statement of the open transaction may take, if the store can.
    ///
    /// `None` removes the limit. A rollback to an earlier savepoint undoes the setting. A commit is not limited.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn set_statement_timeout(
        &self,
        conn: &mut Self::Conn,
        timeout: Option<Duration>,
    ) -> Result<(), Self::Error> {
        let _ = (conn, timeout);
        Ok(())
    }

    /// Runs `work`, in which the store waits at most for `timeout` for the answer to each statement on the connection.
    ///
    /// After that time the statement fails as if the connection had been lost. `None` is no limit: the code of an
    /// application runs with it. Outside of this call a store has a limit of its own, if it can be cut off at all.
    fn with_call_timeout<R>(
        &self,
        conn: &mut Self::Conn,
        timeout: Option<Duration>,
        work: impl FnOnce(&mut Self::Conn) -> R,
    ) -> R {
        let _ = timeout;
        work(conn)
    }

    /// Returns a number that grows with each use of the connection, or `None` if the store does not count.
    ///
    /// If the number has not changed, nothing has to be rolled back.
    fn activity(&self, conn: &mut Self::Conn) -> Option<u64> {
        let _ = conn;
        None
    }

    /// Returns how many uses of the connection failed because of a conflict with another transaction, or `None` if the
    /// store does not count. See [`StoreError::is_conflict`].
    fn conflicts(&self, conn: &mut Self::Conn) -> Option<u64> {
        let _ = conn;
        None
    }

    /// Returns the time of the store's clock at the moment of the call.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn now(&self, conn: &mut Self::Conn) -> Result<DateTime<Utc>, Self::Error>;
}

/// Classifies a store's errors for waits and workers.
pub trait StoreError: std::error::Error + From<Error> + Send + Sync + 'static {
    /// Returns whether the store could not be reached or was not ready to serve. A wait then tries again.
    fn is_unavailable(&self) -> bool;

    /// Returns whether the transaction conflicted with another one, so that running it again may succeed.
    ///
    /// A worker runs it again at once, a few times.
    fn is_conflict(&self) -> bool {
        false
    }

    /// Returns whether the same call may succeed later, although nothing else changes.
    ///
    /// Every error that is unavailable or a conflict is passing, and so is, for example, a lock timeout. A worker
    /// repeats the call and drops no outcome.
    fn is_passing(&self) -> bool {
        self.is_unavailable() || self.is_conflict()
    }

    /// Returns whether the store can be read and refuses changes, as a standby does.
    ///
    /// A worker that ends when its queues are empty returns such an error, because it would never find them empty.
    fn is_read_only(&self) -> bool {
        false
    }
}
