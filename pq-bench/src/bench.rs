//! A server to measure on, with the queue's table in a database of its own.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_core::store::Connect;
use pq_diesel::{Pq, Queue};
use pq_testing::{Database, Error, Kind, Options, Origin, Server};
use serde_json::value::RawValue;

/// The payload of each job: 24 bytes.
pub const PAYLOAD: &str = "{\"n\":1234567,\"s\":\"abcd\"}";

/// Returns a payload of `bytes` bytes, at least as long as [`PAYLOAD`].
///
/// It consists of random letters from a fixed seed, which PostgreSQL cannot compress.
#[must_use]
pub fn payload_of(bytes: usize) -> String {
    const AROUND: &str = "{\"n\":1234567,\"s\":\"\"}";
    let mut random = fastrand::Rng::with_seed(7);
    let letters: String =
        (0..bytes.max(PAYLOAD.len()) - AROUND.len()).map(|_| random.alphanumeric()).collect();
    format!("{{\"n\":1234567,\"s\":\"{letters}\"}}")
}

/// Maximum number of connections of the handle.
const POOL: u32 = 32;

/// A temporary server with durable commits and the queue's table.
pub struct Bench {
    // Field order is drop order: connections, database, server.
    /// The handle.
    pub pq: Pq,
    database: Database,
    server: Server,
    /// Why the server is not a container although a Docker daemon answered.
    container_error: Option<Error>,
}

impl Bench {
    /// Starts a server, or uses that of `PQ_TEST_DATABASE_URL` if it is set.
    ///
    /// The server is a container of `PQ_TEST_IMAGE` and `PQ_TEST_IMAGE_TAG` if a Docker daemon answers, otherwise
    /// a private cluster.
    ///
    /// # Errors
    ///
    /// If no server can be started or the table cannot be created.
    pub fn start() -> Result<Self> {
        let (server, container_error) = server(&common(Options::durable()))?;
        Self::on(server, container_error)
    }

    /// Starts a server whose commits need not be durable, for counts rather than times.
    ///
    /// # Errors
    ///
    /// The same as [`Bench::start`].
    pub fn throwaway() -> Result<Self> {
        let (server, container_error) = server(&common(Options::throwaway()))?;
        Self::on(server, container_error)
    }

    /// Starts a second server with settings of its own.
    ///
    /// It is of the same kind as this one, or a private cluster if this one was given by URL.
    ///
    /// # Errors
    ///
    /// If no server can be started or the table cannot be created.
    pub fn another(&self, settings: &[(&str, &str)]) -> Result<Self> {
        let kind = match self.server.origin() {
            Origin::Container { .. } => Kind::Container,
            _ => Kind::Binaries,
        };
        let common = common(Options::durable()).kind(kind);
        let options = settings.iter().fold(common, |options, (name, value)| options.setting(*name, *value));
        Self::on(Server::start(&options)?, None)
    }

    fn on(server: Server, container_error: Option<Error>) -> Result<Self> {
        let database = server.database()?;
        let pq = Pq::builder().url(database.url()).pool_size(POOL).connect()?;
        pq.migrate()?;
        Ok(Self { pq, database, server, container_error })
    }

    /// Describes the server, and why it is not a container although a daemon answered.
    #[must_use]
    pub fn origin(&self) -> String {
        match &self.container_error {
            Some(error) => format!("{} (a Docker daemon answers, but: {error})", self.server.origin()),
            None => self.server.origin().to_string(),
        }
    }

