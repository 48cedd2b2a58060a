//! The command `pq-bench`; see `pq-bench --help`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command prints its results")]

mod commands;

use anyhow::Result;
use clap::Parser;

use commands::Command;

/// Measure the queue beside baseline SQL on the same server
#[derive(Parser)]
#[command(name = "pq-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> Result<()> {
    Arguments::parse().command.run()
}
