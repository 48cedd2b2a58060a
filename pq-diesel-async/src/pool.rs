//! Connections of the handle: the pools that they come from, and what happens to one whose call was not finished.

use std::pin::Pin;
use std::time::Duration;

use diesel_async::{AnsiTransactionManager, AsyncPgConnection, TransactionManager};
use pq_diesel::Error;
use tokio_postgres::NoTls;

use crate::connection::{OnAsync, depth};

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A pool of connections.
pub(crate) trait Lend: Send + Sync {
    /// Lends a connection.
    fn lend(&self) -> BoxFuture<'_, Result<Box<dyn Borrowed>, Error>>;

    /// Returns how many connections it has at most, if it says so.
    fn size(&self) -> Option<usize> {
        None
    }
}

/// A connection that a pool has lent, and that it gets back when this is dropped.
pub(crate) trait Borrowed: Send {
    fn connection(&mut self) -> &mut AsyncPgConnection;

    /// Closes the connection instead of returning it.
    fn close(self: Box<Self>);
}

/// A borrowed connection. It is closed when it is dropped before [`Lent::release`]: the call was not finished, so the
/// connection may be in a transaction or have an answer that nobody has read.
#[allow(missing_debug_implementations, reason = "users do not see it")]
pub struct Lent {
    borrowed: Option<Box<dyn Borrowed>>,
    has_other_isolation: bool,
}

impl Lent {
    pub(crate) fn new(borrowed: Box<dyn Borrowed>, has_other_isolation: bool) -> Self {
        Self { borrowed: Some(borrowed), has_other_isolation }
    }

    /// Returns the connection for statements of the store.
    pub fn sql(&mut self) -> OnAsync<'_> {
        let has_other_isolation = self.has_other_isolation;
        OnAsync::with_isolation(self.connection(), has_other_isolation)
    }

    /// Returns the connection for statements of the application.
    pub(crate) fn connection(&mut self) -> &mut AsyncPgConnection {
        match &mut self.borrowed {
            Some(borrowed) => borrowed.connection(),
            None => unreachable!("the connection is lent until it is released"),
        }
    }

    /// Returns the connection to its pool, after a call that has ended.
    pub fn release(mut self) {
        if depth(self.connection()).is_ok_and(|depth| depth == 0) {
            drop(self.borrowed.take());
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut borrowed) = self.borrowed.take() else { return };
        let conn = borrowed.connection();
        // Pools drop a connection in this state.
        AnsiTransactionManager::transaction_manager_status_mut(conn).set_in_error();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // The statement would otherwise go on for as long as it waits, for example for a lock. Over TLS the
            // request may be refused, and then it does.
            let token = conn.cancel_token();
            runtime.spawn(async move { drop(token.cancel_query(NoTls).await) });
        }
        borrowed.close();
    }
}

/// Returns the error for a pool that did not lend a connection because all are in use.
fn exhausted(size: usize, waited: Duration) -> Error {
    Error::pool_exhausted(u32::try_from(size).unwrap_or(u32::MAX), waited)
}

#[cfg(feature = "deadpool")]
pub(crate) use self::deadpool::of_url;

#[cfg(feature = "deadpool")]
mod deadpool {
    use std::sync::Arc;
    use std::time::Duration;

