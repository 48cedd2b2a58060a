//! The `pq` command: puts, gets and works jobs, and manages queues, workers and the schema.

mod commands;
mod confirm;
mod encoding;
mod exec;
mod exec_guard;
mod exec_output;
mod failure;
mod filtered;
mod global;
mod input;
mod job_output;
mod log;
#[cfg_attr(not(feature = "otlp"), path = "without_otlp.rs")]
mod otlp;
mod output;
mod pid_file;
mod signals;
mod values;
mod worker_output;

use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::commands::Command;
use crate::failure::{EXIT_CODES, Failure};
use crate::global::Global;
use crate::otlp::Export;

/// A transactional job queue on PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "pq", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    commands::completions::answer(command);
    let args = parse().unwrap_or_else(|error| error.exit());
    match run(&args) {
        Ok(code) => code,
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            output::print_error(&match failure.advice() {
                Some(advice) => format!("{failure}; {advice}"),
                None => failure.to_string(),
            });
            failure.exit_code()
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Failure> {
    let export = if args.command.exports_spans() { Export::start() } else { Ok(None) };
    let spans = export.as_ref().ok().and_then(Option::as_ref).map(Export::layer);
    args.global.log.init(args.command.log_level(), spans)?;
    if let Err(reason) = &export {
        tracing::warn!(reason, "no spans are exported");
    }
    args.command.run(&args.global)
}

/// Parses the command line.
fn parse() -> Result<Args, clap::Error> {
    let parsed = command().try_get_matches().and_then(|mut matches| {
        Args::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command()))
    });
    parsed.map_err(|mut error| {
        // clap suggests to pass an unknown option as a value, after `--`. No value of this command looks like that.
        if error.kind() == ErrorKind::UnknownArgument {
            error.remove(ContextKind::Suggested);
        }
        error
    })
}

/// Returns the definition of the command line.
fn command() -> clap::Command {
    complete_definition(Args::command())
}

/// Lets every argument take a negative number as its value, such as the payload `-1`, completes the names of queues,
/// and lists the options that every command takes behind its own.
fn complete_definition(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| match arg.get_action().takes_values() {
            true => commands::completions::with_queues(arg.allow_negative_numbers(true)),
            false => arg,
        })
        .mut_args(|arg| if arg.is_global_set() { arg.help_heading("Options of every command") } else { arg })
        .mut_subcommands(complete_definition)
}
