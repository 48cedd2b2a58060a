//! `pq completions` and `pq man`: generated from the definitions of the options.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use pq_diesel::{Pq, Settings};

use super::examples;
use crate::Args;
use crate::failure::Failure;
use crate::output;

/// The environment variable by which a script asks for candidates.
const VARIABLE: &str = "PQ_COMPLETE";

/// How long a completion waits for the database.
const COMPLETE_WITHIN: Duration = Duration::from_secs(2);

/// Print a completion script for a shell.
///
/// The script asks `pq` for candidates, among them the queues of the database.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq completions bash > /etc/bash_completion.d/pq"))]
pub(crate) struct Completions {
    /// Shell.
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Result<ExitCode, Failure> {
        let failed = |error: io::Error| Failure::Io(format!("cannot make the script: {error}"));
        let shells = Shells::builtins();
        let shell = shells
            .completer(&self.shell.to_string())
            .ok_or_else(|| Failure::Usage(format!("invalid shell {}: it has no completions", self.shell)))?;
        let mut text = Vec::new();
        shell.write_registration(VARIABLE, "pq", "pq", "pq", &mut text).map_err(failed)?;
        output::print(String::from_utf8_lossy(&text).trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Answers a completion script that asks for candidates, and ends the process. Returns at once if none asks.
pub(crate) fn answer(command: fn() -> clap::Command) {
    CompleteEnv::with_factory(move || command().mut_subcommands(with_hidden_aliases))
        .var(VARIABLE)
        .complete();
}

/// Hides the aliases of a command, which would be offered instead of its name. They are still understood.
fn with_hidden_aliases(command: clap::Command) -> clap::Command {
    let aliases: Vec<String> = command.get_all_aliases().map(str::to_owned).collect();
    command.visible_alias(None).aliases(aliases)
}

/// Lets the arguments that name a queue complete the queues of the database.
pub(crate) fn with_queues(arg: clap::Arg) -> clap::Arg {
    match arg.get_id().as_str() {
        "queue" | "queues" | "from" | "to" => arg.add(ArgValueCompleter::new(queues)),
        _ => arg,
    }
}

/// Returns the queues that begin with `current`. Without an answer of the database there are none.
fn queues(current: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let mut words = words.iter().skip_while(|word| *word != name);
        words.nth(1).cloned()
    };
    let url = option("--database-url").unwrap_or_else(|| Settings::from_env().conninfo().to_owned());
    let mut builder = Pq::builder().url(&url).listen(false).prepare(false);
    builder = builder.connect_timeout(COMPLETE_WITHIN).call_timeout(COMPLETE_WITHIN);
    if let Some(schema) = option("--schema") {
        builder = builder.schema(&schema);
    }
    if let Some(table) = option("--table") {
        builder = builder.table(&table);
    }
    let counts = builder.build().and_then(|pq| pq.overview()).unwrap_or_default();
    let names = counts.into_iter().map(|queue| queue.queue.to_string());
    let begins = |name: &String| name.starts_with(&*current.to_string_lossy());
    // A terminal would execute the control characters of a name.
    names.filter(begins).filter(|name| output::escape(name) == *name).map(CompletionCandidate::new).collect()
}

/// Write the man pages, one per command, into a directory.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq man /usr/local/share/man/man1"))]
pub(crate) struct Man {
    /// Target directory, created if it is missing.
    folder: PathBuf,
}

impl Man {
    pub(crate) fn run(&self) -> Result<ExitCode, Failure> {
        let failed = |error: io::Error| {
            Failure::Io(format!("cannot write the man pages to {}: {error}", self.folder.display()))
        };
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        clap_mangen::generate_to(Args::command(), &self.folder).map_err(failed)?;
        Ok(ExitCode::SUCCESS)
    }
}
