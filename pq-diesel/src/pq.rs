//! Making a handle.

use std::ops::Deref;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::ConnectionManager;
use diesel::{Connection, PgConnection};
use pq_core::store::Connect;

use crate::conninfo::ConnInfo;
use crate::grants::{self, Role};
use crate::listener::Listener;
use crate::migrate::{self, Pending};
use crate::pool::Pool;
use crate::statements::Statements;
use crate::store::{FallbackLevels, FastPath, GroupPuts, GroupTakes, PgStore};
use crate::table::Table;
use crate::{Error, Settings};

/// A queue of PostgreSQL: see [`pq_core::Queue`] for what it does.
pub type Queue<T> = pq_core::Queue<PgStore, T>;

/// A task of PostgreSQL's: see [`pq_core::Task`].
pub type Task<A> = pq_core::Task<PgStore, A>;

/// What works jobs: see [`pq_core::Handler`].
pub type Handler = pq_core::Handler<PgStore>;

/// What a leased handler knows of its job: see [`pq_core::Context`].
pub type Context = pq_core::Context<PgStore>;

/// A worker on PostgreSQL: see [`pq_core::Worker`].
pub type Worker = pq_core::Worker<PgStore>;

/// What stops a worker and says what it does: see [`pq_core::Control`].
pub type Control = pq_core::Control<PgStore>;

/// A handle to the queues of one table. Cheap to clone, and usable from many threads at once.
///
/// It gives [`pq_core::Pq`], to which it dereferences: [`pq_core::Pq::queue`] names a queue, and
/// [`pq_core::Pq::transaction`] runs a transaction.
#[derive(Clone)]
pub struct Pq(pq_core::Pq<PgStore>);

impl Pq {
    /// A handle to `pq.queue` in the database of this URL (or libpq `key=value` string), with
    /// connections of its own. It connects once to see that it can.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`], at once.
    pub fn connect(url: &str) -> Result<Self, Error> {
        Self::builder().url(url).connect()
    }

    /// A handle with connections of its own to the database that the environment names; see
    /// [`Settings::from_env`].
    ///
    /// # Errors
    ///
    /// As [`Pq::connect`].
    pub fn from_env() -> Result<Self, Error> {
        Self::connect(Settings::from_env().conninfo())
    }

    /// A handle to `pq.queue` that has no connection of its own: its queues work on the caller's, by
    /// [`pq_core::Queue::on`].
    #[must_use]
    pub fn detached() -> Self {
        Self(pq_core::Pq::new(Builder::default().store(Table::default(), None, None)))
    }

    /// A handle with other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Creates the table, or brings it up to date, on a connection of the handle's own. Does nothing
    /// where that is done, and may be called by any number of processes at once.
    ///
    /// # Errors
    ///
    /// [`Error::Migration`] where a table of this name is there that pq did not make; the database's.
    pub fn migrate(&self) -> Result<(), Error> {
        self.0.store().with_connection(|conn| self.migrate_on(conn))
    }

    /// [`Pq::migrate`] on the caller's connection, inside its transaction if it is in one.
    ///
    /// # Errors
    ///
    /// As [`Pq::migrate`].
    pub fn migrate_on(&self, conn: &mut PgConnection) -> Result<(), Error> {
        migrate::migrate(conn, &self.0.store().table)
    }

    /// Undoes all migrations: **deletes the table and every job in it**, and the schema if the
    /// migrations made it and nothing else lives there.
    ///
    /// # Errors
    ///
    /// The database's own; nothing was deleted then.
    pub fn revert_migrations_on(&self, conn: &mut PgConnection) -> Result<(), Error> {
        migrate::revert(conn, &self.0.store().table)
    }

    /// What [`Pq::migrate`] would run now, in order. Nothing is changed, but the right to change is needed.
    ///
    /// # Errors
    ///
    /// As [`Pq::migrate`].
    pub fn pending_migrations_on(&self, conn: &mut PgConnection) -> Result<Vec<Pending>, Error> {
        migrate::pending(conn, &self.0.store().table)
    }