    use ::deadpool::Runtime;
    use ::deadpool::managed::{PoolError, TimeoutType};
    use diesel_async::SimpleAsyncConnection;
    use diesel_async::pooled_connection::deadpool::{Hook, HookError, Object, Pool};
    use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};

    use super::{AsyncPgConnection, Borrowed, BoxFuture, Error, Lend, exhausted};

    /// The time for which a connection is lent again without a check.
    ///
    /// The check costs a round trip. An idle connection needs it, since a restart of the server or a firewall may have
    /// closed it.
    const TRUSTED_FOR: Duration = Duration::from_secs(1);

    /// The longest time that a check waits for its answer. It is short, because the pool can open another connection.
    const CHECK_WITHIN: Duration = Duration::from_secs(2);

    /// Makes a pool of up to `size` connections. None is opened yet.
    pub(crate) fn of_url(url: &str, size: usize, timeout: Duration) -> Result<Arc<dyn Lend>, Error> {
        // Its error may quote the URL.
        if url.parse::<tokio_postgres::Config>().is_err() {
            return Err(Error::unreachable(
                "the server",
                "tokio-postgres cannot parse the URL; pass a pool that you have made, or use the options that it knows",
            ));
        }
        let mut config = ManagerConfig::default();
        config.recycling_method = RecyclingMethod::Fast;
        let manager = AsyncDieselConnectionManager::new_with_config(url, config);
        let pool = Pool::builder(manager)
            .max_size(size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(timeout))
            .create_timeout(Some(timeout))
            .recycle_timeout(Some(CHECK_WITHIN))
            .pre_recycle(Hook::async_fn(|conn: &mut AsyncPgConnection, metrics| {
                let is_checked = metrics.last_used() >= TRUSTED_FOR;
                Box::pin(async move {
                    if is_checked {
                        conn.batch_execute("SELECT")
                            .await
                            .map_err(|_| HookError::message("connection lost"))?;
                    }
                    Ok(())
                })
            }))
            .build()
            .map_err(|error| Error::unreachable("the server", &error.to_string()))?;
        Ok(Arc::new(pool))
    }

    impl Lend for Pool<AsyncPgConnection> {
        fn size(&self) -> Option<usize> {
            Some(self.status().max_size)
        }

        fn lend(&self) -> BoxFuture<'_, Result<Box<dyn Borrowed>, Error>> {
            Box::pin(async move {
                match self.get().await {
                    Ok(object) => Ok(Box::new(object) as Box<dyn Borrowed>),
                    Err(PoolError::Timeout(TimeoutType::Wait)) => {
                        let waited = self.timeouts().wait.unwrap_or_default();
                        Err(exhausted(self.status().max_size, waited))
                    }
                    // The message may quote the pool's connection string.
                    Err(_) => Err(Error::Unavailable("the pool cannot connect to the server".to_owned())),
                }
            })
        }
    }

    impl Borrowed for Object<AsyncPgConnection> {
        fn connection(&mut self) -> &mut AsyncPgConnection {
            self
        }

        fn close(self: Box<Self>) {
            drop(Object::take(*self));
        }
    }
}

#[cfg(feature = "bb8")]
mod bb8 {
    use ::bb8::RunError;
    use diesel_async::pooled_connection::bb8::{Pool, PooledConnection};

    use super::{AsyncPgConnection, Borrowed, BoxFuture, Error, Lend, exhausted};

    impl Lend for Pool<AsyncPgConnection> {
        fn lend(&self) -> BoxFuture<'_, Result<Box<dyn Borrowed>, Error>> {
            Box::pin(async move {
                match self.get_owned().await {
                    Ok(connection) => Ok(Box::new(connection) as Box<dyn Borrowed>),
                    Err(RunError::TimedOut) => {
                        Err(exhausted(self.state().connections as usize, std::time::Duration::ZERO))
                    }
                    Err(RunError::User(_)) => {
                        Err(Error::Unavailable("the pool cannot connect to the server".to_owned()))
                    }
                }
            })
        }
    }

    impl Borrowed for PooledConnection<'static, AsyncPgConnection> {
        fn connection(&mut self) -> &mut AsyncPgConnection {
            self
        }

        /// The pool closes it, because its transaction manager is in error.
        fn close(self: Box<Self>) {}
    }
}

#[cfg(feature = "mobc")]
mod mobc {
    use diesel_async::pooled_connection::mobc::{Pool, PooledConnection};

    use super::{AsyncPgConnection, Borrowed, BoxFuture, Error, Lend, exhausted};

    impl Lend for Pool<AsyncPgConnection> {
        fn lend(&self) -> BoxFuture<'_, Result<Box<dyn Borrowed>, Error>> {
            Box::pin(async move {
                match self.get().await {
                    Ok(connection) => Ok(Box::new(connection) as Box<dyn Borrowed>),
                    Err(::mobc::Error::Timeout) => {
                        let size = self.state().await.max_open;
                        Err(exhausted(usize::try_from(size).unwrap_or_default(), std::time::Duration::ZERO))
                    }
                    Err(_) => Err(Error::Unavailable("the pool cannot connect to the server".to_owned())),
                }
            })
        }
    }

    impl Borrowed for PooledConnection<AsyncPgConnection> {
        fn connection(&mut self) -> &mut AsyncPgConnection {
            self
        }

        fn close(self: Box<Self>) {
            drop(self.into_inner());
        }
    }
}