    /// Returns the settings that determine durability and memory. They apply to `pq` and to the baseline.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn settings(&self) -> Result<BTreeMap<String, String>> {
        const SETTINGS: &str = "SELECT name, current_setting(name) FROM pg_settings WHERE name IN ('fsync', \
            'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size', 'wal_level', \
            'wal_compression', 'wal_sync_method', 'commit_delay', 'autovacuum', 'jit', 'max_connections')";
        let rows =
            diesel::dsl::sql::<(Text, Text)>(SETTINGS).load::<(String, String)>(&mut self.connect()?)?;
        Ok(rows.into_iter().collect())
    }

    /// Returns the database's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.database.url()
    }

    /// Returns the queue of this name.
    ///
    /// # Errors
    ///
    /// If the name is invalid.
    pub fn queue(&self, name: &str) -> Result<Queue<Box<RawValue>>> {
        Ok(self.pq.queue(name)?)
    }

    /// Opens a connection that does not belong to the handle.
    ///
    /// # Errors
    ///
    /// If the connection cannot be opened.
    pub fn connect(&self) -> Result<PgConnection> {
        Ok(self.database.connect()?)
    }

    /// Sends a statement on each connection of the handle, all of which must be idle.
    pub(crate) fn query_each_session(&self) -> Result<()> {
        // The pool gives another connection while this one is held.
        fn query_on(pq: &Pq, connections: u32) -> Result<()> {
            if connections == 0 {
                return Ok(());
            }
            pq.store().with_connection(|conn| {
                conn.batch_execute("SELECT 1")?;
                query_on(pq, connections - 1)
            })
        }
        query_on(&self.pq, POOL)
    }

    /// Opens a connection to the server's own database, whose work is not counted with that of the bench.
    ///
    /// # Errors
    ///
    /// If the connection cannot be opened.
    pub fn connect_to_server_database(&self) -> Result<PgConnection> {
        // libpq's message may contain the URL, and with it the password.
        PgConnection::establish(self.server.url())
            .map_err(|_| anyhow!("cannot connect to the server's own database"))
    }

    /// Returns the database's name.
    #[must_use]
    pub fn database_name(&self) -> &str {
        self.database.name()
    }

    /// Empties the table and puts `jobs` jobs into the queue.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn refill(&self, queue: &Queue<Box<RawValue>>, jobs: usize) -> Result<()> {
        let mut conn = self.connect()?;
        conn.batch_execute(TRUNCATE_ALL)?;
        let payload = RawValue::from_string(PAYLOAD.to_owned())?;
        queue.put_many(std::iter::repeat_n(&payload, jobs))?;
        // The next measurement starts with fresh statistics and without dirty pages of this one.
        conn.batch_execute("VACUUM ANALYZE pq.queue")?;
        conn.batch_execute("CHECKPOINT")?;
        Ok(())
    }

    /// Fills the queue as [`Bench::refill`] does, with the checkpoint before the puts.
    ///
    /// Full-page images of the pages are then already in the WAL, as for most pages of a queue in use.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn refill_in_use(&self, queue: &Queue<Box<RawValue>>, jobs: usize) -> Result<()> {
        self.refill(queue, 0)?;
        let payload = RawValue::from_string(PAYLOAD.to_owned())?;
        queue.put_many(std::iter::repeat_n(&payload, jobs))?;
        self.connect()?.batch_execute("VACUUM ANALYZE pq.queue")?;
        Ok(())
    }

    /// Empties the table and inserts `jobs` jobs by SQL, so that this process does not hold them.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn fill_by_sql(&self, queue: &str, jobs: usize) -> Result<()> {
        let mut conn = self.connect()?;
        conn.batch_execute(TRUNCATE_ALL)?;
        put_by_sql(&mut conn, queue, jobs, PAYLOAD)?;
        conn.batch_execute("VACUUM ANALYZE pq.queue")?;
        conn.batch_execute("CHECKPOINT")?;
        Ok(())
    }

    /// Inserts jobs with a payload by SQL, with the checkpoint before, as [`Bench::refill_in_use`] does.
    ///
    /// # Errors
    ///
    /// Database errors.
    pub fn fill_in_use_by_sql(&self, queue: &str, jobs: usize, payload: &str) -> Result<()> {
        let mut conn = self.connect()?;
        conn.batch_execute(TRUNCATE_ALL)?;
        conn.batch_execute("CHECKPOINT")?;
        put_by_sql(&mut conn, queue, jobs, payload)?;
        conn.batch_execute("VACUUM ANALYZE pq.queue")?;
        Ok(())
    }
}

fn put_by_sql(conn: &mut PgConnection, queue: &str, jobs: usize, payload: &str) -> Result<()> {
    let jobs = i64::try_from(jobs)?;
    diesel::sql_query("INSERT INTO pq.queue (q_name, data) SELECT $1, $2::json FROM generate_series(1, $3)")
        .bind::<Text, _>(queue)
        .bind::<Text, _>(payload)
        .bind::<diesel::sql_types::BigInt, _>(jobs)
        .execute(conn)?;
    Ok(())
}

/// Starts the server, and returns why it is not a container.
fn server(options: &Options) -> Result<(Server, Option<Error>)> {
    // A server given by URL is always used.
    match Server::start(&options.clone().kind(Kind::Url)) {
        Err(Error::NoUrl) => {}
        given => return Ok((given?, None)),
    }
    match Server::start(&options.clone().kind(Kind::Container)) {
        Ok(server) => Ok((server, None)),
        Err(Error::NoDocker { .. }) => Ok((Server::start(&options.clone().kind(Kind::Binaries))?, None)),
        // An image that cannot be pulled does not prevent measuring, but the reason is reported.
        Err(error) => match Server::start(&options.clone().kind(Kind::Binaries)) {
            Err(Error::NoBinaries) => Err(error.into()),
            server => Ok((server?, Some(error))),
        },
    }
}

fn common(options: Options) -> Options {
    options.setting("shared_buffers", "512MB").setting("max_wal_size", "4GB")
}

pub(crate) const TRUNCATE_ALL: &str = "TRUNCATE pq.queue, pq.queue_leases, pq.queue_settled, pq.queue_keys, pq.queue_unique, pq.queue_places, pq.queue_buckets, \
     pq.queue_waits";
