//! The settings of a handle.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use diesel::r2d2::ConnectionManager;
use diesel::{Connection, PgConnection};
use pq_core::{CancellationToken, Codec, Json, PayloadLimits, Tracer};

use crate::conninfo::ConnInfo;
use crate::listener::Listener;
use crate::pool::Pool;
use crate::store::PgStore;
use crate::table::Table;
use crate::{Error, Pq};

/// The interval at which a wait polls when the handle listens.
const POLL_INTERVAL_LISTENING: Duration = Duration::from_secs(5);

/// The interval at which a wait polls when the handle does not listen.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The longest time that a statement of the handle remains without an answer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The limits of the call timeout.
const MIN_CALL_TIMEOUT: Duration = Duration::from_millis(10);
const MAX_CALL_TIMEOUT: Duration = Duration::from_secs(30 * 86_400);

/// The way in which waiters are notified of a put that the handle commits.
///
/// A put in a transaction of the caller's, or by plain SQL, is notified by the table's trigger at its commit, unless
/// its session has set `pq.notify` to `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Notify {
    /// In the commit: the waiter is notified as soon as the job can be taken.
    ///
    /// PostgreSQL takes a lock for all databases to commit a transaction that issued NOTIFY. Therefore, when writers
    /// wait for each other, a handle that puts often, or listens, sends one notification every 4 ms on their behalf.
    /// If that handle crashes, waiters find the jobs at their next poll. A handle that puts at least sixteen times
    /// within 2 s opens a connection for this.
    #[default]
    InCommit,
    /// After the commit: one notification for many puts, at most every 4 ms, on the listener's connection.
    ///
    /// Applies to puts that are a transaction of their own, and to transactions that the handle commits
    /// ([`Pq::transaction`] and the like). Puts with unique keys or of thousands of jobs are notified in the commit.
    /// After a crash between commit and notification, waiters find the job at their next poll. For a handle that does
    /// not listen this is [`Notify::Off`], and in its transactions [`Notify::InCommit`].
    AfterCommit,
    /// Never: waiters find the job at their next poll.
    Off,
}

/// The settings of a handle. See [`Pq::builder`].
#[derive(Clone)]
#[must_use]
pub struct Builder {
    url: Option<ConnInfo>,
    pool: Option<r2d2::Pool<ConnectionManager<PgConnection>>>,
    schema: String,
    table: String,
    notify: Notify,
    listen: bool,
    prepare: bool,
    poll_interval: Option<Duration>,
    pool_size: u32,
    connect_timeout: Duration,
    call_timeout: Duration,
    codec: Arc<dyn Codec>,
    limits: PayloadLimits,
    cancellation_token: Option<CancellationToken>,
    tracer: Option<Arc<dyn Tracer>>,
    count_puts: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            url: None,
            pool: None,
            schema: Table::DEFAULT_SCHEMA.to_owned(),
            table: Table::DEFAULT_NAME.to_owned(),
            notify: Notify::default(),
            listen: true,
            prepare: true,
            poll_interval: None,
            pool_size: 16,
            connect_timeout: Duration::from_secs(5),
            call_timeout: CALL_TIMEOUT,
            codec: Arc::new(Json),
            limits: PayloadLimits::default(),
            cancellation_token: None,
            tracer: None,
            count_puts: true,
        }
    }
}