    /// The migrations that have run after the one of this version, the last first: what
    /// [`Pq::migrate_down_to_on`] would undo. Nothing is changed, but the right to change is needed.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMigration`] where there is no such version; the database's own.
    pub fn migrations_after_on(&self, conn: &mut PgConnection, version: &str) -> Result<Vec<String>, Error> {
        migrate::applied_after(conn, &self.0.store().table, version)
    }

    /// Undoes the migrations after the one of this version, the last first, and says which; `0` undoes all, as
    /// [`Pq::revert_migrations_on`] does. **What only the undone ones can hold is deleted**; each says what it
    /// saves.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMigration`] where there is no such version; the database's own. Nothing was undone then.
    pub fn migrate_down_to_on(&self, conn: &mut PgConnection, version: &str) -> Result<Vec<String>, Error> {
        migrate::revert_after(conn, &self.0.store().table, version)
    }

    /// The statements that grant a role of the database what a process of this kind needs, and nothing else.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidIdentifier`], [`Error::NotMigrated`], or the database's own.
    pub fn grant_sql_on(&self, conn: &mut PgConnection, role: Role, to: &str) -> Result<Vec<String>, Error> {
        grants::statements(conn, &self.0.store().table, role, to)
    }

    /// Grants a role of the database what a process of this kind needs, all or nothing.
    ///
    /// # Errors
    ///
    /// As [`Pq::grant_sql_on`].
    pub fn grant_on(&self, conn: &mut PgConnection, role: Role, to: &str) -> Result<(), Error> {
        conn.transaction(|conn| {
            let all = self.grant_sql_on(conn, role, to)?.join("\n");
            Ok(conn.batch_execute(&all)?)
        })
    }

    /// The SQL that [`Pq::migrate`] runs on an empty database, for `psql`.
    #[must_use]
    pub fn schema_sql(&self) -> String {
        migrate::script(&self.0.store().table)
    }
}

impl Deref for Pq {
    type Target = pq_core::Pq<PgStore>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// How waiters are told of a put that the handle itself commits. A put in a transaction of the caller's, or
/// by plain SQL, is told by the table's trigger at its commit, unless its session has set `pq.notify`
/// to `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notify {
    /// In the commit: the waiter knows as soon as the job is there. PostgreSQL takes one lock for the
    /// whole database to commit a transaction that has notified, so many writers would wait for one another.
    /// Where four sessions or more tell of one queue sixteen times within 100 ms, a handle that listens to it tells
    /// for them every 4 ms, and the table's trigger does not; a crash of that handle costs waiters at most their
    /// poll interval.
    #[default]
    InCommit,
    /// After the commit, many puts together and every 4 ms at most, on the listener's connection: of a put that is a
    /// transaction of its own, and of those in a transaction that the handle commits ([`pq_core::Pq::transaction`]
    /// and its like, on whatever connection). Of these, jobs with unique keys and thousands at once are told in the
    /// commit all the same. A crash in between costs waiters at most their poll interval. A handle that does not
    /// listen has no such connection, and this is [`Notify::Off`] to it, but in transactions [`Notify::InCommit`].
    AfterCommit,
    /// Not at all: waiters find the job at their next poll.
    Off,
}

/// The settings of a handle.
#[derive(Default)]
#[must_use]
pub struct Builder {
    url: Option<ConnInfo>,
    pool: Option<r2d2::Pool<ConnectionManager<PgConnection>>>,
    schema: Option<String>,
    table: Option<String>,
    notify: Notify,
    no_listen: bool,
    unprepared: bool,
    poll_interval: Option<Duration>,
    pool_size: Option<u32>,
    connect_timeout: Option<Duration>,
}

