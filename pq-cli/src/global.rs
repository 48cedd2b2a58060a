//! The options that every command takes.

use std::time::Duration;

use pq_diesel::store::Table;
use pq_diesel::{Error, Pq, Settings};

use crate::failure::Failure;

/// Options that select the database, the schema and the table.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Connection string: a URL or a libpq key=value string. Default: PQ_URL, TPQ_URL, TPQ_HOST with TPQ_PORT,
    /// TPQ_DB, TPQ_USER and TPQ_PASS, DATABASE_URL, or the libpq variables, in this order. Other users can see
    /// command-line arguments, so pass a password in the environment.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Schema of the job table.
    #[arg(long, global = true, value_name = "NAME", default_value = Table::DEFAULT_SCHEMA)]
    pub(crate) schema: String,
    /// Name of the job table.
    #[arg(long, global = true, value_name = "NAME", default_value = Table::DEFAULT_NAME)]
    pub(crate) table: String,
    /// Print debug log events to standard error.
    #[arg(long, global = true)]
    pub(crate) debug: bool,
}

impl Global {
    /// Returns the connection string of the option or of the environment.
    pub(crate) fn conninfo(&self) -> String {
        self.database_url.clone().unwrap_or_else(|| Settings::from_env().conninfo().to_owned())
    }

    /// Returns a handle, and fails if the server cannot be reached.
    pub(crate) fn connect(&self) -> Result<Pq, Failure> {
        Ok(self.builder().url(&self.conninfo()).connect()?)
    }

    /// Returns a handle with a pool of at most `connections` connections.
    pub(crate) fn connect_with(&self, connections: u32) -> Result<Pq, Failure> {
        Ok(self.builder().url(&self.conninfo()).pool_size(connections).connect()?)
    }

    /// Returns a handle whose calls wait at most `timeout` for a connection.
    pub(crate) fn connect_within(&self, connections: u32, timeout: Duration) -> Result<Pq, Failure> {
        let builder = self.builder().url(&self.conninfo()).pool_size(connections);
        Ok(builder.connect_timeout(timeout).connect()?)
    }

    /// Returns a handle to this database without connecting yet. Its calls wait at most `connect` for a connection, and
    /// at most `call` for each answer of the server.
    pub(crate) fn handle(
        &self,
        conninfo: &str,
        connections: u32,
        connect: Duration,
        call: Duration,
    ) -> Result<Pq, Failure> {
        let builder = self.builder().url(conninfo).pool_size(connections);
        Ok(builder.connect_timeout(connect).call_timeout(call).build()?)
    }

    /// Returns a handle without a connection, to check names before connecting.
    pub(crate) fn detached(&self) -> Result<Pq, Error> {
        self.builder().build()
    }

    fn builder(&self) -> pq_diesel::Builder {
        Pq::builder().schema(&self.schema).table(&self.table)
    }
}
