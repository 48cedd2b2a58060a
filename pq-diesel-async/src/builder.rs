//! The settings of a handle.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pq_core::{CancellationToken, Codec, PayloadLimits, Tracer};
use pq_diesel::{Error, Notify};

use crate::Pq;
use crate::pool::Lend;
use crate::shared::Shared;

/// The settings of a handle. See [`Pq::builder`].
///
/// A handle has a URL, a pool of the application, or both. From the URL it makes a pool of its own, if it was given
/// none, and listens for notifications. A worker needs the URL, too: the threads that take jobs have connections of
/// their own.
#[derive(Clone)]
#[must_use]
pub struct Builder {
    blocking: pq_diesel::Builder,
    url: Option<String>,
    pool: Option<Arc<dyn Lend>>,
    pool_size: usize,
    connect_timeout: Duration,
    pub(crate) call_timeout: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            blocking: pq_diesel::Pq::builder(),
            url: None,
            pool: None,
            pool_size: 16,
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
        }
    }
}

/// Shows the database without user and password.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("blocking", &self.blocking).finish_non_exhaustive()
    }
}

impl Builder {
    /// Sets the database, as a URL or a libpq `key=value` string. Default: none.
    ///
    /// The handle makes a pool of up to [`Builder::pool_size`] connections from it, unless it is given one. These do
    /// not use TLS: for a server that requires it, pass a pool whose connections do. The connections that listen and
    /// that workers use from threads are opened by libpq, with all its settings. See [`pq_diesel::Builder::url`].
    pub fn url(mut self, url: &str) -> Self {
        self.blocking = self.blocking.url(url);
        self.url = Some(url.to_owned());
        self
    }

    /// Sets a pool of the application to take connections from. Default: a pool that the handle makes from the URL.
    ///
    /// **Without [`Builder::url`] the handle cannot listen: waits poll every 250 ms**, and the handle logs a warning
    /// when it is built. `.listen(false)` silences the warning.
    #[cfg(feature = "deadpool")]
    pub fn deadpool(
        mut self,
        pool: diesel_async::pooled_connection::deadpool::Pool<diesel_async::AsyncPgConnection>,
    ) -> Self {
        self.pool = Some(Arc::new(pool));
        self
    }

    /// Sets a pool of bb8 to take connections from. See [`Builder::url`] for what needs the URL, too.
    #[cfg(feature = "bb8")]
    pub fn bb8(
        mut self,
        pool: diesel_async::pooled_connection::bb8::Pool<diesel_async::AsyncPgConnection>,
    ) -> Self {
        self.pool = Some(Arc::new(pool));
        self
    }

    /// Sets a pool of mobc to take connections from. See [`Builder::url`] for what needs the URL, too.
    #[cfg(feature = "mobc")]
    pub fn mobc(
        mut self,
        pool: diesel_async::pooled_connection::mobc::Pool<diesel_async::AsyncPgConnection>,
    ) -> Self {
        self.pool = Some(Arc::new(pool));
        self
    }

    /// Sets the schema: any name of 1 to 63 bytes. Default: `pq`.
    pub fn schema(mut self, schema: &str) -> Self {
        self.blocking = self.blocking.schema(schema);
        self
    }

    /// Sets the table: any name of 1 to 63 bytes. Default: `queue`.
    pub fn table(mut self, table: &str) -> Self {
        self.blocking = self.blocking.table(table);
        self
    }

    /// Sets how waiters are notified of puts. Default: [`Notify::InCommit`].
    pub fn notify(mut self, notify: Notify) -> Self {
        self.blocking = self.blocking.notify(notify);
        self
    }

    /// Sets whether waits listen for notifications. Default: `true`.
    ///
    /// With `false` waits only poll. This is necessary behind a pooler in transaction mode, where LISTEN does not work.
    pub fn listen(mut self, listen: bool) -> Self {
        self.blocking = self.blocking.listen(listen);
        self
    }

    /// Sets the longest time between two polls of a wait. Default: 5 s if the handle listens, else 250 ms.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.blocking = self.blocking.poll_interval(interval);
        self
    }

    /// Sets the maximum number of connections in each pool that the handle makes. Default: 16.
    ///
    /// Connections are opened on demand.
    pub fn pool_size(mut self, size: u32) -> Self {
        self.blocking = self.blocking.pool_size(size);
        self.pool_size = size.max(1) as usize;
        self
    }

    /// Sets how long a call waits for a connection of a pool that the handle makes. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.blocking = self.blocking.connect_timeout(timeout);
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a call of the handle may take on its connection. Default: 30 s.
    ///
    /// After this time the connection is closed, and the call returns [`Error::Unavailable`], or
    /// [`Error::OutcomeUnknown`] if a change may have been committed. What you send on a connection has no such
    /// limit, nor have `clear`, requeueing and migrations. Values are limited to 10 ms and 30 days.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.blocking = self.blocking.call_timeout(timeout);
        self.call_timeout = timeout.clamp(Duration::from_millis(10), Duration::from_secs(30 * 86_400));
        self
    }

    /// Sets the codec of all queues of the handle. Default: JSON as it is.
    pub fn codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.blocking = self.blocking.codec(codec);
        self
    }

    /// Sets the largest payload that the queues accept. Default: 1 MiB and 127 levels of nesting.
    pub fn limits(mut self, limits: PayloadLimits) -> Self {
        self.blocking = self.blocking.limits(limits);
        self
    }

    /// Sets a token that ends the waits of all queues of the handle. Default: none.
    pub fn cancellation_token(mut self, token: &CancellationToken) -> Self {
        self.blocking = self.blocking.cancellation_token(token);
        self
    }

    /// Sets what connects the handle to a system of distributed tracing. Default: none. See
    /// [`pq_diesel::Builder::trace`].
    pub fn trace(mut self, tracer: impl Tracer + 'static) -> Self {
        self.blocking = self.blocking.trace(tracer);
        self
    }

    /// Sets whether the handle counts the jobs that it puts, and stores the counts in the database. Default: yes.
    pub fn count_puts(mut self, count: bool) -> Self {
        self.blocking = self.blocking.count_puts(count);
        self
    }

    /// Builds the handle. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidIdentifier`]; [`Error::Unreachable`] if the driver cannot parse the URL.
    pub fn build(self) -> Result<Pq, Error> {
        let pool = match (self.pool, self.url) {
            (Some(pool), _) => Some(pool),
            #[cfg(feature = "deadpool")]
            (None, Some(url)) => Some(crate::pool::of_url(&url, self.pool_size, self.connect_timeout)?),
            _ => None,
        };
        let shared = Shared::new(self.blocking.build()?, pool, self.call_timeout);
        Ok(Pq::from_shared(shared))
    }
}
