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

/// What each job carries: 24 bytes.
pub const PAYLOAD: &str = "{\"n\":1234567,\"s\":\"abcd\"}";

/// A payload of so many bytes, or of [`PAYLOAD`]'s where that is more. It is of letters at random, always the same
/// ones, which PostgreSQL cannot compress.
#[must_use]
pub fn payload_of(bytes: usize) -> String {
    const AROUND: &str = "{\"n\":1234567,\"s\":\"\"}";
    let mut random = fastrand::Rng::with_seed(7);
    let letters: String =
        (0..bytes.max(PAYLOAD.len()) - AROUND.len()).map(|_| random.alphanumeric()).collect();
    format!("{{\"n\":1234567,\"s\":\"{letters}\"}}")
}

/// How many connections the handle has at most.
const POOL: u32 = 32;

/// A throwaway server whose commits reach the disk, and the queue's table on it.
pub struct Bench {
    // Dropped in this order: connections, database, server.
    /// The handle.
    pub pq: Pq,
    database: Database,
    server: Server,
    /// Why it is no container, where a daemon answered.
    container_error: Option<Error>,
}

impl Bench {
    /// Uses the server of `PQ_TEST_DATABASE_URL` where that is set; else starts a container of `PQ_TEST_IMAGE` and
    /// `PQ_TEST_IMAGE_TAG` where a Docker daemon answers, else a private cluster.
    ///
    /// # Errors
    ///
    /// Where no server can be had, or the table cannot be made.
    pub fn start() -> Result<Self> {
        let (server, container_error) = server(&common(Options::durable()))?;
        Self::on(server, container_error)
    }

    /// As [`Bench::start`], but commits need not reach the disk: for what is counted and not timed.
    ///
    /// # Errors
    ///
    /// As [`Bench::start`].
    pub fn throwaway() -> Result<Self> {
        let (server, container_error) = server(&common(Options::throwaway()))?;
        Self::on(server, container_error)
    }

    /// Starts a second server, with settings of its own: of the same kind as this one, or from the programs on
    /// this machine where this one was given.
    ///
    /// # Errors
    ///
    /// Where none can be started, or the table cannot be made.
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

    /// Which server it is, and why it is no container where a daemon answered that gave none.
    #[must_use]
    pub fn origin(&self) -> String {
        match &self.container_error {
            Some(error) => format!("{} (a Docker daemon answers, but: {error})", self.server.origin()),
            None => self.server.origin().to_string(),
        }
    }

    /// The settings of the server that say how durable it is, and how much memory it has: the same for all that is
    /// compared.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn settings(&self) -> Result<BTreeMap<String, String>> {
        const SETTINGS: &str = "SELECT name, current_setting(name) FROM pg_settings WHERE name IN ('fsync', \
            'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size', 'wal_level', \
            'wal_compression', 'wal_sync_method', 'commit_delay', 'autovacuum', 'jit', 'max_connections')";
        let rows =
            diesel::dsl::sql::<(Text, Text)>(SETTINGS).load::<(String, String)>(&mut self.connect()?)?;
        Ok(rows.into_iter().collect())
    }

    /// The database's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.database.url()
    }

    /// The queue of this name.
    ///
    /// # Errors
    ///
    /// Where it is no name.
    pub fn queue(&self, name: &str) -> Result<Queue<Box<RawValue>>> {
        Ok(self.pq.queue(name)?)
    }

    /// A connection beside the handle's.
    ///
    /// # Errors
    ///
    /// Where none can be had.
    pub fn connect(&self) -> Result<PgConnection> {
        Ok(self.database.connect()?)
    }

    /// Sends a statement on each connection of the handle, which must all be free.
    pub(crate) fn query_each_session(&self) -> Result<()> {
        // Who holds one is given another.
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

    /// A connection to the server's own database: what is done on it is not counted with what is done here.
    ///
    /// # Errors
    ///
    /// Where none can be had.
    pub fn connect_to_server_database(&self) -> Result<PgConnection> {
        // libpq's own text may quote the URL, and with it the password.
        PgConnection::establish(self.server.url())
            .map_err(|_| anyhow!("the server's own database cannot be reached"))
    }

    /// The database's name.
    #[must_use]
    pub fn database_name(&self) -> &str {
        self.database.name()
    }

    /// Empties the table, and fills the queue with so many jobs.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn refill(&self, queue: &Queue<Box<RawValue>>, jobs: usize) -> Result<()> {
        let mut conn = self.connect()?;
        conn.batch_execute(TRUNCATE_ALL)?;
        let payload = RawValue::from_string(PAYLOAD.to_owned())?;
        queue.put_many(std::iter::repeat_n(&payload, jobs))?;
        // The next measurement begins with statistics, and without the dirty pages of this one.
        conn.batch_execute("VACUUM ANALYZE pq.queue")?;
        conn.batch_execute("CHECKPOINT")?;
        Ok(())
    }

    /// As [`Bench::refill`], but with the checkpoint before the jobs are put: their pages have been written to the
    /// WAL whole by then, as those of a queue in use have mostly.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn refill_in_use(&self, queue: &Queue<Box<RawValue>>, jobs: usize) -> Result<()> {
        self.refill(queue, 0)?;
        let payload = RawValue::from_string(PAYLOAD.to_owned())?;
        queue.put_many(std::iter::repeat_n(&payload, jobs))?;
        self.connect()?.batch_execute("VACUUM ANALYZE pq.queue")?;
        Ok(())
    }

    /// Empties the table, and fills the queue with so many jobs without this process holding them.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn fill_by_sql(&self, queue: &str, jobs: usize) -> Result<()> {
        let mut conn = self.connect()?;
        conn.batch_execute(TRUNCATE_ALL)?;
        put_by_sql(&mut conn, queue, jobs, PAYLOAD)?;
        conn.batch_execute("VACUUM ANALYZE pq.queue")?;
        conn.batch_execute("CHECKPOINT")?;
        Ok(())
    }

    /// As [`Bench::fill_by_sql`], with this payload, and as [`Bench::refill_in_use`] with the checkpoint before.
    ///
    /// # Errors
    ///
    /// The database's.
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

/// The server, and why it is no container.
fn server(options: &Options) -> Result<(Server, Option<Error>)> {
    // What is given is meant, and asks for nothing else.
    match Server::start(&options.clone().kind(Kind::Url)) {
        Err(Error::NoUrl) => {}
        given => return Ok((given?, None)),
    }
    match Server::start(&options.clone().kind(Kind::Container)) {
        Ok(server) => Ok((server, None)),
        Err(Error::NoDocker { .. }) => Ok((Server::start(&options.clone().kind(Kind::Binaries))?, None)),
        // An image that cannot be pulled is no reason to measure nothing, and none to hide.
        Err(error) => match Server::start(&options.clone().kind(Kind::Binaries)) {
            Err(Error::NoBinaries) => Err(error.into()),
            server => Ok((server?, Some(error))),
        },
    }
}

fn common(options: Options) -> Options {
    options.setting("shared_buffers", "512MB").setting("max_wal_size", "4GB")
}

pub(crate) const TRUNCATE_ALL: &str =
    "TRUNCATE pq.queue, pq.queue_leases, pq.queue_settled, pq.queue_keys, pq.queue_unique";
