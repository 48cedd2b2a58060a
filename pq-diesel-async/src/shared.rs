//! What the clones of a handle share: the store, the pool, and the puts that wait to be grouped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pq_core::{Isolation, NotStored, PUT_COUNTS_INTERVAL, may_have_counted};
use pq_diesel::Error;
use pq_diesel::store::{PgStore, SqlConnection};
use tokio::sync::OnceCell;

use crate::connection::depth;
use crate::group_put::GroupPuts;
use crate::pool::{BoxFuture, Lend, Lent};

/// The state that the clones of a handle share.
#[allow(missing_debug_implementations, reason = "users do not see it")]
pub struct Shared {
    /// The handle that listens, and that workers use from their own threads.
    pub(crate) blocking: pq_diesel::Pq,
    pool: Option<Arc<dyn Lend>>,
    pub(crate) call_timeout: Duration,
    pub(crate) group_puts: GroupPuts,
    /// Whether the default isolation level of the pool's connections is another one than READ COMMITTED.
    has_other_isolation: OnceCell<bool>,
    /// Set when the task that stores the counts of puts was started.
    stores_put_counts: AtomicBool,
}

impl Shared {
    pub(crate) fn new(blocking: pq_diesel::Pq, pool: Option<Arc<dyn Lend>>, call_timeout: Duration) -> Self {
        let group_puts = GroupPuts::default();
        Self {
            blocking,
            pool,
            call_timeout,
            group_puts,
            has_other_isolation: OnceCell::new(),
            stores_put_counts: AtomicBool::new(false),
        }
    }

    pub(crate) fn store(&self) -> &PgStore {
        self.blocking.store()
    }

    /// Returns how many connections the pool has at most, if it says so.
    pub(crate) fn pool_size(&self) -> Option<usize> {
        self.pool.as_ref()?.size()
    }

    /// Borrows a connection of the pool.
    #[allow(clippy::missing_errors_doc)]
    pub async fn lend(&self) -> Result<Lent, Error> {
        let pool = self.pool.as_ref().ok_or(pq_core::Error::NoConnection)?;
        let mut borrowed = pool.lend().await?;
        let other = self
            .has_other_isolation
            .get_or_try_init(|| async {
                let conn = borrowed.connection();
                self.within_limit(crate::connection::has_other_isolation(conn)).await
            })
            .await;
        match other {
            Ok(other) => Ok(Lent::new(borrowed, *other)),
            Err(error) => {
                drop(Lent::new(borrowed, false));
                Err(error)
            }
        }
    }

