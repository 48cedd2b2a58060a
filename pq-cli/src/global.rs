//! The options that every command takes.

use std::time::Duration;

use clap::ArgAction;
use clap::builder::FalseyValueParser;
use pq_diesel::store::Table;
use pq_diesel::{Error, Pq, Settings};

use crate::failure::Failure;
use crate::log::LogOptions;
use crate::{otlp, values};

/// Options that select the database, the schema and the table, and those of the log.
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
    /// Name under which operations are recorded in the audit log. Default: the user and the host.
    #[arg(long, global = true, value_name = "NAME", env = "PQ_ACTOR", hide_env_values = true)]
    pub(crate) actor: Option<String>,
    /// Work through a pooler in transaction mode, such as PgBouncer: the same as --no-listen --no-prepare.
    #[arg(long, global = true, env = "PQ_POOLER", hide_env_values = true, action = ArgAction::SetTrue,
          value_parser = FalseyValueParser::new())]
    pooler: bool,
    /// Do not LISTEN for notifications, but poll.
    #[arg(long, global = true, env = "PQ_NO_LISTEN", hide_env_values = true, action = ArgAction::SetTrue,
          value_parser = FalseyValueParser::new())]
    no_listen: bool,
    /// Do not prepare statements by name.
    #[arg(long, global = true, env = "PQ_NO_PREPARE", hide_env_values = true, action = ArgAction::SetTrue,
          value_parser = FalseyValueParser::new())]
    no_prepare: bool,
    /// Longest time between two polls of a wait. Default: 5s, or 250ms without LISTEN.
    #[arg(long, global = true, value_name = "DURATION", env = "PQ_POLL_INTERVAL", hide_env_values = true,
          value_parser = values::positive_duration)]
    poll_interval: Option<Duration>,
    #[command(flatten)]
    pub(crate) log: LogOptions,
}

impl Global {
    /// Returns the connection string of the option or of the environment.
    pub(crate) fn conninfo(&self) -> Result<String, Failure> {
        let given = self.database_url.as_deref().map(|url| Settings::new("--database-url", url));
        let settings = given.unwrap_or_else(Settings::from_env);
        settings.check()?;
        Ok(settings.conninfo().to_owned())
    }

    /// Returns a handle, and fails if the server cannot be reached.
    pub(crate) fn connect(&self) -> Result<Pq, Failure> {
        self.acting(self.on_database()?.connect()?)
    }

    /// Returns a handle with a pool of at most `connections` connections.
    pub(crate) fn connect_with(&self, connections: u32) -> Result<Pq, Failure> {
        self.acting(self.on_database()?.pool_size(connections).connect()?)
    }

    /// Returns a handle with a pool of at most `connections` connections, for a measurement: its puts are not counted.
    pub(crate) fn connect_to_measure(&self, connections: u32) -> Result<Pq, Failure> {
        self.acting(self.on_database()?.pool_size(connections).count_puts(false).connect()?)
    }

    /// Returns a handle whose calls wait at most `timeout` for a connection.
    pub(crate) fn connect_within(&self, connections: u32, timeout: Duration) -> Result<Pq, Failure> {
        self.acting(self.on_database()?.pool_size(connections).connect_timeout(timeout).connect()?)
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
        self.acting(builder.connect_timeout(connect).call_timeout(call).build()?)
    }

    /// Returns a handle without a connection, to check names before connecting.
    pub(crate) fn detached(&self) -> Result<Pq, Error> {
        self.builder().build()
    }

    fn on_database(&self) -> Result<pq_diesel::Builder, Failure> {
        Ok(self.builder().url(&self.conninfo()?))
    }

    /// Returns the handle that records its operations.
    fn acting(&self, pq: Pq) -> Result<Pq, Failure> {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        if let Some(actor) = self.actor.as_ref().filter(|actor| !actor.is_empty()) {
            return Ok(pq.acting_as(actor)?);
        }
        let user = variable("USER").or_else(|| variable("LOGNAME"));
        let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
        let host = gethostname::gethostname();
        // A name of the environment may be longer than that of an actor.
        let actor: String = format!("{user}@{}", host.to_string_lossy()).chars().take(50).collect();
        Ok(pq.acting_as(&actor)?)
    }

    fn builder(&self) -> pq_diesel::Builder {
        let builder = otlp::traced(Pq::builder()).schema(&self.schema).table(&self.table);
        let builder =
            builder.listen(!self.pooler && !self.no_listen).prepare(!self.pooler && !self.no_prepare);
        match self.poll_interval {
            Some(interval) => builder.poll_interval(interval),
            None => builder,
        }
    }
}
