//! The subcommands, a file or folder each.

mod compare;
mod gate;
mod run;

use anyhow::Result;
use clap::Subcommand;

/// What `pq-bench` does.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measures, and keeps what it found in a file
    Run(run::Arguments),
    /// Tells what changed from the runs of one revision to those of another
    Compare(compare::Arguments),
    /// Holds what a put and a take cost against the committed thresholds
    Gate(gate::Arguments),
    /// What the gate counts the instructions of
    #[command(hide = true)]
    GateChild(gate::ChildArguments),
}

impl Command {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Run(arguments) => run::run(&arguments),
            Self::Compare(arguments) => compare::run(&arguments),
            Self::Gate(arguments) => gate::run(&arguments),
            Self::GateChild(arguments) => gate::run_child(&arguments),
        }
    }
}