    /// Waits for a call on a connection, at most for the call timeout. A connection whose call did not end must not be
    /// released.
    pub(crate) async fn within_limit<R>(
        &self,
        call: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, Error> {
        match tokio::time::timeout(self.call_timeout, call).await {
            Ok(done) => done,
            Err(_) => {
                let limit = self.call_timeout;
                Err(Error::Unavailable(format!("the server did not answer within {limit:?}")))
            }
        }
    }
}

impl Shared {
    /// Starts a task that stores the counts of puts regularly, as long as a clone of the handle exists. Does nothing
    /// if it was started, and for a handle that has no connections.
    pub(crate) fn store_put_counts_regularly(self: &Arc<Self>) {
        if self.pool.is_none() || self.stores_put_counts.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::downgrade(self);
        let mut log = NotStored::default();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PUT_COUNTS_INTERVAL).await;
                let Some(shared) = shared.upgrade() else { return };
                if let Err(error) = shared.store_put_counts().await {
                    log.report(&error);
                }
            }
        });
    }

    /// Adds the counts of puts to the counters in the database.
    pub(crate) async fn store_put_counts(&self) -> Result<(), Error> {
        let pq = self.blocking.as_ref();
        let counted = pq.take_put_counts();
        if counted.is_empty() {
            return Ok(());
        }
        let mut lent = match self.lend().await {
            Ok(lent) => lent,
            Err(error) => {
                pq.put_back_put_counts(counted);
                return Err(error);
            }
        };
        let stored = self.within_limit(self.store().count_tasks_on(&mut lent.sql(), &counted)).await;
        if stored.as_ref().is_err_and(|error| !may_have_counted(error)) {
            pq.put_back_put_counts(counted);
        }
        finish(lent, stored)
    }

    /// Borrows a connection and begins a transaction on it, at READ COMMITTED.
    pub(crate) fn begin(&self) -> BoxFuture<'_, Result<Lent, Error>> {
        self.begin_at(Isolation::ReadCommitted)
    }

    /// Borrows a connection and begins a transaction on it.
    pub(crate) fn begin_at(&self, isolation: Isolation) -> BoxFuture<'_, Result<Lent, Error>> {
        Box::pin(async move {
            let mut lent = self.lend().await?;
            let begin = async { Ok(lent.sql().begin(0, isolation).await?) };
            match self.within_limit(begin).await {
                Ok(()) => Ok(lent),
                Err(error) => finish(lent, Err(error)),
            }
        })
    }

    /// Commits the transaction on the connection, or rolls it back after an error, and returns the result.
    pub(crate) fn end<'a, R, E>(&'a self, lent: Lent, done: Result<R, E>) -> BoxFuture<'a, Result<R, E>>
    where
        R: Send + 'a,
        E: From<Error> + Send + 'a,
    {
        // The futures of these functions have a type without parameters of the caller's function, which the compiler
        // could otherwise not show to be `Send`.
        Box::pin(self.commit_or_roll_back(lent, done))
    }

    async fn commit_or_roll_back<R, E: From<Error>>(
        &self,
        mut lent: Lent,
        done: Result<R, E>,
    ) -> Result<R, E> {
        if depth(lent.connection()).is_ok_and(|depth| depth > 1) {
            // The future of a nested transaction was dropped. What it wrote must not be committed.
            drop(lent);
            let nested = "a nested transaction was left open, so the transaction was rolled back";
            return Err(done.err().unwrap_or_else(|| Error::Unavailable(nested.to_owned()).into()));
        }
        let error = match done {
            Ok(done) => {
                let mut sql = lent.sql();
                let commit = async { sql.commit(0).await.map_err(|error| self.store().error(error)) };
                match self.within_limit(commit).await {
                    Ok(()) => {
                        lent.release();
                        return Ok(done);
                    }
                    Err(error) => error.unless_committed().into(),
                }
            }
            Err(error) => error,
        };
        // If the rollback fails, the server has rolled back.
        drop(self.roll_back(lent).await);
        Err(error)
    }

    /// Rolls back the transaction on the connection. If that fails, the connection is closed, and the server rolls
    /// back.
    pub(crate) fn roll_back(&self, mut lent: Lent) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let rolled_back = self.within_limit(async { Ok(lent.sql().roll_back_to(0).await?) }).await;
            finish(lent, rolled_back)
        })
    }
}

/// Releases the connection of a call that has ended, and returns its result. After an error of the connection it is
/// closed.
pub(crate) fn finish<R>(conn: Lent, done: Result<R, Error>) -> Result<R, Error> {
    match &done {
        Err(error) if error.is_unavailable() => drop(conn),
        _ => conn.release(),
    }
    done
}

/// Runs a call of the store on a connection of the handle, within the call timeout.
macro_rules! on_connection {
    ($shared:expr, |$conn:ident| $call:expr) => {{
        let mut lent = $shared.lend().await?;
        let done = {
            let mut sql = lent.sql();
            let $conn = &mut sql;
            $shared.within_limit($call).await
        };
        $crate::shared::finish(lent, done)
    }};
}
pub(crate) use on_connection;

/// Runs a call of the store that changes something, as [`on_connection`] does. If the answer did not come in time,
/// the change may have been made.
macro_rules! change_on_connection {
    ($shared:expr, |$conn:ident| $call:expr) => {
        $crate::shared::on_connection!($shared, |$conn| $call).map_err(pq_diesel::Error::unless_committed)
    };
}
pub(crate) use change_on_connection;

/// Returns the future of an operation that is recorded in its transaction, if `$record` returns a record of its result.
///
/// A handle without an actor records nothing, and begins no transaction.
macro_rules! recorded {
    ($store:expr, $conn:ident, $actor:expr, $call:expr, |$done:ident| $record:expr) => {
        async {
            if $actor.is_none() {
                return $call.await;
            }
            let around = $store.begin($conn).await?;
            let done = async {
                let $done = $call.await?;
                if let Some(record) = $record {
                    $store.record_on($conn, &record).await?;
                }
                Ok($done)
            };
            let done = done.await;
            $store.end($conn, around, done).await
        }
    };
}
pub(crate) use recorded;