/// Shows the database without user and password.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("url", &self.url)
            .field("schema", &self.schema)
            .field("table", &self.table)
            .field("notify", &self.notify)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Sets the database, as a URL or a libpq `key=value` string. Default: none.
    ///
    /// The handle makes a pool of connections from it and listens on a connection of its own. With [`Builder::pool`] it
    /// only listens.
    ///
    /// The connections of the handle do not wait without limit for a server that is gone. Unless the string, a service
    /// or an environment variable sets them, these options of libpq have the values `connect_timeout=10`,
    /// `keepalives_idle=30`, `keepalives_interval=10`, `keepalives_count=3` and `tcp_user_timeout=30000`.
    pub fn url(mut self, url: &str) -> Self {
        self.url = Some(ConnInfo::new(url));
        self
    }

    /// Sets a pool of the application to take connections from. Default: a pool that the handle makes from the URL.
    ///
    /// r2d2 does not reveal a pool's connection string. **Without [`Builder::url`] the handle cannot listen: waits poll
    /// every 250 ms** ([`Builder::poll_interval`]), and the handle logs a warning when it is built.
    /// `.listen(false)` silences the warning.
    pub fn pool(mut self, pool: r2d2::Pool<ConnectionManager<PgConnection>>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Sets the schema: any name of 1 to 63 bytes. Default: `pq`.
    pub fn schema(mut self, schema: &str) -> Self {
        schema.clone_into(&mut self.schema);
        self
    }

    /// Sets the table: any name of 1 to 63 bytes. Default: `queue`.
    pub fn table(mut self, table: &str) -> Self {
        table.clone_into(&mut self.table);
        self
    }

    /// Sets how waiters are notified of puts. Default: [`Notify::InCommit`].
    pub fn notify(mut self, notify: Notify) -> Self {
        self.notify = notify;
        self
    }

    /// Sets whether waits listen for notifications. Default: `true`.
    ///
    /// With `false` waits only poll. This is necessary behind a pooler in transaction mode, where LISTEN does not work.
    pub fn listen(mut self, listen: bool) -> Self {
        self.listen = listen;
        self
    }

    /// Sets whether statements are prepared by name on connections of the handle's own pool. Default: `true`.
    ///
    /// Poolers in transaction mode need `false`, unless they track prepared statements. Each single statement is then
    /// in a transaction of its own, which takes two more round trips.
    pub fn prepare(mut self, prepare: bool) -> Self {
        self.prepare = prepare;
        self
    }

    /// Sets the longest time between two polls of a wait. Default: 5 s if the handle listens, else 250 ms.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = Some(interval);
        self
    }

    /// Sets the maximum number of connections in the pool that the handle makes. Default: 16.
    ///
    /// Connections are opened on demand. The listener's connection is additional.
    pub fn pool_size(mut self, size: u32) -> Self {
        self.pool_size = size.max(1);
        self
    }

    /// Sets how long a call waits for a connection of the pool that the handle makes. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a statement of the handle may remain without an answer of the server. Default: 30 s.
    ///
    /// After this time the connection is closed, and the call returns [`Error::Unavailable`], or
    /// [`Error::OutcomeUnknown`] if a change may have been committed. The time is measured for each statement, so a
    /// call of several may take longer, and a bulk put may take as long as it makes progress.
    ///
    /// Statements that you send have no such limit, nor have calls on a connection of yours: in a transactional
    /// handler, in [`Pq::transaction`], on a pool of the application ([`Builder::pool`]). Neither have calls whose
    /// work grows with the queue: migrations, `clear`, `prune`, requeueing and moving jobs. The limit is enforced on
    /// Linux; elsewhere only the settings of TCP limit a wait ([`Builder::url`]). Values are limited to 10 ms and 30
    /// days.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout.clamp(MIN_CALL_TIMEOUT, MAX_CALL_TIMEOUT);
        self
    }

    /// Sets the codec of all queues of the handle. Default: JSON as it is.
    ///
    /// To set it for one queue, use [`pq_core::Queue::with_codec`].
    pub fn codec(mut self, codec: Arc<dyn Codec>) -> Self {
        self.codec = codec;
        self
    }

    /// Sets the largest payload that the queues accept. Default: 1 MiB and 127 levels of nesting.
    pub fn limits(mut self, limits: PayloadLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets a token that ends the waits of all queues of the handle. Default: none.
    ///
    /// To set it for one queue, use [`pq_core::Queue::with_cancellation_token`].
    pub fn cancellation_token(mut self, token: &CancellationToken) -> Self {
        self.cancellation_token = Some(token.clone());
        self
    }

    /// Sets what connects the handle to a system of distributed tracing. Default: none.
    ///
    /// For OpenTelemetry it is that of the crate `pq-otel`. It can also be a function that returns the caller's trace
    /// context. Each job that the handle puts carries the context of its put. The handler reads it by
    /// [`pq_core::Context::trace`], and middleware gets it too.
    pub fn trace(mut self, tracer: impl Tracer + 'static) -> Self {
        self.tracer = Some(Arc::new(tracer));
        self
    }

    /// Sets whether the handle counts the jobs that it puts, and stores the counts in the database. Default: yes. See
    /// [`pq_core::Pq::store_put_counts`].
    pub fn count_puts(mut self, count: bool) -> Self {
        self.count_puts = count;
        self
    }

    /// Builds the handle. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidIdentifier`].
    pub fn build(self) -> Result<Pq, Error> {
        let table = Table::new(&self.schema, &self.table)?;
        let url = self.url.clone().filter(|_| self.listen);
        let listener = url.map(|url| Listener::new(url, table.clone(), self.call_timeout));
        let default_interval = if listener.is_some() { POLL_INTERVAL_LISTENING } else { POLL_INTERVAL };
        let poll_interval = self.poll_interval.unwrap_or(default_interval).max(Duration::from_millis(1));
        if self.pool.is_some() && self.listen && listener.is_none() {
            tracing::warn!(
                %table,
                ?poll_interval,
                "listening disabled: the pool's connection string is unknown; set `Builder::url` to listen, \
                 or `Builder::listen(false)` to poll without this warning"
            );
        }
        let pool = match (self.pool, self.url) {
            (Some(pool), _) => Some(Pool::Given(pool)),
            (None, Some(url)) => {
                Some(Pool::new(url, self.pool_size, self.connect_timeout, self.call_timeout, self.prepare))
            }
            (None, None) => None,
        };
        let store = PgStore::new(table, pool, listener, self.notify, poll_interval, self.call_timeout);
        let mut pq = pq_core::Pq::new(store).with_codec(self.codec).with_limits(self.limits);
        if let Some(token) = &self.cancellation_token {
            pq = pq.with_cancellation_token(token);
        }
        if let Some(tracer) = self.tracer {
            pq = pq.with_trace(tracer);
        }
        if !self.count_puts {
            pq = pq.without_put_counts();
        }
        Ok(Pq::from_core(pq))
    }

    /// Builds the handle, after connecting once to check that the server can be reached.
    ///
    /// # Errors
    ///
    /// The errors of [`Builder::build`], and [`Error::Unreachable`].
    pub fn connect(self) -> Result<Pq, Error> {
        if let Some(url) = &self.url {
            PgConnection::establish(url.complete()).map_err(|found| Error::Unreachable {
                server: url.server(),
                reason: url.redact(&found.to_string()),
            })?;
        }
        self.build()
    }
}
