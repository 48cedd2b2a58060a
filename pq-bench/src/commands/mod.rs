//! The subcommands, a file or folder each.

mod adapter;
mod million;
mod report;
mod run;

use anyhow::Result;
use clap::Subcommand;

/// What `pq-bench` does.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Is one of the queues that a public harness compares: see docs/harness.md
    Adapter(adapter::Arguments),
    /// Measures, and keeps what it found in a file
    Run(run::Arguments),
    /// Writes the page of benchmarks and its plots from what runs have found
    Report(report::Arguments),
    /// Is the process whose memory the scenario `memory` measures
    #[command(hide = true)]
    Million(million::Arguments),
}

impl Command {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Adapter(arguments) => adapter::run(&arguments),
            Self::Run(arguments) => run::run(&arguments),
            Self::Report(arguments) => report::run(&arguments),
            Self::Million(arguments) => million::run(&arguments),
        }
    }
}
