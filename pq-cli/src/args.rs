//! The words of the command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};
use pq_diesel::{Error, Pq, Settings, Table};

use crate::failure::Failure;

/// What every command's help ends with.
const EXIT_CODES: &str = "\
Exit status:
  0    done; for get, with a job
  1    get: there was no job in time
  2    usage: a word, a name, a time or a payload that cannot be used
  3    the database cannot be reached
  4    the table is not there: run `pq migrate`
  5    the database refused
  6    reading or writing failed; a job whose line could not be written is back in the queue
  130  interrupted; jobs that were not written out are back in the queue";

/// A transactional job queue on PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "pq", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

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

    /// A handle that is connected to nothing.
    pub(crate) fn detached(&self) -> Result<Pq, Error> {
        self.builder().build()
    }

    fn builder(&self) -> pq_diesel::Builder {
        Pq::builder().schema(&self.schema).table(&self.table)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the table, or bring it up to date; safe at any time, from any number of processes.
    #[command(after_help = format!("Example:\n  pq migrate --schema app --table work\n\n{EXIT_CODES}"))]
    Migrate,
    /// Print the SQL that `migrate` runs on an empty database.
    #[command(after_help = format!("Example:\n  pq schema --schema app | psql -v ON_ERROR_STOP=1\n\n{EXIT_CODES}"))]
    Schema,
    /// Put jobs whose payload is JSON, and print their ids, one a line.
    #[command(
        visible_alias = "produce",
        after_help = format!(
            "Examples:\n  echo '{{\"order\": 42}}' | pq put orders --schedule-at 5m\n  \
             pq put orders --file orders.jsonl --lines --priority 3\n\n{EXIT_CODES}")
    )]
    Put(Put),
    /// Get jobs, and print the payload of each as one line of JSON.
    ///
    /// The jobs are gone when their lines have been written; if they cannot be, they are back.
    #[command(
        visible_alias = "consume",
        after_help = format!(
            "Examples:\n  pq get orders\n  pq get orders --wait 0 --count 100 | while read -r order; do …; done\n\n\
             {EXIT_CODES}")
    )]
    Get(Get),
    /// See the queue work: a job for every file of a folder, a worker killed half way, nothing lost.
    ///
    /// Runs on a private PostgreSQL in a temporary directory, from the server's binaries on this
    /// machine or in a container, or on the database of --database-url, and leaves nothing behind.
    #[command(after_help = format!("Example:\n  pq demo --jobs-from ~/project --workers 8\n\n{EXIT_CODES}"))]
    Demo(Demo),
    #[command(hide = true)]
    DemoWorker,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    /// The queue's name: any text of 1 to 1024 bytes.
    pub(crate) queue: String,
    /// Where the JSON is; `-` is standard input.
    #[arg(long, value_name = "PATH", default_value = "-")]
    pub(crate) file: PathBuf,
    /// Put each line as a job of its own, all or none; empty lines are passed over.
    #[arg(long)]
    pub(crate) lines: bool,
    /// Not before this time: a span such as 5m, 1h30m or 2d, or an RFC 3339 instant.
    #[arg(long, value_name = "TIME")]
    pub(crate) schedule_at: Option<String>,
    /// Wanted by this time: an ordering hint.
    #[arg(long, value_name = "TIME")]
    pub(crate) expected_at: Option<String>,
    /// Higher goes first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) priority: i32,
    /// Create the table first, if it is not there.
    #[arg(long)]
    pub(crate) create: bool,
    /// How payloads are stored: json, or pickle for the `name/pickle` queues of Python's pq.
    #[arg(long, default_value = "json")]
    pub(crate) codec: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// The queue's name.
    pub(crate) queue: String,
    /// How long to wait for a job: so many seconds, 0 for ever, negative not at all.
    #[arg(long, value_name = "SECONDS", default_value_t = -1.0, action = ArgAction::Set,
          allow_negative_numbers = true, value_parser = seconds)]
    pub(crate) wait: f64,
    /// Up to so many jobs at once.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) count: NonZeroUsize,
    /// How payloads are stored: json or pickle.
    #[arg(long, default_value = "json")]
    pub(crate) codec: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// The folder whose files become jobs; what git ignores is passed over.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) jobs_from: PathBuf,
    /// How many worker processes.
    #[arg(long, value_name = "N", default_value = "4")]
    pub(crate) workers: NonZeroUsize,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
    if seconds.is_finite() && seconds < 1e9 {
        Ok(seconds)
    } else {
        Err("it is not below 1000000000 seconds; 0 waits for ever".to_owned())
    }
}
