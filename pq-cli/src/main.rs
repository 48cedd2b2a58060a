//! The `pq` command: puts, gets and works jobs, and manages queues, workers and the schema.

mod commands;
mod confirm;
mod exec;
mod failure;
mod global;
mod input;
mod job_output;
mod output;
mod pid_file;
mod signals;
mod worker_output;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use crate::commands::Command;
use crate::failure::EXIT_CODES;
use crate::global::Global;

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
    let args = Args::parse();
    let level = match args.command {
        _ if args.global.debug => LevelFilter::DEBUG,
        // A worker runs unattended, so it reports why it does nothing.
        Command::Work(_) => LevelFilter::WARN,
        _ => LevelFilter::OFF,
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(level).init();
    match args.command.run(&args.global) {
        Ok(code) => code,
        Err(failure) => {
            output::print_error(&failure.to_string());
            failure.exit_code()
        }
    }
}