impl Builder {
    /// The database, as a URL or a libpq `key=value` string. Without a pool the handle makes one from
    /// it; with one it is used to listen.
    pub fn url(mut self, url: &str) -> Self {
        self.url = Some(ConnInfo::new(url));
        self
    }

    /// The application's own pool. r2d2 keeps its connection string to itself, so without
    /// [`Builder::url`] waits poll.
    pub fn pool(mut self, pool: r2d2::Pool<ConnectionManager<PgConnection>>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// The schema; `pq` unless said. Any name of 1 to 63 bytes.
    pub fn schema(mut self, schema: &str) -> Self {
        self.schema = Some(schema.to_owned());
        self
    }

    /// The table; `queue` unless said. Any name of 1 to 63 bytes.
    pub fn table(mut self, table: &str) -> Self {
        self.table = Some(table.to_owned());
        self
    }

    /// How waiters are told of puts; [`Notify::InCommit`] unless said.
    pub fn notify(mut self, notify: Notify) -> Self {
        self.notify = notify;
        self
    }

    /// Whether waits listen; true unless said. Behind a pooler in transaction mode there is no LISTEN:
    /// with `false` all works by polling.
    pub fn listen(mut self, listen: bool) -> Self {
        self.no_listen = !listen;
        self
    }

    /// Whether statements are prepared by name on the handle's own connections; true unless said.
    /// For poolers that do not allow it.
    pub fn prepare(mut self, prepare: bool) -> Self {
        self.unprepared = !prepare;
        self
    }

    /// The longest that a wait sleeps between two looks. Unless said 5 seconds where it listens, and
    /// 250 ms where it does not.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = Some(interval);
        self
    }

    /// The most connections of a pool that the handle makes; 16 unless said. They are opened when
    /// they are needed, and the listener has one besides.
    pub fn pool_size(mut self, size: u32) -> Self {
        self.pool_size = Some(size.max(1));
        self
    }

    /// How long a call waits for a connection of the pool that the handle makes; 5 seconds unless said.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// The handle. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidIdentifier`].
    pub fn build(mut self) -> Result<Pq, Error> {
        let schema = self.schema.take().unwrap_or_else(|| Table::DEFAULT_SCHEMA.to_owned());
        let name = self.table.take().unwrap_or_else(|| Table::DEFAULT_NAME.to_owned());
        let table = Table::new(&schema, &name)?;
        let url = self.url.clone().filter(|_| !self.no_listen);
        let listener = url.map(|url| Listener::new(url, table.clone()));
        let pool = match (self.pool.take(), self.url.clone()) {
            (Some(pool), _) => Some(Pool::Given(pool)),
            (None, Some(url)) => Some(Pool::new(
                url,
                self.pool_size.unwrap_or(16),
                self.connect_timeout.unwrap_or(Duration::from_secs(5)),
                !self.unprepared,
            )),
            (None, None) => None,
        };
        Ok(Pq(pq_core::Pq::new(self.store(table, pool, listener))))
    }

    /// The handle, after connecting once to see that it can.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`]; [`Error::Unreachable`], at once.
    pub fn connect(self) -> Result<Pq, Error> {
        if let Some(url) = &self.url {
            PgConnection::establish(url.as_str()).map_err(|found| Error::Unreachable {
                server: url.server(),
                reason: url.redact(&found.to_string()),
            })?;
        }
        self.build()
    }

    fn store(self, table: Table, pool: Option<Pool>, listener: Option<Listener>) -> PgStore {
        let unless_said =
            if listener.is_some() { Duration::from_secs(5) } else { Duration::from_millis(250) };
        PgStore {
            statements: Statements::new(&table),
            table,
            pool,
            listener,
            notify: self.notify,
            fallback_levels: FallbackLevels::default(),
            fast_path: FastPath::default(),
            group_puts: GroupPuts::default(),
            group_takes: GroupTakes::default(),
            poll_interval: self.poll_interval.unwrap_or(unless_said).max(Duration::from_millis(1)),
        }
    }
}
