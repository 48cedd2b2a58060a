//! The words that every command takes.

use std::time::Duration;

use pq_diesel::{Error, Pq, Settings, Table};

use crate::failure::Failure;

/// Where the jobs are.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The database, as a URL or a libpq key=value string. Unless given: PQ_URL, TPQ_URL, TPQ_HOST
    /// with TPQ_PORT, TPQ_DB, TPQ_USER and TPQ_PASS, DATABASE_URL, or libpq's own variables. A
    /// password is better kept in the environment, for others can see a command's words.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// The schema of the table.
    #[arg(long, global = true, value_name = "NAME", default_value = Table::DEFAULT_SCHEMA)]
    pub(crate) schema: String,
    /// The table of the jobs.
    #[arg(long, global = true, value_name = "NAME", default_value = Table::DEFAULT_NAME)]
    pub(crate) table: String,
    /// Tell on standard error what is going on.
    #[arg(long, global = true)]
    pub(crate) debug: bool,
}

impl Global {
    /// The connection string that was given, or that the environment holds.
    pub(crate) fn conninfo(&self) -> String {
        self.database_url.clone().unwrap_or_else(|| Settings::from_env().conninfo().to_owned())
    }

    /// A handle, after seeing that the server can be reached.
    pub(crate) fn connect(&self) -> Result<Pq, Failure> {
        Ok(self.builder().url(&self.conninfo()).connect()?)
    }

    /// A handle with up to so many connections, after seeing that the server can be reached.
    pub(crate) fn connect_with(&self, connections: u32) -> Result<Pq, Failure> {
        Ok(self.builder().url(&self.conninfo()).pool_size(connections).connect()?)
    }

    /// The same, with calls that wait no longer than this for a connection.
    pub(crate) fn connect_within(&self, connections: u32, timeout: Duration) -> Result<Pq, Failure> {
        let builder = self.builder().url(&self.conninfo()).pool_size(connections);
        Ok(builder.connect_timeout(timeout).connect()?)
    }

    /// A handle that is connected to nothing.
    pub(crate) fn detached(&self) -> Result<Pq, Error> {
        self.builder().build()
    }

    fn builder(&self) -> pq_diesel::Builder {
        Pq::builder().schema(&self.schema).table(&self.table)
    }
}
