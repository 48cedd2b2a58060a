//! A server to measure on, with the queue's table in a database of its own.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use pq_diesel::{Pq, Queue};
use pq_testing::{Database, Options, Server};
use serde_json::value::RawValue;

/// What each job carries: 24 bytes.
pub const PAYLOAD: &str = "{\"n\":1234567,\"s\":\"abcd\"}";

/// A throwaway server whose commits reach the disk, and the queue's table on it.
pub struct Bench {
    // Dropped in this order: connections, database, server.
    /// The handle.
    pub pq: Pq,
    database: Database,
    server: Server,
}

impl Bench {
    /// Starts a server, or uses the one of `PQ_TEST_DATABASE_URL`.
    ///
    /// # Errors
    ///
    /// Where no server can be had, or the table cannot be made.
    pub fn start() -> Result<Self> {
        Self::on(Options::durable())
    }

    /// As [`Bench::start`], but commits need not reach the disk: for what is counted and not timed.
    ///
    /// # Errors
    ///
    /// As [`Bench::start`].
    pub fn throwaway() -> Result<Self> {
        Self::on(Options::throwaway())
    }

    fn on(options: Options) -> Result<Self> {
        let options = options.setting("shared_buffers", "512MB").setting("max_wal_size", "4GB");
        let server = Server::start(&options)?;
        let database = server.database()?;
        let pq = Pq::builder().url(database.url()).pool_size(32).connect()?;
        pq.migrate()?;
        Ok(Self { pq, database, server })
    }

    /// Which server it is.
    #[must_use]
    pub fn origin(&self) -> String {
        self.server.origin().to_string()
    }

    /// The settings of the server that say how durable it is, and how much memory it has: the same for all that is
    /// compared.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn settings(&self) -> Result<BTreeMap<String, String>> {
        const TOLD: &str = "SELECT name, current_setting(name) FROM pg_settings WHERE name IN ('fsync', \
            'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size', 'wal_level', \
            'wal_compression', 'wal_sync_method', 'commit_delay', 'autovacuum', 'jit', 'max_connections')";
        let told = diesel::dsl::sql::<(Text, Text)>(TOLD).load::<(String, String)>(&mut self.connect()?)?;
        Ok(told.into_iter().collect())
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

    /// A connection to the server's own database: what is done on it is not counted with what is done here.
    ///
    /// # Errors
    ///
    /// Where none can be had.
    pub fn connect_beside(&self) -> Result<PgConnection> {
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
        conn.batch_execute(EMPTY)?;
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
        conn.batch_execute(EMPTY)?;
        conn.batch_execute(&format!(
            "INSERT INTO pq.queue (q_name, data) SELECT '{queue}', '{PAYLOAD}' FROM generate_series(1, {jobs})"
        ))?;
        conn.batch_execute("VACUUM ANALYZE pq.queue")?;
        conn.batch_execute("CHECKPOINT")?;
        Ok(())
    }
}

pub(crate) const EMPTY: &str =
    "TRUNCATE pq.queue, pq.queue_leases, pq.queue_settled, pq.queue_keys, pq.queue_unique";
